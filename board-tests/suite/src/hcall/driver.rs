//! `hcall_driver`: a guest that behaves as an operating system with a driver does.

use super::{
    call::{Answer, Call, READ, SUCCESS, WRITE, describe, name},
    port::{GuestPort, Window},
    scenario::ensure,
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

/// An operating system that maps buffers for its driver and unmaps them when the device is done.
struct System<'p, P> {
    port: &'p mut P,
    window: Window,
    /// Number of the word written last.
    word: u64,
}

/// Maps pages for a device by lists and single calls, lets it copy, checks the data, unmaps, and sees that the device
/// reaches nothing any more.
///
/// # Errors
/// What was not as the contract says.
pub fn driver<P: GuestPort>(port: &mut P) -> Result<(), Failure> {
    port.reset()?;
    let window = port.layout().main();
    let mut system = System { port, window, word: 0 };
    for round in 0..ROUNDS {
        system.transfer(16 + round * 4 * PAGES)?;
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

    /// One transfer through the entries from `entry` on.
    fn transfer(&mut self, entry: u64) -> Result<(), Failure> {
        let (source, target) = (entry, entry + PAGES);
        self.step("the guest maps what its device reads, and what it writes");
        self.map_list(source, SOURCE, READ)?;
        for page in 0..PAGES {
            let tce = self.plain(TARGET + page) | WRITE;
            self.succeeds(Call::put(self.window.liobn, self.window.ioba(target + page), tce))?;
        }
        for page in 0..PAGES {
            self.copies(source + page, SOURCE + page, target + page, TARGET + page, Effect::Landed)?;
        }
        self.step("what is mapped for reading is not written, and the other way round");
        self.copies(target, TARGET, source, SOURCE, Effect::Blocked)?;
        self.step("the guest unmaps its buffers: the device reaches them no more");
        let (liobn, first) = (self.window.liobn, self.window.ioba(source));
        self.succeeds(Call::stuff(liobn, first, 0, 2 * PAGES))?;
        for page in 0..PAGES {
            self.copies(source + page, SOURCE + page, target + page, TARGET + page, Effect::Blocked)?;
        }
        ensure(self.port.counted() == 0, "unmapped pages are still counted")
    }

    fn map_list(&mut self, entry: u64, page: u64, permissions: u64) -> Result<(), Failure> {
        let list = self.plain(LIST);
        for number in 0..PAGES {
            let tce = self.plain(page + number) | permissions;
            self.port.write(list + number * 8, tce);
        }
        self.succeeds(Call::indirect(self.window.liobn, self.window.ioba(entry), list, PAGES))
    }

    fn succeeds(&mut self, call: Call) -> Result<(), Failure> {
        let Answer { status, .. } = self.port.call(call);
        let [_, ioba, _, count] = call.arguments;
        let (name, status_name) = (name(call.opcode), describe(status));
        self.port.emit(&Event::Called { call: name, ioba, count: count.max(1), status: status_name });
        ensure(status == SUCCESS, "a call of the guest's driver was refused")
    }

    /// The device copies a fresh word of page `from` of the guest to page `to`, which must come to `expected`.
    fn copies(
        &mut self,
        source: u64,
        from: u64,
        target: u64,
        to: u64,
        expected: Effect,
    ) -> Result<(), Failure> {
        const DEVICE: usize = 0;
        self.word += 1;
        let (word, stale) = (0x4441_5441_0000_0000 | self.word, 0x4f4c_4400_0000_0000 | self.word);
        let offset = self.word % 512 * u64::from(WORD);
        let (from, to) = (self.plain(from) + offset, self.plain(to) + offset);
        self.port.write(from, word);
        self.port.write(to, stale);
        let iova = self.window.ioba(target) + offset;
        self.port.copy(DEVICE, self.window.ioba(source) + offset, iova)?;
        let effect = match self.port.read(to) {
            found if found == word => Effect::Landed,
            found if found == stale => Effect::Blocked,
            _ => Effect::Garbled,
        };
        let (requester, direction) = (self.port.requester(DEVICE), Direction::Write);
        self.port.emit(&Event::Dma { requester, iova, bytes: WORD, direction, effect });
        ensure(effect == expected, "a transfer of the guest's device came to something else")
    }
}
