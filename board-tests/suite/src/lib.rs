//! Board scenarios of Portcullis: one suite for the hardware models, QEMU and boards in a lab.
//!
//! A scenario knows a [`Board`] and nothing of the machine behind it. What it does and sees leaves the
//! target as [`Event`]s; the host renders and judges them.

#![no_std]

pub mod bare;
pub mod board;
pub mod checksum;
pub mod edu;
pub mod event;
pub mod hcall;
pub mod memory;
pub mod nvme;
pub mod scenario;
pub mod withhold;

pub use board::{Board, Buffer, DmaDevice, DmaError};
pub use event::Event;
pub use scenario::{Failure, Requires, SCENARIOS, Scenario, run};
