//! The end of threads that go on until they are told.

use std::sync::atomic::{AtomicBool, Ordering};

/// Tells them when it is dropped: also when the test fails, which else would hang instead.
#[derive(Debug)]
pub struct End<'t>(pub &'t AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
