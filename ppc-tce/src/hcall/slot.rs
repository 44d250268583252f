//! Windows in their slots: plain words, read by sessions without a lock.
//!
//! A session looks at a slot's state first; whoever changes what sessions read stores a new state and then waits until
//! each session has ended that may have seen the old one. So a slot that was seen open stays what it is while the
//! session lives.

use core::num::NonZeroU64;

use const_fn::const_fn;
use portcullis_hal::{
    array_of,
    seats::LOOK,
    sync::{AtomicU64, Ordering},
};
use portcullis_iommu::{ContextHandle, VmId};

use super::{view::View, window::Window};

/// Hardware tables behind one LIOBN.
pub const PLACES: usize = 4;

/// Set in the state while calls may use the slot.
const OPEN: u64 = 1;
/// Bits of the state that say behind which place none is in use.
const USED_SHIFT: u32 = 1;
const USED: u64 = 7;
/// The changes of all slots are numbered from this bit of the state on.
const CHANGE: u64 = 1 << 8;

/// The number of the next change. No two states are equal that slots came to, of whatever windows: what was found in one
/// state is as good as new while that state lasts. The model checker need not see it: no order rests on it.
static CHANGES: core::sync::atomic::AtomicU64 = core::sync::atomic::AtomicU64::new(CHANGE);

/// The state of a slot that was found open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Opened(NonZeroU64);

/// A LIOBN, the number by which a guest names a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Liobn(pub u32);

/// A place for a window.
#[derive(Debug)]
pub(super) struct Slot {
    state: AtomicU64,
    /// Of VM and LIOBN; 0 when the slot is empty.
    key: AtomicU64,
    start: AtomicU64,
    /// Shapes of window and view, a byte each.
    shape: AtomicU64,
    /// First page of the view's root.
    root: AtomicU64,
    /// STUFF cap, 0 for none; entry budget above it.
    limits: AtomicU64,
    places: [Place; PLACES],
}

/// What a slot holds, as a session sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct GuestTable {
    pub(super) window: Window,
    pub(super) view: View,
}

/// What one STUFF may do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Entries that it may name.
    pub(super) stuff_cap: u64,
    /// Entries of one step.
    pub(super) budget: u32,
}

/// The number under which a window is found; never 0.
#[inline]
pub(super) const fn key(vm: VmId, liobn: Liobn) -> u64 {
    // VMs are numbered below `MAX_VMS`, so nothing is lost.
    (vm.0 as u64 + 1) << 32 | liobn.0 as u64
}

impl Slot {
    #[const_fn(cfg(not(loom)))]
    pub(super) const fn new() -> Self {
        Self {
            state: AtomicU64::new(0),
            key: AtomicU64::new(0),
            start: AtomicU64::new(0),
            shape: AtomicU64::new(0),
            root: AtomicU64::new(0),
            limits: AtomicU64::new(0),
            places: array_of![Place::new(); PLACES],
        }
    }

    /// Whether the slot is open, and the one of this key: for the data plane.
    #[inline(always)]
    pub(super) fn is_opened(&self, key: u64) -> bool {
        self.opened(key).is_some()
    }

    /// The state of the slot, if it is open and the one of this key.
    #[inline(always)]
    pub(super) fn opened(&self, key: u64) -> Option<Opened> {
        // In this order: the slot may have changed hands before the state was read, but not since.
        let state = self.state.load(LOOK);
        let found = state & OPEN != 0 && self.key.load(Ordering::Relaxed) == key;
        if found { NonZeroU64::new(state).map(Opened) } else { None }
    }

    /// Whether everything about the slot is as it was when it was found so.
    #[inline(always)]
    pub(super) fn is_still(&self, opened: Opened) -> bool {
        self.state.load(LOOK) == opened.0.get()
    }

    /// The context behind the window that calls change, if it is in the first place and no other is in use.
    #[inline(always)]
    pub(super) fn only(&self) -> Option<ContextHandle> {
        let [first, ..] = &self.places;
        let used = self.state.load(Ordering::Relaxed) >> USED_SHIFT & USED;
        if used == 1 { first.handle() } else { None }
    }

    /// What the slot holds; for who found it open, or has it closed.
    #[inline(always)]
    pub(super) fn table(&self) -> GuestTable {
        let [page_shift, bytes_shift, levels, level_bits, ..] =
            self.shape.load(Ordering::Relaxed).to_le_bytes();
        let bytes = 1_u64.wrapping_shl(bytes_shift.into());
        GuestTable {
            window: Window { start: self.start.load(Ordering::Relaxed), bytes, page_shift },
            view: View::of_shape(levels, level_bits, self.root.load(Ordering::Relaxed) as usize),
        }
    }

    /// What one STUFF may do; for who found the slot open.
    pub(super) fn limits(&self) -> Limits {
        let limits = self.limits.load(Ordering::Relaxed);
        let cap = limits & u64::from(u32::MAX);
        Limits { stuff_cap: if cap == 0 { u64::MAX } else { cap }, budget: (limits >> 32) as u32 }
    }

    pub(super) fn places(&self) -> &[Place; PLACES] {
        &self.places
    }

    /// The key, whether the slot is open or being removed; 0 for an empty one. For the control plane.
    pub(super) fn key(&self) -> u64 {
        self.key.load(Ordering::Relaxed)
    }

    /// Fills an empty slot and opens it.
    pub(super) fn fill(&self, key: u64, table: &GuestTable, limits: Limits) {
        let (levels, level_bits, root) = table.view.shape();
        let window = table.window;
        let shape = [window.page_shift, window.bytes.trailing_zeros() as u8, levels, level_bits, 0, 0, 0, 0];
        let cap = if limits.stuff_cap == u64::MAX { 0 } else { limits.stuff_cap };
        self.start.store(window.start, Ordering::Relaxed);
        self.shape.store(u64::from_le_bytes(shape), Ordering::Relaxed);
        self.root.store(root as u64, Ordering::Relaxed);
        self.limits.store(cap | u64::from(limits.budget) << 32, Ordering::Relaxed);
        self.key.store(key, Ordering::Relaxed);
        self.change(OPEN);
    }

    /// Lets no call in any more. What was inside goes on until its session ends.
    pub(super) fn close(&self) {
        self.change(0);
    }

    /// Whether the slot is, or was, one of this VM's.
    pub(super) fn is_of(&self, vm: VmId) -> bool {
        self.key() >> 32 == u64::from(vm.0) + 1
    }

    /// Whether calls find the slot. For the control plane.
    pub(super) fn is_open(&self) -> bool {
        self.state.load(Ordering::Relaxed) & OPEN != 0
    }

    /// Lets sessions that begin from now on see the places as they are; whether the slot is open stays as it is.
    pub(super) fn publish(&self) {
        self.change(self.state.load(Ordering::Relaxed) & OPEN);
    }

    fn change(&self, open: u64) {
        let used = self.places.iter().rposition(|place| place.handle().is_some());
        let used = used.map_or(0, |last| last as u64 + 1);
        let change = CHANGES.fetch_add(CHANGE, core::sync::atomic::Ordering::Relaxed);
        self.state.swap(change | used << USED_SHIFT | open, Ordering::SeqCst);
    }

    /// Makes a slot free that was closed, and at which nobody looks any more.
    pub(super) fn empty(&self) {
        self.key.store(0, Ordering::Release);
    }
}

/// Set in a place whose context is being disconnected: no call uses it any more.
const ENDING: u64 = 1 << 63;

/// A place for one hardware table behind a LIOBN.
#[derive(Debug)]
pub(super) struct Place(AtomicU64);

/// What a place holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    Nothing,
    Connected(ContextHandle),
    Ending(ContextHandle),
}

impl Held {
    /// The context in the place, whether calls use it or not.
    pub(super) const fn handle(self) -> Option<ContextHandle> {
        match self {
            Self::Nothing => None,
            Self::Connected(handle) | Self::Ending(handle) => Some(handle),
        }
    }
}

impl Place {
    #[const_fn(cfg(not(loom)))]
    const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// The context that calls change here.
    #[inline]
    pub(super) fn handle(&self) -> Option<ContextHandle> {
        let word = self.0.load(Ordering::Relaxed);
        if word & ENDING != 0 { None } else { ContextHandle::from_word(word) }
    }

    pub(super) fn held(&self) -> Held {
        let word = self.0.load(Ordering::Relaxed);
        match ContextHandle::from_word(word & !ENDING) {
            None => Held::Nothing,
            Some(handle) if word & ENDING != 0 => Held::Ending(handle),
            Some(handle) => Held::Connected(handle),
        }
    }

    pub(super) fn set(&self, held: Held) {
        let word = match held {
            Held::Nothing => 0,
            Held::Connected(handle) => handle.to_word(),
            Held::Ending(handle) => handle.to_word() | ENDING,
        };
        self.0.store(word, Ordering::Release);
    }
}
