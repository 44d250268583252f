//! Interrupts: vectors that are not exceptions. A handler runs with interrupts off, on the stack of whatever
//! it interrupts, and returns to it; it logs nothing, because a log frame may be what it interrupts.

use core::{arch::asm, mem};

use portcullis_hal::sync::{AtomicU32, AtomicUsize, Ordering};
use x86_64::instructions::port::Port;

use crate::{
    cpus::{self, MAX_CPUS},
    lapic::{Lapic, SPURIOUS},
};

/// Vectors below are exceptions.
const FIRST: u8 = 32;
/// No vector has been taken: no number of one.
const NONE: u32 = u32::MAX;

/// A function's address, or nothing, for other CPUs to take.
#[derive(Debug)]
pub(crate) struct FnSlot(AtomicUsize);

impl FnSlot {
    pub(crate) const fn empty() -> Self {
        Self(AtomicUsize::new(0))
    }

    /// What was put, with all that was stored before it was.
    pub(crate) fn get(&self) -> Option<fn()> {
        let address = self.0.load(Ordering::Acquire);
        // SAFETY: only `put` stores anything but 0, and that is a function of this type.
        (address != 0).then(|| unsafe { mem::transmute::<usize, fn()>(address) })
    }

    pub(crate) fn put(&self, function: fn()) {
        self.0.store(function as usize, Ordering::Release);
    }

    /// Leaves nothing; who sees that sees all that was stored before.
    pub(crate) fn clear(&self) {
        self.0.store(0, Ordering::Release);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.load(Ordering::Acquire) == 0
    }
}

static HANDLERS: [FnSlot; 256 - FIRST as usize] = [const { FnSlot::empty() }; 256 - FIRST as usize];
/// The last vector that each CPU took.
static TAKEN: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(NONE) }; MAX_CPUS];

/// Has `handler` called, on whichever CPU is interrupted, for `vector`; an exception's vector is left alone.
pub(crate) fn handle(vector: u8, handler: fn()) {
    let slot = vector.checked_sub(FIRST).and_then(|index| HANDLERS.get(usize::from(index)));
    if let Some(slot) = slot {
        slot.put(handler);
    }
}

/// Takes the interrupts that wait, which is for a CPU that has them off, as after a guest's exit. Returns the
/// last vector that was taken; what each one is about, its handler has noted.
pub(crate) fn take_pending() -> Option<u8> {
    let taken = TAKEN.get(cpus::this_cpu()?)?;
    taken.store(NONE, Ordering::Relaxed);
    // SAFETY: handlers preserve what they interrupt. An interrupt is taken after the `nop` at the latest:
    // `sti` holds them off for one instruction (Intel SDM volume 2, STI).
    unsafe { asm!("sti", "nop", "cli") };
    u8::try_from(taken.load(Ordering::Relaxed)).ok()
}

/// Masks both of the PC's old interrupt controllers: the timer that firmware left running would come as an
/// exception's vector.
pub(crate) fn mask_legacy() {
    for port in [0x21, 0xa1] {
        // SAFETY: the controllers' mask registers; nobody on this machine waits for their interrupts.
        unsafe { Port::<u8>::new(port).write(0xff) };
    }
}

/// A vector without a handler is firmware's left-over: it is only acknowledged.
#[unsafe(no_mangle)]
extern "C" fn rust_interrupt(vector: u64) {
    let Ok(vector) = u8::try_from(vector) else { return };
    if vector == SPURIOUS {
        return;
    }
    if let Some(taken) = cpus::this_cpu().and_then(|cpu| TAKEN.get(cpu)) {
        taken.store(vector.into(), Ordering::Relaxed);
    }
    let slot = vector.checked_sub(FIRST).and_then(|index| HANDLERS.get(usize::from(index)));
    if let Some(handler) = slot.and_then(FnSlot::get) {
        handler();
    }
    if let Ok(lapic) = Lapic::of_this_cpu() {
        lapic.end_of_interrupt();
    }
}
