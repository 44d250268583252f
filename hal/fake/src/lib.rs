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

pub mod config_space;
pub mod memory;
pub mod obedient;
pub mod phb;
pub mod vtd;
