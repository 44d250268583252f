//! A guest on the second CPU whose device writes to its memory all the time.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use portcullis_hal::PhysRange;
use portcullis_suite::Failure;

use super::{Cpus, Parts, await_that, turn};
use crate::x86::{
    guest::dma,
    memory::GuestMemory,
    scenario::{LIMIT, ensure, need, no_call},
    svm::SvmCpu,
    vcpu::Stop,
};

/// What a guest's device finds in its source: not the same for any two guests.
pub(super) const fn pattern(guest: usize) -> u64 {
    0xa1a2_a3a4_a5a6_a7a8 + guest as u64
}

/// Tells guest `index` where its device is.
pub(super) fn prepare(memory: GuestMemory, registers: PhysRange, index: usize) -> Result<(), Failure> {
    let at = (registers.start().as_u64(), registers.bytes());
    need(dma::prepare(memory, at, pattern(index)), "the arguments do not fit")
}

/// Waits until the guest's device writes, over and over.
pub(super) fn is_at_work(cpus: &impl Cpus, memory: GuestMemory, index: usize) -> Result<(), Failure> {
    let works = || dma::writes(memory) > 1 && dma::has_arrived(memory, pattern(index));
    ensure(await_that(cpus, LIMIT, works), "the guest's device does not reach the guest's memory")
}

/// How the second CPU looks at the memory of two guests, once its own guest has stopped.
#[derive(Default)]
pub(super) struct Looks {
    /// From now on nothing may arrive.
    closed: AtomicBool,
    /// Nobody needs to look any more.
    over: AtomicBool,
    looks: AtomicU64,
    hits: AtomicU64,
}

impl Looks {
    /// From now on nothing may arrive.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Nobody needs to look any more.
    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Release);
    }

    /// How often the second CPU looked while nothing might arrive, and how often something had.
    pub(super) fn seen(&self) -> [u64; 2] {
        [self.looks.load(Ordering::Acquire), self.hits.load(Ordering::Acquire)]
    }

    /// Looks until it is over.
    fn look(&self, cpus: &impl Cpus, clean: impl Fn() -> bool) {
        let done = await_that(cpus, 3 * LIMIT, || {
            if self.closed.load(Ordering::Acquire) {
                self.looks.fetch_add(1, Ordering::Relaxed);
                self.hits.fetch_add(u64::from(!clean()), Ordering::AcqRel);
            }
            self.over.load(Ordering::Acquire)
        });
        // Who did not end in time has seen nothing.
        self.looks.fetch_and(if done { u64::MAX } else { 0 }, Ordering::AcqRel);
    }
}

/// Runs the guest until it stops, on the CPU that executes, and looks at memory from then on.
pub(super) fn run_and_look<C: Cpus>(
    cpus: &C,
    cpu: &SvmCpu,
    parts: Parts<'_>,
    looks: &Looks,
    clean: impl Fn() -> bool,
) -> Stop {
    let mut vcpu = parts.vcpu(cpu);
    let stop = turn(cpus, &mut vcpu, &mut no_call, 3 * LIMIT);
    looks.look(cpus, clean);
    stop
}
