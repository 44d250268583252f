//! `cargo boards`: builds the test images, boots them, judges what they did, and reports.

mod audit;
mod bench;
mod board;
mod case;
mod catalogue;
mod child;
mod cli;
mod console;
mod demo;
mod disk;
mod error;
mod image;
mod install;
mod interrupt;
mod mappings;
mod panic_check;
mod progress;
mod project;
mod promises;
mod qemu;
mod record;
mod sabotage;
mod test;
mod verdict;
mod witness;
mod words;

use std::process::ExitCode;

use clap::Parser;

use crate::{
    cli::{Cli, Command},
    error::Error,
    project::Project,
};

fn main() -> ExitCode {
    interrupt::end_with_the_reader();
    let cli = Cli::parse();
    if let Err(error) = interrupt::install() {
        eprintln!("error: Ctrl-C cannot be caught: {error}");
        return ExitCode::FAILURE;
    }
    match run(&cli.command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            if let Some(advice) = error.advice() {
                eprintln!("  {advice}");
            }
            ExitCode::from(error.status())
        }
    }
}

/// Whether all was as expected.
fn run(command: &Command) -> Result<bool, Error> {
    let project = Project::find()?;
    match command {
        Command::Audit(options) => audit::run(&project, options),
        Command::Bench(options) => bench::run(&project, options),
        Command::Demo(options) => demo::run(&project, options),
        Command::Install(options) => install::run(&board::load_all(&project.boards())?, options),
        Command::PanicCheck => panic_check::run(&project),
        Command::Sabotage(options) => sabotage::run(&project, options),
        Command::Test(options) => test::run(&project, options),
    }
}
