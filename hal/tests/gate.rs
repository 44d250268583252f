//! The gate between data plane and control plane.
#![allow(missing_docs, reason = "tests document themselves by their names")]

use std::{
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use portcullis_hal::{Clock, gate::Gate};

/// Miri is some thousand times slower than the machine.
const ROUNDS: u64 = if cfg!(miri) { 40 } else { 20_000 };

struct Wall(Instant);

impl Clock for Wall {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}

#[test]
fn h05_a_gate_closes_only_when_nobody_is_inside_and_lets_nobody_in_while_closed() {
    let gate = Gate::new(1);
    let first = gate.enter().expect("open");
    let second = gate.enter().expect("many may be inside");
    assert!(gate.close().is_none());
    drop(first);
    assert!(gate.close().is_none());
    drop(second);
    let mut closed = gate.close().expect("nobody is inside");
    *closed = 2;
    assert!(gate.enter().is_none());
    assert!(gate.close().is_none());
    drop(closed);
    assert_eq!(*gate.enter().expect("open again"), 2);
}

#[test]
fn h05_exclusive_and_shared_access_never_overlap() {
    let gate = Gate::new((AtomicU32::new(0), [0u64; 8]));
    let stop = AtomicBool::new(false);
    let mut changes = 0;
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                if let Some(inside) = gate.enter() {
                    assert!(inside.1.iter().all(|&word| word == inside.1[0]), "half a change was seen");
                }
            }
        });
        for round in 0..ROUNDS {
            let closed = if round % 2 == 0 {
                gate.close()
            } else {
                let closing = gate.shut().expect("nobody else shuts it");
                Some(closing.drain(&Wall(Instant::now()), Duration::from_secs(60)).expect("all leave"))
            };
            if let Some(mut exclusive) = closed {
                changes += 1;
                exclusive.1.iter_mut().for_each(|word| *word += 1);
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(changes >= ROUNDS / 2, "{changes}");
    assert_eq!(gate.enter().expect("open").1, [changes; 8]);
}

/// Every look takes a millisecond.
struct Ticks(AtomicU32);

impl Clock for Ticks {
    fn now(&self) -> Duration {
        Duration::from_millis(self.0.fetch_add(1, Ordering::Relaxed).into())
    }
}

const LIMIT: Duration = Duration::from_millis(5);

#[test]
fn h06_a_gate_shuts_at_once_whoever_is_inside_and_is_drained_under_a_deadline() {
    let (gate, clock) = (Gate::new(1), Ticks(AtomicU32::new(0)));
    let inside = gate.enter().expect("open");
    let closing = gate.shut().expect("nobody else shuts it");
    assert!(gate.enter().is_none() && gate.close().is_none());
    assert!(gate.shut().is_none(), "the right to open it is held");
    assert!(gate.enter().is_none(), "who was refused must not have opened it");
    assert_eq!(closing.inside(), 1);
    let closing = closing.drain(&clock, LIMIT).expect_err("one is inside");
    assert!(clock.0.load(Ordering::Relaxed) < 10, "it waited beyond the deadline");
    assert_eq!(*inside, 1);
    drop(inside);
    let mut closed = closing.drain(&clock, LIMIT).expect("all have left");
    *closed = 2;
    assert!(gate.shut().is_none() && gate.enter().is_none());
    drop(closed);
    assert_eq!(*gate.enter().expect("open again"), 2);
}

#[test]
fn h06_after_the_deadline_the_gate_is_as_the_caller_chooses() {
    let (gate, clock) = (Gate::new(()), Ticks(AtomicU32::new(0)));
    let shut = || gate.shut().expect("nobody holds it").drain(&clock, LIMIT);
    let inside = gate.enter().expect("open");
    drop(shut().expect_err("one is inside"));
    assert!(gate.enter().is_some(), "given up: open as before");
    shut().expect_err("one is inside").keep_shut();
    assert!(gate.enter().is_none());
    drop(inside);
    assert!(gate.close().is_none(), "only who means to revoke takes it up again");
    shut().expect("all have left").keep_shut();
    assert!(gate.enter().is_none());
    drop(shut().expect("taken up again"));
    assert!(gate.enter().is_some());
}
