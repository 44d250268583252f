//! What a guest's cache instructions and caching attributes mean, decided by whom its devices belong to.
//!
//! While hardware keeps all DMA of a guest coherent, its WBINVD has nothing to do, and its memory is write-back
//! whatever it says. Only a guest that owns a device which may go past the caches has a claim to real flushes, and to
//! memory types of its own. The `iommu` says which it is, by a notice with an epoch. Nothing here touches a CPU.

pub mod attributes;
pub mod control;
pub mod decode;
pub mod guest;
pub mod instruction;
pub mod memory_type;
pub mod mtrr;

pub use attributes::{GuestRegisters, HardwareRegisters, Planner, Rebuild};
pub use control::{CacheControl, Entry, NoCacheControl};
pub use decode::CacheInstruction;
pub use guest::{OnCpu, Shared, Tables};
pub use instruction::{ByNotice, Caches, Counts, NotObeyed, Notices, Obeyed};
pub use memory_type::{MemoryType, Pat};
pub use mtrr::Mtrrs;
pub use portcullis_hal::footprint::{Cpus, Flush, Footprint};
