//! Several CPUs at work on one context.
#![allow(missing_docs, reason = "tests document themselves by their names")]

mod machine;

use std::{
    sync::{
        Barrier,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use machine::{DATA, Guest, LARGE, Machine, PAGE, Policy, extent, range};
use portcullis_fake::memory::{FakeCache, FakeMemory};
use portcullis_hal::{Access, Iova, PhysAddr, page_pool::PagePool};
use portcullis_iommu::{ContextHandle, Error};
use portcullis_vtd::{Format, SecondStage, TableAccess};

/// A clock reading costs a microsecond of the model's time, and a CPU that waits reads it often.
fn patient() -> Machine {
    let mut machine = Machine::usual();
    machine.config.timeout = Duration::from_secs(60);
    machine
}

fn map(iommu: &Policy, context: ContextHandle, iova: u64, physical: u64) -> Result<(), Error> {
    iommu.map(context, Iova::new(iova), extent(physical, PAGE), Access::READ | Access::WRITE)
}

#[test]
fn f21_cpus_at_work_on_disjoint_ranges_all_succeed() {
    let machine = patient();
    let iommu = machine.iommu();
    let guest = Guest::new(&iommu);
    let (context, free) = (guest.context, guest.free_pages());
    // Neighbouring pages in one leaf table, made by whoever comes first.
    let work = |cpu: u64| {
        for turn in 0..150 {
            let (iova, physical) = (turn % 7 * LARGE + cpu * PAGE, DATA + (turn % 8 * 4 + cpu) * PAGE);
            retry(|| map(&iommu, context, iova, physical));
            assert_eq!(machine.write(iova, cpu as u8 + 1), Ok(()));
            assert_eq!(machine.byte(physical), cpu as u8 + 1);
            let found = iommu.iova_to_phys(context, Iova::new(iova)).unwrap().unwrap();
            assert_eq!(found.0.as_u64(), physical);
            assert_eq!(retry(|| iommu.unmap(context, range(iova, PAGE))), PAGE);
            assert!(machine.write(iova, 9).is_err(), "an unmap has returned");
        }
    };
    thread::scope(|scope| {
        for cpu in 0..4 {
            scope.spawn(move || work(cpu));
        }
    });
    assert_eq!(free - guest.free_pages(), 1 + 7, "each table was made once");
    assert_eq!(guest.unmap(0, 8 * LARGE), Ok(0));
}

/// A slot may be busy for long when its holder is not scheduled.
fn retry<T>(mut act: impl FnMut() -> Result<T, Error>) -> T {
    loop {
        match act() {
            Err(Error::Busy) => thread::yield_now(),
            other => return other.unwrap(),
        }
    }
}

#[test]
fn f21_of_two_equal_mappings_one_wins() {
    let machine = patient();
    let iommu = machine.iommu();
    let guest = Guest::new(&iommu);
    let context = guest.context;
    let (mapped, unmapped) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let barrier = Barrier::new(3);
    let work = |cpu: u64| {
        for turn in 0..300 {
            let iova = turn % 5 * LARGE;
            barrier.wait();
            match map(&iommu, context, iova, DATA + cpu * PAGE) {
                Ok(()) => drop(mapped.fetch_add(1, Ordering::Relaxed)),
                Err(error) => {
                    assert!(matches!(error, Error::AlreadyMapped { .. } | Error::Busy), "{error:?}")
                }
            }
            barrier.wait();
            let bytes = retry(|| iommu.unmap(context, range(iova, PAGE)));
            unmapped.fetch_add((bytes / PAGE) as usize, Ordering::Relaxed);
        }
    };
    thread::scope(|scope| {
        for cpu in 0..3 {
            scope.spawn(move || work(cpu));
        }
    });
    assert_eq!(mapped.load(Ordering::Relaxed), 300, "whoever holds the slot first wins");
    assert_eq!(mapped.into_inner(), unmapped.into_inner(), "each is taken out once");
}

#[test]
fn f21_overlapping_ranges_are_whole_or_not_there() {
    let machine = patient();
    let iommu = machine.iommu();
    let guest = Guest::new(&iommu);
    let context = guest.context;
    let work = |cpu: u64| {
        for turn in 0..60 {
            // Ranges of 3 MiB that overlap the other CPU's in half a leaf table.
            let (iova, bytes) = ((turn % 3 + cpu) * LARGE / 2, LARGE + LARGE / 2);
            let extent = extent(DATA + PAGE + cpu * PAGE, bytes);
            match iommu.map(context, Iova::new(iova), extent, Access::READ) {
                Ok(()) => {
                    let last = iommu.iova_to_phys(context, Iova::new(iova + bytes - PAGE)).unwrap().unwrap();
                    assert_eq!(last.0.as_u64(), DATA + PAGE + cpu * PAGE + bytes - PAGE);
                    assert_eq!(retry(|| iommu.unmap(context, range(iova, bytes))), bytes);
                }
                Err(error) => {
                    assert!(matches!(error, Error::AlreadyMapped { .. } | Error::Busy), "{error:?}")
                }
            }
        }
    };
    thread::scope(|scope| {
        for cpu in 0..2 {
            scope.spawn(move || work(cpu));
        }
    });
    assert_eq!(guest.unmap(0, 8 * LARGE), Ok(0));
}

#[test]
fn f21_a_page_that_two_cpus_fight_for_has_one_owner() {
    let memory = FakeMemory::coherent(PhysAddr::new(1 << 20), 16);
    let pool = PagePool::new(memory).unwrap();
    let access = &TableAccess::<_, FakeCache>::new(&pool, None);
    let format = Format { levels: 3, address_bits: 39, largest_page: 1, physical_bits: 46 };
    let tables = &SecondStage::new(access, format, None, None).unwrap();
    let (owners, turns) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let fight = || {
        for _ in 0..300_000 {
            match tables.map(access, Iova::new(0), extent(DATA, PAGE), Access::READ) {
                Ok(()) => {
                    assert_eq!(owners.fetch_add(1, Ordering::Relaxed), 0);
                    turns.fetch_add(1, Ordering::Relaxed);
                    owners.fetch_sub(1, Ordering::Relaxed);
                    assert_eq!(retry(|| tables.unmap(access, range(0, PAGE))), PAGE);
                }
                Err(error) => {
                    assert!(matches!(error, Error::AlreadyMapped { .. } | Error::Busy), "{error:?}")
                }
            }
        }
    };
    thread::scope(|scope| {
        scope.spawn(fight);
        scope.spawn(fight);
    });
    assert!(turns.into_inner() > 1000);
    assert_eq!(tables.pages(), 3);
}
