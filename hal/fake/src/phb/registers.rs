//! The registers around TCE kill: 64 bits wide, at offsets 0x200, 0x210 and 0x888; and
//! PHB Control at 0x810, which is only read.

use std::collections::VecDeque;

use portcullis_hal::RegisterIo;

use super::{FakePhb, PhbEvent, PhbKind, State};

const SYNC: usize = 0x200;
const KILL: usize = 0x210;
const CONTROL: usize = 0x810;
const QUIESCE: usize = 0x888;

/// How many register reads things take.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Until a kill has left the register for the queue.
    pub slot: u32,
    /// Until the oldest queued kill is finished.
    pub kill: u32,
    /// Until a sync is finished.
    pub sync: u32,
}

impl Default for Timing {
    fn default() -> Self {
        Self { slot: 2, kill: 3, sync: 5 }
    }
}

/// What can hang.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hang {
    /// A kill stays in the register.
    Slot,
    /// Queued kills are never finished.
    Kill,
    /// A sync is never finished.
    Sync,
}

#[derive(Clone, Copy)]
enum Scope {
    All,
    Pe(u16),
    /// One TCE: the erratum drops it.
    One,
}

#[derive(Default)]
pub(super) struct KillUnit {
    pub(super) timing: Timing,
    pub(super) hang: Option<Hang>,
    pub(super) written: u64,
    slot: Option<(u64, u32)>,
    queue: VecDeque<(Scope, u32)>,
    sync: Option<u32>,
    sync_complete: bool,
}

impl State {
    fn violation(&mut self, what: &'static str) {
        self.events.push(PhbEvent::Violation { what });
    }

    fn write_kill(&mut self, value: u64) {
        self.kills.written += 1;
        if self.kills.slot.is_some() {
            self.violation("a kill was written before the last one had left the register");
            return;
        }
        if value >> 61 & 7 == 0 || (value >> 61).count_ones() != 1 {
            self.violation("a kill has to have one scope");
            return;
        }
        self.kills.slot = Some((value, self.kills.timing.slot));
        if self.kills.timing.slot == 0 {
            self.queue_slot();
        }
    }

    fn queue_slot(&mut self) {
        if self.kills.hang == Some(Hang::Slot) {
            return;
        }
        let Some((value, _)) = self.kills.slot.take() else { return };
        let scope = match value >> 61 {
            4 => Scope::All,
            2 => Scope::Pe((value & 0x1ff) as u16),
            _ => Scope::One,
        };
        self.kills.queue.push_back((scope, self.kills.timing.kill));
    }

    /// One step of time.
    fn tick(&mut self) {
        match &mut self.kills.slot {
            Some((_, left)) if *left > 0 => *left -= 1,
            Some(_) => self.queue_slot(),
            None => {}
        }
        if self.kills.hang != Some(Hang::Kill) {
            self.advance_queue();
        }
        if let Some(left) = &mut self.kills.sync
            && self.kills.hang != Some(Hang::Sync)
        {
            *left = left.saturating_sub(1);
            if *left == 0 {
                self.kills.sync = None;
                self.kills.sync_complete = true;
            }
        }
    }

    fn advance_queue(&mut self) {
        let Some((_, left)) = self.kills.queue.front_mut() else { return };
        *left = left.saturating_sub(1);
        if *left == 0
            && let Some((scope, _)) = self.kills.queue.pop_front()
        {
            self.finish(scope);
        }
    }

    fn finish(&mut self, scope: Scope) {
        match scope {
            Scope::All => {
                self.cache.kill_all();
                self.events.push(PhbEvent::AllKilled);
            }
            Scope::Pe(pe) => {
                self.cache.kill_pe(pe);
                self.events.push(PhbEvent::PeKilled { pe });
            }
            Scope::One => {}
        }
    }

    /// PHB3 has no status: what the manual leaves open is modelled as finished at the next read.
    fn finish_posted(&mut self) {
        self.kills.slot = self.kills.slot.map(|(value, _)| (value, 0));
        self.queue_slot();
        while let Some((scope, _)) = self.kills.queue.pop_front() {
            self.finish(scope);
        }
    }

    fn read_kill(&mut self) -> u64 {
        if self.kind == PhbKind::Phb3 {
            self.finish_posted();
            return 0;
        }
        self.kills.slot.map_or(0, |(value, _)| value)
    }

    fn write_sync(&mut self, value: u64) {
        let (start, complete) = (value >> 63 == 1, value >> 62 & 1 == 1);
        match self.kind {
            PhbKind::Phb3 | PhbKind::Phb4 if start => self.kills.sync_complete = false,
            PhbKind::Phb5 if complete => self.kills.sync_complete = false,
            _ => {}
        }
        if start {
            self.kills.sync = Some(self.kills.timing.sync.max(1));
        }
    }
}

// SAFETY: the registers are a model on the heap; offsets that it does not know read as zeros or all
// ones and drop writes.
unsafe impl RegisterIo for FakePhb {
    /// There are no 32-bit registers.
    fn read32(&self, _: usize) -> u32 {
        self.state().violation("a 64-bit register was read by 32 bits");
        u32::MAX
    }

    fn write32(&self, _: usize, _: u32) {
        self.state().violation("a 64-bit register was written by 32 bits");
    }

    fn read64(&self, offset: usize) -> u64 {
        let mut state = self.state();
        if state.fenced {
            return u64::MAX;
        }
        state.tick();
        match offset {
            KILL => state.read_kill(),
            SYNC => u64::from(state.kills.sync_complete) << 62,
            QUIESCE => {
                let busy = state.kills.slot.is_some() || !state.kills.queue.is_empty();
                u64::from(busy) << 56
            }
            CONTROL => state.control,
            _ => 0,
        }
    }

    fn write64(&self, offset: usize, value: u64) {
        let mut state = self.state();
        match offset {
            _ if state.fenced => {}
            KILL => state.write_kill(value),
            SYNC => state.write_sync(value),
            _ => state.violation("a register that the driver does not own was written"),
        }
    }
}
