//! Hardware tables come behind a window, and go.

use core::time::Duration;

use portcullis_hal::{
    Clock, GuestMemory, IoPageSize, Iova, TableMemory, TimedOut, sync::AtomicU64, wait_until,
};
use portcullis_iommu::{Claim, ContextHandle, EntryDriver, Error, Inside, Seat, Session, VmId};

use super::{
    HcallError, Hypercalls,
    connected::{Connected, Span},
    put::memory,
    reply::{Stop, VirtualMode, Why},
    slot::{GuestTable, Held, Liobn, Place, Slot, key},
    spec::GuestTce,
    view::Entry,
};

/// Pages of a hardware table that one page of the guest's may be: all of them change in one call, in real mode, too.
const MOST_SPANNED: u64 = 4096;

/// Entries that one session deals with: whoever waits for sessions waits no longer.
const STEP: usize = 512;

/// How long the control plane waits for calls that are under way.
#[derive(Debug)]
pub struct Patience<'c, C> {
    /// What shows the time.
    pub clock: &'c C,
    /// How long.
    pub limit: Duration,
}

impl<C> Clone for Patience<'_, C> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<C> Copy for Patience<'_, C> {}

impl<'i, D, V, M, const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize, const WINDOWS: usize>
    Hypercalls<'i, D, V, M, GROUPS, CONTEXTS, CPUS, WINDOWS>
where
    D: EntryDriver,
    V: TableMemory,
    M: GuestMemory,
{
    /// Puts the context to which a claimed group is attached behind a window of `vm`. What the guest wrote before is
    /// written into its tables first: all of it, or the context stays outside. Calls go on meanwhile.
    ///
    /// For the control plane, on the CPU that has the seat; takes a lock and waits for calls and for hardware.
    ///
    /// # Errors
    /// [`HcallError::UnknownLiobn`], [`HcallError::IommuPageTooLarge`], [`HcallError::GuestPageTooLarge`],
    /// [`HcallError::OtherWindow`],
    /// [`HcallError::AlreadyConnected`], [`HcallError::Full`]; [`HcallError::Iommu`] with `NotAttached`, with `OwnedBy`
    /// for another VM's context or with `OtherBacking` when it was mapped by other calls: nothing changed.
    /// [`HcallError::NotReplayed`] or [`HcallError::Iommu`] with what went wrong when an entry could not be written:
    /// what was written is gone again. With `Busy` when calls did not end or an entry stayed contended until the patience was over; if they
    /// do not end even then, the context stays behind the window, unused, until [`disconnect`](Self::disconnect)
    /// succeeds.
    pub fn connect(
        &self,
        seat: &mut Seat<'i, D, GROUPS, CONTEXTS, CPUS>,
        claim: &Claim<'_, D, GROUPS, CONTEXTS, CPUS>,
        vm: VmId,
        liobn: Liobn,
        patience: Patience<'_, impl Clock>,
    ) -> Result<(), HcallError> {
        let handle = claim.context()?;
        let _control = self.lock();
        let slot = self.named(vm, liobn)?;
        if !slot.is_open() {
            return Err(HcallError::UnknownLiobn { vm, liobn });
        }
        let place = {
            let session = seat.enter(vm);
            fits(&session, &session.context(handle)?, &slot.table())?;
            self.check_nowhere(handle)?;
            free_place(&session, slot)?
        };
        place.set(Held::Connected(handle));
        slot.publish();
        let replayed = self.replay(seat, vm, slot, handle, patience);
        if replayed.is_err() {
            // What the replay met says more; where this fails, too, the place stays taken.
            let _ = self.leave(seat, vm, slot, place, patience);
        }
        replayed
    }

    /// Takes a context from behind a window: no call changes its tables any more, and what calls put there is gone and
    /// counted out. The window keeps what the guest wrote. For the control plane, as [`connect`](Self::connect).
    ///
    /// # Errors
    /// [`HcallError::UnknownLiobn`], [`HcallError::NotConnected`]: nothing changed. [`HcallError::Iommu`] with `Busy`
    /// when calls did not end in time or the context is just being ended: no call uses it any more; to be
    /// called again. With `Timeout`, `Hardware` or `Quarantined` when hardware did not confirm: the context is
    /// disconnected, and what its tables led to stays counted.
    pub fn disconnect(
        &self,
        seat: &mut Seat<'i, D, GROUPS, CONTEXTS, CPUS>,
        vm: VmId,
        liobn: Liobn,
        context: ContextHandle,
        patience: Patience<'_, impl Clock>,
    ) -> Result<(), HcallError> {
        let _control = self.lock();
        let slot = self.named(vm, liobn)?;
        let place = slot.places().iter().find(|place| place.held().handle() == Some(context));
        self.leave(seat, vm, slot, place.ok_or(HcallError::NotConnected)?, patience)
    }

    pub(super) fn named(&self, vm: VmId, liobn: Liobn) -> Result<&Slot, HcallError> {
        let key = key(vm, liobn);
        self.slots.iter().find(|slot| slot.key() == key).ok_or(HcallError::UnknownLiobn { vm, liobn })
    }

    /// Checks that no window has the context.
    fn check_nowhere(&self, handle: ContextHandle) -> Result<(), HcallError> {
        let has = |slot: &&Slot| slot.places().iter().any(|place| place.held().handle() == Some(handle));
        match self.slots.iter().filter(|slot| slot.key() != 0).find(has) {
            Some(slot) => Err(HcallError::AlreadyConnected { liobn: Liobn(slot.key() as u32) }),
            None => Ok(()),
        }
    }

    /// Waits until every call knows of the context, then writes into it what the guest wrote before.
    fn replay(
        &self,
        seat: &mut Seat<'i, D, GROUPS, CONTEXTS, CPUS>,
        vm: VmId,
        slot: &Slot,
        handle: ContextHandle,
        patience: Patience<'_, impl Clock>,
    ) -> Result<(), HcallError> {
        let begun = patience.clock.now();
        self.iommu.wait_for_sessions(patience.clock, patience.limit)?;
        let table = slot.table();
        self.each_step(&table, |index, entries| {
            let spent = patience.clock.now().saturating_sub(begun);
            let stays = TimedOut { register: 0, bits: index };
            // Each look is a session of its own. What it has written is written once more by the next one.
            let replayed =
                wait_until(
                    patience.clock,
                    patience.limit.saturating_sub(spent),
                    stays,
                    || match replay_step(&seat.enter(vm), handle, &table, (index, entries)) {
                        Err(HcallError::Iommu(Error::Busy)) => None,
                        replayed => Some(replayed),
                    },
                );
            replayed.map_err(|_| Error::Busy)?
        })
    }

    /// Ends a connection; may be called again where it could not be finished.
    pub(super) fn leave(
        &self,
        seat: &mut Seat<'i, D, GROUPS, CONTEXTS, CPUS>,
        vm: VmId,
        slot: &Slot,
        place: &Place,
        patience: Patience<'_, impl Clock>,
    ) -> Result<(), HcallError> {
        let Some(handle) = place.held().handle() else { return Ok(()) };
        place.set(Held::Ending(handle));
        slot.publish();
        self.iommu.wait_for_sessions(patience.clock, patience.limit)?;
        let emptied = self.empty(seat, vm, slot, handle);
        if emptied != Err(HcallError::Iommu(Error::Busy)) {
            place.set(Held::Nothing);
        }
        emptied
    }

    /// Empties the tables of a context that no call uses any more. One that has ended was emptied then.
    fn empty(
        &self,
        seat: &mut Seat<'i, D, GROUPS, CONTEXTS, CPUS>,
        vm: VmId,
        slot: &Slot,
        handle: ContextHandle,
    ) -> Result<(), HcallError> {
        let table = slot.table();
        let mut killed = Ok(());
        let ended = self.each_step(&table, |index, entries| {
            let session = seat.enter(vm);
            let inside = match session.context(handle) {
                Err(Error::Stale { .. }) => return Ok(()),
                inside => inside?,
            };
            let mut connected = Connected::one(inside);
            let mut owed = session.owed();
            let bytes = (entries.len() as u64) << table.window.page_shift;
            connected.empty(&session, Span { ioba: table.window.ioba(index), bytes }, &mut owed);
            killed = killed.and(connected.finish(&session, owed));
            Ok(())
        });
        ended.and(killed.map_err(HcallError::from))
    }

    /// Calls `act` with all entries of the window that have a table, some at a time, and the index of the first; ends
    /// with the first error.
    fn each_step(
        &self,
        table: &GuestTable,
        mut act: impl FnMut(u64, &[[AtomicU64; 2]]) -> Result<(), HcallError>,
    ) -> Result<(), HcallError> {
        let (view, mut index) = (table.view, 0);
        while index < table.window.entries() {
            let Some(entries) = view.entries_from(&self.pool, index) else {
                index = view.behind_missing(&self.pool, index);
                continue;
            };
            let left = usize::try_from(table.window.entries() - index).unwrap_or(usize::MAX);
            let entries = entries.get(..left.min(STEP)).unwrap_or(entries);
            act(index, entries)?;
            index += entries.len() as u64;
        }
        Ok(())
    }
}

/// Writes the entries from `index` on into a new hardware table.
fn replay_step<D: EntryDriver, const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize>(
    session: &Session<'_, '_, D, GROUPS, CONTEXTS, CPUS>,
    handle: ContextHandle,
    table: &GuestTable,
    (index, entries): (u64, &[[AtomicU64; 2]]),
) -> Result<(), HcallError> {
    let mut hint = 0;
    let mut connected = Connected::one(session.context(handle)?);
    let mut owed = session.owed();
    let mut replayed = Ok(());
    for (index, cells) in (index..).zip(entries) {
        let span = Span { ioba: table.window.ioba(index), bytes: table.window.page_bytes() };
        replayed = replayed.and_then(|()| {
            replay_entry(session, &mut hint, &mut connected, span, Entry::of(cells), &mut owed)
        });
    }
    connected.finish(session, owed)?;
    replayed
}

/// Writes one entry into a new hardware table, if it maps something. What a newer call may have put there is the same.
fn replay_entry<D: EntryDriver, const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize>(
    session: &Session<'_, '_, D, GROUPS, CONTEXTS, CPUS>,
    hint: &mut u32,
    connected: &mut Connected<'_, D, 1>,
    span: Span,
    entry: Entry<'_>,
    owed: &mut portcullis_iommu::Owed<'_, CPUS>,
) -> Result<(), HcallError> {
    let word = entry.take::<VirtualMode>().ok_or(HcallError::Iommu(Error::Busy))?;
    let mut replay = || {
        let tce = GuestTce::new(entry.form());
        let page = memory(session, hint, tce.address(), span.bytes)?;
        connected.admits(session, &page)?;
        connected.prepare::<VirtualMode, GROUPS, CONTEXTS, CPUS>(session, span)?;
        connected.replace(session, span, Some((&page, tce.access())), owed)
    };
    let replayed = if word.is_live() { replay() } else { Ok(()) };
    entry.give(word);
    replayed.map_err(|stop| not_replayed(stop, span.ioba))
}

fn not_replayed(stop: Stop, ioba: u64) -> HcallError {
    match stop {
        Stop::Lacking(Why::Contended) => Error::Busy.into(),
        Stop::Lacking(Why::NeedPages) => Error::NeedPages { count: 1 }.into(),
        _ => HcallError::NotReplayed { ioba },
    }
}

/// Checks that a hardware table can stand behind a window.
fn fits<D: EntryDriver, const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize>(
    session: &Session<'_, '_, D, GROUPS, CONTEXTS, CPUS>,
    inside: &Inside<'_, D>,
    table: &GuestTable,
) -> Result<(), HcallError> {
    let (aperture, window) = (session.aperture(inside), table.window);
    let bytes = session.page_bytes(inside);
    let guest = IoPageSize::from_shift(window.page_shift).unwrap_or(IoPageSize::SIZE_4K);
    if bytes > guest.bytes() {
        return Err(HcallError::IommuPageTooLarge { bytes, guest });
    }
    if guest.bytes() / MOST_SPANNED > bytes {
        return Err(HcallError::GuestPageTooLarge { guest, bytes });
    }
    let range = aperture.range;
    if range.start() != Iova::new(window.start) || range.bytes() < window.bytes {
        return Err(HcallError::OtherWindow { range });
    }
    Ok(())
}

/// A place that is free, or whose context has ended.
fn free_place<'p, D: EntryDriver, const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize>(
    session: &Session<'_, '_, D, GROUPS, CONTEXTS, CPUS>,
    slot: &'p Slot,
) -> Result<&'p Place, HcallError> {
    let free = |place: &&Place| match place.held().handle() {
        None => true,
        Some(handle) => matches!(session.context(handle), Err(Error::Stale { .. })),
    };
    slot.places().iter().find(free).ok_or(HcallError::NO_PLACE)
}
