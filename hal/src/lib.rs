//! The ground floor of Portcullis: what the policy and the drivers stand on.
//!
//! Address types that do not convert by accident, checked ranges, memory donated by the hypervisor,
//! register access, clocks and the one bounded wait. This crate knows no policy and no IOMMU.
//!
//! Unsafe code of the libraries lives here only: an implementer of [`RegisterIo`] or [`TableMemory`]
//! vouches for the hardware, and the crates above are free of `unsafe`.

#![no_std]

pub mod addr;
pub mod arch;
pub mod cache;
pub mod clock;
pub mod config_space;
pub mod dma;
pub mod footprint;
pub mod gate;
pub mod guest_memory;
pub mod page_pool;
pub mod register_io;
pub mod seats;
pub mod sync;
pub mod table_memory;

pub use addr::{
    Access, DeviceId, GuestPhysAddr, GuestPhysRange, IoPageSize, Iova, IovaRange, PhysAddr, PhysRange,
    RangeError, RequesterId, Segment,
};
pub use cache::CacheMaintenance;
pub use clock::{Clock, TimedOut, wait_until};
pub use config_space::ConfigSpace;
pub use dma::{DmaExtent, DmaExtentCell, DmaParts};
pub use guest_memory::GuestMemory;
pub use page_pool::{PagePool, PageRun, PoolError};
pub use register_io::RegisterIo;
pub use table_memory::{DonatedPages, TABLE_PAGE_BYTES, TABLE_PAGE_CELLS, TableMemory};
