//! Policy of Portcullis: who may let a device do DMA, and where that DMA may land.
//!
//! This crate knows groups, grants, claims and contexts; it knows no register. Hardware is behind
//! [`driver::Driver`], whose changing methods want a [`driver::Permit`] that only this crate can make:
//! nothing attaches or maps past it.

#![no_std]
#![forbid(unsafe_code)]

pub mod context;
pub mod driver;
pub mod error;
pub mod fault;
pub mod group;
pub mod memory;
pub mod pci;
pub mod policy;
pub mod removals;

pub use context::ContextHandle;
pub use driver::{Aperture, Debts, Driver, Outcome, PageSizes, Permit, Run, Target};
pub use error::Error;
pub use fault::{Fault, FaultReason};
pub use group::{GroupId, VmId};
pub use memory::{REGIONS, RegionHandle, RegionInfo};
pub use policy::{Claim, Iommu};
pub use removals::{Removals, Unheard};
