//! Memory at which a test looks on.

use std::{
    fmt,
    sync::{Arc, Mutex},
};

use portcullis_hal::{DmaExtent, GuestMemory, PhysAddr, TableMemory, sync::AtomicU64};

use crate::memory::FakeMemory;

type Watcher = Box<dyn FnMut() + Send>;

/// A [`FakeMemory`] that calls back when it is used: for what happens between two steps of the code under test. Clones
/// have one watcher.
#[derive(Clone)]
pub struct WatchedMemory {
    memory: FakeMemory,
    watcher: Arc<Mutex<(u64, Option<Watcher>)>>,
}

impl WatchedMemory {
    /// This memory; nobody watches yet.
    #[must_use]
    pub fn new(memory: FakeMemory) -> Self {
        Self { memory, watcher: Arc::default() }
    }

    /// The memory.
    #[must_use]
    pub const fn memory(&self) -> &FakeMemory {
        &self.memory
    }

    /// Calls `act` once, at the `uses`th use from now on: of the cells as a table, or of words as a guest's.
    ///
    /// # Panics
    /// When a test thread died.
    pub fn after(&self, uses: u64, act: impl FnOnce() + Send + 'static) {
        let mut act = Some(act);
        let watcher: Watcher = Box::new(move || {
            if let Some(act) = act.take() {
                act();
            }
        });
        *self.watcher.lock().expect("no test thread died here") = (uses, Some(watcher));
    }

    /// Whether what [`after`](Self::after) got was called.
    ///
    /// # Panics
    /// When a test thread died.
    #[must_use]
    pub fn was_called(&self) -> bool {
        self.watcher.lock().expect("no test thread died here").1.is_none()
    }

    fn used(&self) {
        let due = {
            let mut watcher = self.watcher.lock().expect("no test thread died here");
            watcher.0 = watcher.0.saturating_sub(1);
            if watcher.0 == 0 { watcher.1.take() } else { None }
        };
        // Nothing is locked any more: the watcher may use the memory itself.
        if let Some(mut act) = due {
            act();
        }
    }
}

impl fmt::Debug for WatchedMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.memory.fmt(f)
    }
}

// SAFETY: the memory gave the promise; looking on changes nothing of it.
unsafe impl TableMemory for WatchedMemory {
    fn cells(&self) -> &[AtomicU64] {
        self.used();
        self.memory.cells()
    }

    fn base(&self) -> PhysAddr {
        self.memory.base()
    }
}

// SAFETY: as above. The watcher is called after the words were read.
unsafe impl GuestMemory for WatchedMemory {
    fn read_words(&self, extent: DmaExtent, words: &mut [u64]) -> bool {
        let read = self.memory.read_words(extent, words);
        self.used();
        read
    }
}
