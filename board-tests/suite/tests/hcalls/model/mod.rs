//! A hypervisor in plain words: the oracle with devices, steps and hand-overs around it. It keeps all rules, or breaks
//! one of them, so that each rule is seen to fail.

mod breakage;
mod devices;
mod serve;

use std::collections::HashSet;

use portcullis_suite::{
    Event, Failure,
    hcall::{
        Answer, Area, Call, Control, Deed, Finished, GuestPort, Layout, Moment, Offers, Oracle, Window,
        call::{PARAMETER, SUCCESS},
        port::{FOREIGN_LIOBN, MEMORY_BYTES, NO_LIOBN},
    },
};

pub use breakage::{BREAKAGES, Breakage};
use devices::Device;

/// A guest on that hypervisor.
pub struct Model {
    layout: Layout,
    breakage: Option<Breakage>,
    oracle: Oracle,
    memory: Vec<u64>,
    devices: [Device; 2],
    /// Windows and quarters of them that have tables.
    provided: HashSet<(usize, u64)>,
    starved: bool,
    deaf: bool,
    /// Units that stay counted because a kill was not confirmed.
    kept: Vec<(u64, u64)>,
    /// Counts that nobody gives back: a defect.
    leaked: u64,
    arranged: Option<(Moment, Deed)>,
    answer: Option<Answer>,
    /// Window, first entry and number of the entries that a call has taken.
    taken: Option<(usize, u64, u64)>,
    finished: Finished,
}

impl Model {
    pub fn new(layout: Layout, breakage: Option<Breakage>) -> Self {
        Self {
            layout,
            breakage,
            oracle: Oracle::new(layout),
            memory: vec![0; MEMORY_BYTES as usize / 8],
            devices: [Device::behind(layout.main()), Device::default()],
            provided: HashSet::new(),
            starved: false,
            deaf: false,
            kept: Vec::new(),
            leaked: 0,
            arranged: None,
            answer: None,
            taken: None,
            finished: Finished::default(),
        }
    }

    fn breaks(&self, breakage: Breakage) -> bool {
        self.breakage == Some(breakage)
    }

    fn window(&self, liobn: u64) -> Option<(usize, Window)> {
        self.layout.windows().into_iter().enumerate().find(|(_, window)| window.liobn == liobn)
    }

    fn word(&self, guest: u64) -> Option<&u64> {
        self.memory.get(usize::try_from(guest.checked_sub(self.layout.memory)? / 8).ok()?)
    }

    /// Does what was arranged, if it was for this moment.
    fn reach_moment(&mut self, moment: Moment) {
        let Some((_, deed)) = self.arranged.take_if(|(when, _)| *when == moment) else { return };
        let granted = |done| Answer { status: if done { SUCCESS } else { PARAMETER }, value: 0 };
        self.answer = Some(match deed {
            Deed::Call(call) => self.serve(call).0,
            Deed::Write(guest, word) => {
                self.write(guest, word);
                granted(true)
            }
            Deed::Control(control) => granted(self.control(control)),
        });
    }

    fn connect(&mut self, number: usize, liobn: u64, page_shift: u8) -> bool {
        let known = match liobn {
            FOREIGN_LIOBN | NO_LIOBN if self.breaks(Breakage::ConnectsAnything) => return true,
            _ => self.window(liobn),
        };
        let Some((index, window)) = known else { return false };
        let fits = page_shift <= window.page_shift && window.start == self.layout.window;
        if !fits && !self.breaks(Breakage::ConnectsAnything) {
            return false;
        }
        let mut device = Device::behind(window);
        device.page_shift = page_shift;
        for entry in (0..window.entries).filter(|_| !self.breaks(Breakage::ReplaysNothing)) {
            let form = self.oracle.form(index, entry);
            let page = form & !3;
            let registered = self.areas().any(|area| area.holds(page, window.page_bytes()));
            if form & 3 != 0 && registered {
                device.table.insert(entry, form);
            } else if form & 3 != 0 && !self.breaks(Breakage::ReplaysAPart) {
                return false;
            }
        }
        self.devices[number] = device;
        self.oracle.connect(liobn, page_shift);
        true
    }

    fn disconnect(&mut self, number: usize) -> bool {
        let device = std::mem::take(&mut self.devices[number]);
        if let Some(window) = device.window {
            self.oracle.disconnect(window.liobn, device.page_shift);
        }
        device.window.is_some()
    }

    fn areas(&self) -> impl Iterator<Item = Area> {
        let all = [self.layout.plain(), self.layout.small(), self.layout.wild()];
        all.into_iter().filter(|&area| self.oracle.is_registered(area))
    }

    /// Whether tables, or devices as far as hardware has confirmed, reach memory of an area.
    fn is_reached(&self, area: Area) -> bool {
        let mut kept = self.kept.iter();
        self.devices.iter().any(|device| device.table.values().any(|form| area.holds(form & !3, 1)))
            || kept.any(|&(page, _)| area.holds(page, 1))
    }
}

impl GuestPort for Model {
    fn offers(&self) -> Offers {
        Offers::all()
    }

    fn layout(&self) -> Layout {
        self.layout
    }

    fn reset(&mut self) -> Result<(), Failure> {
        *self = Self::new(self.layout, self.breakage);
        Ok(())
    }

    fn call(&mut self, call: Call) -> Answer {
        let (answer, handed_over) = self.serve(call);
        if handed_over || self.breaks(Breakage::HandsAllOver) {
            self.finished.handed_over += 1;
        } else {
            self.finished.real += 1;
        }
        answer
    }

    fn read(&mut self, guest: u64) -> u64 {
        self.word(guest).copied().unwrap_or_default()
    }

    fn write(&mut self, guest: u64, word: u64) {
        let place = (guest - self.layout.memory) as usize / 8;
        self.memory[place] = word;
    }

    fn copy(&mut self, device: usize, from: u64, to: u64) -> Result<(), Failure> {
        self.device_copies(device, from, to);
        Ok(())
    }

    fn control(&mut self, control: Control) -> bool {
        match control {
            Control::Connect { device, liobn, page_shift } => return self.connect(device, liobn, page_shift),
            Control::Disconnect { device } => return self.disconnect(device),
            Control::Revoke { device } if self.breaks(Breakage::RevokedStaysCounted) => {
                self.leaked += self.devices[device].units();
                return self.disconnect(device);
            }
            Control::Revoke { device } => return self.disconnect(device),
            Control::Register(area) => self.oracle.register(area),
            Control::Unregister(area) => {
                if self.is_reached(area) && !self.breaks(Breakage::UnregistersMapped) {
                    return false;
                }
                self.oracle.unregister(area);
            }
            Control::Starve(starved) => self.starved = starved,
            Control::Deafen(deaf) => self.deaf = deaf,
        }
        true
    }

    fn arrange(&mut self, moment: Moment, deed: Deed) {
        self.arranged = Some((moment, deed));
    }

    fn arranged(&mut self) -> Option<Answer> {
        self.arranged = None;
        self.answer.take()
    }

    fn counted(&mut self) -> u64 {
        let kept: u64 = self.kept.iter().map(|(_, units)| units).sum();
        self.devices.iter().map(Device::units).sum::<u64>() + kept + self.leaked
    }

    fn check(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    fn finished(&self) -> Finished {
        self.finished
    }

    fn emit(&mut self, _: &Event<'_>) {}
}
