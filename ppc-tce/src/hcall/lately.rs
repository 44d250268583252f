//! What an H_PUT_TCE found, for the next one: most change an entry beside the last.

use portcullis_hal::{GuestMemory, Iova, PagePool, TableMemory};
use portcullis_iommu::{EntryDriver, LeafEntry, LeafTable, Session};

use super::{
    Hypercalls, Vcpu,
    slot::{Liobn, Opened, key},
    view::Entry,
};

/// Entries whose two halves stand side by side: in one last-level table of the only hardware table behind a window, and
/// in one table of its view.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lately<'i> {
    liobn: u64,
    /// In this state of its slot the window, its view, and what is behind it are the ones that were found.
    slot: Opened,
    hardware: LeafTable<'i>,
    /// Pair of the view's cells for the first of the entries.
    view: usize,
}

/// The two halves of an entry.
pub(super) struct Halves<'a, D: EntryDriver> {
    pub(super) hardware: LeafEntry<'a, D>,
    pub(super) view: Entry<'a>,
}

impl Lately<'_> {
    /// The entry at `ioba`, if it is one of these and they are still there.
    #[inline(always)]
    fn entry<
        'a,
        V: TableMemory,
        D: EntryDriver,
        const GROUPS: usize,
        const CONTEXTS: usize,
        const CPUS: usize,
    >(
        &self,
        session: &'a Session<'_, '_, D, GROUPS, CONTEXTS, CPUS>,
        pool: &'a PagePool<V>,
        ioba: u64,
    ) -> Option<Halves<'a, D>> {
        let hardware = session.entry(&self.hardware, Iova::new(ioba))?;
        let view = Entry::at(pool, self.view.wrapping_add(hardware.number() as usize))?;
        Some(Halves { hardware, view })
    }
}

impl<'i, D, V, M, const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize, const WINDOWS: usize>
    Hypercalls<'i, D, V, M, GROUPS, CONTEXTS, CPUS, WINDOWS>
where
    D: EntryDriver,
    V: TableMemory,
    M: GuestMemory,
{
    /// The entry that a call names, if behind its window stands one hardware table with pages as large as the guest's, and
    /// all tables exist.
    #[inline(always)]
    pub(super) fn usual_entry<'a>(
        &'a self,
        session: &'a Session<'_, 'i, D, GROUPS, CONTEXTS, CPUS>,
        vcpu: &mut Vcpu<'i>,
        liobn: u64,
        ioba: u64,
    ) -> Option<Halves<'a, D>> {
        match self.as_lately(session, vcpu, liobn, ioba) {
            Some(found) => Some(found),
            None => {
                let around = self.look_around(session, vcpu, liobn, ioba)?;
                vcpu.lately = Some(around);
                around.entry(session, &self.pool, ioba)
            }
        }
    }

    /// The same, if it is one of those that the last call found.
    #[inline(always)]
    fn as_lately<'a>(
        &'a self,
        session: &'a Session<'_, 'i, D, GROUPS, CONTEXTS, CPUS>,
        vcpu: &Vcpu<'i>,
        liobn: u64,
        ioba: u64,
    ) -> Option<Halves<'a, D>> {
        let lately = vcpu.lately.as_ref().filter(|lately| lately.liobn == liobn)?;
        if !self.slots.get(vcpu.window_hint as usize)?.is_still(lately.slot) {
            return None;
        }
        lately.entry(session, &self.pool, ioba)
    }

    /// The entries around the one that a call names.
    #[inline(never)]
    fn look_around(
        &self,
        session: &Session<'_, 'i, D, GROUPS, CONTEXTS, CPUS>,
        vcpu: &Vcpu<'i>,
        liobn: u64,
        ioba: u64,
    ) -> Option<Lately<'i>> {
        let key = key(vcpu.vm(), Liobn(u32::try_from(liobn).ok()?));
        let slot = self.slots.get(vcpu.window_hint as usize)?;
        let opened = slot.opened(key)?;
        let (window, view) = (slot.table().window, slot.table().view);
        let context = slot.only()?;
        if session.page_bytes(&session.entries_of(context)?) != window.page_bytes() {
            return None;
        }
        let view = view.leaf_place(&self.pool, window.one(ioba)?)?.within(0, window.entries())?;
        let start = window.ioba(view.first);
        let hardware = session.leaf_table(context, Iova::new(ioba))?;
        let hardware = hardware.within(Iova::new(start), view.count << window.page_shift)?;
        let skipped = hardware.start().as_u64().wrapping_sub(start) >> window.page_shift;
        Some(Lately { liobn, slot: opened, hardware, view: view.place.wrapping_add(skipped as usize) })
    }
}
