//! Seats in every interleaving, on every value that weak memory lets a load return.
#![allow(missing_docs, reason = "tests document themselves by their names")]
#![cfg(loom)]

use std::time::Duration;

use loom::{
    model,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};
use portcullis_hal::{
    Clock,
    gate::Closed,
    seats::{Gates, LOOK, Place},
};

/// Two words that a change leaves equal, behind one gate, and a flag beside it.
type Twins<const CPUS: usize> = Gates<AtomicU32, [u32; 2], 1, CPUS>;

/// Never reaches a deadline: a wait that another CPU could hold up for ever fails the model by exceeding
/// its branches.
struct Stopped;

impl Clock for Stopped {
    fn now(&self) -> Duration {
        Duration::ZERO
    }
}

fn twins<const CPUS: usize>() -> Arc<Twins<CPUS>> {
    Arc::new(Gates::new([Place::new(AtomicU32::new(0), [0; 2])]))
}

fn with<const CPUS: usize>(
    gates: &Arc<Twins<CPUS>>,
    act: impl FnOnce(&Twins<CPUS>) -> u32 + 'static,
) -> thread::JoinHandle<u32> {
    let gates = gates.clone();
    thread::spawn(move || act(&gates))
}

fn change(closed: &mut Closed<'_, [u32; 2]>) -> u32 {
    closed[0] += 1;
    closed[1] += 1;
    1
}

/// Looks behind the gate so many times with a seat; how often it was let in.
fn pass<const CPUS: usize>(gates: &Twins<CPUS>, cpu: usize, times: u32) -> u32 {
    let mut seat = gates.seat(cpu).expect("its own");
    (0..times).map(|_| seat.enter().pass(0).map_or(0, |twins| u32::from(is_whole(twins)))).sum()
}

fn is_whole(twins: &[u32; 2]) -> bool {
    assert_eq!(twins[0], twins[1], "half a change was seen");
    true
}

fn try_change<const CPUS: usize>(gates: &Twins<CPUS>) -> u32 {
    gates.at(0).and_then(|gate| gate.close()).map_or(0, |mut closed| change(&mut closed))
}

fn drain_and_change<const CPUS: usize>(gates: &Twins<CPUS>) -> u32 {
    let Some(closing) = gates.at(0).and_then(|gate| gate.shut()) else { return 0 };
    change(&mut closing.drain(&Stopped, Duration::MAX).expect("no deadline"))
}

fn value<const CPUS: usize>(gates: &Twins<CPUS>) -> [u32; 2] {
    *gates.at(0).expect("a gate").enter().expect("open")
}

#[test]
fn h08_nobody_who_has_a_seat_sees_half_a_change() {
    model(|| {
        let gates = twins::<1>();
        let visitor = with(&gates, |gates| pass(gates, 0, 2));
        let changes = try_change(&gates);
        visitor.join().expect("no panic");
        assert_eq!(value(&gates), [changes; 2]);
    });
}

#[test]
fn h08_nobody_who_was_counted_sees_half_a_change() {
    model(|| {
        let gates = twins::<1>();
        let visitor = with(&gates, |gates| {
            let inside = gates.at(0).expect("a gate").enter();
            inside.map_or(0, |twins| u32::from(is_whole(&twins)))
        });
        let seated = with(&gates, |gates| pass(gates, 0, 1));
        let changes = try_change(&gates);
        visitor.join().expect("no panic");
        seated.join().expect("no panic");
        assert_eq!(value(&gates), [changes; 2]);
    });
}

#[test]
fn h08_a_drain_waits_for_those_who_are_inside_and_for_nobody_else() {
    model(|| {
        let gates = twins::<1>();
        let visitor = with(&gates, |gates| {
            let mut seat = gates.seat(0).expect("its own");
            while seat.enter().pass(0).is_some_and(is_whole) {
                thread::yield_now();
            }
            0
        });
        let closing = gates.at(0).and_then(|gate| gate.shut()).expect("nobody else shuts it");
        let mut closed = closing.drain(&Stopped, Duration::MAX).expect("all leave in the end");
        change(&mut closed);
        closed.keep_shut();
        visitor.join().expect("no panic");
    });
}

#[test]
fn h08_both_of_two_seats_are_waited_for() {
    let mut builder = model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(|| {
        let gates = twins::<2>();
        let visitors = [0, 1].map(|cpu| with(&gates, move |gates| pass(gates, cpu, 1)));
        assert_eq!(drain_and_change(&gates), 1);
        let passed: u32 = visitors.into_iter().map(|visitor| visitor.join().expect("no panic")).sum();
        assert!(passed <= 2);
        assert_eq!(value(&gates), [1; 2]);
    });
}

#[test]
fn h08_who_comes_after_a_grace_period_finds_what_was_stored_before() {
    model(|| {
        let gates = twins::<1>();
        let seen = Arc::new(AtomicU32::new(0));
        let (late, note) = (gates.clone(), seen.clone());
        let visitor = thread::spawn(move || {
            let mut seat = late.seat(0).expect("its own");
            let present = seat.enter();
            // A plain store of a session that found no flag: whoever raised it must see the store.
            if present.beside(0).expect("a gate").load(LOOK) == 0 {
                note.store(1, Ordering::Relaxed);
                return true;
            }
            false
        });
        gates.at(0).expect("a gate").beside().store(1, Ordering::Relaxed);
        let over = gates.outlast(&Stopped, Duration::MAX).is_ok();
        let at_once = seen.load(Ordering::Relaxed);
        let found_none = visitor.join().expect("no panic");
        assert!(over && (at_once == 1 || !found_none), "neither waited for nor told");
    });
}

#[test]
fn h08_a_seat_has_one_owner_at_a_time() {
    model(|| {
        let gates = twins::<1>();
        let other =
            with(&gates, |gates| gates.seat(0).map_or(0, |mut seat| seat.enter().pass(0).map_or(0, |_| 1)));
        let first = gates.seat(0).map_or(0, |mut seat| seat.enter().pass(0).map_or(0, |_| 1));
        let second = other.join().expect("no panic");
        assert!(first + second > 0, "one of them had it");
        assert_eq!(drain_and_change(&gates), 1, "a mark was left");
    });
}
