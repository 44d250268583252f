//! What a call needs of its own: one such scratch for each virtual CPU.

use portcullis_iommu::VmId;

use super::{lately::Lately, slot::Liobn, spec::LIST_ENTRIES};

/// Scratch of one virtual CPU, donated by the hypervisor: a page for lists, the cursor of a call that goes on, and where
/// the last call found things.
#[derive(Debug)]
pub struct Vcpu<'i> {
    vm: VmId,
    pub(super) list: [u64; LIST_ENTRIES],
    cursor: Option<Cursor>,
    /// Slot of the window used last.
    pub(super) window_hint: u32,
    /// Slot of the region used last.
    pub(super) region_hint: u32,
    /// Tables around the entry of the last H_PUT_TCE that looked for them.
    pub(super) lately: Option<Lately<'i>>,
}

/// An H_STUFF_TCE as the guest made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stuff {
    pub(super) liobn: Liobn,
    pub(super) ioba: u64,
    pub(super) value: u64,
    pub(super) count: u64,
}

/// How far a call has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cursor {
    call: Stuff,
    pub(super) progress: Progress,
}

/// Entries dealt with, counted from the call's first one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Progress {
    /// For which tables were provided.
    pub(super) provided: u64,
    /// Which were cleared.
    pub(super) cleared: u64,
}

impl Vcpu<'_> {
    /// Scratch of a virtual CPU of `vm`. What it calls can touch nothing but what belongs to that VM.
    #[must_use]
    pub const fn new(vm: VmId) -> Self {
        Self { vm, list: [0; LIST_ENTRIES], cursor: None, window_hint: 0, region_hint: 0, lately: None }
    }

    /// The VM.
    #[inline]
    #[must_use]
    pub const fn vm(&self) -> VmId {
        self.vm
    }

    /// Forgets a call that was not finished, and never will be: when the virtual CPU is reset. Without it the next call
    /// with the same arguments would go on where that one stopped.
    pub const fn abandon(&mut self) {
        self.cursor = None;
    }

    /// Whether a call waits to be made again.
    #[must_use]
    pub const fn is_unfinished(&self) -> bool {
        self.cursor.is_some()
    }

    /// Where this call stands; any other call was given up by whoever made it.
    pub(super) fn resume(&mut self, call: Stuff) -> Progress {
        match self.cursor.take() {
            Some(cursor) if cursor.call == call => cursor.progress,
            _ => Progress { provided: 0, cleared: 0 },
        }
    }

    /// Notes how far a call has come.
    pub(super) const fn stop(&mut self, call: Stuff, progress: Progress) {
        self.cursor = Some(Cursor { call, progress });
    }
}
