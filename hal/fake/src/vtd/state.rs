//! All that a unit holds, and DMA through it.

use std::collections::HashMap;

use super::{Commands, config::VtdConfig};
use crate::memory::FakeMemory;

/// A fault reason code of the manual's chapter 7.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Reason(pub u8);

/// Ways to misbehave; the default is a unit that does as it should, at once.
#[derive(Clone, Debug, Default)]
pub struct Knobs {
    /// These bits of GSTS never change any more.
    pub hang_status: u32,
    /// A change of GSTS shows only after so many reads of it.
    pub slow_status: u32,
    /// The queue moves on only after so many reads of FSTS or IQH since the last write of IQT.
    pub slow_queue: u32,
    /// The queue never moves on.
    pub hang_queue: bool,
    /// Wait descriptors are swallowed: their status is never written.
    pub drop_waits: bool,
    /// IOTLB invalidations are swallowed.
    pub drop_iotlb_invalidations: bool,
    /// The next wait descriptor meets an invalidation time-out error (FSTS.ITE), once.
    pub time_out_once: bool,
    /// Devices never rest: each repeats its last write behind every descriptor that is carried out.
    pub restless: bool,
    /// So many descriptors that are no waits are refused with an invalidation queue error (FSTS.IQE): each until software
    /// has put another one in its place.
    pub refuse_descriptors: u32,
    /// Every register reads as all ones and writes go nowhere.
    pub absent: bool,
}

/// A cached context entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct CachedContext {
    pub(super) table: u64,
    pub(super) levels: u8,
    pub(super) domain: u16,
}

/// A cached translation: permissions, physical page, and whether the unit lets no access go past the caches.
#[derive(Clone, Copy, Debug)]
pub(super) struct CachedLeaf {
    pub(super) phys: u64,
    pub(super) rights: u64,
    pub(super) snoops: bool,
}

/// Where an access goes, and whether it must go through the CPUs' caches.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reached {
    pub(super) phys: u64,
    pub(super) snoops: bool,
}

/// A write that was translated and is still on its way.
#[derive(Clone, Debug)]
pub struct Posted {
    /// Who wrote.
    pub requester: u16,
    /// Domain that its context had; 0 without translation.
    pub domain: u16,
    /// Where to.
    pub iova: u64,
    phys: u64,
    snoops: bool,
    bytes: Vec<u8>,
}

/// Domain, level of the entry, and index of what it covers.
pub(super) type Tag = (u16, u8, u64);

#[derive(Debug)]
pub(super) struct State {
    pub(super) memory: FakeMemory,
    pub(super) config: VtdConfig,
    pub(super) knobs: Knobs,
    pub(super) gsts: u32,
    /// Changes of GSTS under way: reads to go, bits to set, bits to clear.
    pub(super) pending: Vec<(u32, u32, u32)>,
    pub(super) rtaddr: u64,
    pub(super) root: u64,
    pub(super) fsts: u32,
    pub(super) fectl: u32,
    pub(super) pmen: u32,
    pub(super) iqa: u64,
    pub(super) head: u64,
    pub(super) tail: u64,
    pub(super) queue_reads: u32,
    /// The descriptor that was refused last: place, low and high half.
    pub(super) refused: Option<(u64, u64, u64)>,
    pub(super) records: Vec<(u64, u64)>,
    pub(super) next_record: usize,
    pub(super) first_record: u32,
    /// `None` under a key: the entry was not present (caching mode).
    pub(super) contexts: HashMap<u16, Option<CachedContext>>,
    pub(super) tables: HashMap<Tag, (u64, u64)>,
    pub(super) leaves: HashMap<Tag, CachedLeaf>,
    pub(super) absent_leaves: HashMap<Tag, ()>,
    pub(super) posted: Vec<Posted>,
    /// Where each device wrote last.
    pub(super) last_writes: HashMap<u16, u64>,
    pub(super) violations: Vec<String>,
    pub(super) descriptors: Vec<(u64, u64)>,
    /// Under which name, and where, commands are noted.
    pub(super) notes: Option<(usize, Commands)>,
}

impl State {
    pub(super) fn new(memory: FakeMemory, config: VtdConfig) -> Self {
        Self {
            memory,
            config,
            knobs: Knobs::default(),
            gsts: 0,
            pending: Vec::new(),
            rtaddr: 0,
            root: 0,
            fsts: 0,
            fectl: 1 << 31,
            pmen: if config.protected_memory { 1 << 31 | 1 } else { 0 },
            iqa: 0,
            head: 0,
            tail: 0,
            queue_reads: 0,
            refused: None,
            records: vec![(0, 0); usize::from(config.fault_records)],
            next_record: 0,
            first_record: 0,
            contexts: HashMap::new(),
            tables: HashMap::new(),
            leaves: HashMap::new(),
            absent_leaves: HashMap::new(),
            posted: Vec::new(),
            last_writes: HashMap::new(),
            violations: Vec::new(),
            descriptors: Vec::new(),
            notes: None,
        }
    }

    pub(super) fn violation(&mut self, what: impl Into<String>) {
        self.violations.push(what.into());
    }

    pub(super) fn dma_read(&mut self, requester: u16, iova: u64, bytes: &mut [u8]) -> Result<(), Reason> {
        let mut done = 0;
        while done < bytes.len() {
            let (address, length) = step(iova, done, bytes.len());
            let to = self.reach(requester, address, false)?;
            self.snoop(to, length);
            let arrived = self.memory.read(to.phys, &mut bytes[done..done + length]);
            assert!(arrived, "translated to {:#x}, where no memory is", to.phys);
            done += length;
        }
        Ok(())
    }

    pub(super) fn dma_write(&mut self, requester: u16, iova: u64, bytes: &[u8]) -> Result<(), Reason> {
        let mut done = 0;
        while done < bytes.len() {
            let (address, length) = step(iova, done, bytes.len());
            let to = self.reach(requester, address, true)?;
            self.snoop(to, length);
            let landed = self.memory.write(to.phys, &bytes[done..done + length]);
            self.last_writes.insert(requester, address);
            assert!(landed, "translated to {:#x}, where no memory is", to.phys);
            done += length;
        }
        Ok(())
    }

    pub(super) fn dma_write_posted(&mut self, requester: u16, iova: u64, bytes: &[u8]) -> Result<(), Reason> {
        let mut done = 0;
        while done < bytes.len() {
            let (address, length) = step(iova, done, bytes.len());
            let Reached { phys, snoops } = self.reach(requester, address, true)?;
            let bytes = bytes[done..done + length].to_vec();
            let domain = self.cached_domain(requester);
            self.posted.push(Posted { requester, domain, iova: address, phys, snoops, bytes });
            done += length;
        }
        Ok(())
    }

    /// What restless devices do meanwhile; nobody takes note of what is blocked.
    pub(super) fn repeat_writes(&mut self) {
        if !self.knobs.restless {
            return;
        }
        for (requester, iova) in self.last_writes.clone() {
            let Ok(Reached { phys, snoops }) = self.translate(requester, iova, true) else { continue };
            let mut bytes = [0];
            if self.memory.read(phys, &mut bytes) {
                let domain = self.cached_domain(requester);
                self.posted.push(Posted { requester, domain, iova, phys, snoops, bytes: bytes.to_vec() });
            }
        }
    }

    fn cached_domain(&self, requester: u16) -> u16 {
        self.contexts.get(&requester).copied().flatten().map_or(0, |context| context.domain)
    }

    /// Lets the writes arrive that are on their way in a domain, or all.
    pub(super) fn land_posted(&mut self, domain: Option<u16>) {
        let due = |posted: &mut Posted| domain.is_none_or(|domain| posted.domain == domain);
        let landing: Vec<Posted> = self.posted.extract_if(.., due).collect();
        for Posted { phys, snoops, bytes, .. } in landing {
            self.snoop(Reached { phys, snoops }, bytes.len());
            self.memory.write(phys, &bytes);
        }
    }

    /// What hardware does before an access that must not go past the caches.
    fn snoop(&self, to: Reached, bytes: usize) {
        if to.snoops {
            self.memory.snoop_lines(to.phys, bytes as u64);
        }
    }

    /// Translates one access inside a page; a blocked one is recorded.
    fn reach(&mut self, requester: u16, iova: u64, write: bool) -> Result<Reached, Reason> {
        if !self.translates() {
            return Ok(Reached { phys: iova, snoops: false });
        }
        self.translate(requester, iova, write).inspect_err(|&reason| {
            self.record_fault(requester, iova, write, reason);
        })
    }
}

/// The next part of a transfer that stays inside one page: its address and length.
fn step(iova: u64, done: usize, total: usize) -> (u64, usize) {
    let address = iova.wrapping_add(done as u64);
    let to_page_end = (4096 - address % 4096) as usize;
    (address, to_page_end.min(total - done))
}
