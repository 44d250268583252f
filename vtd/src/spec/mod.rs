//! Layouts of the VT-d manual, and nothing else.
//!
//! "Manual" is *Intel Virtualization Technology for Directed I/O, Architecture Specification*,
//! revision 4.x. Every item names its section there.

pub mod dmar;
pub mod entries;
pub mod fault;
pub mod invalidation;
pub mod registers;
