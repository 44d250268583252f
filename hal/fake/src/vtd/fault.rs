//! Fault recording (manual, 7.2 and 11.4.7).

use super::state::{Reason, State};

/// F, in the high half.
const F: u64 = 1 << 63;
const OVERFLOW: u32 = 1;
const PENDING: u32 = 1 << 1;

impl State {
    pub(super) fn record_fault(&mut self, requester: u16, iova: u64, write: bool, reason: Reason) {
        let same_source = |&(_, high): &(u64, u64)| high & F != 0 && high as u16 == requester;
        if self.records.iter().any(same_source) {
            return;
        }
        if self.fsts & OVERFLOW != 0 {
            return;
        }
        let index = self.next_record;
        if self.records[index].1 & F != 0 {
            self.fsts |= OVERFLOW;
            return;
        }
        if self.records.iter().all(|&(_, high)| high & F == 0) {
            self.first_record = index as u32;
        }
        let kind = if write { 0 } else { 1 << 62 };
        self.records[index] = (iova & !0xfff, F | kind | u64::from(reason.0) << 32 | u64::from(requester));
        self.next_record = (index + 1) % self.records.len();
    }

    /// FSTS as software reads it: PPF follows from the records; FRI is where the fault went that set it.
    pub(super) fn fault_status(&self) -> u32 {
        let pending = self.records.iter().any(|&(_, high)| high & F != 0);
        self.fsts | if pending { PENDING | self.first_record << 8 } else { 0 }
    }

    pub(super) fn read_record(&self, offset: usize) -> u32 {
        let Some(&(low, high)) = self.records.get(offset / 16) else { return 0 };
        let half = if offset % 16 < 8 { low } else { high };
        if offset.is_multiple_of(8) { half as u32 } else { (half >> 32) as u32 }
    }

    /// F is written 1 to clear; all else is read-only.
    pub(super) fn write_record(&mut self, offset: usize, value: u32) {
        if offset % 16 == 12
            && value & 1 << 31 != 0
            && let Some(record) = self.records.get_mut(offset / 16)
        {
            record.1 &= !F;
        }
    }
}
