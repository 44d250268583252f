#![allow(missing_docs, reason = "tests document themselves by their names")]
#![cfg(not(loom))]

use std::{collections::BTreeSet, thread};

use portcullis_hal::cpu_set::{CpuSet, NoSuchCpu};

fn members<const WORDS: usize>(set: &CpuSet<WORDS>) -> Vec<usize> {
    set.iter().collect()
}

#[test]
fn x14_holds_what_was_inserted_and_nothing_else() {
    let set = CpuSet::<2>::new();
    assert_eq!(members(&set), []);
    for cpu in [127, 0, 63, 64, 63] {
        set.insert(cpu).expect("there is room");
    }
    assert_eq!(members(&set), [0, 63, 64, 127]);
    let contained: Vec<_> = (0..256).filter(|&cpu| set.contains(cpu)).collect();
    assert_eq!(contained, [0, 63, 64, 127]);
}

#[test]
fn x14_refuses_a_number_without_room() {
    let set = CpuSet::<2>::new();
    for cpu in [128, usize::MAX] {
        assert_eq!(set.insert(cpu), Err(NoSuchCpu { cpu }));
        assert!(!set.contains(cpu));
    }
    assert_eq!(members(&set), []);
    assert_eq!(CpuSet::<0>::new().insert(0), Err(NoSuchCpu { cpu: 0 }));
}

#[test]
fn x14_is_empty_once_cleared() {
    let set = CpuSet::<2>::default();
    for cpu in 0..CpuSet::<2>::CAPACITY {
        set.insert(cpu).expect("there is room");
    }
    assert_eq!(set.iter().count(), 128);
    set.clear();
    assert_eq!(members(&set), []);
    set.insert(70).expect("there is room");
    assert_eq!(members(&set), [70]);
}

#[test]
fn x14_loses_none_of_those_inserted_at_once() {
    let set = CpuSet::<1>::new();
    thread::scope(|scope| {
        for first in 0..4 {
            let set = &set;
            scope.spawn(move || (0..64).skip(first).step_by(4).try_for_each(|cpu| set.insert(cpu)));
        }
    });
    assert_eq!(set.iter().collect::<BTreeSet<_>>(), (0..64).collect());
}
