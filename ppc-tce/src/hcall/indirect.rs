//! H_PUT_TCE_INDIRECT: all or nothing.

use portcullis_hal::{GuestMemory, GuestPhysAddr, GuestPhysRange, TableMemory};
use portcullis_iommu::{EntryDriver, Owed, SeenRegion, Session};

use super::{
    Hypercalls, Vcpu,
    connected::{Connected, Span, unconfirmed},
    put::{memory, not_found},
    reply::{Mode, Stop, Why},
    slot::GuestTable,
    spec::{GuestTce, LIST_BYTES, LIST_ENTRIES, Status},
    view::{Entry, Word},
};

/// The entries of one call, at most 512: every loop here ends with them.
#[derive(Clone, Copy)]
struct Batch<'l> {
    table: GuestTable,
    first: u64,
    /// What the guest wants there, in a copy of our own.
    tces: &'l [u64],
}

impl<D, V, M, const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize, const WINDOWS: usize>
    Hypercalls<'_, D, V, M, GROUPS, CONTEXTS, CPUS, WINDOWS>
where
    D: EntryDriver,
    V: TableMemory,
    M: GuestMemory,
{
    /// Reads the list once, judges it, looks everything up, takes all entries; then changes them, kills, counts out.
    // A frame of its own, or the stack of each call would be that of the largest.
    #[inline(never)]
    pub(super) fn put_tce_indirect<N: Mode>(
        &self,
        session: &Session<'_, '_, D, GROUPS, CONTEXTS, CPUS>,
        vcpu: &mut Vcpu,
        [liobn, ioba, list, count]: [u64; 4],
    ) -> Result<(), Stop> {
        let slot = self.find(vcpu, liobn)?;
        let table = slot.table();
        if count > LIST_ENTRIES as u64 || list & (LIST_BYTES - 1) != 0 {
            return Err(Stop::PARAMETER);
        }
        let first = table.window.index(ioba, count).ok_or(Stop::PARAMETER)?;
        if count == 0 {
            return Ok(());
        }
        let tces = vcpu.list.get_mut(..count as usize).unwrap_or_default();
        self.read_list(session, &mut vcpu.region_hint, list, tces)?;
        let batch = Batch { table, first, tces };
        let maps = judge(batch)?;
        let mut connected = Connected::none();
        connected.find(session, slot)?;
        if maps {
            find_all(session, &mut vcpu.region_hint, &connected, batch)?;
            connected.prepare::<N, GROUPS, CONTEXTS, CPUS>(session, batch.span(batch.tces.len()))?;
        }
        self.provide_views::<N>(batch)?;
        let any_live = self.take_all::<N>(batch)?;
        let mut owed = session.owed();
        let replaced = match maps || any_live {
            true => replace_all(session, &mut vcpu.region_hint, &mut connected, batch, &mut owed),
            false => Ok(()),
        };
        if replaced.is_err() {
            connected.empty(session, batch.span(batch.tces.len()), &mut owed);
        }
        self.write_all(batch, replaced.is_ok());
        connected.finish(session, owed).map_err(unconfirmed)?;
        replaced.map_err(|_| Stop::Refused(Status::Hardware))
    }

    /// Copies the list: what the guest writes there from now on changes nothing.
    fn read_list(
        &self,
        session: &Session<'_, '_, D, GROUPS, CONTEXTS, CPUS>,
        hint: &mut u32,
        list: u64,
        tces: &mut [u64],
    ) -> Result<(), Stop> {
        let page = memory(session, hint, list, LIST_BYTES)?;
        if !self.memory.read_words(page.extent(), tces) {
            return Err(Stop::Lacking(Why::Unregistered));
        }
        for tce in tces {
            *tce = u64::from_be(*tce);
        }
        Ok(())
    }

    /// Sees to it that the view has all tables.
    fn provide_views<N: Mode>(&self, batch: Batch<'_>) -> Result<(), Stop> {
        let (mut index, end) = (batch.first, batch.first + batch.tces.len() as u64);
        while index < end {
            match batch.table.view.entries_from(&self.pool, index) {
                Some(entries) => index += entries.len() as u64,
                None => self.provide_view::<N>(batch.table.view, index)?,
            }
        }
        Ok(())
    }

    /// Takes all entries in ascending order, so that two calls never wait for each other, or none. Returns whether one
    /// of them maps memory.
    fn take_all<N: Mode>(&self, batch: Batch<'_>) -> Result<bool, Stop> {
        let (mut taken, mut live) = (0, false);
        let all = self.each_entry(batch, |_, entry| {
            let word = entry.take::<N>()?;
            live |= word.is_live();
            taken += 1;
            Some(())
        });
        if all.is_some() {
            return Ok(live);
        }
        let tces = batch.tces.get(..taken).unwrap_or_default();
        let _ = self.each_entry(Batch { tces, ..batch }, |_, entry| {
            entry.give_back();
            Some(())
        });
        Err(Stop::Lacking(Why::Contended))
    }

    /// Gives all entries up: with what the guest wants there or, when hardware tables refused, with nothing.
    fn write_all(&self, batch: Batch<'_>, replaced: bool) {
        let _ = self.each_entry(batch, |tce, entry| {
            let tce = if replaced { tce } else { 0 };
            entry.write(tce, Word::of(GuestTce::new(tce)));
            Some(())
        });
    }

    /// Calls `act` with what the guest wants and the entry, for each; `None` as soon as `act` says so, or a table is
    /// missing.
    #[inline]
    fn each_entry(&self, batch: Batch<'_>, mut act: impl FnMut(u64, Entry<'_>) -> Option<()>) -> Option<()> {
        let (mut index, mut tces) = (batch.first, batch.tces);
        while !tces.is_empty() {
            let entries = batch.table.view.entries_from(&self.pool, index)?;
            let (here, rest) = tces.split_at_checked(entries.len()).unwrap_or((tces, &[]));
            for (&tce, cells) in here.iter().zip(entries) {
                act(tce, Entry::of(cells))?;
            }
            index += here.len() as u64;
            tces = rest;
        }
        Some(())
    }
}

/// Checks that every entry that maps something names a page; returns whether one does.
fn judge(batch: Batch<'_>) -> Result<bool, Stop> {
    // Without a branch, so that several entries are judged at a time.
    let judged = batch.tces.iter().fold((0, 0), |(maps, beside), &tce| {
        let tce = GuestTce::new(tce);
        let address = if tce.maps() { tce.address() } else { 0 };
        (maps | u64::from(tce.maps()), beside | address)
    });
    if batch.table.window.is_page(judged.1) { Ok(judged.0 != 0) } else { Err(Stop::PARAMETER) }
}

/// Sees to it that the memory of all entries is there, and that all tables can map it. It is found again then.
fn find_all<D: EntryDriver, const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize>(
    session: &Session<'_, '_, D, GROUPS, CONTEXTS, CPUS>,
    hint: &mut u32,
    connected: &Connected<'_, D>,
    batch: Batch<'_>,
) -> Result<(), Stop> {
    let mut rest = batch;
    while let Some(region) = rest.region(session, hint)? {
        let run = rest.run_in(&region);
        if connected.admits(session, &region.whole()).is_err() {
            for page in rest.tces.iter().take(run).filter_map(|&tce| rest.page(tce)) {
                let page = region.part(page).ok_or(Stop::PARAMETER)?;
                connected.admits(session, &page)?;
            }
        }
        rest = rest.after(run);
    }
    Ok(())
}

/// Puts all entries into the hardware tables, a run of entries in one region at a time.
fn replace_all<D: EntryDriver, const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize>(
    session: &Session<'_, '_, D, GROUPS, CONTEXTS, CPUS>,
    hint: &mut u32,
    connected: &mut Connected<'_, D>,
    batch: Batch<'_>,
    owed: &mut Owed<'_, CPUS>,
) -> Result<(), Stop> {
    let mut rest = batch;
    while let Some(region) = rest.region(session, hint)? {
        let wanted = rest.tces.iter().map(|&tce| {
            let tce = GuestTce::new(tce);
            tce.maps().then(|| (GuestPhysAddr::new(tce.address()), tce.access()))
        });
        let place = (rest.span(1), rest.tces.len() as u64);
        let run = connected.replace_run(session, place, &region, wanted, owed)?;
        rest = rest.after(run as usize);
    }
    match rest.tces.len() {
        0 => Ok(()),
        count => connected.replace(session, rest.span(count), None, owed),
    }
}

impl<'l> Batch<'l> {
    /// The window's part of the first `count` entries.
    #[inline]
    fn span(&self, count: usize) -> Span {
        let window = self.table.window;
        Span { ioba: window.ioba(self.first), bytes: (count as u64) << window.page_shift }
    }

    /// What comes after `count` entries.
    fn after(self, count: usize) -> Self {
        let tces = self.tces.get(count..).unwrap_or_default();
        Self { first: self.first.wrapping_add(count as u64), tces, ..self }
    }

    /// The page that an entry leads to, if it maps something.
    fn page(&self, tce: u64) -> Option<GuestPhysRange> {
        let tce = GuestTce::new(tce);
        let address = GuestPhysAddr::new(tce.address());
        GuestPhysRange::new(address, self.table.window.page_bytes()).ok().filter(|_| tce.maps())
    }

    /// The region of the first entry that maps something, if there is one.
    fn region<'s, D: EntryDriver, const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize>(
        &self,
        session: &'s Session<'_, '_, D, GROUPS, CONTEXTS, CPUS>,
        hint: &mut u32,
    ) -> Result<Option<SeenRegion<'s>>, Stop> {
        let Some(&first) = self.tces.iter().find(|&&tce| GuestTce::new(tce).maps()) else {
            return Ok(None);
        };
        let region = session.region(*hint, self.page(first).ok_or(Stop::PARAMETER)?).map_err(not_found)?;
        *hint = region.slot();
        Ok(Some(region))
    }

    /// How many entries from the first on lead into the region, or nowhere.
    fn run_in(&self, region: &SeenRegion<'_>) -> usize {
        let bytes = self.table.window.page_bytes();
        let outside = |&tce: &u64| {
            let tce = GuestTce::new(tce);
            tce.maps() && !region.holds(GuestPhysAddr::new(tce.address()), bytes)
        };
        self.tces.iter().position(outside).unwrap_or(self.tces.len())
    }
}
