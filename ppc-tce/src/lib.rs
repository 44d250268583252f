//! Driver of the POWER host bridges' DMA translation: TCE tables of PHB3, PHB4 and PHB5.
//!
//! A device belongs to a partitionable endpoint (PE); each PE has two translation validation entries
//! (TVE), chosen by address bit 59; a TVE points to a tree of translation control entries (TCE). The
//! bridge caches TCEs until it is told to kill them. [`TceIommu`] drives one bridge behind
//! [`portcullis_iommu::Driver`]: PEs and TVEs through the platform's [`Firmware`], kills through the
//! bridge's registers.
//!
//! Sources: *I/O Design Architecture v2 and v3* (IODA2, IODA3), the *PHB3* and *PHB4 Functional
//! Specification*; where these are silent, what the open firmware for these machines is seen to do.

#![no_std]
#![forbid(unsafe_code)]

pub mod context;
pub mod driver;
mod entries;
pub mod firmware;
pub mod generation;
pub mod geometry;
pub mod hcall;
pub mod kill;
pub mod spec;
pub mod table;

mod fault;
mod pe;
mod window;

pub use context::{Context, ContextSpec};
pub use driver::{Config, Prepared, TceIommu};
pub use firmware::{Firmware, FirmwareError, PeNumber, PestEntry, TableRoot, WindowNumber};
pub use generation::Generation;
pub use geometry::Geometry;
pub use hcall::Hypercalls;
pub use spec::tce::Tce;
pub use table::Table;
