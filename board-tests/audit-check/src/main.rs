//! An image with a clean real-mode entry, and defects to plant in it by feature: `cargo boards audit` must
//! find each. The image is never run.

#![no_std]
#![no_main]

#[cfg(feature = "planted")]
mod planted;

use core::hint::black_box;

/// How many entries a list may have.
const MOST_ENTRIES: u64 = 512;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {
        core::hint::spin_loop();
    }
}

/// What hypercall code does, in small: checks, a call, a loop with a bound.
#[unsafe(no_mangle)]
extern "C" fn audit_check_entry(number: u64, first: u64, entries: u64) -> u64 {
    let result = match number {
        0 => checksum(first, entries),
        1 => first.wrapping_mul(entries),
        _ => u64::MAX,
    };
    #[cfg(feature = "planted")]
    black_box(planted::defect(number));
    result
}

/// A function of its own, with a loop that is on the reviewed list.
#[inline(never)]
fn checksum(first: u64, entries: u64) -> u64 {
    let mut sum = first;
    for entry in 0..entries.min(MOST_ENTRIES) {
        sum = black_box(sum).rotate_left(7) ^ entry;
    }
    sum
}

#[cfg(target_arch = "powerpc64")]
mod memory_functions {
    //! What the precompiled `core` expects of its environment on this target.

    macro_rules! memory_function {
        ($($name:ident($($argument:ident),*);)+) => {$(
            // SAFETY: defined once in this image, which is linked without any C library and never run.
            #[unsafe(no_mangle)]
            extern "C" fn $name($($argument: usize),*) -> usize {
                core::hint::black_box(0 $(+ $argument)*)
            }
        )+};
    }

    memory_function! {
        memcpy(to, from, bytes);
        memmove(to, from, bytes);
        memset(to, byte, bytes);
        memcmp(left, right, bytes);
        bcmp(left, right, bytes);
    }
}
