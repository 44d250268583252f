//! The place of an extent in every interleaving, on every value that weak memory lets a load return.
#![allow(missing_docs, reason = "tests document themselves by their names")]
#![cfg(loom)]

use loom::{model, sync::Arc, thread};
use portcullis_hal::{DmaExtent, DmaExtentCell, PhysAddr, PhysRange};

/// An extent whose two numbers are equal.
fn even(number: u64) -> DmaExtent {
    let range = PhysRange::new(PhysAddr::new(number), number).expect("a range");
    // SAFETY: no hardware exists that could reach it.
    unsafe { DmaExtent::new(range) }
}

fn look(cell: &DmaExtentCell) {
    if let Some(extent) = cell.load() {
        assert_eq!(extent.start().as_u64(), extent.bytes(), "halves of two extents");
    }
}

#[test]
fn h07_an_extent_arrives_whole() {
    model(|| {
        let cell = Arc::new(DmaExtentCell::new());
        let theirs = cell.clone();
        let reader = thread::spawn(move || look(&theirs));
        assert!(cell.store(Some(even(1))));
        assert!(cell.store(Some(even(2))));
        reader.join().expect("no panic");
        assert_eq!(cell.load(), Some(even(2)));
    });
}

#[test]
fn h07_of_two_who_store_at_once_nobody_mixes_with_the_other() {
    model(|| {
        let cell = Arc::new(DmaExtentCell::new());
        let theirs = cell.clone();
        let other = thread::spawn(move || theirs.store(Some(even(1))));
        let stored = cell.store(Some(even(2)));
        look(&cell);
        assert!(stored | other.join().expect("no panic"));
        assert!(cell.load().is_some_and(|extent| extent.start().as_u64() == extent.bytes()));
    });
}
