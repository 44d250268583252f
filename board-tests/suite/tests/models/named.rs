//! Arguments as Rust's own harness takes them.

use libtest_mimic::Trial;

/// Several names of trials mean these trials, as in Rust's own harness; returns all other arguments.
pub fn take_named(arguments: Vec<String>, trials: &mut Vec<Trial>) -> Vec<String> {
    let is_name = |argument: &String| trials.iter().any(|trial| trial.name() == argument);
    let (names, others): (Vec<_>, Vec<_>) = arguments.iter().cloned().partition(is_name);
    if names.len() < 2 {
        return arguments;
    }
    trials.retain(|trial| names.iter().any(|name| name == trial.name()));
    others
}
