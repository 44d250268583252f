//! The real-mode half of hypercalls: entered from 0xC00 with translation off, no vector or float unit, and 8 KiB of
//! stack. Whatever is reached from here must not panic, log, allocate, call firmware or call through a pointer.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::{
    area::CPUS,
    frame::{Frame, Verdict},
    script::calls,
};

unsafe extern "C" {
    /// The image's own real-mode handler: gets every hypercall that is not the test hypervisor's.
    ///
    /// Returns [`Verdict::Done`] or [`Verdict::TooHard`] as a number.
    fn portcullis_real_mode_hcall(frame: *mut Frame) -> u64;
}

static NOTHING_IN_REAL_MODE: AtomicBool = AtomicBool::new(false);
static DONE: [AtomicU64; CPUS] = [const { AtomicU64::new(0) }; CPUS];

/// From now on hands every hypercall to the full context, or no longer does.
pub fn handle_nothing_in_real_mode(nothing: bool) {
    NOTHING_IN_REAL_MODE.store(nothing, Ordering::Relaxed);
}

/// How many hypercalls the guests on `cpu` have had handled in real mode; 0 for an unknown CPU.
#[must_use]
pub fn done_in_real_mode(cpu: usize) -> u64 {
    DONE.get(cpu).map_or(0, |count| count.load(Ordering::Relaxed))
}

/// Called by the vector's code: the number of a [`Verdict`].
///
/// # Safety
/// `frame` must be this CPU's frame, which nobody else uses meanwhile.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn portcullis_guest_call(frame: *mut Frame) -> u64 {
    // SAFETY: this CPU's frame, says the caller.
    let (opcode, cpu) = unsafe { ((*frame).opcode(), (*frame).cpu) };
    let verdict = if opcode == calls::EMPTY && !NOTHING_IN_REAL_MODE.load(Ordering::Relaxed) {
        // SAFETY: as above.
        unsafe { (*frame).set_status(0) }
        Verdict::Done as u64
    } else if NOTHING_IN_REAL_MODE.load(Ordering::Relaxed) || calls::OWN.contains(&opcode) {
        Verdict::TooHard as u64
    } else {
        // SAFETY: as above; the image's handler promises to be such a one.
        unsafe { portcullis_real_mode_hcall(frame) }
    };
    if verdict == Verdict::Done as u64
        && let Some(count) = DONE.get(cpu as usize)
    {
        // One CPU counts: no read-modify-write is needed.
        count.store(count.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }
    verdict
}
