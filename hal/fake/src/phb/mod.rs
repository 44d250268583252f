//! A POWER host bridge: PHB3, PHB4 or PHB5, as far as DMA translation goes.
//!
//! Written from the IODA2 and IODA3 architecture and the PHB functional specifications. Where they
//! leave room, the model takes the worst: a fetched line of TCEs stays until it is killed, empty
//! entries included; a kill acts only when it is finished; a PE freezes at the first error.
//!
//! Time passes by register reads: a kill or a sync is finished after so many of them.

mod opal;
mod registers;
mod tce_cache;
mod translate;

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

pub use opal::Opal;
use registers::KillUnit;
pub use registers::{Hang, Timing};
use tce_cache::TceCache;

use crate::memory::FakeMemory;

/// Generation of the bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PhbKind {
    /// POWER8: 256 PEs, kills without status.
    Phb3,
    /// POWER9: 512 PEs.
    Phb4,
    /// POWER10: 512 PEs; completion bits of the sync register stay until 1 is written to them.
    Phb5,
}

impl PhbKind {
    /// PEs of the bridge.
    #[must_use]
    pub const fn pes(self) -> u16 {
        match self {
            Self::Phb3 => 256,
            Self::Phb4 | Self::Phb5 => 512,
        }
    }

    /// PE of functions that were put into no other.
    #[must_use]
    pub const fn reserved_pe(self) -> u16 {
        match self {
            Self::Phb3 => 0,
            Self::Phb4 | Self::Phb5 => 511,
        }
    }

    /// PHB Control as firmware leaves it: line buffer off (bit 21), 64 KiB interrupt pages (bit 11), two
    /// TVEs a PE. PHB3 has none of these bits.
    const fn control_after_reset(self) -> u64 {
        match self {
            Self::Phb3 => 0,
            Self::Phb4 | Self::Phb5 => 1 << (63 - 21) | 1 << (63 - 11),
        }
    }

    const fn page_shifts(self) -> [u64; 4] {
        match self {
            Self::Phb3 => [12, 16, 24, 28],
            Self::Phb4 | Self::Phb5 => [12, 16, 21, 30],
        }
    }

    const fn real_address_bits(self) -> u32 {
        match self {
            Self::Phb3 => 50,
            Self::Phb4 | Self::Phb5 => 56,
        }
    }
}

/// Why a transaction was blocked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PhbFault {
    /// The bridge has fenced itself off.
    Fenced,
    /// The PE was frozen by an earlier error.
    Frozen,
    /// The address is in MSI or reserved space.
    NotDma,
    /// The TVE translates nothing, or its fields are none that the manual has.
    InvalidTve,
    /// Beyond what the TVE's tables translate.
    BeyondWindow,
    /// A TCE, or one that leads to a table, has no permission.
    PageFault,
    /// The TCE forbids this direction.
    AccessFault,
    /// Reserved bits are set, or an address is not aligned as it must be.
    BadTce,
    /// No memory there.
    NoMemory,
}

/// What happened at the bridge, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PhbEvent {
    /// Firmware put a function into a PE.
    PeSet {
        /// Requester ID.
        rid: u16,
        /// PE.
        pe: u16,
    },
    /// A TVE was made valid.
    WindowSet {
        /// PE.
        pe: u16,
        /// 0 or 1.
        window: u8,
    },
    /// A TVE was made invalid.
    WindowUnset {
        /// PE.
        pe: u16,
        /// 0 or 1.
        window: u8,
    },
    /// The cached TCEs of a PE are gone.
    PeKilled {
        /// PE.
        pe: u16,
    },
    /// All cached TCEs are gone.
    AllKilled,
    /// Somebody did what the manual forbids.
    Violation {
        /// What.
        what: &'static str,
    },
}

pub(crate) struct State {
    kind: PhbKind,
    /// PE by Requester ID; others are in the reserved one.
    rtt: HashMap<u16, u16>,
    tvt: Vec<u64>,
    cache: TceCache,
    kills: KillUnit,
    control: u64,
    /// What froze a PE: its two words of the PE state table.
    pest: HashMap<u16, [u64; 2]>,
    fenced: bool,
    firmware_calls: u64,
    failing_call: Option<u64>,
    events: Vec<PhbEvent>,
}

/// The bridge. Clones are the same bridge: the driver's registers, firmware's and the devices' side.
#[derive(Clone)]
pub struct FakePhb {
    memory: FakeMemory,
    state: Arc<Mutex<State>>,
}

impl FakePhb {
    /// A bridge in front of `memory`, as firmware leaves it: no valid TVE, nothing cached.
    #[must_use]
    pub fn new(kind: PhbKind, memory: &FakeMemory) -> Self {
        let state = State {
            kind,
            rtt: HashMap::new(),
            tvt: vec![0; usize::from(kind.pes()) * 2],
            cache: TceCache::default(),
            kills: KillUnit::default(),
            control: kind.control_after_reset(),
            pest: HashMap::new(),
            fenced: false,
            firmware_calls: 0,
            failing_call: None,
            events: Vec::new(),
        };
        Self { memory: memory.clone(), state: Arc::new(Mutex::new(state)) }
    }

    /// Goes on after a test that died inside: what it drops on the way out still needs the model.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long kills and syncs take.
    pub fn set_timing(&self, timing: Timing) {
        self.state().kills.timing = timing;
    }

    /// Lets some part of the kill unit hang from now on, or nothing any more.
    pub fn set_hang(&self, hang: Option<Hang>) {
        self.state().kills.hang = hang;
    }

    /// Lets PHB Control read as this value: what careless firmware may leave.
    pub fn set_control(&self, value: u64) {
        self.state().control = value;
    }

    /// Fences the bridge: registers read as all ones, DMA stops.
    pub fn fence(&self) {
        self.state().fenced = true;
    }

    /// Takes the events so far.
    #[must_use]
    pub fn take_events(&self) -> Vec<PhbEvent> {
        std::mem::take(&mut self.state().events)
    }

    /// Lines of TCEs that are cached for a PE.
    #[must_use]
    pub fn cached_lines(&self, pe: u16) -> usize {
        self.state().cache.lines_of(pe)
    }

    /// Kill commands that were written so far.
    #[must_use]
    pub fn kills_written(&self) -> u64 {
        self.state().kills.written
    }

    /// Firmware's side.
    #[must_use]
    pub fn opal(&self) -> Opal {
        Opal { phb: self.clone() }
    }
}
