//! Where a guest ran, in every interleaving, on every value that weak memory lets a load return.
#![allow(missing_docs, reason = "tests document themselves by their names")]
#![cfg(loom)]

use loom::{
    model,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};
use portcullis_hal::footprint::{Flush, Footprint};

/// The cache of CPU 0: numbers stand for the guest's stores.
#[derive(Default)]
struct Machine {
    footprint: Footprint,
    stored: AtomicU64,
    flushed: AtomicU64,
}

impl Machine {
    fn guest_stores(&self, number: u64) {
        self.footprint.entered(0).expect("there is room");
        // Read and written in one, as all changes of it: else the checker does not order them.
        self.stored.fetch_max(number, Ordering::AcqRel);
        self.footprint.left(0);
    }

    /// Afterwards memory has what was stored before the call.
    fn flush(&self, flush: Flush) {
        let before = self.stored.load(Ordering::Acquire);
        let open = self.footprint.open(flush);
        if open.cpus().contains(0) {
            // Reads the newest value, as a flush does.
            let stored = self.stored.fetch_max(0, Ordering::AcqRel);
            self.flushed.fetch_max(stored, Ordering::AcqRel);
        }
        self.footprint.close(&open);
        let after = self.flushed.load(Ordering::Acquire);
        assert!(after >= before, "store {before} is in the cache, memory has {after}");
    }
}

#[test]
fn x17_nothing_stored_before_a_flush_is_missed() {
    model(|| {
        let machine = Arc::new(Machine::default());
        let guest = {
            let machine = machine.clone();
            thread::spawn(move || machine.guest_stores(1))
        };
        machine.flush(Flush::WriteBackInvalidate);
        guest.join().expect("no panic");
        machine.flush(Flush::WriteBackInvalidate);
    });
}

#[test]
fn x17_nobody_takes_anothers_unfinished_flush_for_done() {
    model(|| {
        let machine = Arc::new(Machine::default());
        machine.guest_stores(1);
        let other = {
            let machine = machine.clone();
            thread::spawn(move || machine.flush(Flush::WriteBackInvalidate))
        };
        machine.flush(Flush::WriteBack);
        other.join().expect("no panic");
    });
}

#[test]
fn x17_a_stay_during_a_flush_stays_open() {
    model(|| {
        let machine = Arc::new(Machine::default());
        let flusher = {
            let machine = machine.clone();
            thread::spawn(move || machine.flush(Flush::WriteBackInvalidate))
        };
        machine.guest_stores(1);
        machine.flush(Flush::WriteBackInvalidate);
        flusher.join().expect("no panic");
    });
}
