//! Breakages that only a machine shows: scenarios of the copy's image, run as `cargo boards test` does.

use std::time::Duration;

use super::tree::Tree;
use crate::{
    child::{self, Limit, Ran},
    error::Error,
};

/// Target of the breakages that a board shows; their package is the name of the board.
pub(super) const TARGET: &str = "board";
/// How long building an image and running one scenario may take.
const DEADLINE: Duration = Duration::from_mins(10);
/// How images are built here, unlike those that are run for their own sake.
const QUICK_BUILD: [(&str, &str); 3] = [
    ("CARGO_PROFILE_RELEASE_LTO", "off"),
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
    ("CARGO_PROFILE_RELEASE_INCREMENTAL", "true"),
];
/// Exit status of the runner when a test failed.
const RED: i32 = 1;

/// Whether the scenario is green on the board; the inner error says why it could not be run.
pub(super) fn is_green(tree: &Tree, board: &str, name: &str) -> Result<Result<bool, String>, Error> {
    let mut command = tree.runner()?;
    command.args(["test", "--board", board, "--filter", name]);
    // The image is built anew for each breakage: soon rather than small.
    command.envs(QUICK_BUILD);
    let mut lines = Vec::new();
    let ran = child::run_within(command, Limit::Whole(DEADLINE), |line| lines.push(line.to_owned()))?;
    Ok(match ran {
        Ran::Ended(status) if status.success() => Ok(true),
        // An image that does not build is no failed test.
        Ran::Ended(status)
            if status.code() != Some(RED) || lines.iter().any(|line| line.starts_with("error")) =>
        {
            Err(super::first_error(&lines.join("\n")))
        }
        _ => Ok(false),
    })
}
