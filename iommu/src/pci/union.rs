//! Sets of functions that were found to belong together, in donated memory.

/// A forest over the numbers below its length: each number leads to one that is not larger, and a root to
/// itself. So a search always ends.
pub(super) struct Union<'s>(&'s mut [u16]);

impl<'s> Union<'s> {
    /// Each number in a set of its own. Numbers beyond 16 bits stay out: the caller has at most 65535.
    pub(super) fn new(slots: &'s mut [u16]) -> Self {
        (0..=u16::MAX).zip(slots.iter_mut()).for_each(|(number, slot)| *slot = number);
        Self(slots)
    }

    /// The smallest number of the set that holds `member`; halves the way for the next search.
    fn root(&mut self, mut member: u16) -> u16 {
        loop {
            let next = self.above(member);
            let after = self.above(next);
            if next >= member {
                return member;
            }
            self.set(member, after);
            member = after;
        }
    }

    fn above(&self, member: u16) -> u16 {
        self.0.get(usize::from(member)).copied().unwrap_or(member)
    }

    /// Makes one set of the two that hold `left` and `right`.
    pub(super) fn join(&mut self, left: u16, right: u16) {
        let (left, right) = (self.root(left), self.root(right));
        self.set(left.max(right), left.min(right));
    }

    /// Replaces each slot by the number of its set, counted from 0 in order of first members; returns
    /// how many there are.
    pub(super) fn number(mut self) -> u16 {
        for member in (0..=u16::MAX).take(self.0.len()) {
            let root = self.root(member);
            self.set(member, root);
        }
        let mut sets = 0;
        for member in (0..=u16::MAX).take(self.0.len()) {
            // A root below `member` has its final number already.
            let root = self.above(member);
            let number = if root == member { sets } else { self.above(root) };
            sets += u16::from(root == member);
            self.set(member, number);
        }
        sets
    }

    fn set(&mut self, member: u16, value: u16) {
        if let Some(slot) = self.0.get_mut(usize::from(member)) {
            *slot = value;
        }
    }
}
