//! The programs that run beside one on another CPU.

use core::arch::x86_64::{__cpuid_count, _rdtsc};

use super::{
    hypercall::{exit, report},
    meets::{MET, ROUNDS, Record},
    probe, runs,
};

/// Meets the other guest, round by round; ends with the round in which it did not.
pub(super) fn meet() {
    let write = |record: Record, value| probe::store(record.address(), value);
    let cpuids = probe::load(Record::Cpuids.address()).value;
    write(Record::Begin, stamp());
    let mut changed = 0;
    for round in 1..=ROUNDS {
        write(Record::Round, round);
        (0..cpuids).for_each(|_| {
            let _ = __cpuid_count(0, 0);
        });
        if report(round) != MET {
            exit(round);
        }
        changed += runs::changed_registers(round << 32 | cpuids);
    }
    write(Record::Changed, changed);
    write(Record::End, stamp());
}

/// Counts in the word at `at`, for ever and without an exit.
pub(super) fn count(at: u64) -> ! {
    let mut value = 0;
    loop {
        value += 1;
        probe::store(at, value);
    }
}

fn stamp() -> u64 {
    // SAFETY: every CPU with SVM has a time-stamp counter, and the guest may read it.
    unsafe { _rdtsc() }
}
