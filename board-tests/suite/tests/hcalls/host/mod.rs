//! The hypercalls over the model of the host bridge, with its cache of entries on, as a port.

mod check;
mod cpu;
mod devices;
mod machine;

use std::sync::{Arc, Mutex, MutexGuard};

use portcullis_fake::phb::{Hang, Opal, PhbKind};
use portcullis_hal::PageRun;
use portcullis_iommu::RegionHandle;
use portcullis_ppc_tce::hcall::{Liobn, Patience, Reply, Why};
use portcullis_suite::{
    Event, Failure,
    hcall::{
        Answer, Area, Call, Control, Deed, Finished, GuestPort, Layout, Moment, Offers,
        call::{PARAMETER, SUCCESS},
        port::{FOREIGN_LIOBN, MEMORY_BYTES},
    },
};

use crate::machine::VM;
use cpu::{Contender, Cpu, Shared, answer, watch};
use devices::{Device, LIMIT, REQUESTERS};
use machine::{HOST, Made, OTHER_VM};

/// A guest on a modelled machine.
pub struct HostPort {
    kind: PhbKind,
    layout: Layout,
    /// Whether calls are tried in real mode first.
    real_mode: bool,
    made: Made,
    opal: Opal,
    first: Cpu,
    contender: Shared,
    devices: [Device; 2],
    regions: Vec<(Area, RegionHandle)>,
    /// Pages that are withheld from hardware tables and from views.
    withheld: (Vec<PageRun>, Vec<PageRun>),
    arranged: Option<(Moment, Deed)>,
    answer: Option<Answer>,
    finished: Finished,
    /// A kill was not confirmed: this machine is of no use any more.
    spoilt: bool,
}

impl HostPort {
    pub fn new(kind: PhbKind, layout: Layout, real_mode: bool) -> Self {
        let made = Made::new(kind);
        let cpu = |number| Cpu::new(made.iommu, made.calls, number);
        let contender = Contender { cpu: cpu(1), met: None, wanted: None, answer: None };
        let mut port = Self {
            kind,
            layout,
            real_mode,
            first: cpu(0),
            contender: Arc::new(Mutex::new(contender)),
            devices: [Device::new(&made, 0), Device::new(&made, 1)],
            regions: Vec::new(),
            withheld: (Vec::new(), Vec::new()),
            arranged: None,
            answer: None,
            finished: Finished::default(),
            spoilt: false,
            opal: made.phb.opal(),
            made,
        };
        port.begin();
        port
    }

    /// Windows, memory and the first device, on a machine that has none.
    fn begin(&mut self) {
        for page in 0..MEMORY_BYTES >> 12 {
            assert!(
                self.made.memory.write(HOST + (page << 12) + 0xff0, &(page | 0xabcd << 32).to_be_bytes())
            );
        }
        self.made.add_windows(self.layout);
        for area in [self.layout.plain(), self.layout.small()] {
            assert!(self.register(area));
        }
        assert!(self.connect(0, self.layout.main().liobn, 12));
    }

    /// Takes down what [`begin`](Self::begin) and the rules built.
    fn end(&mut self) {
        self.starve(false);
        for number in 0..self.devices.len() {
            let _ = self.disconnect(number);
        }
        let patience = Patience { clock: &self.made.clock, limit: LIMIT };
        for window in self.layout.windows() {
            let liobn = Liobn(window.liobn as u32);
            self.made.calls.remove(&mut self.first.seat, VM, liobn, patience).expect("a window");
        }
        let foreign = Liobn(FOREIGN_LIOBN as u32);
        self.made.calls.remove(&mut self.first.seat, OTHER_VM, foreign, patience).expect("a window");
        for (_, region) in std::mem::take(&mut self.regions) {
            self.made.iommu.unregister_memory(VM, region).expect("nothing is mapped any more");
        }
        self.first.vcpu.abandon();
    }

    fn contender(&self) -> MutexGuard<'_, Contender> {
        self.contender.lock().expect("no test thread died here")
    }

    fn second_calls(&self, call: Call) -> Answer {
        self.contender().cpu.finish(call)
    }

    fn is_quarantined(&self) -> bool {
        self.made.iommu.driver().is_quarantined()
    }

    /// Lets a device go on after a transfer that was blocked.
    fn thaw(&self, device: usize) {
        let first = u16::from(self.kind == PhbKind::Phb3);
        assert_eq!(self.opal.freeze_clear(first + device as u16), 0, "firmware knows the PE");
    }

    /// The host's address of registered memory.
    fn registered(&self, guest: u64) -> Option<u64> {
        let inside = self.regions.iter().any(|(area, _)| area.holds(guest, 1));
        inside.then(|| HOST + (guest - self.layout.memory))
    }

    fn register(&mut self, area: Area) -> bool {
        let region = self.made.register(self.layout, area);
        self.regions.extend(region.map(|region| (area, region)));
        region.is_some()
    }

    fn unregister(&mut self, area: Area) -> bool {
        let Some(place) = self.regions.iter().position(|(known, _)| *known == area) else { return false };
        let done = self.made.iommu.unregister_memory(VM, self.regions[place].1).is_ok();
        if done {
            self.regions.remove(place);
        }
        done
    }

    fn starve(&mut self, starved: bool) {
        let (tables, views) = (self.made.iommu.driver().pool(), self.made.calls.pool());
        if starved {
            self.withheld.0.extend(std::iter::from_fn(|| tables.take(1).ok()));
            self.withheld.1.extend(std::iter::from_fn(|| views.take(1).ok()));
        } else {
            self.withheld.0.drain(..).for_each(|run| tables.give_back(run));
            self.withheld.1.drain(..).for_each(|run| views.give_back(run));
        }
    }

    /// Does what was arranged, if it was for this moment.
    fn reach_moment(&mut self, moment: Moment) {
        let Some((_, deed)) = self.arranged.take_if(|(when, _)| *when == moment) else { return };
        let done = match deed {
            Deed::Call(call) => {
                self.answer = Some(self.second_calls(call));
                return;
            }
            Deed::Write(guest, word) => {
                self.write(guest, word);
                true
            }
            Deed::Control(control) => self.control(control),
        };
        self.answer = Some(Answer { status: if done { SUCCESS } else { PARAMETER }, value: 0 });
    }

    /// Arranges for the moments that come inside a call.
    fn lie_in_wait(&mut self, call: Call) {
        match self.arranged {
            Some((Moment::ListRead, Deed::Write(guest, word))) => {
                let (memory, place) = (self.made.memory.clone(), HOST + (guest - self.layout.memory));
                self.made.lists.after(1, move || assert!(memory.write(place, &word.to_be_bytes())));
            }
            Some((Moment::Taken, Deed::Call(wanted))) => {
                let mut contender = self.contender();
                (contender.met, contender.wanted, contender.answer) = (Some(call), Some(wanted), None);
                drop(contender);
                watch(&self.made.tables, &self.contender);
            }
            _ => {}
        }
    }

    /// Sees whether those moments came.
    fn see_what_came(&mut self) {
        match self.arranged {
            Some((Moment::ListRead, _)) if self.made.lists.was_called() => {
                self.answer = Some(Answer { status: SUCCESS, value: 0 });
            }
            Some((Moment::Taken, _)) => {
                let mut contender = self.contender();
                (contender.met, contender.wanted) = (None, None);
                let answer = contender.answer.take();
                drop(contender);
                self.answer = answer;
            }
            _ => {}
        }
    }

    /// A call as the hypervisor makes it: in real mode, if there is one, and then in virtual mode to its end.
    fn finish(&mut self, call: Call) -> (Answer, bool) {
        let (mut handed_over, mut in_real) = (false, self.real_mode);
        loop {
            let reply = if in_real { self.first.real(call) } else { self.first.virt(call) };
            if let Some(answer) = answer(reply) {
                return (answer, handed_over || !self.real_mode);
            }
            if in_real {
                (handed_over, in_real) = (true, false);
                self.reach_moment(Moment::HandedOver);
            }
            if reply == Reply::TooHard(Why::Budget) {
                self.reach_moment(Moment::NextStep);
            }
        }
    }
}

impl GuestPort for HostPort {
    fn offers(&self) -> Offers {
        let mut offers = Offers::all();
        offers.set(Offers::HANDED_OVER, self.real_mode);
        offers.set(Offers::DEAFEN, self.kind != PhbKind::Phb3);
        offers
    }

    fn layout(&self) -> Layout {
        self.layout
    }

    fn reset(&mut self) -> Result<(), Failure> {
        if self.spoilt {
            *self = Self::new(self.kind, self.layout, self.real_mode);
        } else {
            self.end();
            self.begin();
        }
        Ok(())
    }

    fn call(&mut self, call: Call) -> Answer {
        self.lie_in_wait(call);
        let (answer, handed_over) = self.finish(call);
        self.see_what_came();
        if handed_over {
            self.finished.handed_over += 1;
        } else {
            self.finished.real += 1;
        }
        answer
    }

    fn read(&mut self, guest: u64) -> u64 {
        let mut word = [0; 8];
        let inside = self.made.memory.read(HOST + (guest - self.layout.memory), &mut word);
        assert!(inside, "the guest has memory at {guest:#x}");
        u64::from_be_bytes(word)
    }

    fn write(&mut self, guest: u64, word: u64) {
        let place = HOST + (guest - self.layout.memory);
        assert!(self.made.memory.write(place, &word.to_be_bytes()), "the guest has memory at {guest:#x}");
    }

    fn copy(&mut self, device: usize, from: u64, to: u64) -> Result<(), Failure> {
        let mut word = [0; 8];
        let copied = self.made.phb.dma_read(REQUESTERS[device], from, &mut word);
        let copied = copied.and_then(|()| self.made.phb.dma_write(REQUESTERS[device], to, &word));
        if copied.is_err() {
            self.thaw(device);
        }
        Ok(())
    }

    fn control(&mut self, control: Control) -> bool {
        match control {
            Control::Connect { device, liobn, page_shift } => return self.connect(device, liobn, page_shift),
            Control::Disconnect { device } => return self.disconnect(device),
            Control::Revoke { device } => return self.revoke(device),
            Control::Register(area) => return self.register(area),
            Control::Unregister(area) => return self.unregister(area),
            Control::Starve(starved) => self.starve(starved),
            Control::Deafen(deaf) => {
                self.spoilt = true;
                self.made.phb.set_hang(deaf.then_some(Hang::Kill));
            }
        }
        true
    }

    fn arrange(&mut self, moment: Moment, deed: Deed) {
        self.answer = None;
        self.arranged = Some((moment, deed));
    }

    fn arranged(&mut self) -> Option<Answer> {
        self.arranged = None;
        self.answer.take()
    }

    fn counted(&mut self) -> u64 {
        let iommu = self.made.iommu;
        let mapped = |region| iommu.region(VM, region).expect("a region").mapped;
        self.regions.iter().map(|&(_, region)| mapped(region)).sum()
    }

    fn check(&mut self) -> Result<(), Failure> {
        self.check_all()
    }

    fn finished(&self) -> Finished {
        self.finished
    }

    fn emit(&mut self, _: &Event<'_>) {}
}
