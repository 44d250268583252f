//! `hcall_driver`: a guest that behaves as an operating system with a driver does.

use super::{
    call::{BOTH, Call, READ, SUCCESS, WRITE, describe, name},
    guest::{Reach, ensure, reach_of},
    port::{GuestPort, Offers, Window},
};
use crate::{
    Event, Failure,
    event::{Direction, Effect},
};

/// Rounds of mapping, DMA and unmapping.
const ROUNDS: u64 = 4;
/// Pages of one transfer.
const PAGES: u64 = 8;
/// First page of the plain area that data come from, first one that they go to, and the list's.
const SOURCE: u64 = 0;
const TARGET: u64 = PAGES;
const LIST: u64 = 30;
/// Bytes of one word, as a device copies it.
const WORD: u32 = 8;
/// The device.
const DEVICE: usize = 0;

/// An operating system that maps buffers for its driver and unmaps them when the device is done.
struct System<'p, P> {
    port: &'p mut P,
    window: Window,
    /// Number of the word written last.
    word: u64,
}

/// Maps pages for a device by lists and single calls, lets it copy, checks the data, unmaps, and sees that the device
/// reaches nothing any more.
pub(super) fn driver<P: GuestPort>(port: &mut P) -> Result<(), Failure> {
    port.reset()?;
    let (window, slow) = (port.layout().main(), port.offers().contains(Offers::SLOW_DEVICE));
    let mut system = System { port, window, word: 0 };
    let (rounds, step) = if slow { (1, PAGES - 1) } else { (ROUNDS, 1) };
    for round in 0..rounds {
        system.transfer(16 + round * 4 * PAGES, step as usize)?;
    }
    system.port.check()
}

impl<P: GuestPort> System<'_, P> {
    fn step(&mut self, text: &'static str) {
        self.port.emit(&Event::Step { text });
    }

    fn plain(&self, page: u64) -> u64 {
        self.port.layout().plain().page(page)
    }

    /// One transfer through the entries from `source` on; the device shows every `step`th page.
    fn transfer(&mut self, source: u64, step: usize) -> Result<(), Failure> {
        let target = source + PAGES;
        self.step("the guest maps what its device reads by one list, and what it writes page by page");
        self.map_list(source, SOURCE, READ)?;
        for page in 0..PAGES {
            self.put(target + page, self.plain(TARGET + page) | WRITE)?;
            self.holds(target + page, self.plain(TARGET + page) | WRITE)?;
        }
        self.step("it writes data, has the device fetch and deliver them, and looks at what arrived");
        for page in (0..PAGES).step_by(step) {
            self.copies([source + page, SOURCE + page], [target + page, TARGET + page], Reach::ALL)?;
        }
        self.step("what is mapped for reading is not written, and the other way round");
        self.copies([target, TARGET], [source, SOURCE], Reach::NOTHING)?;
        self.step("the guest unmaps its buffers: the device reaches them no more");
        self.put(target, 0)?;
        let (liobn, first) = (self.window.liobn, self.window.ioba(source));
        self.succeeds(Call::stuff(liobn, first, 0, 2 * PAGES))?;
        (source..source + 2 * PAGES).try_for_each(|entry| self.holds(entry, 0))?;
        ensure(self.port.counted() == 0, "unmapped pages are still counted")?;
        for page in (0..PAGES).step_by(step) {
            self.copies([source + page, SOURCE + page], [target + page, TARGET + page], Reach::NOTHING)?;
        }
        self.step("a page that is mapped again gets nothing from one that is not");
        self.put(target, self.plain(TARGET) | BOTH)?;
        self.copies([source, SOURCE], [target, TARGET], reach_of(WRITE))?;
        self.put(target, 0)
    }

    fn map_list(&mut self, entry: u64, page: u64, permissions: u64) -> Result<(), Failure> {
        let list = self.plain(LIST);
        for number in 0..PAGES {
            let tce = self.plain(page + number) | permissions;
            self.port.write(list + number * 8, tce);
        }
        self.succeeds(Call::indirect(self.window.liobn, self.window.ioba(entry), list, PAGES))?;
        (0..PAGES).try_for_each(|number| self.holds(entry + number, self.plain(page + number) | permissions))
    }

    fn put(&mut self, entry: u64, tce: u64) -> Result<(), Failure> {
        self.succeeds(Call::put(self.window.liobn, self.window.ioba(entry), tce))
    }

    fn holds(&mut self, entry: u64, tce: u64) -> Result<(), Failure> {
        let answer = self.port.call(Call::get(self.window.liobn, self.window.ioba(entry)));
        ensure(answer.status == SUCCESS && answer.value == tce, "H_GET_TCE does not give what was written")
    }

    fn succeeds(&mut self, call: Call) -> Result<(), Failure> {
        let status = self.port.call(call).status;
        let [_, ioba, _, count] = call.arguments;
        let (call, status_name) = (name(call.opcode), describe(status));
        self.port.emit(&Event::Called { call, ioba, count: count.max(1), status: status_name });
        ensure(status == SUCCESS, "a call of the guest's driver was refused")
    }

    /// The device copies a fresh word from the page of the guest behind one entry to that behind another, as far as
    /// `reach` lets it.
    fn copies(&mut self, source: [u64; 2], target: [u64; 2], reach: Reach) -> Result<(), Failure> {
        self.word += 1;
        let (word, stale) = (0x4441_5441_0000_0000 | self.word, 0x4f4c_4400_0000_0000 | self.word);
        let offset = self.word % 512 * u64::from(WORD);
        let place = |[entry, page]: [u64; 2]| (self.window.ioba(entry) + offset, self.plain(page) + offset);
        let ((read, from), (written, to)) = (place(source), place(target));
        self.port.write(from, word);
        self.port.write(to, stale);
        self.port.copy(DEVICE, read, written)?;
        let found = match self.port.read(to) {
            found if found == word => Reach::ALL,
            found if found == stale => Reach::NOTHING,
            _ => reach_of(WRITE),
        };
        // Of a device that writes nothing, nobody sees whether it has read.
        if found.writes {
            self.tell(Direction::Read, read, found.reads);
        }
        self.tell(Direction::Write, written, found.writes);
        ensure(found == reach, "a transfer of the guest's device came to something else")
    }

    fn tell(&mut self, direction: Direction, iova: u64, landed: bool) {
        let effect = if landed { Effect::Landed } else { Effect::Blocked };
        let requester = self.port.requester(DEVICE);
        self.port.emit(&Event::Dma { requester, iova, bytes: WORD, direction, effect });
    }
}
