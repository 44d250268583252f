//! H_STUFF_TCE.

use portcullis_hal::{GuestMemory, TableMemory, sync::AtomicU64};
use portcullis_iommu::{EntryDriver, Owed, Session};

use super::{
    Hypercalls, Vcpu,
    connected::{Connected, Span, unconfirmed},
    reply::{Mode, Stop, Why},
    slot::{GuestTable, Liobn},
    spec::GuestTce,
    vcpu::{Progress, Stuff},
    view::{Entry, Take, Word},
};

/// The entries of one call.
#[derive(Clone, Copy)]
struct Range {
    table: GuestTable,
    /// Entries of one step.
    budget: u32,
    first: u64,
    count: u64,
    /// What the guest writes into them.
    form: u64,
}

/// Entries of one table of the view that this CPU has taken.
struct Taken {
    count: usize,
    /// Whether one of them maps memory.
    live: bool,
    /// Whether another CPU has the next one.
    contended: bool,
}

impl<D, V, M, const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize, const WINDOWS: usize>
    Hypercalls<'_, D, V, M, GROUPS, CONTEXTS, CPUS, WINDOWS>
where
    D: EntryDriver,
    V: TableMemory,
    M: GuestMemory,
{
    /// One step of the call: at most as many entries as the window's budget says. A step that does not finish the call
    /// leaves the cursor where the next one goes on: starting over would clear what others have mapped since.
    // A frame of its own, or the stack of each call would be that of the largest.
    #[inline(never)]
    pub(super) fn stuff_tce<N: Mode>(
        &self,
        session: &Session<'_, '_, D, GROUPS, CONTEXTS, CPUS>,
        vcpu: &mut Vcpu,
        [liobn, ioba, value, count]: [u64; 4],
    ) -> Result<(), Stop> {
        let slot = self.find(vcpu, liobn)?;
        let (table, limits) = (slot.table(), slot.limits());
        if GuestTce::new(value).maps() || count > limits.stuff_cap {
            return Err(Stop::PARAMETER);
        }
        let first = table.window.index(ioba, count).ok_or(Stop::PARAMETER)?;
        let call = Stuff { liobn: Liobn(liobn as u32), ioba, value, count };
        let mut progress = vcpu.resume(call);
        let range = Range { table, budget: limits.budget, first, count, form: value };
        let stepped = self.provide_range::<N>(range, &mut progress).and_then(|()| {
            let mut connected = Connected::none();
            connected.find(session, slot)?;
            self.clear_step::<N>(session, &mut connected, range, &mut progress)
        });
        match stepped {
            Err(stop @ Stop::Lacking(_)) if progress.cleared == 0 => Err(stop),
            Err(Stop::Lacking(why) | Stop::Unfinished(why)) => {
                vcpu.stop(call, progress);
                Err(Stop::Unfinished(why))
            }
            finished => finished,
        }
    }

    /// Sees to it that the view has all tables, where there is something to remember, before the first entry changes.
    fn provide_range<N: Mode>(&self, range: Range, progress: &mut Progress) -> Result<(), Stop> {
        if range.form == 0 {
            return Ok(());
        }
        let view = range.table.view;
        for _ in 0..range.budget {
            if progress.provided >= range.count {
                return Ok(());
            }
            let index = range.first + progress.provided;
            match view.entries_from(&self.pool, index) {
                Some(entries) => progress.provided += entries.len() as u64,
                None => self.provide_view::<N>(view, index)?,
            }
        }
        if progress.provided >= range.count { Ok(()) } else { Err(Stop::Unfinished(Why::Budget)) }
    }

    /// Clears entries from the cursor on, kills, counts out.
    fn clear_step<N: Mode>(
        &self,
        session: &Session<'_, '_, D, GROUPS, CONTEXTS, CPUS>,
        connected: &mut Connected<'_, D>,
        range: Range,
        progress: &mut Progress,
    ) -> Result<(), Stop> {
        let mut owed = session.owed();
        let cleared = self.clear_up_to_budget::<N>(session, connected, range, progress, &mut owed);
        connected.finish(session, owed).map_err(unconfirmed)?;
        cleared
    }

    /// Ends after as many rounds as the budget has entries: each deals with one entry, or with a missing table.
    fn clear_up_to_budget<N: Mode>(
        &self,
        session: &Session<'_, '_, D, GROUPS, CONTEXTS, CPUS>,
        connected: &mut Connected<'_, D>,
        range: Range,
        progress: &mut Progress,
        owed: &mut Owed<'_, CPUS>,
    ) -> Result<(), Stop> {
        let mut left = range.budget as usize;
        while progress.cleared < range.count {
            if left == 0 {
                return Err(Stop::Unfinished(Why::Budget));
            }
            let index = range.first + progress.cleared;
            let Some(entries) = range.table.view.entries_from(&self.pool, index) else {
                let behind = range.table.view.behind_missing(&self.pool, index);
                progress.cleared = (behind - range.first).min(range.count);
                left -= 1;
                continue;
            };
            let most = left.min(usize::try_from(range.count - progress.cleared).unwrap_or(usize::MAX));
            let entries = entries.get(..most).unwrap_or(entries);
            let dead = skip_dead(entries, range.form);
            let rest = entries.get(dead..).unwrap_or_default();
            let taken = take_entries::<N>(rest, range.form);
            let span = Span {
                ioba: range.table.window.ioba(index + dead as u64),
                bytes: (taken.count as u64) << range.table.window.page_shift,
            };
            let replaced = match taken.live {
                true => connected.replace(session, span, None, owed),
                false => Ok(()),
            };
            write_entries(rest, taken.count, range.form);
            replaced?;
            progress.cleared += (dead + taken.count) as u64;
            left = left.saturating_sub((dead + taken.count).max(1));
            if taken.contended {
                return Err(Stop::Lacking(Why::Contended));
            }
        }
        Ok(())
    }
}

/// How many entries at the beginning are what they shall be.
#[inline]
fn skip_dead(entries: &[[AtomicU64; 2]], form: u64) -> usize {
    entries.iter().take_while(|cells| Entry::of(cells).is_dead_as(form)).count()
}

/// Takes entries up to the first that is contended, or is what it shall be.
#[inline]
fn take_entries<N: Mode>(entries: &[[AtomicU64; 2]], form: u64) -> Taken {
    let (mut live, mut contended) = (Word::DEAD, false);
    let last = entries.iter().position(|cells| match Entry::of(cells).take_unless_dead_as::<N>(form) {
        Take::Taken(word) => {
            live = live.or(word);
            false
        }
        ended => {
            contended = matches!(ended, Take::Contended);
            true
        }
    });
    Taken { count: last.unwrap_or(entries.len()), live: live.is_live(), contended }
}

/// Gives entries up that were taken, with what the guest writes into them.
#[inline]
fn write_entries(entries: &[[AtomicU64; 2]], count: usize, form: u64) {
    for entry in entries.get(..count).unwrap_or(entries).iter().map(Entry::of) {
        entry.write(form, Word::DEAD);
    }
}
