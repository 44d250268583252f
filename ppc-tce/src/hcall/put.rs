//! H_PUT_TCE.

use portcullis_hal::{GuestMemory, GuestPhysAddr, GuestPhysRange, TableMemory};
use portcullis_iommu::{EntryDriver, Error, RegionPart, Session};

use super::{
    Hypercalls, Vcpu,
    connected::{Connected, Span, unconfirmed},
    reply::{Mode, Stop, Why},
    slot::{PLACES, Slot},
    spec::{GuestTce, Status},
    view::{Entry, View, Word},
};

impl<D, V, M, const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize, const WINDOWS: usize>
    Hypercalls<'_, D, V, M, GROUPS, CONTEXTS, CPUS, WINDOWS>
where
    D: EntryDriver,
    V: TableMemory,
    M: GuestMemory,
{
    /// Judges, looks everything up, takes the entry, changes it, kills, counts out: in this order.
    // A frame of its own, or the stack of each call would be that of the largest.
    #[inline(never)]
    pub(super) fn put_tce<N: Mode>(
        &self,
        session: &Session<'_, '_, D, GROUPS, CONTEXTS, CPUS>,
        vcpu: &mut Vcpu,
        [liobn, ioba, tce, _]: [u64; 4],
    ) -> Result<(), Stop> {
        let (slot, used) = self.find(vcpu, liobn)?;
        match used {
            0 | 1 => self.put_behind::<N, 1>(session, vcpu, slot, [ioba, tce]),
            _ => self.put_behind::<N, PLACES>(session, vcpu, slot, [ioba, tce]),
        }
    }

    /// The call on a window with at most `MOST` places in use.
    #[inline(always)]
    fn put_behind<N: Mode, const MOST: usize>(
        &self,
        session: &Session<'_, '_, D, GROUPS, CONTEXTS, CPUS>,
        vcpu: &mut Vcpu,
        slot: &Slot,
        [ioba, tce]: [u64; 2],
    ) -> Result<(), Stop> {
        let table = slot.table();
        let index = table.window.index(ioba, 1).ok_or(Stop::PARAMETER)?;
        let tce = GuestTce::new(tce);
        if tce.maps() && !table.window.is_page(tce.address()) {
            return Err(Stop::PARAMETER);
        }
        let span = Span { ioba, bytes: table.window.page_bytes() };
        let page = match tce.maps() {
            true => Some(memory(session, &mut vcpu.region_hint, tce.address(), span.bytes)?),
            false => None,
        };
        let mut connected = Connected::<D, MOST>::none();
        connected.find(session, slot)?;
        if let Some(page) = &page {
            connected.admits(session, page)?;
            // One table alone is asked when it is changed: it refuses before anything has changed.
            if N::FINAL || MOST > 1 {
                connected.prepare::<N, GROUPS, CONTEXTS, CPUS>(session, span)?;
            }
        }
        let Some(entry) = self.entry::<N>(table.view, index, tce.as_u64())? else { return Ok(()) };
        let before = entry.take::<N>().ok_or(Stop::Lacking(Why::Contended))?;
        let mut owed = session.owed();
        if page.is_some() || before.is_live() {
            let new = page.as_ref().map(|page| (page, tce.access()));
            let replaced = connected.replace(session, span, new, &mut owed);
            if let Err(stop) = replaced {
                if MOST == 1 {
                    entry.give_back();
                    return Err(stop);
                }
                connected.empty(session, span, &mut owed);
                entry.write(0, Word::DEAD);
                connected.finish(session, owed).map_err(unconfirmed)?;
                return Err(Stop::Refused(Status::Hardware));
            }
        }
        entry.write(tce.as_u64(), Word::of(tce));
        connected.finish(session, owed).map_err(unconfirmed)
    }

    /// The entry at `index`, for the guest form `form`. `None` where it needs none: no table, and nothing to remember.
    #[inline(always)]
    fn entry<N: Mode>(&self, view: View, index: u64, form: u64) -> Result<Option<Entry<'_>>, Stop> {
        match view.entry(&self.pool, index) {
            None if form != 0 => self.missing_entry::<N>(view, index).map(Some),
            found => Ok(found),
        }
    }

    #[cold]
    fn missing_entry<N: Mode>(&self, view: View, index: u64) -> Result<Entry<'_>, Stop> {
        self.provide_view::<N>(view, index)?;
        view.entry(&self.pool, index).ok_or(Stop::Lacking(Why::NeedPages))
    }

    /// Sees to it that the view has a table for the entry at `index`.
    pub(super) fn provide_view<N: Mode>(&self, view: View, index: u64) -> Result<(), Stop> {
        if !N::FINAL {
            return Err(Stop::Lacking(Why::NeedPages));
        }
        view.provide(&self.pool, index).map_err(|_| Stop::Lacking(Why::NeedPages))
    }
}

/// The host memory behind guest pages; `hint` is the slot of the region used last.
#[inline(always)]
pub(super) fn memory<'s, D: EntryDriver, const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize>(
    session: &'s Session<'_, '_, D, GROUPS, CONTEXTS, CPUS>,
    hint: &mut u32,
    address: u64,
    bytes: u64,
) -> Result<RegionPart<'s>, Stop> {
    let guest = GuestPhysRange::new(GuestPhysAddr::new(address), bytes).map_err(|_| Stop::PARAMETER)?;
    let part = session.memory(*hint, guest).map_err(not_found)?;
    *hint = part.slot();
    Ok(part)
}

#[cold]
fn not_found(error: Error) -> Stop {
    match error {
        // Its region may stay, or end: that is just being decided.
        Error::Busy => Stop::Lacking(Why::Contended),
        _ => Stop::Lacking(Why::Unregistered),
    }
}
