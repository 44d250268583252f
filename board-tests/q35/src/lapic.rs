//! This CPU's local APIC, in the mode in which firmware left it (Intel SDM volume 3, chapter 13).
//!
//! Crate `x2apic` puts a CPU that can into x2APIC mode, and wants a value of its own, exclusively borrowed,
//! in each interrupt handler; here a CPU's mode stays, and there is nothing but the hardware's state.

use core::{arch::x86_64::__cpuid, ops::Range, ptr, time::Duration};

use portcullis_hal::{
    Clock, TimedOut,
    sync::{AtomicU32, Ordering, fence},
    wait_until,
};
use x86_64::registers::model_specific::Msr;

/// Vector of an interrupt that has gone before it was taken; it wants no end-of-interrupt.
pub(crate) const SPURIOUS: u8 = 0xff;

const BASE_MSR: u32 = 0x1b;
const BASE_ENABLED: u64 = 1 << 11;
const BASE_X2APIC: u64 = 1 << 10;
const BASE_ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// What is mapped, uncached: the last GiB below 4 GiB.
const MAPPED: Range<u64> = 0xc000_0000..0x1_0000_0000;
/// Number of the MSR for register 0.
const X2APIC_MSR: u32 = 0x800;

/// Byte offsets of registers, divided by 16: the same numbers count the MSRs.
const ID: u32 = 0x02;
const TASK_PRIORITY: u32 = 0x08;
const END_OF_INTERRUPT: u32 = 0x0b;
const SPURIOUS_VECTOR: u32 = 0x0f;
const COMMAND_LOW: u32 = 0x30;
const COMMAND_HIGH: u32 = 0x31;
const TIMER: u32 = 0x32;
/// Local interrupts that are not the timer: performance counters, LINT0, LINT1, errors.
const OTHERS: [u32; 4] = [0x34, 0x35, 0x36, 0x37];
const INITIAL_COUNT: u32 = 0x38;
const CURRENT_COUNT: u32 = 0x39;
const DIVIDER: u32 = 0x3e;

const MASKED: u32 = 1 << 16;
const SOFTWARE_ENABLED: u32 = 1 << 8;
const DIVIDE_BY_16: u32 = 3;
const DELIVERY_PENDING: u32 = 1 << 12;
const ASSERT: u32 = 1 << 14;
const INIT: u32 = 5 << 8;
const START_UP: u32 = 6 << 8;

const MEASURED: Duration = Duration::from_millis(10);
const SEND_LIMIT: Duration = Duration::from_millis(100);

/// Timer ticks in [`MEASURED`]; all CPUs' timers count one bus clock.
static TICKS: AtomicU32 = AtomicU32::new(0);

/// The local APIC of whichever CPU executes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Lapic {
    /// Registers in memory, at this address.
    Memory(usize),
    /// Registers as MSRs.
    X2Apic,
}

/// Why a local APIC cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, defmt::Format)]
pub(crate) enum ApicError {
    /// There is none, or firmware has turned it off, or it is out of reach.
    Absent,
    /// It did not send an interrupt in time.
    NotSent,
    /// Its timer does not count.
    TimerStands,
    /// A CPU number that only x2APIC can address.
    Unaddressable(u32),
}

impl Lapic {
    /// Finds it, by its base MSR.
    pub(crate) fn of_this_cpu() -> Result<Self, ApicError> {
        let has_apic = __cpuid(1).edx >> 9 & 1 != 0;
        if !has_apic {
            return Err(ApicError::Absent);
        }
        // SAFETY: the MSR exists where there is an APIC; reading it changes nothing.
        let base = unsafe { Msr::new(BASE_MSR).read() };
        let address = base & BASE_ADDRESS;
        match base & (BASE_ENABLED | BASE_X2APIC) {
            BASE_ENABLED if MAPPED.contains(&address) => Ok(Self::Memory(address as usize)),
            bits if bits == BASE_ENABLED | BASE_X2APIC => Ok(Self::X2Apic),
            _ => Err(ApicError::Absent),
        }
    }

    /// Lets it deliver interrupts by vector and nothing else: no legacy ones, no counters, no errors.
    pub(crate) fn enable(self) {
        for register in OTHERS {
            self.write(register, MASKED);
        }
        self.write(TIMER, MASKED);
        self.write(TASK_PRIORITY, 0);
        self.write(SPURIOUS_VECTOR, SOFTWARE_ENABLED | u32::from(SPURIOUS));
    }

    /// The number by which others send interrupts to this CPU.
    pub(crate) fn id(self) -> u32 {
        match self {
            Self::Memory(_) => self.read(ID) >> 24,
            Self::X2Apic => self.read(ID),
        }
    }

    /// Tells that the interrupt in service has been served.
    pub(crate) fn end_of_interrupt(self) {
        self.write(END_OF_INTERRUPT, 0);
    }

    /// Resets the CPU `id`; it then waits for [`start_up`](Self::start_up).
    pub(crate) fn init(self, id: u32, clock: &impl Clock) -> Result<(), ApicError> {
        self.command(id, INIT | ASSERT, clock)
    }

    /// Has the CPU `id`, which was reset, begin in real mode at the page `page` of the first MiB.
    pub(crate) fn start_up(self, id: u32, page: u8, clock: &impl Clock) -> Result<(), ApicError> {
        self.command(id, START_UP | ASSERT | u32::from(page), clock)
    }

    /// Interrupts the CPU `id`.
    pub(crate) fn interrupt(self, id: u32, vector: u8, clock: &impl Clock) -> Result<(), ApicError> {
        self.command(id, ASSERT | u32::from(vector), clock)
    }

    fn command(self, id: u32, low: u32, clock: &impl Clock) -> Result<(), ApicError> {
        if matches!(self, Self::X2Apic) {
            // What was stored before must be seen by the one interrupted: this write orders nothing by itself
            // (Intel SDM volume 3, 13.12.3).
            fence(Ordering::SeqCst);
            // SAFETY: x2APIC mode, in which the MSR exists; what it sends, the callers vouch for.
            unsafe { Msr::new(X2APIC_MSR + COMMAND_LOW).write(u64::from(id) << 32 | u64::from(low)) };
            return Ok(());
        }
        let short = u8::try_from(id).map_err(|_| ApicError::Unaddressable(id))?;
        self.sent(clock)?;
        self.write(COMMAND_HIGH, u32::from(short) << 24);
        self.write(COMMAND_LOW, low);
        self.sent(clock)
    }

    /// Waits until the last command has gone out.
    fn sent(self, clock: &impl Clock) -> Result<(), ApicError> {
        let missing = TimedOut { register: COMMAND_LOW << 4, bits: DELIVERY_PENDING.into() };
        let done = || (self.read(COMMAND_LOW) & DELIVERY_PENDING == 0).then_some(());
        wait_until(clock, SEND_LIMIT, missing, done).map_err(|_| ApicError::NotSent)
    }

    /// Measures the timer against `clock`, once for all CPUs.
    pub(crate) fn calibrate(self, clock: &impl Clock) -> Result<(), ApicError> {
        self.write(DIVIDER, DIVIDE_BY_16);
        self.write(TIMER, MASKED);
        let begun = clock.now();
        self.write(INITIAL_COUNT, u32::MAX);
        let passing = TimedOut { register: CURRENT_COUNT << 4, bits: 0 };
        let _ = wait_until(clock, MEASURED, passing, || None::<()>);
        let (counted, ended) = (u32::MAX - self.read(CURRENT_COUNT), clock.now());
        self.stop_timer();
        let ticks = u128::from(counted) * MEASURED.as_nanos() / ended.saturating_sub(begun).as_nanos().max(1);
        TICKS.store(ticks as u32, Ordering::Release);
        if ticks < MEASURED.as_millis() { Err(ApicError::TimerStands) } else { Ok(()) }
    }

    /// Has the timer interrupt this CPU with `vector` once, about `after` from now: the timer was measured, so
    /// that it may be a little early. At most 2^32 - 1 of its ticks.
    pub(crate) fn start_timer(self, vector: u8, after: Duration) {
        let ticks = after.as_nanos() * u128::from(TICKS.load(Ordering::Acquire));
        let ticks = ticks.div_ceil(MEASURED.as_nanos());
        self.write(DIVIDER, DIVIDE_BY_16);
        self.write(TIMER, vector.into());
        self.write(INITIAL_COUNT, u32::try_from(ticks).unwrap_or(u32::MAX).max(1));
    }

    /// Has it not interrupt any more. An interrupt that was already asked for still comes.
    pub(crate) fn stop_timer(self) {
        self.write(INITIAL_COUNT, 0);
        self.write(TIMER, MASKED);
    }

    fn read(self, register: u32) -> u32 {
        match self {
            // SAFETY: the registers are mapped there, uncached, and reading any of these changes nothing.
            Self::Memory(base) => unsafe { register_at(base, register).read_volatile() },
            // SAFETY: x2APIC mode, in which the MSR exists and reading it changes nothing.
            Self::X2Apic => unsafe { Msr::new(X2APIC_MSR + register).read() as u32 },
        }
    }

    fn write(self, register: u32, value: u32) {
        match self {
            // SAFETY: the registers are mapped there, uncached. Interrupts lead to handlers that preserve what
            // they interrupt; start-up leads to this image's own code.
            Self::Memory(base) => unsafe { register_at(base, register).write_volatile(value) },
            // SAFETY: x2APIC mode, in which the MSR exists; otherwise as above.
            Self::X2Apic => unsafe { Msr::new(X2APIC_MSR + register).write(value.into()) },
        }
    }
}

const fn register_at(base: usize, register: u32) -> *mut u32 {
    ptr::with_exposed_provenance_mut(base + ((register as usize) << 4))
}
