//! Tokens: each stands for so many units of 4 KiB that a table maps, or is about to.

use portcullis_hal::GuestPhysRange;

/// What counts are in. Entries of any page size are multiples of it, so that a split changes no count.
pub(super) const UNIT: u64 = 4096;

/// Units counted into one region. Neither copied nor dropped by accident: they are installed with an
/// entry, or go back.
#[derive(Debug)]
#[must_use = "tokens are installed or go back to their region"]
pub(crate) struct Tokens(u64);

impl Tokens {
    /// What a mapping of `guest` takes.
    #[inline]
    pub(super) const fn wanted(guest: GuestPhysRange) -> Self {
        Self(guest.bytes() / UNIT)
    }

    /// The only way to have tokens again: a driver has taken so many bytes of entries out.
    #[inline]
    pub(super) const fn of_removed(bytes: u64) -> Self {
        Self(bytes / UNIT)
    }

    /// None at all.
    pub(super) const NONE: Self = Self(0);

    /// What was put aside, and is taken from there.
    pub(super) const fn of_owed(units: u64) -> Self {
        Self(units)
    }

    /// What entries for so many bytes of a region take, when they exist.
    #[inline]
    pub(crate) const fn of_entries(bytes: u64) -> Self {
        Self(bytes / UNIT)
    }

    /// More of the same region.
    #[inline]
    pub(super) const fn join(&mut self, more: Self) {
        self.0 = self.0.wrapping_add(more.spend());
    }

    /// The entries that stand for the tokens exist now.
    #[inline]
    pub(super) const fn install(self) {
        self.spend();
    }

    #[inline]
    pub(super) const fn count(&self) -> u64 {
        self.0
    }

    #[inline]
    pub(super) const fn spend(self) -> u64 {
        self.0
    }
}
