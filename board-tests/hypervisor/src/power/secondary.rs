//! The other CPUs: started by firmware, then at the first one's orders.

use core::{
    arch::{asm, global_asm},
    cell::UnsafeCell,
    hint::spin_loop,
    sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
    time::Duration,
};

use portcullis_hal::{Clock, arch::powerpc64::TimeBaseClock};

use super::{
    area::{self, CPUS},
    cpu,
    guest::{FullContext, Guest, Loaded, Stop},
};

/// Index of the second CPU.
pub const SECOND: usize = 1;
/// Index of the third one.
pub const THIRD: usize = 2;
/// How long firmware may take to start a CPU.
const START_LIMIT: Duration = Duration::from_secs(5);
/// What a CPU gets on top of its guest's limit before it counts as lost.
const GRACE: Duration = Duration::from_secs(5);

const ABSENT: u32 = 0;
const IDLE: u32 = 1;
const ORDERED: u32 = 2;
const CRASHED: u32 = 3;

/// What a CPU is to do.
#[derive(Clone, Copy)]
struct Order {
    guest: Guest,
    loaded: Loaded,
    full: FullContext,
    limit: Duration,
}

struct Desk {
    state: AtomicU32,
    order: UnsafeCell<Option<Order>>,
    ended: UnsafeCell<Result<(), Stop>>,
    vector: AtomicU64,
    pc: AtomicU64,
}

// SAFETY: `order` and `ended` are the ordered CPU's while the state is `ORDERED`, and the first one's otherwise.
unsafe impl Sync for Desk {}

impl Desk {
    const fn absent() -> Self {
        Self {
            state: AtomicU32::new(ABSENT),
            order: UnsafeCell::new(None),
            ended: UnsafeCell::new(Ok(())),
            vector: AtomicU64::new(0),
            pc: AtomicU64::new(0),
        }
    }

    /// The desk of a CPU; the first one, which gives the orders, has one that nobody uses.
    fn of(cpu: usize) -> Result<&'static Self, Lost> {
        static DESKS: [Desk; CPUS] = [const { Desk::absent() }; CPUS];
        DESKS.get(cpu).ok_or(Lost::Silent)
    }
}

/// Why a CPU is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// Firmware refused to start it, with this status.
    Refused(i64),
    /// It was not heard of in time.
    Silent,
    /// It ran into an interrupt.
    Crashed {
        /// The interrupt's offset.
        vector: u64,
        /// Where.
        pc: u64,
    },
}

// Entered little-endian, in hypervisor real mode, with r3 = the number that firmware knows the CPU by.
global_asm!(
    ".section .text.hv_secondary, \"ax\"",
    ".global hv_secondary",
    "hv_secondary:",
    "mfmsr 10",
    "oris 10, 10, 0x0280", // VEC, VSX
    "ori 10, 10, 0x2000",  // FP
    "mtmsrd 10",
    "isync",
    "lis 10, {stack}@ha",
    "addi 10, 10, {stack}@l",
    "ld 1, 0(10)",
    "li 0, 0",
    "stdu 0, -128(1)",
    "lis 2, .TOC.@ha",
    "addi 2, 2, .TOC.@l",
    "bl {main}",
    "nop",
    "b .",
    stack = sym STACK,
    main = sym secondary_main,
);

/// The CPU that is being started: its stack, and its index.
static STACK: AtomicU64 = AtomicU64::new(0);
static STARTED: AtomicUsize = AtomicUsize::new(0);

/// Starts CPU `cpu`, unless it runs, with `start`, which asks firmware to let it enter `hv_secondary`, once it is
/// in little-endian mode.
///
/// # Errors
/// [`Lost`].
pub fn start(cpu: usize, start: impl FnOnce() -> Result<(), i64>) -> Result<(), Lost> {
    let desk = Desk::of(cpu)?;
    if desk.state.load(Ordering::Acquire) != ABSENT {
        return desk.still_there();
    }
    let stack = area::full_stack(cpu).ok_or(Lost::Silent)?;
    let _ = area::prepare(cpu).ok_or(Lost::Silent)?;
    STARTED.store(cpu, Ordering::Relaxed);
    STACK.store(stack, Ordering::Release);
    start().map_err(Lost::Refused)?;
    desk.wait_while(ABSENT, START_LIMIT)
}

/// Carries out what was loaded for vCPU `cpu`, on the CPU of that number, while `meanwhile` runs on this one.
///
/// # Errors
/// [`Lost`]; the guest's own end is the inner result.
pub fn run_beside<T>(
    cpu: usize,
    guest: Guest,
    loaded: Loaded,
    full: FullContext,
    limit: Duration,
    meanwhile: impl FnOnce() -> T,
) -> Result<(Result<(), Stop>, T), Lost> {
    let desk = Desk::of(cpu)?;
    desk.still_there()?;
    // SAFETY: the state is `IDLE`: the desk is this CPU's.
    unsafe { *desk.order.get() = Some(Order { guest, loaded, full, limit }) }
    desk.state.store(ORDERED, Ordering::Release);
    let mine = meanwhile();
    desk.wait_while(ORDERED, limit.saturating_add(GRACE))?;
    // SAFETY: the other CPU gave the desk back.
    Ok((unsafe { *desk.ended.get() }, mine))
}

impl Desk {
    fn still_there(&self) -> Result<(), Lost> {
        match self.state.load(Ordering::Acquire) {
            IDLE => Ok(()),
            CRASHED => Err(Lost::Crashed {
                vector: self.vector.load(Ordering::Relaxed),
                pc: self.pc.load(Ordering::Relaxed),
            }),
            _ => Err(Lost::Silent),
        }
    }

    fn wait_while(&self, state: u32, limit: Duration) -> Result<(), Lost> {
        let begun = TimeBaseClock.now();
        while self.state.load(Ordering::Acquire) == state {
            if TimeBaseClock.now().saturating_sub(begun) > limit {
                return Err(Lost::Silent);
            }
            spin_loop();
        }
        self.still_there()
    }

    /// Carries out orders for ever.
    fn work(&self) -> ! {
        loop {
            self.state.store(IDLE, Ordering::Release);
            while self.state.load(Ordering::Acquire) != ORDERED {
                spin_loop();
            }
            // SAFETY: the state is `ORDERED`: the desk is this CPU's, which is in hypervisor real mode.
            unsafe {
                *self.ended.get() = (*self.order.get()).map_or(Err(Stop::NoSuchScript), |order| {
                    order.guest.prepare_cpu();
                    order.guest.run(order.loaded, order.full, order.limit)
                });
            }
        }
    }
}

/// What a CPU but the first does when it runs into an interrupt: the first one finds out when it waits. Never returns.
pub fn report_crash(vector: u64, pc: u64) -> ! {
    if let Ok(desk) = Desk::of(cpu::this()) {
        desk.vector.store(vector, Ordering::Relaxed);
        desk.pc.store(pc, Ordering::Relaxed);
        desk.state.store(CRASHED, Ordering::Release);
    }
    stop()
}

fn stop() -> ! {
    loop {
        spin_loop();
    }
}

unsafe extern "C" fn secondary_main() -> ! {
    let cpu = STARTED.load(Ordering::Relaxed);
    let (Some(area), Ok(desk)) = (area::area(cpu), Desk::of(cpu)) else { stop() };
    // SAFETY: the vectors' code wants this CPU's area there; `start` has prepared it.
    unsafe { asm!("mtspr 304, {area}", area = in(reg) area.addr(), options(nostack)) }
    desk.work()
}
