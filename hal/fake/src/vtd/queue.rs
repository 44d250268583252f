//! The invalidation queue (manual, 6.5.2 and 11.4.9).

use super::state::{State, Tag};

const QUEUE_ERROR: u32 = 1 << 4;
const TIME_OUT_ERROR: u32 = 1 << 6;
/// Descriptor type of a wait.
const WAIT: u64 = 5;
pub(super) const QIES: u32 = 1 << 26;

/// A descriptor that the unit cannot carry out.
struct Bad;

impl State {
    fn queue_bytes(&self) -> u64 {
        4096 << (self.iqa & 7)
    }

    /// Carries out what stands between head and tail, as far as it goes.
    pub(super) fn run_queue(&mut self) {
        let stopped = self.knobs.hang_queue || self.queue_reads < self.knobs.slow_queue;
        if self.gsts & QIES == 0 || stopped {
            return;
        }
        while self.head != self.tail && self.fsts & (QUEUE_ERROR | TIME_OUT_ERROR) == 0 {
            let address = (self.iqa & !0xfff) + self.head;
            let descriptor = self.memory.read64(address).zip(self.memory.read64(address + 8));
            let Some((low, high)) = descriptor else {
                self.fsts |= QUEUE_ERROR;
                return;
            };
            if self.refuses(low, high) || self.carry_out(low, high).is_err() {
                self.fsts |= QUEUE_ERROR;
                return;
            }
            self.repeat_writes();
            self.head = (self.head + 16) % self.queue_bytes();
            self.descriptors.push((low, high));
        }
    }

    fn refuses(&mut self, low: u64, high: u64) -> bool {
        let here = (self.head, low, high);
        if self.refused == Some(here) {
            self.violation("the queue was restarted with the descriptor that it had refused");
            return true;
        }
        let refused = low & 0xf != WAIT && self.knobs.refuse_descriptors > 0;
        self.knobs.refuse_descriptors -= u32::from(refused);
        self.refused = refused.then_some(here);
        refused
    }

    fn carry_out(&mut self, low: u64, high: u64) -> Result<(), Bad> {
        match (low & 0xf, low >> 9 & 7) {
            (1, 0) => self.invalidate_contexts(low),
            (2, 0) => self.invalidate_iotlb(low, high),
            (4, 0) => Ok(()),
            (WAIT, 0) => self.wait(low, high),
            _ => Err(Bad),
        }
    }

    fn invalidate_contexts(&mut self, low: u64) -> Result<(), Bad> {
        let (domain, source, mask) = ((low >> 16) as u16, (low >> 32) as u16, low >> 48 & 3);
        let functions = !(match mask {
            0 => 0,
            1 => 4,
            2 => 6,
            _ => 7,
        });
        let tagged =
            |cached: &Option<super::state::CachedContext>| cached.map_or(0, |context| context.domain);
        match low >> 4 & 3 {
            1 => self.contexts.clear(),
            2 => self.contexts.retain(|_, cached| tagged(cached) != domain),
            3 => self.contexts.retain(|requester, cached| {
                tagged(cached) != domain || requester & functions != source & functions
            }),
            _ => return Err(Bad),
        }
        Ok(())
    }

    fn invalidate_iotlb(&mut self, low: u64, high: u64) -> Result<(), Bad> {
        let (domain, mask) = ((low >> 16) as u16, (high & 0x3f) as u8);
        let granularity = low >> 4 & 3;
        if granularity == 0 || granularity == 3 && self.config.page_selective.is_none_or(|most| mask > most) {
            return Err(Bad);
        }
        let start = high & !0xfff;
        if granularity == 3 && start & ((1 << (12 + u32::from(mask))) - 1) != 0 {
            self.violation(format!(
                "page-selective invalidation of {start:#x} is not aligned to its mask {mask}"
            ));
        }
        if self.config.draining && low & 1 << 6 != 0 {
            self.land_posted((granularity != 1).then_some(domain));
        }
        if self.knobs.drop_iotlb_invalidations {
            return Ok(());
        }
        let last = start | ((1 << (12 + u32::from(mask))) - 1);
        let hit = |&(tag_domain, level, index): &Tag| match granularity {
            1 => true,
            2 => tag_domain == domain,
            _ => {
                let shift = 12 + 9 * (u32::from(level) - 1);
                let covered = (index << shift, (index << shift) + ((1 << shift) - 1));
                tag_domain == domain && covered.0 <= last && start <= covered.1
            }
        };
        self.leaves.retain(|tag, _| !hit(tag));
        self.absent_leaves.retain(|tag, ()| !hit(tag));
        let leaves_only = granularity == 3 && high & 1 << 6 != 0;
        if !leaves_only {
            self.tables.retain(|tag, _| !hit(tag));
        }
        Ok(())
    }

    fn wait(&mut self, low: u64, high: u64) -> Result<(), Bad> {
        if std::mem::take(&mut self.knobs.time_out_once) {
            self.fsts |= TIME_OUT_ERROR;
            return Ok(());
        }
        let (writes_status, interrupts) = (low & 1 << 5 != 0, low & 1 << 4 != 0);
        if !writes_status && !interrupts {
            return Err(Bad);
        }
        if writes_status && !self.knobs.drop_waits {
            let landed = self.memory.write(high & !3, &((low >> 32) as u32).to_le_bytes());
            assert!(landed, "status of a wait at {high:#x}, where no memory is");
        }
        Ok(())
    }
}
