//! One alarm for each CPU: the local APIC's timer, once, at a deadline of the clock.
//!
//! A CPU that runs a guest arms it before it enters. The guest is left when the interrupt asks (an exit for
//! INTR), [`take_pending`](crate::interrupts::take_pending) has it taken, and [`is_over`] tells whether it
//! was the deadline or something else, after which the guest goes on.

use core::time::Duration;

use portcullis_hal::{
    Clock,
    sync::{AtomicBool, AtomicU64, Ordering},
};

use crate::{
    cpus::{self, Lost, MAX_CPUS},
    interrupts,
    lapic::Lapic,
    timer,
};

/// Vector of the timer's interrupt.
pub(crate) const VECTOR: u8 = 0xe0;
/// No alarm is armed.
const NEVER: u64 = u64::MAX;

struct Alarm {
    /// In microseconds of the clock.
    deadline: AtomicU64,
    is_over: AtomicBool,
}

static ALARMS: [Alarm; MAX_CPUS] =
    [const { Alarm { deadline: AtomicU64::new(NEVER), is_over: AtomicBool::new(false) } }; MAX_CPUS];

fn mine() -> Option<&'static Alarm> {
    ALARMS.get(cpus::this_cpu()?)
}

/// Has each CPU's timer lead to its alarm. To be called once, before any is armed.
pub(crate) fn install() {
    interrupts::handle(VECTOR, ring);
}

/// Arms this CPU's alarm, in the place of the one before: it interrupts no earlier than `after` from now, once,
/// and as soon after that as interrupts are on.
///
/// # Errors
/// [`Lost::Apic`] without a local APIC, [`Lost::NoSuchCpu`] on a CPU that [`cpus`] did not start.
pub(crate) fn arm(after: Duration) -> Result<(), Lost> {
    let lapic = Lapic::of_this_cpu().map_err(Lost::Apic)?;
    let alarm = mine().ok_or(Lost::NoSuchCpu { cpu: usize::MAX })?;
    lapic.stop_timer();
    // The clock cuts fractions of a microsecond off, as does the sum: two more are never too early.
    let deadline = timer::clock().now().saturating_add(after).as_micros().saturating_add(2);
    alarm.is_over.store(false, Ordering::Relaxed);
    alarm.deadline.store(u64::try_from(deadline).unwrap_or(NEVER), Ordering::Release);
    lapic.start_timer(VECTOR, after);
    Ok(())
}

/// Takes this CPU's alarm back; an interrupt that was asked for already does nothing.
pub(crate) fn disarm() {
    if let Some(alarm) = mine() {
        alarm.deadline.store(NEVER, Ordering::Release);
    }
    if let Ok(lapic) = Lapic::of_this_cpu() {
        lapic.stop_timer();
    }
}

/// Whether this CPU's alarm has interrupted since it was armed.
pub(crate) fn is_over() -> bool {
    mine().is_some_and(|alarm| alarm.is_over.load(Ordering::Acquire))
}

/// The timer was measured and counts 32 bits: what comes early goes to sleep again for the rest.
fn ring() {
    let (Some(alarm), Ok(lapic)) = (mine(), Lapic::of_this_cpu()) else { return };
    let deadline = alarm.deadline.load(Ordering::Acquire);
    if deadline == NEVER {
        return;
    }
    let rest = Duration::from_micros(deadline).saturating_sub(timer::clock().now());
    if rest.is_zero() {
        alarm.deadline.store(NEVER, Ordering::Relaxed);
        alarm.is_over.store(true, Ordering::Release);
    } else {
        lapic.start_timer(VECTOR, rest);
    }
}
