//! Two virtual CPUs on two threads.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use portcullis_suite::{
    Failure,
    hcall::{
        Call, Control, GuestPort,
        call::{BUSY, SUCCESS},
        two::{Met, TwoVcpus},
    },
};

use super::{HostPort, cpu::Cpu};
use portcullis_fake::watched::WatchedMemory;

/// Rounds after which two threads that never met give up.
const MOST: u32 = 10_000;

/// What both threads know of each other.
struct Watch {
    inside: [AtomicBool; 2],
    overlapped: AtomicU64,
    calls: AtomicU64,
    /// The hardware tables' memory: at some uses of it a thread lets the other one go first.
    tables: WatchedMemory,
}

impl Watch {
    /// Makes all calls of one virtual CPU.
    fn work(&self, cpu: &mut Cpu, number: usize, work: &[Call], rounds: u32) -> Met {
        let mut met = Met::default();
        // On a busy machine the threads may take turns at first.
        let more = |round| round < rounds || round < MOST && self.overlapped.load(Ordering::Relaxed) == 0;
        for &call in (0..).take_while(|&round| more(round)).flat_map(|_| work) {
            let nth = self.calls.fetch_add(1, Ordering::Relaxed);
            // Not at each call: on a busy machine it takes long until the thread goes on.
            if nth.is_multiple_of(12) {
                self.tables.after(nth / 12 % 13 + 1, thread::yield_now);
            }
            self.inside[number].store(true, Ordering::SeqCst);
            let status = cpu.finish(call).status;
            let overlapped = self.inside[1 - number].load(Ordering::SeqCst);
            self.inside[number].store(false, Ordering::SeqCst);
            self.overlapped.fetch_add(overlapped.into(), Ordering::Relaxed);
            match status {
                SUCCESS => met.success += 1,
                BUSY => met.busy += 1,
                _ => met.other += 1,
            }
        }
        met
    }
}

impl HostPort {
    fn watch(&self) -> Watch {
        let (overlapped, calls) = (AtomicU64::new(0), AtomicU64::new(0));
        Watch { inside: Default::default(), overlapped, calls, tables: self.made.tables.clone() }
    }
}

impl TwoVcpus for HostPort {
    fn both(&mut self, work: [&[Call]; 2], rounds: u32, meanwhile: Option<Control>) -> Result<Met, Failure> {
        let (watch, first, contender) = (self.watch(), self.first.clone(), self.contender.clone());
        let [ones, others] = work;
        let half = u64::from(rounds) * ones.len() as u64;
        let shared = &watch;
        let (one, other, done) = thread::scope(|scope| {
            let one = scope.spawn(|| shared.work(&mut first.lock().expect("it is free"), 0, ones, rounds));
            let other = scope.spawn(|| {
                let mut second = contender.lock().expect("it is free");
                shared.work(&mut second.cpu, 1, others, rounds)
            });
            while meanwhile.is_some() && shared.calls.load(Ordering::Relaxed) < half / 2 {
                thread::yield_now();
            }
            let done = meanwhile.is_none_or(|control| self.control(control));
            (one.join().expect("a virtual CPU"), other.join().expect("a virtual CPU"), done)
        });
        let refused =
            Failure { what: "what was to be done meanwhile was refused", error: None, line: line!() };
        if !done {
            return Err(refused);
        }
        Ok(Met {
            success: one.success + other.success,
            busy: one.busy + other.busy,
            other: one.other + other.other,
            overlapped: watch.overlapped.into_inner(),
        })
    }
}
