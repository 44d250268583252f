//! CPUs that map, unmap, register and unregister at the same time.
#![allow(missing_docs, reason = "tests document themselves by their names")]

mod pages;

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use pages::{LARGE, OTHER, PAGE, Policy, VM, context, extent, guest, iovas, live, map, policy};
use portcullis_fake::end::End;
use portcullis_iommu::{ContextHandle, Error, RegionHandle};

const HOST: u64 = 1 << 30;
/// Pages of a region, and of I/O virtual addresses that one CPU uses.
const PAGES: u64 = 16;

/// Marsaglia's xorshift: repeatable, and good enough to pick numbers.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Region `number` of the VM; each follows the one before in both spaces.
fn register(iommu: &Policy, number: u64) -> Result<RegionHandle, Error> {
    let (at, bytes) = (number * PAGES * PAGE, PAGES * PAGE);
    iommu.register_memory(VM, guest(at, bytes), extent(HOST + at, bytes))
}

/// Maps and unmaps pages of the first two regions at addresses of its own; returns maps that succeeded.
fn map_and_unmap(iommu: &Policy, contexts: &[ContextHandle], cpu: u64, rounds: u64) -> u64 {
    let mut numbers = Numbers(0x1234_5678_9abc_def1 + cpu);
    let mut mapped = 0;
    for _ in 0..rounds {
        if numbers.below(8) == 0 {
            for &context in contexts {
                iommu.unmap(context, iovas(cpu * PAGES * PAGE, PAGES * PAGE)).expect("small pages");
            }
            // Now and then the other CPUs have nothing mapped, either.
            thread::yield_now();
        }
        let context = contexts[numbers.below(2) as usize];
        let iova = (cpu * PAGES + numbers.below(PAGES - 3)) * PAGE;
        let pages = 1 + numbers.below(3);
        if numbers.below(3) == 0 {
            iommu.unmap(context, iovas(iova, pages * PAGE)).expect("small pages");
            continue;
        }
        let start = numbers.below(2 * PAGES - 2) * PAGE;
        match map(iommu, context, iova, start, pages * PAGE) {
            Ok(()) => mapped += 1,
            // Busy: just then it was being decided whether the region ends.
            Err(Error::AlreadyMapped { .. } | Error::NotRegistered { .. } | Error::Busy) => {}
            Err(other) => panic!("{other:?}"),
        }
    }
    mapped
}

/// Ends the first region and makes it again as often as it can, at least once.
fn come_and_go(iommu: &Policy, contexts: &[ContextHandle], end: &AtomicBool) {
    let mut handle = register(iommu, 0).expect("a region");
    let mut times = 0;
    while times == 0 || !end.load(Ordering::Relaxed) {
        match iommu.unregister_memory(VM, handle) {
            Ok(()) => {
                for &context in contexts {
                    let left = live(iommu, context, 4 * PAGES, HOST..HOST + PAGES * PAGE);
                    assert_eq!(left, 0, "a table leads to memory that was given back");
                }
                handle = register(iommu, 0).expect("a region");
                times += 1;
            }
            Err(error) => assert!(matches!(error, Error::StillMapped { .. }), "{error:?}"),
        }
        thread::yield_now();
    }
    iommu.region(VM, handle).expect("live");
}

/// Changes the orders all the time: regions of another VM come and go around the first one's.
fn stir(iommu: &Policy, end: &AtomicBool) {
    while !end.load(Ordering::Relaxed) {
        let place =
            |number: u64| (number * 2 * LARGE, if number < 4 { number } else { 512 + number } * LARGE);
        let regions: Vec<_> = (0..8)
            .map(|number| {
                let (at, host) = place(number);
                iommu.register_memory(OTHER, guest(at, PAGE), extent(host, PAGE)).expect("a region")
            })
            .collect();
        for region in regions {
            iommu.unregister_memory(OTHER, region).expect("never mapped");
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "too many rounds; loom goes through each order")]
fn c07_counts_stay_exact_when_cpus_map_unmap_and_unregister_at_once() {
    let iommu = policy();
    let contexts = [context(&iommu, VM), context(&iommu, VM)];
    let second = register(&iommu, 1).expect("a region");
    let (end, maps) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let finish = End(&end);
        let gone = scope.spawn(|| come_and_go(&iommu, &contexts, &end));
        scope.spawn(|| stir(&iommu, &end));
        let work = |cpu| maps.fetch_add(map_and_unmap(&iommu, &contexts, cpu, 8_000), Ordering::Relaxed);
        let cpus: Vec<_> = (0..3).map(|cpu| scope.spawn(move || work(cpu))).collect();
        for cpu in cpus {
            cpu.join().expect("a CPU");
        }
        let host = HOST + PAGES * PAGE..HOST + 2 * PAGES * PAGE;
        let sum = contexts.iter().map(|&context| live(&iommu, context, 4 * PAGES, host.clone())).sum();
        assert_eq!(iommu.region(VM, second).expect("live").mapped, sum);
        for context in contexts {
            iommu.unmap(context, iovas(0, 4 * PAGES * PAGE)).expect("small pages");
        }
        drop(finish);
        gone.join().expect("a CPU");
    });
    assert!(maps.into_inner() > 1000, "hardly anything was mapped");
    assert_eq!(iommu.release_memory(VM), Ok(()), "nothing is mapped, nothing is counted");
}

#[test]
#[cfg_attr(miri, ignore = "too many rounds; loom goes through each order")]
fn c07_of_a_mapping_and_an_unregister_one_wins() {
    let iommu = policy();
    let context = context(&iommu, VM);
    let (mut mapped, mut ended) = (0, 0);
    for _ in 0..2_000 {
        let region = register(&iommu, 0).expect("a region");
        let (end, map) = thread::scope(|scope| {
            let map = scope.spawn(|| map(&iommu, context, 0, 0, PAGE));
            (iommu.unregister_memory(VM, region), map.join().expect("a CPU"))
        });
        match (map, end) {
            (Ok(()), Err(Error::StillMapped { pages: 1 })) => mapped += 1,
            (Err(Error::NotRegistered { .. } | Error::Busy), Ok(())) => ended += 1,
            other => panic!("{other:?}"),
        }
        iommu.unmap(context, iovas(0, PAGE)).expect("a small page");
        if map.is_ok() {
            iommu.unregister_memory(VM, region).expect("unmapped");
        }
    }
    assert_eq!(mapped + ended, 2_000);
}
