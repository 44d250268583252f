//! Registers as software sees them (manual, 11.4).

use super::{config::FAULT_RECORDS, queue::QIES, state::State};

const TES: u32 = 1 << 31;
const RTPS: u32 = 1 << 30;
const WBFS: u32 = 1 << 27;
const IRTPS: u32 = 1 << 24;
/// SRTP, SFL, WBF, SIRTP: commands that happen once; all others are states.
const ONE_SHOT: u32 = RTPS | 1 << 29 | WBFS | IRTPS;

impl State {
    pub(super) fn translates(&self) -> bool {
        self.gsts & TES != 0
    }

    pub(super) fn read(&mut self, offset: usize, width: usize) -> u64 {
        if self.knobs.absent || !offset.is_multiple_of(width) {
            return u64::MAX;
        }
        match width {
            4 => self.read_word(offset).into(),
            _ => u64::from(self.read_word(offset)) | u64::from(self.read_word(offset + 4)) << 32,
        }
    }

    fn read_word(&mut self, offset: usize) -> u32 {
        let (aligned, shift) = (offset & !7, (offset & 4) * 8);
        let word = |value: u64| (value >> shift) as u32;
        match offset {
            0x00 => 0x10,
            0x1c => self.read_status(),
            0x34 => {
                self.poll_queue();
                self.fault_status()
            }
            0x38 => self.fectl,
            0x64 => self.pmen,
            _ if (FAULT_RECORDS..FAULT_RECORDS + 16 * self.records.len()).contains(&offset) => {
                self.read_record(offset - FAULT_RECORDS)
            }
            _ => match aligned {
                0x08 => word(self.config.cap()),
                0x10 => word(self.config.ecap()),
                0x20 => word(self.rtaddr),
                0x80 => {
                    self.poll_queue();
                    word(self.head)
                }
                0x88 => word(self.tail),
                0x90 => word(self.iqa),
                _ => 0,
            },
        }
    }

    fn poll_queue(&mut self) {
        self.queue_reads = self.queue_reads.saturating_add(1);
        self.run_queue();
    }

    fn read_status(&mut self) -> u32 {
        let mut due = Vec::new();
        self.pending.retain_mut(|(reads, set, clear)| match reads.checked_sub(1) {
            Some(left) => {
                *reads = left;
                true
            }
            None => {
                due.push((*set, *clear));
                false
            }
        });
        for (set, clear) in due {
            self.change_status(set, clear);
        }
        self.gsts
    }

    fn change_status(&mut self, set: u32, clear: u32) {
        let (set, clear) = (set & !self.knobs.hang_status, clear & !self.knobs.hang_status);
        if clear & QIES != 0 {
            self.head = 0;
        }
        self.gsts = (self.gsts | set) & !clear;
    }

    pub(super) fn write(&mut self, offset: usize, width: usize, value: u64) {
        if self.knobs.absent || !offset.is_multiple_of(width) {
            return;
        }
        if width == 8 && matches!(offset, 0x20 | 0x28 | 0x88 | 0x90) {
            self.write_wide(offset, value);
            return;
        }
        self.write_word(offset, value as u32);
        if width == 8 {
            self.write_word(offset + 4, (value >> 32) as u32);
        }
    }

    fn write_wide(&mut self, offset: usize, value: u64) {
        match offset {
            0x20 => self.rtaddr = value,
            0x28 if self.gsts & QIES != 0 => self.violation("CCMD written while the queue is on"),
            0x88 => {
                self.tail = value & 0x7_fff0;
                self.queue_reads = 0;
                self.run_queue();
            }
            0x90 if self.gsts & QIES != 0 => self.violation("IQA written while the queue is on"),
            0x90 => self.iqa = value,
            _ => {}
        }
    }

    fn write_word(&mut self, offset: usize, value: u32) {
        match offset {
            0x18 => self.command(value),
            0x34 => {
                self.fsts &= !(value & 0x71);
                self.run_queue();
            }
            0x38 => self.fectl = value & 1 << 31,
            0x64 => self.protect(value),
            _ if offset >= FAULT_RECORDS => self.write_record(offset - FAULT_RECORDS, value),
            _ => {}
        }
    }

    fn protect(&mut self, value: u32) {
        let enable = value & 1 << 31;
        if enable == 0 && self.pmen & 1 != 0 && !self.translates() {
            self.violation("protected memory opened before translation was on");
        }
        self.pmen = enable | enable >> 31;
    }

    fn command(&mut self, value: u32) {
        if let Some((name, commands)) = &self.notes {
            commands.lock().expect("no test thread died here").push((*name, value));
        }
        let states = !ONE_SHOT & 0xff80_0000;
        let (once, changed) = (value & ONE_SHOT, (value ^ self.gsts) & states);
        if once.count_ones() + changed.count_ones() > 1 {
            self.violation(format!("GCMD changes more than one bit at once: {value:#x}"));
        }
        if !self.pending.is_empty() {
            self.violation("GCMD written before GSTS showed the last command");
        }
        if changed & value & TES != 0 && self.gsts & RTPS == 0 {
            self.violation("translation switched on without a root table");
        }
        if changed & !value & QIES != 0 && self.head != self.tail {
            self.violation("the queue switched off while it is not empty");
            return;
        }
        if once & RTPS != 0 {
            self.latch_root();
        }
        if once & WBFS != 0 {
            self.flush_write_buffer();
        }
        self.announce((value & changed) | once & !WBFS, changed & !value);
    }

    /// Table walks see all stores so far; with a hung status bit the flush never ends.
    fn flush_write_buffer(&mut self) {
        if self.knobs.hang_status & WBFS != 0 {
            self.gsts |= WBFS;
        } else if self.config.write_buffer {
            self.memory.drain();
        }
    }

    fn latch_root(&mut self) {
        self.root = self.rtaddr & !0xfff;
        self.gsts &= !RTPS | self.knobs.hang_status;
        if self.config.root_pointer_invalidates {
            self.contexts.clear();
            self.tables.clear();
            self.leaves.clear();
            self.absent_leaves.clear();
        }
    }

    fn announce(&mut self, set: u32, clear: u32) {
        if set | clear == 0 {
            return;
        }
        match self.knobs.slow_status {
            0 => self.change_status(set, clear),
            reads => self.pending.push((reads, set, clear)),
        }
        self.run_queue();
    }
}
