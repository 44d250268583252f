//! Layouts that hardware defines. Bits are numbered as the manuals do: 0 is the most significant.

pub mod pest;
pub mod registers;
pub mod tce;
pub mod tve;

/// The bit with this number, 0 being the most significant of 64.
#[must_use]
pub const fn bit(number: u32) -> u64 {
    1 << (63 - number)
}

/// The bits `first..=last`.
#[must_use]
pub const fn bits(first: u32, last: u32) -> u64 {
    (u64::MAX >> first) & (u64::MAX << (63 - last))
}

/// The value of the field `first..=last` of `word`.
#[must_use]
pub const fn field(word: u64, first: u32, last: u32) -> u64 {
    (word & bits(first, last)) >> (63 - last)
}
