//! Implementations for the real machines.

#[cfg(target_arch = "powerpc64")]
pub mod powerpc64;
#[cfg(any(target_arch = "powerpc64", target_arch = "x86_64"))]
mod window;
#[cfg(target_arch = "x86_64")]
pub mod x86_64;
