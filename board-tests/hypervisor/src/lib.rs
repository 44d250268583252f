//! The smallest real type-1 hypervisor that the board tests get along with.
//!
//! It runs guests on a machine whose firmware has started one image and nothing else. Layouts and encodings
//! build everywhere, so that they are tested on the host; what touches a CPU builds only for that CPU.

#![no_std]

#[cfg(test)]
extern crate std;

mod catalogue;
pub mod power;
#[cfg(any(target_arch = "powerpc64", all(target_arch = "x86_64", target_os = "none")))]
mod verdict;
pub mod x86;

pub use catalogue::SCENARIOS;
