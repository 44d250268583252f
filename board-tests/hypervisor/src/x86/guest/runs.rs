//! The program that loads, stores and makes hypercalls.

use core::arch::x86_64::_rdtsc;

use super::{
    calls,
    hypercall::{call, report},
    probe,
};

/// Hypercalls in a row.
const TIMES: u64 = 1000;
/// Hypercalls that are measured one by one.
const SINGLES: u64 = 200;

unsafe extern "C" {
    fn x86_guest_poisoned_call(before: *const [u64; 16], after: *mut [u64; 16]);
}

/// Stores at `at` and loads it again, makes hypercalls, and reports: what was loaded, what a hypercall answered, how many of
/// a thousand were answered with 0, how many registers changed in one, and the least ticks that one took.
pub(super) fn run(at: u64) {
    probe::store(at, 0x8877_6655_4433_2211);
    probe::store(at + 8, !0x8877_6655_4433_2211);
    report(probe::load(at + 4).value);
    let answer = report(7);
    report(answer);
    report((0..TIMES).filter(|_| call(calls::EMPTY, [0; 3]) == 0).count() as u64);
    report(changed_registers(0));
    report((0..SINGLES).map(|_| ticks_of_one()).min().unwrap_or(0));
}

fn ticks_of_one() -> u64 {
    // SAFETY: every CPU with SVM has a time-stamp counter, and the guest may read it.
    let before = unsafe { _rdtsc() };
    call(calls::EMPTY, [0; 3]);
    // SAFETY: as above.
    unsafe { _rdtsc() }.wrapping_sub(before)
}

/// Registers that are not what they were before an empty hypercall; its answer is 0, and the flags were carry and
/// direction. The patterns depend on `seed`.
pub(super) fn changed_registers(seed: u64) -> u64 {
    const STACK: usize = 4;
    const CARRY_DIRECTION: u64 = 1 | 1 << 10;
    let mut before = [0u64; 16];
    let patterns = (1u64..).map(|number| (number ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    before.iter_mut().zip(patterns).for_each(|(register, pattern)| *register = pattern);
    before[0] = calls::EMPTY;
    let mut after = [0; 16];
    // SAFETY: keeps what the calling convention keeps, and writes the 16 places.
    unsafe { x86_guest_poisoned_call(&raw const before, &raw mut after) }
    before[0] = 0;
    before[STACK] = CARRY_DIRECTION;
    after[STACK] &= CARRY_DIRECTION;
    before.iter().zip(&after).filter(|(before, after)| before != after).count() as u64
}
