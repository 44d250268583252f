//! Driver for Intel VT-d (Virtualization Technology for Directed I/O) in legacy mode.
//!
//! [`Dmar`] finds the units in firmware's table, [`VtdIommu::bring_up`] takes one over with every
//! device blocked, and from then on the policy of [`portcullis_iommu`] drives it through
//! [`portcullis_iommu::Driver`].

#![no_std]
#![forbid(unsafe_code)]

mod device_tables;
pub mod dmar;
mod domain;
mod driver;
mod fault;
mod invalidation_queue;
pub mod remapping;
pub mod second_stage;
pub mod snoop;
pub mod spec;
mod table_access;
mod unit;

pub use dmar::{Dmar, DmarError};
pub use remapping::{ContextSpec, UnitConfig, VtdContext, VtdIommu, VtdPrepared};
pub use second_stage::{Format, SecondStage};
pub use snoop::{Coherency, SnoopControl};
pub use table_access::TableAccess;
