//! POWER8, POWER9 and POWER10: guests in HV = 0, hypercalls by `sc 1` in real mode.
//!
//! Sections are those of the Power ISA, Book III: 3.0B where nothing else is said, 2.07B for POWER8.

pub mod frame;
pub mod radix;
pub mod script;
#[cfg(any(target_arch = "powerpc64", test))]
pub mod tables;

#[cfg(target_arch = "powerpc64")]
mod area;
#[cfg(target_arch = "powerpc64")]
pub mod cpu;
#[cfg(target_arch = "powerpc64")]
pub mod guest;
#[cfg(target_arch = "powerpc64")]
pub mod guest_call;
#[cfg(target_arch = "powerpc64")]
pub mod memory;
#[cfg(target_arch = "powerpc64")]
mod problem_state;
#[cfg(target_arch = "powerpc64")]
pub mod registers;
#[cfg(target_arch = "powerpc64")]
pub mod scenario;
#[cfg(target_arch = "powerpc64")]
pub mod secondary;
#[cfg(target_arch = "powerpc64")]
pub mod vectors;
#[cfg(target_arch = "powerpc64")]
pub mod virtual_mode;

/// Bytes of a guest's memory: what POWER8 has a size of real mode area for (`LPCR[RMLS]`, 2.07B section 2.2).
pub const GUEST_BYTES: u64 = 32 << 20;

pub use frame::{Frame, Verdict};
