//! `cargo boards`: builds the test images, boots them, judges what they did, and reports.

mod board;
mod child;
mod console;
mod interrupt;
mod qemu;
mod record;
mod verdict;
mod witness;
mod words;

fn main() {}
