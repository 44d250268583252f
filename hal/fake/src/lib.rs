//! Adversarial models of IOMMU hardware, for tests on a development machine.
//!
//! Each model is written from its manual and never imports a driver's `spec` module: else a wrong bit
//! would agree with itself.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a model that is used wrongly shall stop the test"
)]

pub mod checked;
pub mod dma;
pub mod end;
pub mod few_cells;
pub mod obedient;

// They rest on the machine's own atomics, which the model checker does not track.
#[cfg(not(loom))]
pub mod config_space;
#[cfg(not(loom))]
mod data_cache;
#[cfg(not(loom))]
pub mod memory;
#[cfg(not(loom))]
pub mod phb;
#[cfg(not(loom))]
pub mod vtd;
#[cfg(not(loom))]
pub mod watched;
