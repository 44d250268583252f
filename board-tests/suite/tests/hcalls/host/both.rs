//! Two virtual CPUs on two threads.

use std::{
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
};

use portcullis_fake::watched::WatchedMemory;
use portcullis_suite::{
    Failure,
    hcall::{
        Control, GuestPort,
        vcpus::{Made, Meanwhile, Meeting, Span, TwoVcpus, VCPUS},
    },
};

use super::{HostPort, cpu::Cpu};

/// What both threads know of each other.
struct Watch {
    meeting: Barrier,
    /// A clock: each look at it is a moment of its own.
    now: AtomicU64,
    made: Arc<AtomicUsize>,
    /// Whether what is done meanwhile, if anything, has begun and ended.
    begun: AtomicBool,
    ended: AtomicBool,
    /// The hardware tables' memory: at some uses of it a thread lets the other one go first.
    tables: WatchedMemory,
}

impl Watch {
    fn now(&self) -> u64 {
        self.now.fetch_add(1, Ordering::SeqCst)
    }

    /// Makes all calls of one virtual CPU.
    fn work(&self, cpu: &mut Cpu, vcpu: usize, meeting: &Meeting<'_>) -> Vec<Made> {
        (0..meeting.calls)
            .map(|number| {
                if number.is_multiple_of(meeting.every) {
                    self.meeting.wait();
                }
                if number == meeting.begin() {
                    wait_for(|| self.begun.load(Ordering::Acquire));
                } else if number == meeting.end() {
                    wait_for(|| self.ended.load(Ordering::Acquire));
                }
                let nth = self.made.fetch_add(1, Ordering::Relaxed) as u64;
                // Not at each call: on a busy machine it takes long until the thread goes on.
                if nth.is_multiple_of(12) {
                    self.tables.after(nth / 12 % 13 + 1, thread::yield_now);
                }
                let (call, begun) = ((meeting.work)(vcpu, number), self.now());
                let answer = cpu.finish(call);
                Made { call, answer, span: Span { begun, ended: self.now() } }
            })
            .collect()
    }

    /// Does it when both wait for it.
    fn meanwhile(&self, port: &mut HostPort, control: Control, meeting: &Meeting<'_>) -> Meanwhile {
        let made = || self.made.load(Ordering::Relaxed);
        wait_for(|| made() == VCPUS * meeting.begin());
        self.begun.store(true, Ordering::Release);
        let more = || made() < VCPUS * meeting.end();
        let attempt = || {
            self.let_others_go_on();
            port.control(control)
        };
        let meanwhile = Meanwhile::attempt(|| self.now(), attempt, more);
        self.ended.store(true, Ordering::Release);
        meanwhile
    }

    /// In the middle of what is done next, a few calls are made: it is over too soon for that to happen by itself. Not
    /// for ever: the calls may be those that wait.
    fn let_others_go_on(&self) {
        let made = Arc::clone(&self.made);
        let before = made.load(Ordering::Relaxed);
        self.tables.after(2, move || {
            let mut looks = 0..1000;
            while looks.next().is_some() && made.load(Ordering::Relaxed) < before + 4 {
                thread::yield_now();
            }
        });
    }
}

fn wait_for(come: impl Fn() -> bool) {
    while !come() {
        thread::yield_now();
    }
}

impl TwoVcpus for HostPort {
    fn both(&mut self, meeting: &Meeting<'_>, meanwhile: Option<Control>) -> Result<Meanwhile, Failure> {
        let (meeting_place, tables) = (Barrier::new(VCPUS), self.made.tables.clone());
        let alone = || AtomicBool::new(meanwhile.is_none());
        let (begun, ended) = (alone(), alone());
        let watch =
            Watch { meeting: meeting_place, now: 0.into(), made: Arc::default(), begun, ended, tables };
        let (watch, first, contender) = (&watch, self.first.clone(), self.contender.clone());
        let (one, other, meanwhile) = thread::scope(|scope| {
            let one = scope.spawn(|| watch.work(&mut first.lock().expect("it is free"), 0, meeting));
            let other =
                scope.spawn(|| watch.work(&mut contender.lock().expect("it is free").cpu, 1, meeting));
            let meanwhile = meanwhile.map(|control| watch.meanwhile(self, control, meeting));
            (one.join().expect("a virtual CPU"), other.join().expect("a virtual CPU"), meanwhile)
        });
        self.outcomes = [one, other];
        Ok(meanwhile.unwrap_or_default())
    }

    fn made(&self, vcpu: usize, number: usize) -> Option<Made> {
        self.outcomes[vcpu].get(number).copied()
    }
}
