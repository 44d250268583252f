//! Configuration spaces of functions that obey slowly, badly or not at all (PCI Express 6.0, 6.6.2 and
//! 7.5; Advanced Features ECN).

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use portcullis_hal::{Clock, ConfigSpace, DeviceId};

use crate::memory::FakeClock;

const WORDS: usize = 1024;
const COMMAND: u16 = 0x04;
const BUS_MASTER: u32 = 1 << 2;
const HAS_LIST: u32 = 1 << 20;
/// What a function not yet ready answers to a read of its identity, where software may see it (2.3.1).
const RETRY_STATUS: u32 = 0xffff_0001;
const RESET_TIME: Duration = Duration::from_millis(100);

/// How a function behaves.
#[derive(Clone, Debug)]
pub struct Habits {
    /// How long requests stay pending once bus mastering is off; `None`: for ever.
    pub drain: Option<Duration>,
    /// How long a reset takes; `None`: for ever.
    pub reset: Option<Duration>,
    /// Answers Request Retry Status during a reset, instead of nothing.
    pub retry_status: bool,
    /// Bus mastering cannot be turned off.
    pub keeps_mastering: bool,
    /// Bus mastering is on after a reset.
    pub masters_after_reset: bool,
    /// The identity after a reset.
    pub comes_back_as: Option<u32>,
    /// A register that takes no writes after a reset.
    pub stuck_after_reset: Option<u16>,
}

impl Default for Habits {
    /// What the specifications ask for.
    fn default() -> Self {
        Self {
            drain: Some(Duration::from_micros(50)),
            reset: Some(Duration::from_millis(90)),
            retry_status: false,
            keeps_mastering: false,
            masters_after_reset: false,
            comes_back_as: None,
            stuck_after_reset: None,
        }
    }
}

/// What software did that the specifications forbid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// A reset was started while requests were pending.
    ResetWhilePending,
    /// The function was spoken to during the 100 ms after its reset began.
    TouchedDuringReset,
}

/// A function under a hypervisor's control: bus mastering is on, requests are pending.
#[derive(Clone, Debug)]
pub struct FakeFunction {
    registers: Vec<u32>,
    writable: Vec<u32>,
    cleared_by_ones: Vec<u32>,
    habits: Habits,
    last_capability: Option<u16>,
    pending_bit: Option<(u16, u32)>,
    reset_bits: Vec<(u16, u32)>,
    silent_since: Option<Duration>,
    reset_since: Option<Duration>,
    was_reset: bool,
    resets: u32,
    writes: u32,
    mistakes: Vec<Mistake>,
}

impl FakeFunction {
    /// An endpoint without capabilities, with a 32-bit and a 64-bit BAR that are set.
    #[must_use]
    pub fn new(habits: Habits) -> Self {
        let zeros = || vec![0; WORDS];
        let mut function = Self {
            registers: zeros(),
            writable: zeros(),
            cleared_by_ones: zeros(),
            habits,
            last_capability: None,
            pending_bit: None,
            reset_bits: Vec::new(),
            silent_since: None,
            reset_since: None,
            was_reset: false,
            resets: 0,
            writes: 0,
            mistakes: Vec::new(),
        };
        function.define(0x00, 0x10e8_1234, 0);
        // Decoding and mastering, and an error that somebody else shall find.
        function.define(COMMAND, 0x8000_0006, 0x0000_0547);
        function.cleared_by_ones[1] = 0xf900_0000;
        function.define(0x0c, 0x0000_4010, 0xffff);
        function.define(0x10, 0xfeb0_0000, 0xffff_f000);
        function.define(0x18, 0x1000_0004, 0xffff_c000);
        function.define(0x1c, 0x0000_0080, 0xffff_ffff);
        function.define(0x30, 0xfea0_0000, 0xffff_f801);
        function.define(0x3c, 0x0000_010b, 0xff);
        function
    }

    /// A virtual function: no identity of its own, no BARs (9.3.4.1).
    #[must_use]
    pub fn into_virtual(mut self) -> Self {
        self.define(0, u32::MAX, 0);
        self.define(COMMAND, 0x0010_0004, BUS_MASTER);
        for bar in [0x10, 0x18, 0x1c, 0x30] {
            self.define(bar, 0, 0);
        }
        self
    }

    /// Adds a PCI Express capability, with or without function-level reset.
    #[must_use]
    pub fn with_express(mut self, at: u16, resets: bool) -> Self {
        self.add_capability(at, 0x10, 2);
        self.define(at + 4, 0x8000 | u32::from(resets) << 28, 0);
        self.define(at + 8, 0x0009_2810, 0x7fff);
        self.cleared_by_ones[usize::from(at / 4 + 2)] = 0x000f_0000;
        self.define(at + 0x28, 0x0005, 0xffff);
        self.pending_bit = Some((at + 8, 1 << 21));
        if resets {
            self.reset_bits.push((at + 8, 1 << 15));
        }
        self
    }

    /// Adds Advanced Features, with or without function-level reset.
    #[must_use]
    pub fn with_advanced_features(mut self, at: u16, resets: bool) -> Self {
        self.add_capability(at, 0x13, if resets { 0x0306 } else { 0x0106 });
        self.pending_bit.get_or_insert((at + 4, 1 << 8));
        if resets {
            self.reset_bits.push((at + 4, 1));
        }
        self
    }

    /// Adds Access Control Services, switched on, as the first extended capability.
    #[must_use]
    pub fn with_acs(mut self) -> Self {
        self.define(0x100, 0x0001_000d, 0);
        self.define(0x104, 0x000c_000c, 0x000c_0000);
        self
    }

    /// Adds a capability of any kind to the list.
    #[must_use]
    pub fn with_capability(mut self, at: u16, id: u8) -> Self {
        self.add_capability(at, id, 0);
        self
    }

    /// Sets a register, against all rules.
    #[must_use]
    pub fn with_register(mut self, at: u16, value: u32) -> Self {
        self.registers[usize::from(at / 4)] = value;
        self
    }

    fn define(&mut self, at: u16, value: u32, writable: u32) {
        self.registers[usize::from(at / 4)] = value;
        self.writable[usize::from(at / 4)] = writable;
    }

    fn add_capability(&mut self, at: u16, id: u8, upper: u32) {
        self.registers[1] |= HAS_LIST;
        self.registers[usize::from(at / 4)] = u32::from(id) | upper << 16;
        match self.last_capability.replace(at) {
            Some(before) => self.registers[usize::from(before / 4)] |= u32::from(at) << 8,
            None => self.registers[0x34 / 4] |= u32::from(at),
        }
    }

    fn masters(&self) -> bool {
        self.registers[1] & BUS_MASTER != 0
    }

    fn is_pending(&self, now: Duration) -> bool {
        let drained = |since| self.habits.drain.is_some_and(|drain| now >= since + drain);
        self.masters() || !self.silent_since.is_some_and(drained)
    }

    /// Lets time pass; returns whether the function answers.
    fn is_ready(&mut self, now: Duration) -> bool {
        let Some(since) = self.reset_since else { return true };
        if now < since + RESET_TIME && self.mistakes.last() != Some(&Mistake::TouchedDuringReset) {
            self.mistakes.push(Mistake::TouchedDuringReset);
        }
        if self.habits.reset.is_none_or(|reset| now < since + reset) {
            return false;
        }
        self.finish_reset(since);
        true
    }

    fn finish_reset(&mut self, since: Duration) {
        for (register, writable) in self.registers.iter_mut().zip(&self.writable) {
            *register &= !writable;
        }
        for (register, cleared) in self.registers.iter_mut().zip(&self.cleared_by_ones) {
            *register &= !cleared;
        }
        if self.habits.masters_after_reset {
            self.registers[1] |= BUS_MASTER;
        }
        self.registers[0] = self.habits.comes_back_as.unwrap_or(self.registers[0]);
        self.silent_since = Some(since);
        self.reset_since = None;
        self.was_reset = true;
    }

    fn read(&mut self, offset: u16, now: Duration) -> u32 {
        if !self.is_ready(now) {
            return if self.habits.retry_status && offset == 0 { RETRY_STATUS } else { u32::MAX };
        }
        let pending = match self.pending_bit {
            Some((register, bit)) if register == offset && self.is_pending(now) => bit,
            _ => 0,
        };
        self.registers[usize::from(offset / 4)] | pending
    }

    fn write(&mut self, offset: u16, value: u32, now: Duration) {
        self.writes += 1;
        let stuck = self.was_reset && self.habits.stuck_after_reset == Some(offset);
        if !self.is_ready(now) || stuck {
            return;
        }
        if self.reset_bits.iter().any(|&(register, bit)| register == offset && value & bit != 0) {
            self.start_reset(now);
            return;
        }
        let mastered = self.masters();
        let index = usize::from(offset / 4);
        let (old, writable) = (self.registers[index], self.writable[index]);
        self.registers[index] = (old & !writable | value & writable) & !(value & self.cleared_by_ones[index]);
        if self.habits.keeps_mastering {
            self.registers[1] |= BUS_MASTER;
        }
        if mastered && !self.masters() {
            self.silent_since = Some(now);
        }
    }

    fn start_reset(&mut self, now: Duration) {
        if self.is_pending(now) {
            self.mistakes.push(Mistake::ResetWhilePending);
        }
        self.resets += 1;
        self.reset_since = Some(now);
    }
}

/// The functions of a machine.
#[derive(Debug)]
pub struct FakeConfigSpace {
    clock: FakeClock,
    functions: Mutex<BTreeMap<DeviceId, FakeFunction>>,
}

impl FakeConfigSpace {
    /// A machine without functions, on this clock.
    #[must_use]
    pub fn new(clock: FakeClock) -> Self {
        Self { clock, functions: Mutex::default() }
    }

    /// Plugs a function in.
    pub fn add(&self, device: DeviceId, function: FakeFunction) {
        self.functions().insert(device, function);
    }

    /// What is in a register, not counted as an access.
    #[must_use]
    pub fn peek(&self, device: DeviceId, offset: u16) -> u32 {
        self.functions()[&device].registers[usize::from(offset / 4)]
    }

    /// How often the function was reset.
    #[must_use]
    pub fn resets(&self, device: DeviceId) -> u32 {
        self.functions()[&device].resets
    }

    /// How often the function was written to.
    #[must_use]
    pub fn writes(&self, device: DeviceId) -> u32 {
        self.functions()[&device].writes
    }

    /// Whether the function does DMA, or still could.
    #[must_use]
    pub fn is_active(&self, device: DeviceId) -> bool {
        let now = self.clock.now();
        self.functions()[&device].is_pending(now)
    }

    /// What software did wrong to the function.
    #[must_use]
    pub fn mistakes(&self, device: DeviceId) -> Vec<Mistake> {
        self.functions()[&device].mistakes.clone()
    }

    fn functions(&self) -> MutexGuard<'_, BTreeMap<DeviceId, FakeFunction>> {
        self.functions.lock().expect("no test thread died here")
    }
}

impl ConfigSpace for FakeConfigSpace {
    fn read32(&self, device: DeviceId, offset: u16) -> u32 {
        let now = self.clock.now();
        let mut functions = self.functions();
        let function = functions.get_mut(&device).filter(|_| is_register(offset));
        function.map_or(u32::MAX, |function| function.read(offset, now))
    }

    fn write32(&self, device: DeviceId, offset: u16, value: u32) {
        let now = self.clock.now();
        let mut functions = self.functions();
        if let Some(function) = functions.get_mut(&device).filter(|_| is_register(offset)) {
            function.write(offset, value, now);
        }
    }
}

fn is_register(offset: u16) -> bool {
    offset.is_multiple_of(4) && usize::from(offset) < WORDS * 4
}
