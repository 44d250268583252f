//! The gate in every interleaving, on every value that weak memory lets a load return.
#![allow(missing_docs, reason = "tests document themselves by their names")]
#![cfg(loom)]

use std::time::Duration;

use loom::{
    model,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};
use portcullis_hal::{
    Clock,
    gate::{Closed, Closing, Gate},
};

/// Two words that a change leaves equal.
type Twins = Gate<[u32; 2]>;

/// Never reaches a deadline: a wait that hardware or another CPU could hold up for ever fails the model
/// by exceeding its branches.
struct Stopped;

impl Clock for Stopped {
    fn now(&self) -> Duration {
        Duration::ZERO
    }
}

fn twins() -> Arc<Twins> {
    Arc::new(Gate::new([0; 2]))
}

fn with(gate: &Arc<Twins>, act: impl FnOnce(&Twins) -> u32 + 'static) -> thread::JoinHandle<u32> {
    let gate = gate.clone();
    thread::spawn(move || act(&gate))
}

fn join<const CPUS: usize>(cpus: [thread::JoinHandle<u32>; CPUS]) -> [u32; CPUS] {
    cpus.map(|cpu| cpu.join().expect("no panic"))
}

fn change(closed: &mut Closed<'_, [u32; 2]>) {
    closed[0] += 1;
    closed[1] += 1;
}

/// Looks behind the gate; 1 when let in.
fn visit(gate: &Twins) -> u32 {
    let Some(inside) = gate.enter() else { return 0 };
    assert_eq!(inside[0], inside[1], "half a change was seen");
    1
}

/// Changes what is behind the gate if nobody is inside; 1 when it did.
fn try_change(gate: &Twins) -> u32 {
    gate.close().map_or(0, |mut closed| {
        change(&mut closed);
        1
    })
}

/// Shuts the gate, asks once whether all have left, and changes what is behind it; 1 when it did.
fn change_at_once(gate: &Twins) -> u32 {
    shut_and_change(gate, |closing| drop(closing))
}

fn shut_and_change(gate: &Twins, timed_out: fn(Closing<'_, [u32; 2]>)) -> u32 {
    let Some(closing) = gate.shut() else { return 0 };
    match closing.drain(&Stopped, Duration::ZERO) {
        Ok(mut closed) => {
            change(&mut closed);
            1
        }
        Err(closing) => {
            timed_out(closing);
            0
        }
    }
}

#[test]
fn h05_nobody_sees_half_a_change() {
    model(|| {
        let gate = twins();
        let visitors = [with(&gate, visit), with(&gate, visit)];
        let changes = try_change(&gate);
        join(visitors);
        assert_eq!(*gate.enter().expect("open"), [changes; 2]);
    });
}

#[test]
fn h05_two_who_close_at_once_change_it_one_after_the_other() {
    model(|| {
        let gate = twins();
        let others = [with(&gate, try_change), with(&gate, visit)];
        let mut changes = change_at_once(&gate);
        changes += join(others)[0];
        assert_eq!(*gate.enter().expect("open"), [changes; 2]);
    });
}

#[test]
fn h05_no_exit_is_lost_whether_entering_met_an_open_or_a_shut_gate() {
    model(|| {
        let gate = twins();
        let others = [with(&gate, visit), with(&gate, change_at_once)];
        join(others);
        assert!(gate.close().is_some(), "everybody has left");
    });
}

#[test]
fn h06_callers_that_keep_entering_do_not_hold_up_a_drain() {
    model(|| {
        let gate = twins();
        let visitor = with(&gate, |gate| {
            while visit(gate) == 1 {
                thread::yield_now();
            }
            1
        });
        let closing = gate.shut().expect("nobody else shuts it");
        let mut closed = closing.drain(&Stopped, Duration::MAX).expect("all leave in the end");
        change(&mut closed);
        closed.keep_shut();
        join([visitor]);
    });
}

#[test]
fn h06_who_comes_to_a_shut_gate_is_not_even_counted() {
    model(|| {
        let gate = twins();
        let closing = gate.shut().expect("nobody else shuts it");
        let visitors = [with(&gate, visit), with(&gate, visit)];
        for _ in 0..3 {
            assert_eq!(closing.inside(), 0);
        }
        assert_eq!(join(visitors), [0, 0]);
    });
}

#[test]
fn h06_a_drain_that_times_out_leaves_the_gate_as_the_caller_chooses() {
    model(|| {
        let gate = twins();
        let visitor = with(&gate, visit);
        let changed = shut_and_change(&gate, |closing| closing.keep_shut());
        assert_eq!(gate.enter().is_some(), changed == 1, "shut exactly when it timed out");
        visitor.join().expect("no panic");
        if changed == 0 {
            assert!(gate.close().is_none(), "who did not mean to revoke does not open it");
            assert_eq!(change_at_once(&gate), 1, "taken up again, and the visitor has left");
        }
        assert_eq!(*gate.enter().expect("open again"), [1; 2]);
    });
}

#[test]
fn h06_a_drained_gate_that_was_kept_shut_is_taken_up_at_once() {
    model(|| {
        let gate = twins();
        let visitor = with(&gate, visit);
        let closing = gate.shut().expect("nobody else shuts it");
        closing.drain(&Stopped, Duration::MAX).expect("the visitor leaves").keep_shut();
        assert_eq!(change_at_once(&gate), 1, "held up by a visitor who turns away");
        let _ = visit(&gate);
        visitor.join().expect("no panic");
        assert!(gate.close().is_some(), "open again, and everybody has left");
    });
}

#[test]
fn h06_two_who_revoke_at_once_do_it_one_after_the_other() {
    model(|| {
        let gate = twins();
        let others = [with(&gate, change_at_once), with(&gate, visit)];
        let mut changes = change_at_once(&gate);
        changes += join(others)[0];
        assert_eq!(*gate.enter().expect("open"), [changes; 2]);
    });
}

#[test]
fn h06_who_knows_of_a_revocation_is_not_let_in() {
    model(|| {
        let (gate, revoked) = (twins(), Arc::new(AtomicBool::new(false)));
        let (theirs, known) = (gate.clone(), revoked.clone());
        let holder = thread::spawn(move || {
            let known = known.load(Ordering::Acquire);
            assert_eq!(visit(&theirs) & u32::from(known), 0, "used after its revocation was announced");
        });
        let closing = gate.shut().expect("nobody else shuts it");
        revoked.store(true, Ordering::Release);
        let closed = closing.drain(&Stopped, Duration::MAX).expect("the holder leaves");
        closed.keep_shut();
        holder.join().expect("no panic");
    });
}
