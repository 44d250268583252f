//! The set of CPUs in every interleaving, on every value that weak memory lets a load return.
#![allow(missing_docs, reason = "tests document themselves by their names")]
#![cfg(loom)]

use loom::{
    model,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};
use portcullis_hal::cpu_set::CpuSet;

#[test]
fn x14_who_takes_finds_each_cpu_that_still_has() {
    model(|| {
        let (set, taken) = (Arc::new(CpuSet::<1>::new()), Arc::new(AtomicU32::new(0)));
        let entering = {
            let (set, taken) = (set.clone(), taken.clone());
            thread::spawn(move || {
                set.insert(3).expect("there is room");
                taken.load(Ordering::Relaxed) == 0
            })
        };
        taken.store(1, Ordering::Relaxed);
        let listed = set.iter().any(|cpu| cpu == 3);
        let still_has = entering.join().expect("no panic");
        assert!(listed || !still_has, "the guest runs with what was taken, on a CPU that nobody knows of");
        assert!(set.contains(3));
    });
}

#[test]
fn x14_none_of_two_inserted_at_once_is_lost() {
    model(|| {
        let set = Arc::new(CpuSet::<1>::new());
        let other = {
            let set = set.clone();
            thread::spawn(move || set.insert(0))
        };
        set.insert(1).expect("there is room");
        other.join().expect("no panic").expect("there is room");
        assert!(set.iter().eq([0, 1]));
    });
}

#[test]
fn x14_who_is_listed_shows_what_it_did_before() {
    model(|| {
        let (set, done) = (Arc::new(CpuSet::<1>::new()), Arc::new(AtomicU32::new(0)));
        let entering = {
            let (set, done) = (set.clone(), done.clone());
            thread::spawn(move || {
                done.store(1, Ordering::Relaxed);
                set.insert(3)
            })
        };
        let shown = !set.contains(3) || done.load(Ordering::Relaxed) == 1;
        entering.join().expect("no panic").expect("there is room");
        assert!(shown, "what a listed CPU did before is not seen");
    });
}
