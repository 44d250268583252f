//! The caches of all CPUs, for guests that have a claim to flushes.

use core::time::Duration;

use portcullis_hal::{
    arch::x86_64::write_back_all,
    sync::{AtomicU64, Ordering},
};
use portcullis_hypervisor::x86::caching::{Caches, Cpus, Flush};

use crate::cpus::{self, MAX_CPUS};

/// How long a CPU may take: an emulated machine may stand still for a while.
const LIMIT: Duration = Duration::from_secs(5);

/// What each CPU flushed for guests.
static FLUSHES: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

/// The caches of the CPUs that were started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AllCaches;

/// Flushes of CPU `cpu` so far, as it counted them.
pub(crate) fn flushes(cpu: usize) -> u64 {
    FLUSHES.get(cpu).map_or(0, |count| count.load(Ordering::Acquire))
}

fn flush_this() {
    write_back_all();
    if let Some(count) = cpus::this_cpu().and_then(|cpu| FLUSHES.get(cpu)) {
        count.fetch_add(1, Ordering::AcqRel);
    }
}

/// Has each call `function`; those that did not.
fn on_each(cpus: Cpus, function: fn()) -> Result<(), Cpus> {
    let has_failed = |&cpu: &usize| {
        if cpus::this_cpu() == Some(cpu) {
            function();
            return false;
        }
        cpus::call(cpu, function, LIMIT).is_err()
    };
    let silent: Cpus = cpus.iter().filter(has_failed).collect();
    if silent.is_empty() { Ok(()) } else { Err(silent) }
}

impl Caches for AllCaches {
    /// By WBINVD, which does all that a write-back does.
    fn flush(&mut self, _: Flush, cpus: Cpus) -> Result<(), Cpus> {
        on_each(cpus, flush_this)
    }

    fn interrupt(&mut self, cpus: Cpus) -> Result<(), Cpus> {
        on_each(cpus, || ())
    }

    fn wait(&mut self, ready: &mut dyn FnMut() -> bool) {
        cpus::answer_until(LIMIT, ready);
    }
}
