//! What a scenario finds, as its result.

use portcullis_suite::Failure;

/// Fails with the line of the caller unless `condition` holds.
///
/// # Errors
/// `what`, as a failure.
#[track_caller]
pub fn ensure(condition: bool, what: &'static str) -> Result<(), Failure> {
    if condition { Ok(()) } else { fail(what) }
}

/// Fails with the line of the caller.
///
/// # Errors
/// `what`, as a failure.
#[track_caller]
pub fn fail<T>(what: &'static str) -> Result<T, Failure> {
    Err(Failure { what, error: None, line: core::panic::Location::caller().line() })
}

/// The value, if there is one.
///
/// # Errors
/// `what`, as a failure.
#[track_caller]
pub fn need<T>(value: Option<T>, what: &'static str) -> Result<T, Failure> {
    match value {
        Some(value) => Ok(value),
        None => fail(what),
    }
}
