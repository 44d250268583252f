//! The scenario about the machine's other CPUs: they do jobs, take interrupts and alarms, and one that does not
//! answer is an error.

use core::{arch::asm, panic::Location, time::Duration};

use portcullis_hal::{
    Clock, TimedOut,
    arch::x86_64::write_back_all,
    sync::{AtomicBool, AtomicU32, Ordering},
    wait_until,
};
use portcullis_suite::{Event, Failure};
use x86_64::instructions::interrupts::without_interrupts;

use crate::{
    alarm,
    boot::AcpiRoot,
    console,
    cpus::{self, Job, Lost},
    interrupts,
    lapic::Lapic,
    startup, timer,
};

/// Its name in the catalogue of the test hypervisor.
pub(crate) const NAME: &str = "second_cpu_answers";

const SECOND: usize = 1;
/// An emulated machine may stand still for a while.
const LIMIT: Duration = Duration::from_secs(5);
/// After which a CPU that cannot answer is given up.
const SHORT: Duration = Duration::from_millis(50);
/// How long after its deadline a wait may end: it polls, but the host may have other things to do.
const GRACE: Duration = Duration::from_secs(2);
const JOBS: u64 = 100;
const CALLS: u32 = 100;
const ALARMS: u32 = 8;
const ALARM_AFTER: Duration = Duration::from_millis(10);
/// How late the best of several alarms may be: the host of an emulated machine may be busy.
const LATE: Duration = Duration::from_millis(50);
/// A local APIC that no machine of this kind has.
const NO_APIC: u32 = 0xe7;
const NO_CPU: usize = 99;

/// Calls made on the second CPU, and on the first.
static CALLED: [AtomicU32; 2] = [const { AtomicU32::new(0) }; 2];
/// Tells the second CPU's job that it may end.
static ENOUGH: AtomicBool = AtomicBool::new(false);
/// The second CPU has interrupts off.
static IS_DEAF: AtomicBool = AtomicBool::new(false);

/// Runs the scenario and tells how it went.
pub(crate) fn run(root: AcpiRoot) -> Result<(), Failure> {
    console::emit(&Event::Begin { scenario: NAME });
    let result = starts(root).and_then(|()| {
        second_does_jobs()?;
        second_is_interrupted()?;
        alarms_ring_in_time()?;
        silence_is_an_error()
    });
    match result {
        Ok(()) => console::emit(&Event::Passed { scenario: NAME }),
        Err(Failure { what, line, .. }) => console::emit(&Event::Failed { scenario: NAME, what, line }),
    }
    result
}

fn starts(root: AcpiRoot) -> Result<(), Failure> {
    step("the other CPUs are started");
    let begun = now();
    let count = answered(startup::start_all(root))?;
    measured("CPUs", count as u64, "");
    measured("start of the other CPUs", micros(begun), "us");
    ensure(count > SECOND, "the machine has one CPU")
}

fn second_does_jobs() -> Result<(), Failure> {
    step("each CPU does jobs");
    let mine = cpus::this_cpu();
    let begun = now();
    for cpu in SECOND..cpus::count() {
        for argument in 0..JOBS {
            let answer = answered(cpus::run(cpu, Job { act: whereabouts, argument }, LIMIT))?;
            ensure(answer == expected(cpu, argument), "a job was done elsewhere, or with another argument")?;
        }
    }
    measured("a job and its answer", micros(begun) / JOBS / (cpus::count() as u64 - 1), "us");
    ensure(cpus::this_cpu() == mine, "a job was done here")
}

const fn expected(cpu: usize, argument: u64) -> u64 {
    argument.wrapping_mul(3) << 16 | (cpu as u64) << 8 | cpu as u64
}

/// What a CPU is told that it is, and what its local APIC says.
fn whereabouts(cpu: usize, argument: u64) -> u64 {
    let found = cpus::this_cpu().unwrap_or(NO_CPU) as u64;
    argument.wrapping_mul(3) << 16 | (cpu as u64) << 8 | found
}

fn second_is_interrupted() -> Result<(), Failure> {
    step("interrupts reach the second CPU in the middle of a job");
    ENOUGH.store(false, Ordering::Release);
    answered(cpus::begin(SECOND, Job { act: busy, argument: 0 }))?;
    let (mut slowest, begun) = (0, calls_on(SECOND));
    for _ in 0..CALLS {
        let sent = now();
        answered(cpus::call(SECOND, called, LIMIT))?;
        slowest = slowest.max(micros(sent));
    }
    let taken = calls_on(SECOND).wrapping_sub(begun);
    let busy_still = cpus::finish(SECOND, Duration::ZERO);
    ENOUGH.store(true, Ordering::Release);
    measured("the slowest of 100 interrupts", slowest, "us");
    ensure(taken == CALLS, "a call was not made once")?;
    ensure(busy_still == Err(Lost::NoAnswer { cpu: SECOND }), "the job ended before the interrupts")?;
    ensure(answered(cpus::finish(SECOND, LIMIT))? == 0, "an interrupt changed what it interrupted")?;
    step("the second CPU interrupts this one, which waits for it");
    let before = calls_on(0);
    let back = answered(cpus::run(SECOND, Job { act: calls_back, argument: 0 }, LIMIT))?;
    ensure(back == 0 && calls_on(0) == before + 1, "the call of the second CPU was not made")?;
    cpus::on_every_cpu(write_back_all);
    cpus::on_every_cpu(called);
    ensure(calls_on(0) == before + 2, "what every CPU is to do was not done here")?;
    ensure(calls_on(SECOND) == begun.wrapping_add(CALLS + 1), "what every CPU is to do was not done there")
}

/// Holds a value in each register that a call may change, until it is enough; the bits that changed meanwhile.
fn busy(_: usize, _: u64) -> u64 {
    let (mut rax, mut rcx, mut rdx, mut rsi) = (1u64, 2u64, 3u64, 4u64);
    let (mut r8, mut r9, mut r10, mut r11) = (5u64, 6u64, 7u64, 8u64);
    // SAFETY: reads the flag until it is set, and changes nothing.
    unsafe {
        asm!(
            "2:", "pause", "cmp byte ptr [rdi], 0", "je 2b",
            in("rdi") ENOUGH.as_ptr(),
            inout("rax") rax, inout("rcx") rcx, inout("rdx") rdx, inout("rsi") rsi,
            inout("r8") r8, inout("r9") r9, inout("r10") r10, inout("r11") r11,
        );
    }
    [rax ^ 1, rcx ^ 2, rdx ^ 3, rsi ^ 4, r8 ^ 5, r9 ^ 6, r10 ^ 7, r11 ^ 8]
        .into_iter()
        .fold(0, |changed, bits| changed | bits)
}

fn calls_back(_: usize, _: u64) -> u64 {
    cpus::call(0, called, LIMIT).is_err().into()
}

fn called() {
    if let Some(calls) = cpus::this_cpu().and_then(|cpu| CALLED.get(cpu)) {
        calls.fetch_add(1, Ordering::AcqRel);
    }
}

fn calls_on(cpu: usize) -> u32 {
    CALLED.get(cpu).map_or(0, |calls| calls.load(Ordering::Acquire))
}

fn alarms_ring_in_time() -> Result<(), Failure> {
    step("alarms ring on both CPUs");
    let here = alarms(0, 0);
    let there = answered(cpus::run(SECOND, Job { act: alarms, argument: 0 }, LIMIT + LIMIT))?;
    for late in [here, there] {
        ensure(late != EARLY, "an alarm rang before its time")?;
        ensure(late != NEVER, "an alarm did not ring")?;
        measured("the best of 8 alarms of 10 ms is late by", late, "us");
        ensure(u128::from(late) <= LATE.as_micros(), "all alarms are late")?;
    }
    step("an alarm waits until interrupts are taken");
    let lost = |_| failure("this CPU has no alarm");
    alarm::arm(Duration::from_millis(1)).map_err(lost)?;
    pause(ALARM_AFTER);
    ensure(!alarm::is_over(), "an alarm interrupted a CPU that has interrupts off")?;
    // The interrupt of a machine that stood still comes later.
    let taken = || interrupts::take_pending().filter(|_| alarm::is_over());
    let waited = until(taken).map_err(|_| failure("an alarm that waited did not ring"))?;
    ensure(waited == alarm::VECTOR, "an alarm rang by another interrupt")?;
    alarm::arm(ALARM_AFTER).map_err(lost)?;
    alarm::disarm();
    pause(ALARM_AFTER + ALARM_AFTER);
    interrupts::take_pending();
    ensure(!alarm::is_over(), "an alarm that was taken back rang")
}

/// An alarm rang too early.
const EARLY: u64 = u64::MAX;
/// An alarm did not ring.
const NEVER: u64 = u64::MAX - 1;

/// Lets alarms ring on this CPU; by how many microseconds the best was late, or what went wrong.
fn alarms(_: usize, _: u64) -> u64 {
    let mut best = NEVER;
    for _ in 0..ALARMS {
        let begun = now();
        let rings = || {
            // This CPU may have interrupts off.
            interrupts::take_pending();
            alarm::is_over().then(now)
        };
        let rang = alarm::arm(ALARM_AFTER).is_ok().then(|| until(rings));
        let Some(Ok(rang)) = rang else { return NEVER };
        match rang.saturating_sub(begun).checked_sub(ALARM_AFTER) {
            Some(late) => best = best.min(late.as_micros() as u64),
            None => return EARLY,
        }
    }
    best
}

fn silence_is_an_error() -> Result<(), Failure> {
    step("a CPU that is not there is refused");
    let job = Job { act: whereabouts, argument: 7 };
    let nobody = Err(Lost::NoSuchCpu { cpu: NO_CPU });
    ensure(cpus::run(NO_CPU, job, LIMIT) == nobody, "a CPU that is not there was given a job")?;
    ensure(cpus::call(NO_CPU, called, LIMIT).err() == nobody.err(), "a CPU that is not there was called")?;
    let (count, begun) = (cpus::count(), now());
    let lapic = Lapic::of_this_cpu().map_err(|_| failure("this CPU has no local APIC"))?;
    let started = startup::start(lapic, NO_APIC);
    measured("until a CPU that is not there is given up", micros(begun), "us");
    ensure(started == Err(Lost::NoAnswer { cpu: count }), "a CPU that is not there was started")?;
    ensure(cpus::count() == count, "a CPU that is not there counts")?;
    step("a CPU that does not answer is given up in time");
    ENOUGH.store(false, Ordering::Release);
    answered(cpus::begin(SECOND, Job { act: deaf, argument: 0 }))?;
    until(|| IS_DEAF.load(Ordering::Acquire).then_some(())).map_err(|_| failure("a job did not begin"))?;
    let (before, begun) = (calls_on(SECOND), now());
    let silent = Lost::NoAnswer { cpu: SECOND };
    let unheard = cpus::call(SECOND, called, SHORT);
    let took = now().saturating_sub(begun);
    let unfinished = cpus::finish(SECOND, SHORT);
    let refused = cpus::begin(SECOND, job);
    ENOUGH.store(true, Ordering::Release);
    ensure(unheard == Err(silent), "a deaf CPU took a call")?;
    ensure(took >= SHORT && took < SHORT + GRACE, "a deaf CPU was not given up in time")?;
    ensure(unfinished == Err(silent), "a CPU answered before its job's end")?;
    ensure(refused == Err(Lost::Busy { cpu: SECOND }), "a CPU with a job was given another")?;
    step("it answers again");
    answered(cpus::finish(SECOND, LIMIT))?;
    let answer = answered(cpus::run(SECOND, job, LIMIT))?;
    ensure(answer == expected(SECOND, job.argument), "the CPU lost its mind")?;
    ensure(calls_on(SECOND) == before + 1, "the call of before was not made once")
}

/// Has interrupts off until it is enough.
fn deaf(_: usize, _: u64) -> u64 {
    without_interrupts(|| {
        IS_DEAF.store(true, Ordering::Release);
        until(|| ENOUGH.load(Ordering::Acquire).then_some(())).is_err().into()
    })
}

/// Waits for something that comes by itself.
fn until<T>(condition: impl FnMut() -> Option<T>) -> Result<T, TimedOut> {
    wait_until(&timer::clock(), LIMIT, TimedOut { register: 0, bits: 0 }, condition)
}

fn step(text: &str) {
    console::emit(&Event::Step { text });
}

fn measured(what: &str, value: u64, unit: &str) {
    console::emit(&Event::Measured { what, value, unit });
}

fn now() -> Duration {
    timer::clock().now()
}

fn micros(begun: Duration) -> u64 {
    now().saturating_sub(begun).as_micros() as u64
}

fn pause(time: Duration) {
    let passing = TimedOut { register: 0, bits: 0 };
    let _ = wait_until(&timer::clock(), time, passing, || None::<()>);
}

#[track_caller]
fn answered<T>(result: Result<T, Lost>) -> Result<T, Failure> {
    result.map_err(|lost| {
        defmt::error!("{}", lost);
        failure("a CPU does not answer")
    })
}

#[track_caller]
fn ensure(condition: bool, what: &'static str) -> Result<(), Failure> {
    if condition { Ok(()) } else { Err(failure(what)) }
}

#[track_caller]
fn failure(what: &'static str) -> Failure {
    Failure { what, error: None, line: Location::caller().line() }
}
