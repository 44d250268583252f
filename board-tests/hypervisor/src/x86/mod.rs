//! x86: guests by hardware virtualisation with nested paging. AMD's SVM is there; Intel's VMX would be another
//! [`Backend`](backend::Backend).

pub mod backend;
pub mod caching;
pub mod control;
pub mod cpuid;
pub mod exit;
pub mod guest;
pub mod instruction;
pub mod memory;
pub mod msr;
pub mod npt;
pub mod vcpu;
pub mod vm;
pub mod vmcb;

#[cfg(all(target_arch = "x86_64", target_os = "none"))]
pub mod scenario;
#[cfg(all(target_arch = "x86_64", target_os = "none"))]
pub mod state;
#[cfg(all(target_arch = "x86_64", target_os = "none"))]
pub mod svm;
