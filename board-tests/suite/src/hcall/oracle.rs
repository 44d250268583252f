//! Contract D in a few plain words: what each call comes to when it is alone, nothing fails and time does not count.

use super::{
    call::{
        Answer, BOTH, Call, FUNCTION, GET_TCE, LIST_ENTRIES, PARAMETER, PUT_TCE, PUT_TCE_INDIRECT, STUFF_TCE,
        SUCCESS,
    },
    port::{Area, Layout, Window},
};

/// Entries of the largest window.
const MOST: usize = 1024;
/// Windows of a guest.
const WINDOWS: usize = 4;

/// What a guest's windows hold.
#[derive(Clone, Debug)]
pub struct Oracle {
    windows: [Held; WINDOWS],
    memory: [Option<Area>; 3],
}

/// What one window holds.
#[derive(Clone, Debug)]
struct Held {
    window: Window,
    /// log2 of the pages of each hardware table behind it.
    tables: [Option<u8>; 2],
    forms: [u64; MOST],
    /// Entries that permit something.
    live: u64,
}

/// The answer of a call that is refused, or done.
const fn status(status: i64) -> Answer {
    Answer { status, value: 0 }
}

const REFUSED: Answer = status(PARAMETER);

impl Oracle {
    /// As a guest finds it: nothing mapped, one device behind the first window through pages of 4 KiB.
    #[must_use]
    pub const fn new(layout: Layout) -> Self {
        let [main, coarse, capped, topmost] = layout.windows();
        let windows = [
            Held::new(main, [Some(12), None]),
            Held::new(coarse, [None; 2]),
            Held::new(capped, [None; 2]),
            Held::new(topmost, [None; 2]),
        ];
        Self { windows, memory: [Some(layout.plain()), Some(layout.small()), None] }
    }

    /// Makes a call; `read` gives the words of lists.
    pub fn call(&mut self, call: Call, mut read: impl FnMut(u64) -> u64) -> Answer {
        let answer = self.judge(call, &mut read);
        if answer.status == SUCCESS {
            self.commit(call, read);
        }
        answer
    }

    /// What a call comes to; changes nothing.
    pub fn judge(&self, call: Call, read: impl FnMut(u64) -> u64) -> Answer {
        let [.., third, count] = call.arguments;
        if ![GET_TCE, PUT_TCE, STUFF_TCE, PUT_TCE_INDIRECT].contains(&call.opcode) {
            return status(FUNCTION);
        }
        let Some((index, first, _)) = self.place(call) else { return REFUSED };
        let good = match call.opcode {
            GET_TCE => return Answer { status: SUCCESS, value: self.form(index, first) },
            PUT_TCE => self.accepts(index, third),
            STUFF_TCE => self.clears(index, third, count),
            _ => self.accepts_list(index, third, count, read),
        };
        if good { status(SUCCESS) } else { REFUSED }
    }

    /// Makes the changes of a call that was judged good.
    pub fn commit(&mut self, call: Call, mut read: impl FnMut(u64) -> u64) {
        let [_, _, third, _] = call.arguments;
        let Some((index, first, count)) = self.place(call) else { return };
        for number in 0..count {
            match call.opcode {
                PUT_TCE | STUFF_TCE => self.set(index, first + number, third),
                PUT_TCE_INDIRECT => self.set(index, first + number, read(third + number * 8)),
                _ => {}
            }
        }
    }

    /// The entries that a call names: index of the window in the layout, first entry, and how many.
    #[must_use]
    pub fn place(&self, call: Call) -> Option<(usize, u64, u64)> {
        let [liobn, ioba, _, count] = call.arguments;
        let count = if matches!(call.opcode, GET_TCE | PUT_TCE) { 1 } else { count };
        let index = self.windows.iter().position(|held| held.window.liobn == liobn)?;
        let first = self.windows.get(index)?.window.entry(ioba, count)?;
        Some((index, first, count))
    }

    /// Notes that the hypervisor registered memory. At most three areas.
    pub fn register(&mut self, area: Area) {
        if let Some(place) = self.memory.iter_mut().find(|place| place.is_none()) {
            *place = Some(area);
        }
    }

    /// Notes that a registration ended.
    pub fn unregister(&mut self, area: Area) {
        for place in self.memory.iter_mut().filter(|place| **place == Some(area)) {
            *place = None;
        }
    }

    /// Whether an area is registered.
    #[must_use]
    pub fn is_registered(&self, area: Area) -> bool {
        self.memory.contains(&Some(area))
    }

    /// Notes that tables with pages of so many bits stand behind a window now.
    pub fn connect(&mut self, liobn: u64, page_shift: u8) {
        for held in self.windows.iter_mut().filter(|held| held.window.liobn == liobn) {
            if let Some(place) = held.tables.iter_mut().find(|place| place.is_none()) {
                *place = Some(page_shift);
            }
        }
    }

    /// Notes that tables with pages of so many bits are not behind a window any more.
    pub fn disconnect(&mut self, liobn: u64, page_shift: u8) {
        for held in self.windows.iter_mut().filter(|held| held.window.liobn == liobn) {
            if let Some(place) = held.tables.iter_mut().find(|place| **place == Some(page_shift)) {
                *place = None;
            }
        }
    }

    /// Units of 4 KiB that hardware tables map.
    #[must_use]
    pub fn counted(&self) -> u64 {
        let units = |held: &Held| {
            let tables = held.tables.iter().flatten().count() as u64;
            (held.live * tables) << (held.window.page_shift - 12)
        };
        self.windows.iter().map(units).sum()
    }

    /// Whether hardware tables map memory of an area.
    #[must_use]
    pub fn maps(&self, area: Area) -> bool {
        let leads_in = |&form: &u64| form & BOTH != 0 && area.holds(form & !BOTH, 1);
        let behind = self.windows.iter().filter(|held| held.tables.iter().any(Option::is_some));
        behind.flat_map(|held| &held.forms).any(leads_in)
    }

    /// What an entry of window `index` of the layout holds.
    #[must_use]
    pub fn form(&self, index: usize, entry: u64) -> u64 {
        self.windows.get(index).and_then(|held| held.forms.get(entry as usize)).copied().unwrap_or_default()
    }

    /// Whether a guest may write this entry into window `index`.
    fn accepts(&self, index: usize, tce: u64) -> bool {
        let Some(held) = self.windows.get(index) else { return false };
        let (address, bytes) = (tce & !BOTH, held.window.page_bytes());
        if tce & BOTH == 0 {
            return true;
        }
        let region = self.memory.iter().flatten().find(|area| area.holds(address, bytes));
        let fits = |area: &Area| held.tables.iter().flatten().all(|&shift| shift <= area.page_shift);
        address & (bytes - 1) == 0 && region.is_some_and(fits)
    }

    fn clears(&self, index: usize, value: u64, count: u64) -> bool {
        let cap = self.windows.get(index).and_then(|held| held.window.stuff_cap);
        value & BOTH == 0 && cap.is_none_or(|cap| count <= u64::from(cap))
    }

    fn accepts_list(&self, index: usize, list: u64, count: u64, mut read: impl FnMut(u64) -> u64) -> bool {
        let readable = || self.memory.iter().flatten().any(|area| area.holds(list, 0x1000));
        let accepts = |number| self.accepts(index, read(list + number * 8));
        let shaped = count <= LIST_ENTRIES && list & 0xfff == 0;
        shaped && (count == 0 || readable() && (0..count).all(accepts))
    }

    fn set(&mut self, index: usize, entry: u64, tce: u64) {
        let Some(held) = self.windows.get_mut(index) else { return };
        let Some(form) = held.forms.get_mut(entry as usize) else { return };
        held.live -= u64::from(*form & BOTH != 0);
        held.live += u64::from(tce & BOTH != 0);
        *form = tce;
    }
}

impl Held {
    const fn new(window: Window, tables: [Option<u8>; 2]) -> Self {
        Self { window, tables, forms: [0; MOST], live: 0 }
    }
}
