//! The command line.

use clap::{Parser, Subcommand};

use crate::{audit, bench, demo, install, sabotage, test};

/// Builds the test images, boots them in QEMU, judges what they did, and reports.
#[derive(Parser, Debug)]
#[command(name = "cargo boards", bin_name = "cargo boards", after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "\
Examples:
  cargo boards demo                               see DMA landing and not landing, on both machines
  cargo boards test                               all tests: host, doc, and every scenario on every machine
  cargo boards test --board q35                   the scenarios of one board, in all its variants
  cargo boards test --filter snoop/context_switch one scenario on one machine
  cargo boards test --list                        all names
  cargo boards test --qemu /opt/qemu/bin          with another QEMU
  cargo boards audit                              is real-mode code safe, and what does it call
  cargo boards install                            what is missing, and how to get it

Exit status: 0 all as expected, 1 a test failed, 2 the machine lacks something, 130 interrupted.";

/// What to do.
#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Install what is missing, boot both machines, and show which DMA lands, which is blocked, and why
    Demo(demo::Options),
    /// Show what the machine lacks, or install it
    Install(install::Options),
    /// Measure what operations cost, and compare with board-tests/bench-limits.toml
    Bench(bench::Options),
    /// Prove on the linked image that what runs in real mode is safe there, and print its call tree
    Audit(audit::Options),
    /// Check at link time that no panic is reachable from the libraries
    PanicCheck,
    /// Apply deliberate breakages to a copy of the tree; each must turn its tests red
    Sabotage(sabotage::Options),
    /// Run all tests: host, doc and every board scenario, each with name, time and verdict
    Test(test::Options),
}
