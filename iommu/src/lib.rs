//! Policy of Portcullis: who may let a device do DMA, and where that DMA may land.
//!
//! This crate knows groups, grants, claims and contexts; it knows no register. Hardware is behind
//! [`driver::Driver`], whose changing methods want a [`driver::Permit`] that only this crate can make:
//! nothing attaches or maps past it.

#![no_std]
#![forbid(unsafe_code)]

mod bars;
pub mod claim;
pub mod coherency;
pub mod context;
pub mod driver;
pub mod entries;
pub mod error;
pub mod event;
pub mod external;
pub mod fault;
pub mod group;
pub mod handle;
pub mod host;
mod lines;
pub mod memory;
mod operate;
pub mod ownership;
pub mod pci;
pub mod policy;
pub mod removals;
mod revocation;
pub mod session;

pub use bars::BARS;
pub use claim::{Claim, QuiescedGroup};
pub use coherency::{Because, Coherency, Notice};
pub use context::ContextHandle;
pub use driver::{Aperture, Debts, Driver, Outcome, PageSizes, Permit, Run, Target};
pub use entries::{EntryDriver, Exchanged, Leaf};
pub use error::Error;
pub use event::Event;
pub use external::{ExternalUser, Trusted};
pub use fault::{Fault, FaultReason};
pub use group::{GroupId, VmId};
pub use handle::{Handle, HandleTable, Rights};
pub use host::{DmaUse, HostBinding};
pub use memory::{Owed, REGIONS, RegionHandle, RegionInfo, RegionPart, SeenRegion};
pub use ownership::{Owner, UserId};
pub use policy::Iommu;
pub use removals::{Removals, Unheard};
pub use session::{Inside, LeafEntry, LeafTable, Seat, Session};
