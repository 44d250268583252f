//! Flushing lines on the machine that runs the tests. What the caches do is not seen; where it goes is.
#![cfg(target_arch = "x86_64")]
#![allow(missing_docs, reason = "tests document themselves by their names")]

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use portcullis_hal::{
    CacheMaintenance, PhysAddr, PhysRange,
    arch::x86_64::{CacheLines, LinearMap},
};

/// Where the test's memory would lie in the machine.
const START: u64 = 0x10_0000;
const BYTES: u64 = 0x2000;

#[repr(align(4096))]
struct Memory([AtomicU64; BYTES as usize / 8]);

static MEMORY: Memory = Memory([const { AtomicU64::new(7) }; BYTES as usize / 8]);
static ALL_FLUSHED: AtomicU32 = AtomicU32::new(0);

fn on_every_cpu(act: fn()) {
    act();
    ALL_FLUSHED.fetch_add(1, Relaxed);
}

fn range(start: u64, bytes: u64) -> PhysRange {
    PhysRange::new(PhysAddr::new(start), bytes).unwrap()
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no cache instructions")]
fn h10_only_memory_without_a_mapping_costs_all_lines() {
    let base = MEMORY.0.as_ptr().expose_provenance();
    // SAFETY: the static is as long, aligned to 4 KiB, and lives for ever.
    let map = unsafe { LinearMap::new(range(START, BYTES), base) };
    let cache = CacheLines::detect(map, on_every_cpu);
    for (start, bytes) in [(START, BYTES), (START, 1), (START + 63, 2), (START + BYTES - 1, 1)] {
        cache.flush(range(start, bytes));
        assert_eq!(ALL_FLUSHED.load(Relaxed), 0, "it is mapped");
    }
    let outside = [(START - 1, 2), (START + BYTES - 1, 2), (0, 1), (START + BYTES, 1), (u64::MAX, 1)];
    for (calls, (start, bytes)) in (1..).zip(outside) {
        cache.flush(range(start, bytes));
        assert_eq!(ALL_FLUSHED.load(Relaxed), calls, "it is not");
    }
    assert!(MEMORY.0.iter().all(|word| word.load(Relaxed) == 7));
}
