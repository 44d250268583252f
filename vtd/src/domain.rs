//! Domain IDs: by which hardware tags what it caches. One ID names a context on all units.

use portcullis_hal::{
    array_of,
    sync::{AtomicU32, AtomicU64, Ordering},
};
use portcullis_iommu::Error;

/// Most domains that this driver hands out, whatever the hardware has.
pub(crate) const MAX_DOMAINS: u32 = 256;

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

/// The devices that one unit has in each domain. Changed under the lock of the switches only.
#[derive(Debug)]
pub(crate) struct DomainUsers([AtomicU32; MAX_DOMAINS as usize]);

impl DomainUsers {
    /// Set from the first device on until the domain ends: the unit may have cached something.
    const TOUCHED: u32 = 1 << 31;

    pub(crate) fn new() -> Self {
        Self(array_of![AtomicU32::new(0); MAX_DOMAINS as usize])
    }

    fn word(&self, domain: u16) -> u32 {
        self.0.get(usize::from(domain)).map_or(0, |word| word.load(Ordering::Acquire))
    }

    fn change(&self, domain: u16, change: impl FnOnce(u32) -> u32) {
        if let Some(word) = self.0.get(usize::from(domain)) {
            word.store(change(word.load(Ordering::Relaxed)), Ordering::Release);
        }
    }

    /// Whether a device is in the domain, or is just about to be.
    pub(crate) fn any(&self, domain: u16) -> bool {
        self.word(domain) & !Self::TOUCHED != 0
    }

    /// Whether a device was ever in the domain since its ID was taken.
    pub(crate) fn were_any(&self, domain: u16) -> bool {
        self.word(domain) != 0
    }

    pub(crate) fn add(&self, domain: u16) {
        self.change(domain, |word| (word + 1) | Self::TOUCHED);
    }

    /// A device has left, and hardware has forgotten it.
    pub(crate) fn remove(&self, domain: u16) {
        self.change(domain, |word| word & Self::TOUCHED | (word & !Self::TOUCHED).saturating_sub(1));
    }

    /// The domain has ended.
    pub(crate) fn reset(&self, domain: u16) {
        self.change(domain, |_| 0);
    }
}
