//! The other CPUs: each has an index, a stack and a desk, and does what it is given.
//!
//! There are two ways to a CPU. A [job](begin) is done on its own stack, with interrupts on, by a CPU that has
//! none. A [call](call) is made by its interrupt handler, in the middle of whatever it does, a job
//! included; a CPU that waits for another in this module takes its calls, too, so that two of them
//! do not wait for each other. Every wait has a limit, after which the CPU's index is the error.
//!
//! A CPU without a job sleeps in `hlt` with interrupts on: both ways end in an interrupt anyway, and one that
//! spins takes time from the others of an emulated machine, or of its own core.

use core::{cell::UnsafeCell, time::Duration};

use portcullis_hal::{
    TimedOut,
    sync::{AtomicU32, AtomicUsize, Ordering},
    wait_until,
};
use x86_64::instructions::interrupts::{self as flag, without_interrupts};

use crate::{
    interrupts::{self, FnSlot},
    lapic::{ApicError, Lapic},
    timer,
};

/// CPUs that have a desk; further ones stay as firmware left them.
pub(crate) const MAX_CPUS: usize = 4;
/// Vector of the interrupt that makes a CPU look at its desk.
pub(crate) const KICK: u8 = 0xf0;
/// How long a CPU may take for what each has to do for all.
const EVERY_CPU_LIMIT: Duration = Duration::from_secs(5);
/// No APIC's number.
const NOBODY: u32 = u32::MAX;

/// The CPU is not there.
const ABSENT: u32 = 0;
/// It has no job.
const IDLE: u32 = 1;
/// Somebody writes one down for it.
const RESERVED: u32 = 2;
/// It has one.
const ORDERED: u32 = 3;
/// The answer is there.
const ANSWERED: u32 = 4;

/// Something to do: given the CPU's index and the argument, it returns the answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job {
    pub(crate) act: fn(cpu: usize, argument: u64) -> u64,
    pub(crate) argument: u64,
}

/// Why another CPU did not do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, defmt::Format)]
pub(crate) enum Lost {
    /// There is no CPU with this index.
    NoSuchCpu { cpu: usize },
    /// It has a job, or an answer that nobody has fetched.
    Busy { cpu: usize },
    /// It did not answer in time.
    NoAnswer { cpu: usize },
    /// The first MiB has no page to start CPUs from.
    NoStartPage,
    /// A local APIC, this CPU's, does not do its part.
    Apic(ApicError),
}

struct Desk {
    apic: AtomicU32,
    state: AtomicU32,
    job: UnsafeCell<Option<Job>>,
    answer: UnsafeCell<u64>,
    /// What each of the others wants called.
    calls: [FnSlot; MAX_CPUS],
}

// SAFETY: the cells are the owner's while the state is `ORDERED`, and otherwise the one's who made it `RESERVED`
// or found it `ANSWERED`.
unsafe impl Sync for Desk {}

static DESKS: [Desk; MAX_CPUS] = [const {
    Desk {
        apic: AtomicU32::new(NOBODY),
        state: AtomicU32::new(ABSENT),
        job: UnsafeCell::new(None),
        answer: UnsafeCell::new(0),
        calls: [const { FnSlot::empty() }; MAX_CPUS],
    }
}; MAX_CPUS];

/// CPUs that have a desk; 0 until the boot CPU has [taken](take_first) its own.
static COUNT: AtomicUsize = AtomicUsize::new(0);

fn desk(cpu: usize) -> Result<&'static Desk, Lost> {
    DESKS.get(cpu).filter(|_| cpu < count()).ok_or(Lost::NoSuchCpu { cpu })
}

/// CPUs that have been started, the boot CPU, which is number 0, included.
pub(crate) fn count() -> usize {
    COUNT.load(Ordering::Acquire)
}

/// The index of the CPU that executes; `None` for one that this module did not start.
pub(crate) fn this_cpu() -> Option<usize> {
    if count() <= 1 {
        return Some(0);
    }
    let id = Lapic::of_this_cpu().ok()?.id();
    DESKS.iter().position(|desk| desk.apic.load(Ordering::Acquire) == id)
}

/// Makes the boot CPU number 0, which takes interrupts from then on when it turns them on.
///
/// # Errors
/// [`Lost::Apic`].
pub(crate) fn take_first() -> Result<Lapic, Lost> {
    let lapic = Lapic::of_this_cpu().map_err(Lost::Apic)?;
    interrupts::mask_legacy();
    interrupts::handle(KICK, take_calls);
    lapic.enable();
    lapic.calibrate(&timer::clock()).map_err(Lost::Apic)?;
    if let Some(first) = DESKS.first() {
        first.apic.store(lapic.id(), Ordering::Release);
    }
    COUNT.store(1, Ordering::Release);
    Ok(lapic)
}

/// Gives the next desk to the CPU with this local APIC, which is about to be started.
///
/// # Errors
/// [`Lost::NoSuchCpu`] when there is none left.
pub(crate) fn reserve(apic: u32) -> Result<usize, Lost> {
    let cpu = count();
    let desk = DESKS.get(cpu).ok_or(Lost::NoSuchCpu { cpu })?;
    desk.apic.store(apic, Ordering::Release);
    COUNT.store(cpu + 1, Ordering::Release);
    Ok(cpu)
}

/// Whether a CPU that was started has this local APIC: firmware may list one twice.
pub(crate) fn has_apic(apic: u32) -> bool {
    DESKS.iter().take(count()).any(|desk| desk.apic.load(Ordering::Acquire) == apic)
}

/// Takes the desk of a CPU that did not start, the last one reserved.
pub(crate) fn forget(cpu: usize) {
    if let Ok(desk) = desk(cpu) {
        desk.apic.store(NOBODY, Ordering::Release);
        desk.state.store(ABSENT, Ordering::Release);
        COUNT.store(cpu, Ordering::Release);
    }
}

/// Waits for a CPU that was started to have come to its desk.
pub(crate) fn has_come(cpu: usize, limit: Duration) -> Result<(), Lost> {
    let desk = desk(cpu)?;
    wait(cpu, limit, || (desk.state.load(Ordering::Acquire) != ABSENT).then_some(()))
}

/// What a started CPU does for good: its jobs. One whose local APIC is not the desk's stops.
pub(crate) fn work(cpu: usize) {
    if this_cpu() != Some(cpu) {
        return;
    }
    let Ok(desk) = desk(cpu) else { return };
    desk.state.store(IDLE, Ordering::Release);
    loop {
        flag::disable();
        if desk.state.load(Ordering::Acquire) == ORDERED {
            flag::enable();
            do_job(cpu, desk);
        } else {
            // What came since the look above ends the sleep: it begins in the shadow of `sti`.
            flag::enable_and_hlt();
        }
    }
}

fn do_job(cpu: usize, desk: &Desk) {
    // SAFETY: the state is `ORDERED`: the cells are this CPU's until it stores another one.
    unsafe {
        *desk.answer.get() = (*desk.job.get()).map_or(0, |job| (job.act)(cpu, job.argument));
    }
    desk.state.store(ANSWERED, Ordering::Release);
}

/// Has CPU `cpu` begin a job, for [`finish`] to fetch the answer.
///
/// # Errors
/// [`Lost::NoSuchCpu`], [`Lost::Busy`], [`Lost::Apic`].
pub(crate) fn begin(cpu: usize, job: Job) -> Result<(), Lost> {
    let desk = desk(cpu)?;
    let reserved = desk.state.compare_exchange(IDLE, RESERVED, Ordering::Acquire, Ordering::Relaxed);
    reserved.map_err(|_| Lost::Busy { cpu })?;
    // SAFETY: this CPU has made the state `RESERVED`: the cells are its own.
    unsafe { *desk.job.get() = Some(job) };
    desk.state.store(ORDERED, Ordering::Release);
    kick(desk)
}

/// The answer to the job that CPU `cpu` was given, for whoever gave it. After [`Lost::NoAnswer`] it may be
/// asked for again; the CPU takes no other job before that.
///
/// # Errors
/// [`Lost::NoSuchCpu`], [`Lost::NoAnswer`].
pub(crate) fn finish(cpu: usize, limit: Duration) -> Result<u64, Lost> {
    let desk = desk(cpu)?;
    wait(cpu, limit, || (desk.state.load(Ordering::Acquire) == ANSWERED).then_some(()))?;
    // SAFETY: the state is `ANSWERED`, and only the one who gave the job gets here.
    let answer = unsafe { *desk.answer.get() };
    desk.state.store(IDLE, Ordering::Release);
    Ok(answer)
}

/// Has CPU `cpu` do a job, and waits.
///
/// # Errors
/// As [`begin`] and [`finish`].
pub(crate) fn run(cpu: usize, job: Job, limit: Duration) -> Result<u64, Lost> {
    begin(cpu, job)?;
    finish(cpu, limit)
}

/// Has CPU `cpu` call `function` in an interrupt, and waits until it has. One that has interrupts off does so when
/// it turns them on, be it after the limit.
///
/// # Errors
/// [`Lost::NoSuchCpu`], [`Lost::NoAnswer`], [`Lost::Apic`].
pub(crate) fn call(cpu: usize, function: fn(), limit: Duration) -> Result<(), Lost> {
    post(cpu, function, limit)?;
    await_call(cpu, limit)
}

/// Calls `function` on every CPU that was started, this one included, and waits until all have. Ends the run when
/// one has not in time: the caller cannot go on without it.
pub(crate) fn on_every_cpu(function: fn()) {
    let this = this_cpu();
    let others = || (0..count()).filter(|&cpu| Some(cpu) != this);
    let posted = others().try_for_each(|cpu| post(cpu, function, EVERY_CPU_LIMIT));
    function();
    if posted.and_then(|()| others().try_for_each(|cpu| await_call(cpu, EVERY_CPU_LIMIT))).is_err() {
        crate::give_up("a CPU does not answer");
    }
}

/// This CPU's place among the calls for `cpu`.
fn slot(cpu: usize) -> Result<&'static FnSlot, Lost> {
    let this = this_cpu().filter(|&this| this != cpu).ok_or(Lost::NoSuchCpu { cpu })?;
    desk(cpu)?.calls.get(this).ok_or(Lost::NoSuchCpu { cpu })
}

fn post(cpu: usize, function: fn(), limit: Duration) -> Result<(), Lost> {
    // A call of before that had no answer in time may still be there.
    await_call(cpu, limit)?;
    slot(cpu)?.put(function);
    kick(desk(cpu)?)
}

fn await_call(cpu: usize, limit: Duration) -> Result<(), Lost> {
    let slot = slot(cpu)?;
    wait(cpu, limit, || slot.is_empty().then_some(()))
}

/// Makes the calls that wait for this CPU, with interrupts off: each is made once.
fn take_calls() {
    let Some(desk) = this_cpu().and_then(|cpu| DESKS.get(cpu)) else { return };
    for slot in &desk.calls {
        if let Some(function) = slot.get() {
            function();
            slot.clear();
        }
    }
}

fn kick(desk: &Desk) -> Result<(), Lost> {
    let lapic = Lapic::of_this_cpu().map_err(Lost::Apic)?;
    let id = desk.apic.load(Ordering::Acquire);
    // An interrupt's handler, which also sends, must not come between a command's two halves.
    without_interrupts(|| lapic.interrupt(id, KICK, &timer::clock())).map_err(Lost::Apic)
}

/// Takes other CPUs' calls until `condition` holds, or until the limit.
pub(crate) fn answer_until(limit: Duration, mut condition: impl FnMut() -> bool) {
    let this = this_cpu().unwrap_or(MAX_CPUS);
    // Who asks looks at the condition, not at the clock.
    let _ = wait(this, limit, || condition().then_some(()));
}

fn wait<T>(cpu: usize, limit: Duration, mut condition: impl FnMut() -> Option<T>) -> Result<T, Lost> {
    let missing = TimedOut { register: cpu as u32, bits: 0 };
    let done = || {
        without_interrupts(take_calls);
        condition()
    };
    wait_until(&timer::clock(), limit, missing, done).map_err(|_| Lost::NoAnswer { cpu })
}
