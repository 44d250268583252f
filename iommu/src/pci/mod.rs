//! PCI Express, as far as ownership needs it: who must share a group, and who does no DMA any more.
//!
//! Sections are those of the PCI Express Base Specification 6.0, unless another text is named.

mod capabilities;
pub mod facts;
mod function;
pub mod groups;
pub mod quiesce;
mod reset;
mod topology;
mod union;

pub use facts::{Acs, BusRange, PciFunction, PciKind};
pub use groups::assign_groups;
pub use quiesce::{Method, QuiesceError, Quiesced, quiesce};
pub use topology::TopologyError;
