//! `cargo boards`: builds the test images, boots them, judges what they did, and reports.

mod board;
mod case;
mod child;
mod console;
mod error;
mod image;
mod interrupt;
mod progress;
mod project;
mod qemu;
mod record;
mod test;
mod verdict;
mod witness;
mod words;

fn main() {}
