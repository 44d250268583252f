//! H_PUT_TCE.

use portcullis_hal::{GuestMemory, GuestPhysAddr, GuestPhysRange, TableMemory};
use portcullis_iommu::{EntryDriver, Error, RegionPart, Session};

use super::{
    Hypercalls, Vcpu,
    connected::{Connected, Span, unconfirmed},
    lately::Halves,
    reply::{Mode, Stop, Why},
    spec::{GuestTce, Status},
    view::{Entry, View, Word},
};

impl<'i, D, V, M, const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize, const WINDOWS: usize>
    Hypercalls<'i, D, V, M, GROUPS, CONTEXTS, CPUS, WINDOWS>
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
        session: &Session<'_, 'i, D, GROUPS, CONTEXTS, CPUS>,
        vcpu: &mut Vcpu<'i>,
        arguments: [u64; 4],
    ) -> Result<(), Stop> {
        match self.put_usual(session, vcpu, arguments) {
            Some(put) => put,
            None => self.put_any::<N>(session, vcpu, arguments),
        }
    }

    /// The usual call: behind the window stands one hardware table with pages as large as the guest's, no table is missing,
    /// the region is the one of the last call, and no other CPU is at the entry. `None` in any doubt: nothing changed.
    #[inline(always)]
    fn put_usual(
        &self,
        session: &Session<'_, 'i, D, GROUPS, CONTEXTS, CPUS>,
        vcpu: &mut Vcpu<'i>,
        [liobn, ioba, tce, _]: [u64; 4],
    ) -> Option<Result<(), Stop>> {
        let entry = self.usual_entry(session, vcpu, liobn, ioba)?;
        let tce = GuestTce::new(tce);
        if !tce.maps() {
            return entry.replace(session, tce, None);
        }
        let address = GuestPhysAddr::new(tce.address());
        let page = session.page(vcpu.region_hint, address, entry.hardware.page_size())?;
        entry.replace(session, tce, Some(&page))
    }

    /// Any call.
    #[cold]
    #[inline(never)]
    fn put_any<N: Mode>(
        &self,
        session: &Session<'_, 'i, D, GROUPS, CONTEXTS, CPUS>,
        vcpu: &mut Vcpu<'i>,
        [liobn, ioba, tce, _]: [u64; 4],
    ) -> Result<(), Stop> {
        let slot = self.find(vcpu, liobn)?;
        let table = slot.table();
        let index = table.window.one(ioba).ok_or(Stop::PARAMETER)?;
        let tce = GuestTce::new(tce);
        if tce.maps() && !table.window.is_page(tce.address()) {
            return Err(Stop::PARAMETER);
        }
        let span = Span { ioba, bytes: table.window.page_bytes() };
        let page = match tce.maps() {
            true => Some(memory(session, &mut vcpu.region_hint, tce.address(), span.bytes)?),
            false => None,
        };
        let mut connected = Connected::<D>::none();
        connected.find(session, slot)?;
        if let Some(page) = &page {
            connected.admits(session, page)?;
            connected.prepare::<N, GROUPS, CONTEXTS, CPUS>(session, span)?;
        }
        let Some(entry) = self.entry::<N>(table.view, index, tce.as_u64())? else { return Ok(()) };
        let before = entry.take::<N>().ok_or(Stop::Lacking(Why::Contended))?;
        let mut owed = session.owed();
        if page.is_some() || before.is_live() {
            let new = page.as_ref().map(|page| (page, tce.access()));
            let replaced = connected.replace(session, span, new, &mut owed);
            if replaced.is_err() {
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

impl<D: EntryDriver> Halves<'_, D> {
    /// Takes the entry, changes it, kills, counts out. `None` where another CPU has it, or it cannot lead there.
    #[inline(always)]
    fn replace<const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize>(
        &self,
        session: &Session<'_, '_, D, GROUPS, CONTEXTS, CPUS>,
        tce: GuestTce,
        page: Option<&RegionPart<'_>>,
    ) -> Option<Result<(), Stop>> {
        let before = self.view.try_take()?;
        let write = || self.view.write(tce.as_u64(), Word::of(tce));
        if page.is_none() && !before.is_live() {
            write();
            return Some(Ok(()));
        }
        let replaced = session.replace(&self.hardware, page.map(|page| (page, tce.access())), write);
        if replaced.is_none() {
            self.view.give(before);
        }
        replaced.map(|killed| killed.map_err(unconfirmed))
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
pub(super) fn not_found(error: Error) -> Stop {
    match error {
        // Its region may stay, or end: that is just being decided.
        Error::Busy => Stop::Lacking(Why::Contended),
        _ => Stop::Lacking(Why::Unregistered),
    }
}
