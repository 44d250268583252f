//! Driver for Intel VT-d (Virtualization Technology for Directed I/O) in legacy mode.
//!
//! [`Dmar`] finds the units in firmware's table, [`VtdIommu::bring_up_all`] takes them over with every
//! device blocked, and from then on the policy of [`portcullis_iommu`] drives them through
//! [`portcullis_iommu::Driver`].

#![no_std]
#![forbid(unsafe_code)]

mod common;
mod context;
mod device_tables;
pub mod dmar;
mod domain;
mod driver;
mod fault;
mod invalidation_queue;
pub mod placement;
pub mod remapping;
mod remapping_unit;
pub mod second_stage;
pub mod snoop;
pub mod spec;
mod switch;
mod table_access;
mod unit;

pub use context::{ContextSpec, VtdContext, VtdPrepared};
pub use dmar::{Dmar, DmarError};
pub use placement::{UnitScope, UnitSet};
pub use remapping::{MachineConfig, UnitAt, UnitConfig, VtdIommu};
pub use second_stage::{Format, SecondStage};
pub use snoop::{Coherency, SnoopControl};
pub use table_access::TableAccess;
