//! The second CPU: started by firmware, then at the first one's orders.

use core::{
    arch::{asm, global_asm},
    cell::UnsafeCell,
    hint::spin_loop,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::Duration,
};

use portcullis_hal::{Clock, arch::powerpc64::TimeBaseClock};

use super::{
    area,
    guest::{FullContext, Guest, Loaded, Stop},
};

/// Its index.
pub const SECOND: usize = 1;
/// How long firmware may take to start a CPU.
const START_LIMIT: Duration = Duration::from_secs(5);
/// What the second CPU gets on top of its guest's limit before it counts as lost.
const GRACE: Duration = Duration::from_secs(5);

const ABSENT: u32 = 0;
const IDLE: u32 = 1;
const ORDERED: u32 = 2;
const CRASHED: u32 = 3;

/// What the second CPU is to do.
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

// SAFETY: `order` and `ended` are the second CPU's while the state is `ORDERED`, and the first one's otherwise.
unsafe impl Sync for Desk {}

static DESK: Desk = Desk {
    state: AtomicU32::new(ABSENT),
    order: UnsafeCell::new(None),
    ended: UnsafeCell::new(Ok(())),
    vector: AtomicU64::new(0),
    pc: AtomicU64::new(0),
};

/// Why the second CPU is not there.
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
    main = sym second_main,
);

static STACK: AtomicU64 = AtomicU64::new(0);

/// Starts the second CPU with `start`, which asks firmware to let it enter `hv_secondary`, once it is
/// in little-endian mode.
///
/// # Errors
/// [`Lost`].
pub fn start(start: impl FnOnce() -> Result<(), i64>) -> Result<(), Lost> {
    if DESK.state.load(Ordering::Acquire) != ABSENT {
        return still_there();
    }
    let stack = area::full_stack(SECOND).ok_or(Lost::Silent)?;
    let _ = area::prepare(SECOND).ok_or(Lost::Silent)?;
    STACK.store(stack, Ordering::Release);
    start().map_err(Lost::Refused)?;
    wait_while(ABSENT, START_LIMIT)
}

/// Carries out what was loaded for vCPU 1, on the second CPU, while `meanwhile` runs on this one.
///
/// # Errors
/// [`Lost`]; the guest's own end is the inner result.
pub fn run_beside<T>(
    guest: Guest,
    loaded: Loaded,
    full: FullContext,
    limit: Duration,
    meanwhile: impl FnOnce() -> T,
) -> Result<(Result<(), Stop>, T), Lost> {
    still_there()?;
    // SAFETY: the state is `IDLE`: the desk is this CPU's.
    unsafe { *DESK.order.get() = Some(Order { guest, loaded, full, limit }) }
    DESK.state.store(ORDERED, Ordering::Release);
    let mine = meanwhile();
    wait_while(ORDERED, limit.saturating_add(GRACE))?;
    // SAFETY: the second CPU gave the desk back.
    Ok((unsafe { *DESK.ended.get() }, mine))
}

fn still_there() -> Result<(), Lost> {
    match DESK.state.load(Ordering::Acquire) {
        IDLE => Ok(()),
        CRASHED => Err(crash()),
        _ => Err(Lost::Silent),
    }
}

fn wait_while(state: u32, limit: Duration) -> Result<(), Lost> {
    let begun = TimeBaseClock.now();
    while DESK.state.load(Ordering::Acquire) == state {
        if TimeBaseClock.now().saturating_sub(begun) > limit {
            return Err(Lost::Silent);
        }
        spin_loop();
    }
    still_there()
}

fn crash() -> Lost {
    Lost::Crashed { vector: DESK.vector.load(Ordering::Relaxed), pc: DESK.pc.load(Ordering::Relaxed) }
}

/// What the second CPU does when it runs into an interrupt: the first one finds out when it waits. Never returns.
pub fn report_crash(vector: u64, pc: u64) -> ! {
    DESK.vector.store(vector, Ordering::Relaxed);
    DESK.pc.store(pc, Ordering::Relaxed);
    DESK.state.store(CRASHED, Ordering::Release);
    loop {
        spin_loop();
    }
}

unsafe extern "C" fn second_main() -> ! {
    if let Some(area) = area::area(SECOND) {
        // SAFETY: the vectors' code wants this CPU's area there; `start` has prepared it.
        unsafe { asm!("mtspr 304, {area}", area = in(reg) area.addr(), options(nostack)) }
    }
    loop {
        DESK.state.store(IDLE, Ordering::Release);
        while DESK.state.load(Ordering::Acquire) != ORDERED {
            spin_loop();
        }
        // SAFETY: the state is `ORDERED`: the desk is this CPU's, which is in hypervisor real mode.
        unsafe {
            *DESK.ended.get() = (*DESK.order.get()).map_or(Err(Stop::NoSuchScript), |order| {
                order.guest.prepare_cpu();
                order.guest.run(order.loaded, order.full, order.limit)
            });
        }
    }
}
