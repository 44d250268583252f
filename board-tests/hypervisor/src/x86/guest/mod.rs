//! What runs in guests: a copy of the image, without its statics, that begins at [`layout`]'s places.

pub mod calls;
pub mod dma;
pub mod layout;
pub mod meets;
pub mod programs;
pub mod script;

#[cfg(all(target_arch = "x86_64", target_os = "none"))]
mod confined;
#[cfg(all(target_arch = "x86_64", target_os = "none"))]
pub mod devices;
#[cfg(all(target_arch = "x86_64", target_os = "none"))]
pub mod disk;
#[cfg(all(target_arch = "x86_64", target_os = "none"))]
pub mod entry;
#[cfg(all(target_arch = "x86_64", target_os = "none"))]
mod flood;
#[cfg(all(target_arch = "x86_64", target_os = "none"))]
pub mod hypercall;
#[cfg(all(target_arch = "x86_64", target_os = "none"))]
pub mod probe;
#[cfg(all(target_arch = "x86_64", target_os = "none"))]
mod rounds;
#[cfg(all(target_arch = "x86_64", target_os = "none"))]
mod runs;
