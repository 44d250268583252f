//! The gate between data plane and control plane.
#![allow(missing_docs, reason = "tests document themselves by their names")]

use std::{
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
};

use portcullis_hal::gate::Gate;

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
    let (stop, closed) = (AtomicBool::new(false), AtomicU32::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                if let Some(inside) = gate.enter() {
                    assert!(inside.1.iter().all(|&word| word == inside.1[0]), "half a change was seen");
                }
            }
        });
        for _ in 0..200_000 {
            if let Some(mut exclusive) = gate.close() {
                closed.fetch_add(1, Ordering::Relaxed);
                for index in 0..8 {
                    exclusive.1[index] += 1;
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(closed.into_inner() > 0);
}
