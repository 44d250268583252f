#![allow(missing_docs, reason = "tests document themselves by their names")]
#![cfg(not(loom))]

use std::{
    cell::{Cell, RefCell},
    mem,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use portcullis_hal::{
    Clock,
    seats::{Gates, Place, Seat},
};

type Words = Gates<&'static str, [u64; 2], 2, 3>;

const LIMIT: Duration = Duration::from_millis(5);

fn gates() -> Words {
    Gates::new([Place::new("first", [0; 2]), Place::kept_shut("second", [0; 2])])
}

/// A millisecond passes with each look.
#[derive(Default)]
struct Ticking(Cell<u64>);

impl Clock for Ticking {
    fn now(&self) -> Duration {
        self.0.set(self.0.get() + 1);
        Duration::from_millis(self.0.get())
    }
}

/// With each look at the clock the CPU leaves and comes again at once.
struct Busy<'g>(RefCell<Seat<'g, &'static str, [u64; 2], 2, 3>>, Ticking);

impl Clock for Busy<'_> {
    fn now(&self) -> Duration {
        let mut seat = self.0.borrow_mut();
        drop(seat.enter());
        mem::forget(seat.enter());
        self.1.now()
    }
}

#[test]
fn h08_a_gate_does_not_close_on_who_has_a_seat_and_is_open_again() {
    let gates = gates();
    let (gate, mut seat) = (gates.at(0).expect("a gate"), gates.seat(2).expect("a seat"));
    let present = seat.enter();
    assert!(gate.close().is_none(), "somebody is inside");
    assert!(present.pass(0).is_some() && gate.enter().is_some(), "it opens again");
    drop(present);
    gate.close().expect("nobody is inside").keep_shut();
    assert!(seat.enter().pass(0).is_none() && gate.enter().is_none());
    assert_eq!((seat.enter().beside(0), gate.beside()), (Some(&"first"), &"first"));
}

#[test]
fn h08_a_gate_with_somebody_counted_does_not_close() {
    let gates = gates();
    let gate = gates.at(0).expect("a gate");
    let inside = gate.enter();
    assert!(gate.close().is_none());
    drop(inside);
    assert!(gate.close().is_some());
}

#[test]
fn h09_a_drain_ends_at_its_deadline_and_the_gate_stays_shut() {
    let gates = gates();
    let (gate, mut seat) = (gates.at(0).expect("a gate"), gates.seat(0).expect("a seat"));
    let present = seat.enter();
    let word = present.pass(0).expect("open");
    let closing = gate.shut().expect("nobody else shuts it");
    let closing = closing.drain_soon().expect_err("somebody is inside");
    let closing = closing.drain(&Ticking::default(), LIMIT).expect_err("somebody is inside");
    assert_eq!((word, present.pass(0)), (&[0; 2], None), "shut for the next ones");
    closing.keep_shut();
    drop(present);
    let closing = gate.shut().expect("taken up again");
    let mut closed = closing.drain(&Ticking::default(), LIMIT).expect("nobody is inside");
    closed[0] = 7;
    closed.keep_shut();
    let present = seat.enter();
    let closing = gate.shut().expect("taken up again");
    drop(closing.drain_soon().expect("drained and kept shut, whoever came since"));
    assert_eq!(present.pass(0), Some(&[7, 0]));
}

#[test]
fn h09_a_cpu_that_comes_again_and_again_holds_up_no_drain() {
    let gates = gates();
    let clock = Busy(RefCell::new(gates.seat(1).expect("a seat")), Ticking::default());
    let closing = gates.at(0).and_then(|gate| gate.shut()).expect("nobody else shuts it");
    assert!(closing.drain(&clock, Duration::from_secs(1)).is_ok(), "it left in between");
    assert!(gates.outlast(&clock, Duration::from_secs(1)).is_ok());
}

#[test]
fn h09_a_grace_period_ends_at_its_deadline_and_names_the_cpu() {
    let gates = gates();
    let mut seat = gates.seat(2).expect("a seat");
    let present = seat.enter();
    let left = gates.outlast(&Ticking::default(), LIMIT).expect_err("somebody is inside");
    assert_eq!(left.bits, 2);
    assert!(!gates.outlast_soon());
    drop(present);
    assert!(gates.outlast(&Ticking::default(), Duration::ZERO).is_ok() && gates.outlast_soon());
}

#[test]
fn h09_each_seat_has_one_owner_and_is_given_back() {
    let gates = gates();
    let seat = gates.seat(0).expect("free");
    assert!(gates.seat(0).is_none() && gates.seat(1).is_some() && gates.seat(3).is_none());
    drop(seat);
    assert!(gates.seat(0).is_some());
}

#[test]
fn h08_a_gate_that_was_kept_shut_from_the_start_opens_without_waiting() {
    let gates = gates();
    let mut seat = gates.seat(0).expect("a seat");
    let present = seat.enter();
    assert!(present.pass(1).is_none() && present.pass(2).is_none());
    let closing = gates.at(1).and_then(|gate| gate.shut()).expect("nobody else holds it");
    drop(closing.drain_soon().expect("nobody was ever inside"));
    assert!(present.pass(1).is_some());
}

#[test]
fn h08_on_a_machine_nobody_sees_half_a_change() {
    let (gates, done) = (gates(), AtomicBool::new(false));
    let rounds = if cfg!(miri) { 5 } else { 2000 };
    thread::scope(|scope| {
        for cpu in 0..2 {
            let (gates, done) = (&gates, &done);
            scope.spawn(move || {
                let mut seat = gates.seat(cpu).expect("its own");
                while !done.load(Ordering::Relaxed) {
                    let present = seat.enter();
                    if let Some(words) = present.pass(0) {
                        assert_eq!(words[0], words[1], "half a change was seen");
                    }
                    drop(present);
                    // Where there are fewer CPUs, the others' turn is best begun with nobody inside.
                    thread::yield_now();
                }
            });
        }
        let mut changes = 0;
        while changes < rounds {
            if let Some(mut closed) = gates.at(0).and_then(|gate| gate.close()) {
                changes += 1;
                closed[0] = changes;
                closed[1] = changes;
            }
        }
        done.store(true, Ordering::Relaxed);
    });
}
