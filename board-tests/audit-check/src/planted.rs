//! The defects: each function has one, and nothing else that the audit objects to.

#[cfg(feature = "planted-panic")]
pub(crate) fn defect(number: u64) -> u64 {
    assert!(number != 3, "planted");
    number
}

#[cfg(feature = "planted-dyn-call")]
pub(crate) fn defect(number: u64) -> u64 {
    trait Answer {
        fn answer(&self) -> u64;
    }
    impl Answer for u64 {
        fn answer(&self) -> u64 {
            *self
        }
    }
    let answer: &dyn Answer = core::hint::black_box(&number);
    answer.answer()
}

#[cfg(feature = "planted-float")]
pub(crate) fn defect(number: u64) -> u64 {
    (f64::from(number as u32) * 1.5) as u64
}

#[cfg(feature = "planted-recursion")]
#[inline(never)]
pub(crate) fn defect(number: u64) -> u64 {
    // Not in tail position, where it would become a loop.
    if number < 2 { number } else { core::hint::black_box(defect(number - 1)) + defect(number - 2) }
}

#[cfg(feature = "planted-deep-frame")]
#[inline(never)]
pub(crate) fn defect(number: u64) -> u64 {
    let large = core::mem::MaybeUninit::<[u64; 300]>::uninit();
    core::hint::black_box(&large);
    number
}

#[cfg(feature = "planted-loop")]
pub(crate) fn defect(mut number: u64) -> u64 {
    while core::hint::black_box(number) != 1 {
        number = if number & 1 == 0 { number / 2 } else { number.wrapping_mul(3).wrapping_add(1) };
    }
    number
}

#[cfg(feature = "planted-firmware-call")]
core::arch::global_asm!(
    ".section .text.opal, \"ax\"",
    ".global opal_call",
    "opal_call:",
    "mtspr 314, 12",
    "hrfid",
);

#[cfg(feature = "planted-firmware-call")]
pub(crate) fn defect(number: u64) -> u64 {
    unsafe extern "C" {
        /// As the firmware image has it, in small.
        safe fn opal_call(number: u64) -> u64;
    }
    opal_call(number)
}

#[cfg(feature = "planted-formatting")]
pub(crate) fn defect(number: u64) -> u64 {
    use core::fmt::Write as _;

    struct Nowhere;

    impl core::fmt::Write for Nowhere {
        fn write_str(&mut self, text: &str) -> core::fmt::Result {
            core::hint::black_box(text.len());
            Ok(())
        }
    }
    u64::from(write!(Nowhere, "{number}").is_ok())
}

#[cfg(feature = "planted-jump-table")]
pub(crate) fn defect(number: u64) -> u64 {
    /// Arms that cannot be merged, nor turned into a table of results.
    macro_rules! arms {
        ($($case:literal)+) => {
            match number {
                $($case => {
                    // SAFETY: a comment, and no instruction.
                    unsafe { core::arch::asm!("# {}", const $case, options(nomem, nostack)) }
                    core::hint::black_box(number) + 2 * $case
                })+
                _ => number,
            }
        };
    }
    // The compiler thinks that a table pays from 64 arms on.
    arms! {
        0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35
        36 37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63 64 65 66 67
    }
}
