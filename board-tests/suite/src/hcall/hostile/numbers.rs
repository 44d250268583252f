//! Repeatable numbers.

/// Marsaglia's xorshift with a multiplication: good enough to pick calls, and the same on every machine.
#[derive(Clone, Copy, Debug)]
pub(super) struct Numbers(u64);

impl Numbers {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub(super) const fn any(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `limit`, which is not 0.
    pub(super) const fn below(&mut self, limit: u64) -> u64 {
        (self.any() >> 16) % limit
    }

    /// True so many times in a hundred.
    pub(super) const fn percent(&mut self, share: u64) -> bool {
        self.below(100) < share
    }

    /// One of these.
    pub(super) fn one_of<T: Copy + Default, const N: usize>(&mut self, choices: [T; N]) -> T {
        choices.get(self.below(N as u64) as usize).copied().unwrap_or_default()
    }
}
