//! H_PUT_TCE_INDIRECT: all or nothing.

use portcullis_hal::{GuestMemory, TableMemory};
use portcullis_iommu::{EntryDriver, Owed, RegionPart, Session};

use super::{
    Hypercalls, Vcpu,
    connected::{Connected, Span, unconfirmed},
    put::memory,
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

/// Entries that follow each other in the window and in the guest's memory, or map nothing.
struct Piece<'s> {
    count: usize,
    page: Option<RegionPart<'s>>,
}

/// Where the pieces of a list are found. The same list in the same session has the same pieces each time.
struct Pieces {
    /// Entries dealt with.
    at: usize,
    /// Entries before this one are pieces of their own: their memory follows each other, and is of several regions.
    apart: usize,
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
        let (slot, _) = self.find(vcpu, liobn)?;
        let table = slot.table();
        if count > LIST_ENTRIES as u64 || list & (LIST_BYTES - 1) != 0 {
            return Err(Stop::PARAMETER);
        }
        let first = table.window.index(ioba, count).ok_or(Stop::PARAMETER)?;
        if count == 0 {
            return Ok(());
        }
        let hint = &mut vcpu.region_hint;
        let tces = vcpu.list.get_mut(..count as usize).unwrap_or_default();
        self.read_list(session, hint, list, tces)?;
        let batch = Batch { table, first, tces };
        judge(batch)?;
        let mut connected = Connected::none();
        connected.find(session, slot)?;
        self.reserve::<N>(session, hint, &connected, batch)?;
        let any_live = self.take_all::<N>(batch)?;
        let mut owed = session.owed();
        let replaced = match any_live || batch.maps() {
            true => replace_all(session, hint, &mut connected, batch, &mut owed),
            false => Ok(()),
        };
        if replaced.is_err() {
            connected.empty(session, batch.span(0, batch.tces.len()), &mut owed);
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

    /// Sees to it that nothing can be missing afterwards: memory, pages of the view, pages of the hardware tables.
    fn reserve<N: Mode>(
        &self,
        session: &Session<'_, '_, D, GROUPS, CONTEXTS, CPUS>,
        hint: &mut u32,
        connected: &Connected<'_, D>,
        batch: Batch<'_>,
    ) -> Result<(), Stop> {
        let mut pieces = Pieces::new();
        while let Some(piece) = pieces.next(session, hint, batch)? {
            if let Some(page) = &piece.page {
                connected.admits(session, page)?;
            }
        }
        if batch.maps() {
            connected.prepare::<N, GROUPS, CONTEXTS, CPUS>(session, batch.span(0, batch.tces.len()))?;
        }
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

/// Every entry that maps something names a page.
fn judge(batch: Batch<'_>) -> Result<(), Stop> {
    let is_page = |tce: GuestTce| !tce.maps() || batch.table.window.is_page(tce.address());
    let good = batch.tces.iter().all(|&tce| is_page(GuestTce::new(tce)));
    if good { Ok(()) } else { Err(Stop::PARAMETER) }
}

/// Puts all entries into the hardware tables, a piece at a time.
fn replace_all<D: EntryDriver, const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize>(
    session: &Session<'_, '_, D, GROUPS, CONTEXTS, CPUS>,
    hint: &mut u32,
    connected: &mut Connected<'_, D>,
    batch: Batch<'_>,
    owed: &mut Owed<'_, CPUS>,
) -> Result<(), Stop> {
    let mut pieces = Pieces::new();
    loop {
        let at = pieces.at;
        let Some(piece) = pieces.next(session, hint, batch)? else { return Ok(()) };
        let access = GuestTce::new(batch.tce(at)).access();
        let new = piece.page.as_ref().map(|page| (page, access));
        connected.replace(session, batch.span(at, piece.count), new, owed)?;
    }
}

impl Batch<'_> {
    #[inline]
    fn tce(&self, at: usize) -> u64 {
        self.tces.get(at).copied().unwrap_or_default()
    }

    fn maps(&self) -> bool {
        self.tces.iter().any(|&tce| GuestTce::new(tce).maps())
    }

    /// The window's part of `count` entries from the `at`th on.
    #[inline]
    fn span(&self, at: usize, count: usize) -> Span {
        let window = self.table.window;
        Span { ioba: window.ioba(self.first + at as u64), bytes: (count as u64) << window.page_shift }
    }

    /// How many entries from the `at`th on follow each other in memory, or map nothing.
    #[inline]
    fn run(&self, at: usize) -> usize {
        let rest = self.tces.get(at..).unwrap_or_default();
        let Some((&first, more)) = rest.split_first() else { return 0 };
        let page = self.table.window.page_bytes();
        if !GuestTce::new(first).maps() {
            return 1 + more.iter().take_while(|&&tce| !GuestTce::new(tce).maps()).count();
        }
        let mut next = first;
        let follows = |&&tce: &&u64| {
            next = next.wrapping_add(page);
            tce == next
        };
        1 + more.iter().take_while(follows).count()
    }
}

impl Pieces {
    const fn new() -> Self {
        Self { at: 0, apart: 0 }
    }

    /// The next piece, or `None` behind the last one.
    #[inline]
    fn next<'s, D: EntryDriver, const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize>(
        &mut self,
        session: &'s Session<'_, '_, D, GROUPS, CONTEXTS, CPUS>,
        hint: &mut u32,
        batch: Batch<'_>,
    ) -> Result<Option<Piece<'s>>, Stop> {
        let tce = GuestTce::new(batch.tce(self.at));
        let run = if self.at < self.apart { 1 } else { batch.run(self.at) };
        if run == 0 {
            return Ok(None);
        }
        if !tce.maps() {
            self.at += run;
            return Ok(Some(Piece { count: run, page: None }));
        }
        let page = batch.table.window.page_bytes();
        let bytes = (run as u64).wrapping_mul(page);
        match memory(session, hint, tce.address(), bytes) {
            Ok(found) => {
                self.at += run;
                Ok(Some(Piece { count: run, page: Some(found) }))
            }
            Err(stop) if run == 1 => Err(stop),
            Err(_) => {
                self.apart = self.at + run;
                self.at += 1;
                let found = memory(session, hint, tce.address(), page)?;
                Ok(Some(Piece { count: 1, page: Some(found) }))
            }
        }
    }
}
