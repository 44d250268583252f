//! Ctrl-C, the other signals that ask a process to end, and a reader that went away.

use std::sync::atomic::{AtomicBool, Ordering};

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// From now on those signals only set a flag: whoever waits looks at it, ends its children and returns.
pub(crate) fn install() -> Result<(), ctrlc::Error> {
    ctrlc::set_handler(|| REQUESTED.store(true, Ordering::SeqCst))
}

/// Whether the user wants to stop.
pub(crate) fn requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}

/// Lets the process end quietly when nobody reads its output any more, as in `… --list | head`.
pub(crate) fn end_with_the_reader() {
    // SAFETY: sets the default action of a signal, before there is a second thread.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}
