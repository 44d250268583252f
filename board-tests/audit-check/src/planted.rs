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
pub(crate) fn defect(number: u64) -> u64 {
    core::arch::global_asm!(
        ".section .text.opal, \"ax\"",
        ".global opal_call",
        "opal_call:",
        "mtspr 314, 12",
        "hrfid",
    );
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
    use core::hint::black_box;
    match number {
        0 => black_box(number) + 7,
        1 => black_box(number) ^ 3,
        2 => black_box(number).rotate_left(9),
        3 => black_box(number) & 0xff,
        4 => black_box(number) << 3,
        5 => black_box(number).wrapping_mul(11),
        6 => black_box(number) | 0x55,
        7 => black_box(number) >> 4,
        _ => number,
    }
}
