//! A guest that does what an operating system's driver does: it maps pages, has its device copy, looks at the data,
//! and unmaps. All of that is the guest's own work in HV = 0; the hypervisor only answers its calls.

use portcullis_hal::DeviceId;
use portcullis_hypervisor::power::{
    registers::Lent,
    scenario::{Machine, ensure, fail, need},
    script::{Op, Width},
};
use portcullis_suite::{
    Board, Event, Failure,
    event::{Direction, Effect},
    hcall::{
        Call, GuestPort, Window,
        call::{READ, SUCCESS, WRITE},
        stand,
    },
};

use crate::{hypervisor::Guests, port::BoardPort};

/// edu's registers, and what they take (QEMU, `docs/specs/edu`).
const DMA_SOURCE: u64 = 0x80;
const DMA_DESTINATION: u64 = 0x88;
const DMA_COUNT: u64 = 0x90;
const DMA_COMMAND: u64 = 0x98;
const COMMAND_START: u64 = 1;
const COMMAND_TO_MEMORY: u64 = 2;
const BUFFER: u64 = 0x4_0000;
/// Words that the device copies at a time.
const WORDS: u64 = 8;
/// 20 ms of the time base: edu takes 100 ms for a transfer.
const PAUSE_TICKS: u64 = 20 * 512_000;
/// So many pauses, and the device counts as lost.
const PAUSES: usize = 250;

/// The entry that the device reads through, four that it writes through, and a last one.
const SOURCE: u64 = 5;
const TARGETS: u64 = 6;
const TARGET_COUNT: u64 = 4;
const LATER: u64 = 12;
/// 4 KiB pages of the plain area.
const SOURCE_PAGE: u64 = 2;
const TARGET_PAGE: u64 = 4;
const LATER_PAGE: u64 = 9;
const LIST_PAGE: u64 = 30;

/// The guest with its device.
struct AtWork<'p, 's, 'a, 'b> {
    port: &'p mut BoardPort<'s, 'a, 'b>,
    lent: Lent,
    device: DeviceId,
    context: u32,
    window: Window,
}

/// D10, D16, D20, D30, V07.
pub(super) fn driver(port: &mut BoardPort<'_, '_, '_>, machine: &Guests<'_, '_>) -> Result<(), Failure> {
    port.reset()?;
    let (registers, bytes) = need(machine.device_registers(), "the board has no device to lend")?;
    // SAFETY: nobody else uses the device in this scenario.
    let lent = unsafe { port.guest().lend_registers(registers, bytes) };
    let lent = need(lent, "the registers are not whole pages")?;
    let device = need(machine.board().device(0), "the board lacks a device")?.id();
    let (context, window) = (port.context(0)?.slot(), port.layout().main());
    let requester = device.requester.as_u16();
    port.emit(&Event::Claimed { requester, vm: stand::VM.0 });
    port.emit(&Event::Attached { requester, context });
    let mut guest = AtWork { port, lent, device, context, window };
    guest.maps()?;
    guest.copies()?;
    guest.unmaps()?;
    guest.is_blocked()?;
    guest.port.check()
}

impl AtWork<'_, '_, '_, '_> {
    fn maps(&mut self) -> Result<(), Failure> {
        self.step("the guest maps a page for its device to read: H_PUT_TCE");
        self.put(SOURCE, SOURCE_PAGE, READ)?;
        self.step("and four pages for it to write: one H_PUT_TCE_INDIRECT");
        let list = self.page(LIST_PAGE);
        let entries: [u64; TARGET_COUNT as usize] =
            core::array::from_fn(|number| self.page(TARGET_PAGE + number as u64) | WRITE);
        let stores = entries.into_iter().zip((list..).step_by(8));
        self.port.run(stores.map(|(entry, at)| Op::Store(Width::Eight, at, entry.to_be())))?;
        self.call(Call::indirect(self.window.liobn, self.window.ioba(TARGETS), list, TARGET_COUNT))?;
        (0..TARGET_COUNT).for_each(|number| self.mapped(TARGETS + number, TARGET_PAGE + number, WRITE));
        for (number, entry) in (TARGETS..).zip(entries) {
            ensure(self.get(number)? == entry, "H_GET_TCE does not give what the list said")?;
        }
        Ok(())
    }

    /// From the source to the first and the last of the targets, by way of the device's buffer.
    fn copies(&mut self) -> Result<(), Failure> {
        self.step("it writes data, and has the device fetch and deliver them: its own stores to registers");
        self.fill(SOURCE_PAGE, 1)?;
        for number in [0, TARGET_COUNT - 1] {
            self.fill(TARGET_PAGE + number, 2)?;
            self.fetch(SOURCE)?;
            self.deliver(TARGETS + number)?;
            let arrived = self.contains(TARGET_PAGE + number, 1)?;
            let effect = if arrived { Effect::Landed } else { Effect::Garbled };
            self.told(Direction::Read, SOURCE, effect);
            self.told(Direction::Write, TARGETS + number, effect);
            ensure(arrived, "the guest does not find the data that its device copied")?;
        }
        self.step("the device must not write where it may only read");
        self.deliver_blocked(SOURCE, SOURCE_PAGE)
    }

    fn unmaps(&mut self) -> Result<(), Failure> {
        self.step("the guest takes the four pages away by H_STUFF_TCE, the one by H_PUT_TCE");
        self.call(Call::stuff(self.window.liobn, self.window.ioba(TARGETS), 0, TARGET_COUNT))?;
        self.unmapped(TARGETS, TARGET_COUNT);
        self.call(Call::put(self.window.liobn, self.window.ioba(SOURCE), 0))?;
        self.unmapped(SOURCE, 1);
        for entry in SOURCE..TARGETS + TARGET_COUNT {
            ensure(self.get(entry)? == 0, "H_GET_TCE gives what was taken away")?;
        }
        ensure(self.port.counted() == 0, "something is counted as mapped")
    }

    fn is_blocked(&mut self) -> Result<(), Failure> {
        self.step("the device is told to do the same again");
        self.deliver_blocked(TARGETS, TARGET_PAGE)?;
        self.put(LATER, LATER_PAGE, WRITE)?;
        self.fill(SOURCE_PAGE, 3)?;
        self.fill(LATER_PAGE, 4)?;
        self.fetch(SOURCE)?;
        self.deliver(LATER)?;
        let leaked = self.contains(LATER_PAGE, 3)?;
        self.told(Direction::Read, SOURCE, if leaked { Effect::Landed } else { Effect::Blocked });
        ensure(!leaked, "the device read a page that was taken away")?;
        let delivered = !self.contains(LATER_PAGE, 4)?;
        self.told(Direction::Write, LATER, if delivered { Effect::Landed } else { Effect::Blocked });
        ensure(delivered, "the device delivered nothing: its read shows nothing")
    }

    /// The device writes through an entry that forbids it.
    fn deliver_blocked(&mut self, entry: u64, page: u64) -> Result<(), Failure> {
        self.fill(page, 5)?;
        self.deliver(entry)?;
        let unchanged = self.contains(page, 5)?;
        self.told(Direction::Write, entry, if unchanged { Effect::Blocked } else { Effect::Landed });
        ensure(unchanged, "the device wrote what it must not reach")
    }

    fn step(&mut self, text: &'static str) {
        self.port.emit(&Event::Step { text });
    }

    /// Guest address of a page.
    fn page(&self, number: u64) -> u64 {
        self.port.layout().plain().page(number)
    }

    #[track_caller]
    fn call(&mut self, call: Call) -> Result<u64, Failure> {
        let answer = self.port.call(call);
        ensure(answer.status == SUCCESS, "a call of a guest that means no harm was refused")?;
        Ok(answer.value)
    }

    fn put(&mut self, entry: u64, page: u64, permissions: u64) -> Result<(), Failure> {
        let tce = self.page(page) | permissions;
        self.call(Call::put(self.window.liobn, self.window.ioba(entry), tce))?;
        ensure(self.get(entry)? == tce, "H_GET_TCE does not give what H_PUT_TCE wrote")?;
        self.mapped(entry, page, permissions);
        Ok(())
    }

    fn get(&mut self, entry: u64) -> Result<u64, Failure> {
        self.call(Call::get(self.window.liobn, self.window.ioba(entry)))
    }

    fn mapped(&mut self, entry: u64, page: u64, permissions: u64) {
        let phys = self.port.guest().memory().address().as_u64() + self.page(page);
        let (iova, bytes) = (self.window.ioba(entry), self.window.page_bytes());
        let access = permissions as u8;
        self.port.emit(&Event::Mapped { context: self.context, iova, phys, bytes, access });
    }

    fn unmapped(&mut self, entry: u64, count: u64) {
        let (iova, bytes) = (self.window.ioba(entry), count * self.window.page_bytes());
        self.port.emit(&Event::Unmapped { context: self.context, iova, bytes });
    }

    fn told(&mut self, direction: Direction, entry: u64, effect: Effect) {
        let (requester, iova) = (self.device.requester.as_u16(), self.window.ioba(entry));
        self.port.emit(&Event::Dma { requester, iova, bytes: WORDS as u32 * 8, direction, effect });
    }

    /// The guest stores words that nothing else stores.
    fn fill(&self, page: u64, pattern: u64) -> Result<(), Failure> {
        let at = self.page(page);
        self.port
            .run((0..WORDS).map(|number| Op::Store(Width::Eight, at + number * 8, word(pattern, number))))
    }

    /// The guest loads the words and finds those of this pattern.
    fn contains(&self, page: u64, pattern: u64) -> Result<bool, Failure> {
        let at = self.page(page);
        self.port.run((0..WORDS).map(|number| Op::Load(Width::Eight, at + number * 8)))?;
        let mut same = true;
        for number in 0..WORDS {
            same &= self.port.outcome(0, number as usize)?.status == word(pattern, number);
        }
        Ok(same)
    }

    /// The device reads memory.
    fn fetch(&self, entry: u64) -> Result<(), Failure> {
        self.transfer(self.window.ioba(entry), BUFFER, 0)
    }

    /// The device writes memory.
    fn deliver(&self, entry: u64) -> Result<(), Failure> {
        self.transfer(BUFFER, self.window.ioba(entry), COMMAND_TO_MEMORY)
    }

    /// The guest programs the device, and asks from time to time whether it is done.
    fn transfer(&self, source: u64, destination: u64, direction: u64) -> Result<(), Failure> {
        self.port.run([
            self.lent.store(Width::Eight, DMA_SOURCE, source),
            self.lent.store(Width::Eight, DMA_DESTINATION, destination),
            self.lent.store(Width::Eight, DMA_COUNT, WORDS * 8),
            self.lent.store(Width::Eight, DMA_COMMAND, COMMAND_START | direction),
        ])?;
        for _ in 0..PAUSES {
            self.port.run([Op::Wait(PAUSE_TICKS), self.lent.load(Width::Eight, DMA_COMMAND)])?;
            let command = self.lent.loaded(Width::Eight, &self.port.outcome(0, 1)?);
            if command & COMMAND_START == 0 {
                return Ok(());
            }
        }
        fail("the guest's device did not end its transfer")
    }
}

const fn word(pattern: u64, number: u64) -> u64 {
    0x4452_4956_0000_0000 | pattern << 16 | number
}
