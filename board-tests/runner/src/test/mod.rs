//! `cargo boards test`: host tests, doc tests and every board scenario, each with its name, time and verdict.

mod libtest;
pub(crate) mod outcome;
