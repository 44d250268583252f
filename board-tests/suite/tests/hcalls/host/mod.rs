//! The hypercalls over the model of the host bridge, with its cache of entries on, as a port.

mod both;
mod cpu;
mod devices;
mod machine;

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use portcullis_fake::phb::{Hang, PhbKind};
use portcullis_hal::PageRun;
use portcullis_ppc_tce::hcall::{Reply, Why};
use portcullis_suite::{
    Event, Failure,
    hcall::{
        Answer, Call, Control, Deed, Finished, GuestPort, Layout, Moment, Offers, Window,
        call::SUCCESS,
        port::{MEMORY_BYTES, carry_out},
        stand::Stand,
        vcpus::Made as Outcome,
    },
};

use crate::machine::device;
use cpu::{Contender, Cpu, HostStand, Shared, answer, watch};
use devices::{LIMIT, OnModel, REQUESTERS};
use machine::{HOST, Made};

/// The seat of the control plane; the virtual CPUs have those before it.
const CONTROL_SEAT: usize = 2;

/// A guest on a modelled machine.
pub struct HostPort {
    kind: PhbKind,
    layout: Layout,
    /// Whether calls are tried in real mode first.
    real_mode: bool,
    made: Made,
    stand: HostStand,
    /// Windows exist.
    begun: bool,
    first: Arc<Mutex<Cpu>>,
    contender: Shared,
    /// Pages that are withheld from hardware tables and from views.
    withheld: (Vec<PageRun>, Vec<PageRun>),
    arranged: Option<(Moment, Deed)>,
    answer: Option<Answer>,
    finished: Finished,
    /// What both virtual CPUs called last, when they called at once.
    outcomes: [Vec<Outcome>; 2],
    /// A kill was not confirmed: this machine is of no use any more.
    spoilt: bool,
}

impl HostPort {
    /// A port on which a kill that is not confirmed is soon noticed.
    pub fn new(kind: PhbKind, layout: Layout, real_mode: bool) -> Self {
        Self::with_limit(kind, layout, real_mode, Duration::from_micros(200))
    }

    /// One whose waits do not end, for threads that hold each other up.
    pub fn patient(kind: PhbKind, layout: Layout, real_mode: bool) -> Self {
        Self::with_limit(kind, layout, real_mode, LIMIT)
    }

    fn with_limit(kind: PhbKind, layout: Layout, real_mode: bool, kill_limit: Duration) -> Self {
        let made = Made::new(kind, kill_limit);
        let cpu = |number| Cpu::new(made.iommu, made.calls, number);
        let contender = Contender { cpu: cpu(1), met: None, wanted: None, answer: None };
        let ground = OnModel::new(made.clone(), kind, layout);
        ground.mark_pages(MEMORY_BYTES);
        let seat = made.iommu.seat(CONTROL_SEAT).expect("a seat");
        let stand = Stand::new(ground, made.iommu, made.calls, seat, layout, REQUESTERS.map(device));
        Self {
            kind,
            layout,
            real_mode,
            stand: stand.expect("two groups"),
            begun: false,
            first: Arc::new(Mutex::new(cpu(0))),
            contender: Arc::new(Mutex::new(contender)),
            withheld: (Vec::new(), Vec::new()),
            arranged: None,
            answer: None,
            finished: Finished::default(),
            outcomes: Default::default(),
            spoilt: false,
            made,
        }
    }

    fn first(&self) -> MutexGuard<'_, Cpu> {
        self.first.lock().expect("no test thread died here")
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
        self.answer = Some(carry_out(self, deed, |port, call| port.second_calls(call)));
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
            let reply = if in_real { self.first().real(call) } else { self.first().virt(call) };
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
        }
        self.starve(false);
        if std::mem::replace(&mut self.begun, true) {
            self.stand.end()?;
        }
        self.first().vcpu.abandon();
        self.stand.begin()
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
        self.stand.ground().fetch(device, from);
        self.stand.ground().deliver(device, to);
        Ok(())
    }

    fn control(&mut self, control: Control) -> bool {
        match control {
            Control::Starve(starved) => self.starve(starved),
            Control::Deafen(deaf) => {
                self.spoilt = true;
                self.made.phb.set_hang(deaf.then_some(Hang::Kill));
            }
            of_the_control_plane => return self.stand.control(of_the_control_plane),
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
        self.stand.counted().expect("no region ends by itself")
    }

    /// Once a kill was not confirmed, counts say what devices may reach, and hardware is not asked.
    fn check(&mut self) -> Result<(), Failure> {
        if self.is_quarantined() { Ok(()) } else { self.stand.check() }
    }

    fn check_entry(&mut self, window: Window, entry: u64) -> Result<(), Failure> {
        if self.is_quarantined() { Ok(()) } else { self.stand.check_entry(window, entry) }
    }

    fn requester(&self, device: usize) -> u16 {
        REQUESTERS[device]
    }

    fn finished(&self) -> Finished {
        self.finished
    }

    fn emit(&mut self, _: &Event<'_>) {}
}
