//! Domain IDs: by which hardware tags what it caches.

use portcullis_hal::{
    array_of,
    sync::{AtomicU64, Ordering},
};
use portcullis_iommu::Error;

/// Most domains that this driver hands out, whatever the hardware has.
const MAX_DOMAINS: u32 = 256;

/// The IDs in use. 0 is never handed out: hardware in caching mode tags with it what is not present
/// (manual, section 6.1).
#[derive(Debug)]
pub(crate) struct DomainIds {
    used: [AtomicU64; MAX_DOMAINS as usize / 64],
    limit: u32,
}

impl DomainIds {
    pub(crate) fn new(supported: u32) -> Self {
        let used = array_of![AtomicU64::new(0); MAX_DOMAINS as usize / 64];
        Self { used, limit: supported.min(MAX_DOMAINS) }
    }

    /// Takes an ID.
    pub(crate) fn take(&self) -> Result<u16, Error> {
        (1..self.limit)
            .find(|&id| self.mark(id, |word, bit| word.fetch_or(bit, Ordering::AcqRel) & bit == 0))
            .map(|id| id as u16)
            .ok_or(Error::OutOfNumbers { limit: self.limit.saturating_sub(1) })
    }

    /// Gives an ID back; everything that was cached with it has been invalidated.
    pub(crate) fn give_back(&self, id: u16) {
        self.mark(id.into(), |word, bit| word.fetch_and(!bit, Ordering::AcqRel) & bit != 0);
    }

    fn mark(&self, id: u32, act: impl FnOnce(&AtomicU64, u64) -> bool) -> bool {
        self.used.get(id as usize / 64).is_some_and(|word| act(word, 1 << (id % 64)))
    }
}
