//! x86 with SVM: guests with nested paging.
//!
//! Sections are those of the AMD64 Architecture Programmer's Manual, volume 2, where nothing else is said.

pub mod caching;
