//! A guest reaches its memory and nothing else.

use portcullis_suite::Failure;

use super::{Machine, Stage};

/// X03 to X06, X08, X09.
pub(super) fn svm_guest_is_confined<M: Machine>(_stage: &mut Stage<'_, M>) -> Result<(), Failure> {
    super::fail("not there yet")
}
