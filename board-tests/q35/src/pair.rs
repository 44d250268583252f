//! The second CPU, for scenarios that run guests on both.

use core::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use portcullis_hal::Clock;
use portcullis_hypervisor::x86::{
    caching::Caches,
    scenario::pair::Cpus,
    svm::{CpuArea, SvmCpu},
    vcpu::TurnLimit,
};
use x86_64::instructions::interrupts::without_interrupts;

use crate::{
    boot::AcpiRoot,
    caches::{self, AllCaches},
    cpus::{self, Job, MAX_CPUS},
    limit::Limit,
    startup, timer,
};

const SECOND: usize = 1;
/// How long a CPU in a guest may take to leave it: an emulated machine may stand still for a while.
const LEAVE_LIMIT: Duration = Duration::from_secs(5);
/// The longest that a scenario leaves the second CPU alone.
const JOB_LIMIT: Duration = Duration::from_secs(50);

static AREAS: [CpuArea; MAX_CPUS] = [const { CpuArea::new() }; MAX_CPUS];

/// What one CPU is to do for another: a closure on the other's stack.
struct Errand<'a>(&'a mut (dyn FnMut() + Send));

/// The CPUs of this machine.
#[derive(Debug)]
pub(crate) struct Pair {
    root: AcpiRoot,
    is_started: AtomicBool,
}

impl Pair {
    /// Of the machine whose tables are at `root`.
    pub(crate) const fn new(root: AcpiRoot) -> Self {
        Self { root, is_started: AtomicBool::new(false) }
    }
}

/// Turns SVM on, on this CPU.
pub(crate) fn svm() -> Option<SvmCpu> {
    let area = AREAS.get(cpus::this_cpu()?)?;
    // SAFETY: level 0, addresses are physical ones; the area is this CPU's for good, and guests take turns on it.
    unsafe { SvmCpu::enable(area) }.ok()
}

impl Cpus for Pair {
    fn start(&self) -> bool {
        !self.is_started.swap(true, Ordering::Relaxed)
            && startup::start_all(self.root).is_ok_and(|count| count > SECOND)
    }

    fn clock(&self) -> impl Clock {
        timer::clock()
    }

    fn limit(&self) -> impl TurnLimit {
        Limit
    }

    fn svm(&self) -> Option<SvmCpu> {
        svm()
    }

    fn beside(&self, there: &mut (dyn FnMut() + Send), here: &mut dyn FnMut()) {
        let mut errand = Errand(there);
        let argument = (&raw mut errand).expose_provenance() as u64;
        let begun = cpus::begin(SECOND, Job { act: run_errand, argument });
        here();
        if begun.and_then(|()| cpus::finish(SECOND, JOB_LIMIT)).is_err() {
            // It may still have the errand, which ends with this function.
            crate::give_up("the second CPU does not end what it was given");
        }
    }

    fn caches(&self) -> impl Caches {
        AllCaches
    }

    fn flushes(&self, cpu: usize) -> u64 {
        caches::flushes(cpu)
    }

    fn interrupt_second(&self) -> bool {
        cpus::call(SECOND, || (), LEAVE_LIMIT).is_ok()
    }
}

/// Interrupts stay off but where a guest runs and where the errand takes them.
fn run_errand(_: usize, argument: u64) -> u64 {
    let errand: *mut Errand<'_> = core::ptr::with_exposed_provenance_mut(argument as usize);
    // SAFETY: `beside` made it, leaves it to this CPU, and does not return before this function has.
    let errand = unsafe { &mut *errand };
    without_interrupts(|| (errand.0)());
    0
}
