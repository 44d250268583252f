//! Breakages that only a machine shows: scenarios of the copy's image, run as `cargo boards test` does.

use std::time::Duration;

use super::{Breakage, Tests, Tree};
use crate::{
    child::{self, Limit, Ran},
    error::Error,
};

/// How long building an image and running one scenario may take.
const DEADLINE: Duration = Duration::from_mins(10);
/// Exit status of the runner when a test failed.
const RED: i32 = 1;

/// Runs the breakage's scenarios on its board; `package` is the board's name.
pub(super) fn test(tree: &Tree, breakage: &Breakage) -> Result<Tests, Error> {
    let (mut green, mut red) = (Vec::new(), Vec::new());
    for name in &breakage.turns_red {
        let mut command = tree.runner()?;
        command.args(["test", "--board", &breakage.package, "--filter", name]);
        let mut lines = Vec::new();
        let ran = child::run_within(command, Limit::Whole(DEADLINE), |line| lines.push(line.to_owned()))?;
        match ran {
            Ran::Ended(status) if status.success() => green.push(name.clone()),
            Ran::Ended(status) if status.code() != Some(RED) => {
                return Ok(Tests::DoNotBuild(super::first_error(&lines.join("\n"))));
            }
            _ => red.push(name.clone()),
        }
    }
    Ok(Tests::Ran { green, red })
}
