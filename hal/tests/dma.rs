//! Extents that are handed from CPU to CPU.
#![allow(missing_docs, reason = "tests document themselves by their names")]

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use portcullis_hal::{DmaExtent, DmaExtentCell, PhysAddr, PhysRange};

fn extent(start: u64, bytes: u64) -> DmaExtent {
    let range = PhysRange::new(PhysAddr::new(start), bytes).expect("a range");
    // SAFETY: no hardware exists that could reach it.
    unsafe { DmaExtent::new(range) }
}

#[test]
fn h07_an_extent_is_read_whole_or_not_at_all() {
    let (cell, end) = (DmaExtentCell::new(), AtomicBool::new(false));
    assert_eq!(cell.load(), None);
    let read = || {
        let mut seen = 0_u32;
        while !end.load(Ordering::Relaxed) || seen == 0 {
            if let Some(extent) = cell.load() {
                assert_eq!(extent.start().as_u64(), extent.bytes() << 20, "two halves of different extents");
                seen += 1;
            }
        }
    };
    let write = |step: u64| {
        for turn in 1..if cfg!(miri) { 500 } else { 50_000 } {
            let bytes = turn * step;
            while !cell.store(Some(extent(bytes << 20, bytes))) {
                thread::yield_now();
            }
        }
        end.store(true, Ordering::Relaxed);
    };
    thread::scope(|scope| {
        scope.spawn(read);
        scope.spawn(move || write(1));
        scope.spawn(move || write(3));
    });
    assert!(cell.load().is_some());
    assert!(cell.store(None));
    assert_eq!(cell.load(), None);
}
