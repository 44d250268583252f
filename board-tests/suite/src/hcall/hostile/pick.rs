//! Picks calls near every boundary that contract D draws, half of them good.

use super::numbers::Numbers;
use crate::hcall::{
    call::{BOTH, Call, LIST_ENTRIES, PUT_TCE, PUT_TCE_INDIRECT, STUFF_TCE},
    port::{Area, FOREIGN_LIOBN, GuestPort, Layout, NO_LIOBN, Window},
};

/// 4 KiB page of the plain area that lists are written to.
const LIST: u64 = 30;

/// What picks calls.
pub(super) struct Picker {
    pub(super) numbers: Numbers,
    layout: Layout,
}

impl Picker {
    pub(super) const fn new(seed: u64, layout: Layout) -> Self {
        Self { numbers: Numbers::new(seed), layout }
    }

    /// A call; its list, if it has one, is written to the guest's memory.
    pub(super) fn call<P: GuestPort>(&mut self, port: &mut P) -> Call {
        let window = self.window();
        let call = match self.numbers.below(20) {
            0 | 1 => Call::get(window.liobn, self.ioba(window)),
            2..=9 => Call::put(window.liobn, self.ioba(window), self.entry(window)),
            10..=13 => self.stuff(window),
            _ => self.indirect(window, port),
        };
        self.spoil(call)
    }

    /// A call that ends after a single step, and writes no list.
    pub(super) fn short_call(&mut self, near: Call) -> Call {
        let window = self.window();
        let call = match self.numbers.below(4) {
            0 => Call::get(window.liobn, self.ioba(window)),
            1 => Call::indirect(window.liobn, self.ioba(window), self.list(), self.numbers.below(20)),
            _ => Call::put(window.liobn, self.ioba(window), self.entry(window)),
        };
        // Mostly where the other call is at work.
        let [liobn, ioba, ..] = near.arguments;
        let [_, _, third, fourth] = call.arguments;
        if self.numbers.percent(70) { Call { arguments: [liobn, ioba, third, fourth], ..call } } else { call }
    }

    fn window(&mut self) -> Window {
        let [main, coarse, capped, topmost] = self.layout.windows();
        match self.numbers.below(20) {
            0 => topmost,
            1..=3 => capped,
            4..=7 => coarse,
            _ => main,
        }
    }

    /// Mostly inside the window, at ends and where tables meet.
    fn ioba(&mut self, window: Window) -> u64 {
        let last = window.entries - 1;
        let edge = self.numbers.one_of([0, 1, last, last - 1, 255, 256, 511, 512, 513]);
        let inside = self.numbers.below(window.entries);
        let entry = if self.numbers.percent(30) { edge & last } else { inside };
        window.ioba(entry)
    }

    /// Memory of the guest, of mostly a good page.
    fn page(&mut self, window: Window) -> u64 {
        let [plain, small, wild] = [self.layout.plain(), self.layout.small(), self.layout.wild()];
        let area = match self.numbers.below(10) {
            0 => wild,
            1..=3 => small,
            _ => plain,
        };
        self.page_of(area, window)
    }

    fn page_of(&mut self, area: Area, window: Window) -> u64 {
        let pages = area.bytes.div_ceil(window.page_bytes());
        area.guest + (self.numbers.below(pages) << window.page_shift)
    }

    /// An entry for a window: mostly one that the window takes.
    fn entry(&mut self, window: Window) -> u64 {
        match self.numbers.below(40) {
            0 => self.numbers.any(),
            1 => self.page(window) | BOTH | 1 << (2 + self.numbers.below(u64::from(window.page_shift) - 2)),
            2 => (u64::MAX << window.page_shift) | BOTH,
            3 => self.numbers.any() & !BOTH,
            _ => self.page(window) | self.numbers.below(4),
        }
    }

    /// An entry that the window takes while only the plain area is registered.
    fn good_entry(&mut self, window: Window) -> u64 {
        self.page_of(self.layout.plain(), window) | self.numbers.below(4)
    }

    /// Mostly few, and every number next to a limit.
    fn count(&mut self, window: Window, ioba: u64) -> u64 {
        let left = window.entry(ioba, 0).map_or(0, |entry| window.entries - entry);
        match self.numbers.below(20) {
            0 => self.numbers.one_of([0, LIST_ENTRIES - 1, LIST_ENTRIES, LIST_ENTRIES + 1]),
            1 => self.numbers.one_of([left, left + 1, window.entries, window.entries + 1]),
            2 => self.numbers.one_of([1 << 63, u64::MAX, 1 << 52, 1 << 48, 1 << 61, 1 << 32 | 1]),
            3 => self.numbers.below(left + 2),
            _ => self.numbers.below(left.min(24) + 1),
        }
    }

    fn list(&self) -> u64 {
        self.layout.plain().page(LIST)
    }

    fn stuff(&mut self, window: Window) -> Call {
        let ioba = self.ioba(window);
        let value = match self.numbers.below(10) {
            0 => self.entry(window),
            1..=4 => self.numbers.any() & !BOTH,
            _ => 0,
        };
        Call::stuff(window.liobn, ioba, value, self.count(window, ioba))
    }

    fn indirect<P: GuestPort>(&mut self, window: Window, port: &mut P) -> Call {
        let ioba = self.ioba(window);
        let (list, count) = (self.list(), self.count(window, ioba));
        let words = count.min(LIST_ENTRIES);
        for number in 0..words {
            port.write(list + number * 8, self.good_entry(window));
        }
        if words > 0 && self.numbers.percent(30) {
            port.write(list + self.numbers.below(words) * 8, self.entry(window));
        }
        Call::indirect(window.liobn, ioba, list, count)
    }

    /// Leaves most calls as they are, and makes one argument of the others wrong, or odd.
    fn spoil(&mut self, call: Call) -> Call {
        let mut spoilt = call;
        let [liobn, ioba, third, _] = &mut spoilt.arguments;
        match self.numbers.below(40) {
            0 => *liobn = self.numbers.one_of([NO_LIOBN, FOREIGN_LIOBN, *liobn | 1 << 32, u64::MAX, 0]),
            1 => *ioba |= 1 << self.numbers.below(16),
            2 => *ioba = self.far(),
            3 if call.opcode == PUT_TCE_INDIRECT => *third = self.bad_list(),
            4 => spoilt.opcode = self.numbers.one_of([0, 8, 0x24, 0x130, PUT_TCE | 1 << 32, u64::MAX]),
            _ => {}
        }
        spoilt
    }

    /// An I/O bus address next to the ends of windows and of the address space.
    fn far(&mut self) -> u64 {
        let window = self.window();
        let page = window.page_bytes();
        let (below, behind) = (window.start.wrapping_sub(page), window.ioba(window.entries));
        let any = self.numbers.any();
        self.numbers.one_of([
            below,
            behind,
            behind.wrapping_add(page),
            u64::MAX,
            u64::MAX << 12,
            1 << 63,
            any,
        ])
    }

    /// A list that may be misaligned, not registered, or of words that the guest never wrote as one.
    fn bad_list(&mut self) -> u64 {
        let (list, bit) = (self.list(), 1 << self.numbers.below(12));
        let (wild, small) = (self.layout.wild().guest, self.layout.small().page(0x17));
        self.numbers.one_of([list | bit, wild, small, small + 0x1000, u64::MAX << 12, 1 << 63])
    }
}

/// Whether a call is one that changes entries.
pub(super) const fn changes(call: Call) -> bool {
    let [.., count] = call.arguments;
    match call.opcode {
        PUT_TCE => true,
        STUFF_TCE | PUT_TCE_INDIRECT => count > 0,
        _ => false,
    }
}
