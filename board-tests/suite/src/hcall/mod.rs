//! The hypercalls by which a POWER guest maps its own DMA: what each owes, as rules that run on any machine with such
//! a guest, and hostile calls judged by an oracle.
//!
//! A rule knows a [`GuestPort`] and nothing of the hypervisor behind it: the same source runs on the host against the
//! modelled host bridge, and on boards, where a guest executes `sc 1`.

pub mod call;
mod driver;
mod guest;
pub mod hostile;
mod meanwhile;
pub mod oracle;
pub mod port;
mod rules;
pub mod scenario;
pub mod stand;
pub mod vcpus;

pub use call::{Answer, Call};
pub use oracle::Oracle;
pub use port::{Area, Control, Deed, Finished, GuestPort, Layout, Moment, Offers, Window};
pub use rules::{RULES, Rule, Topic, run_rule};
