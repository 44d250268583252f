//! D20 to D23: H_PUT_TCE_INDIRECT.

use crate::{
    Failure,
    hcall::{
        call::{BOTH, Call, LIST_ENTRIES, PARAMETER, READ},
        guest::{Guest, ensure, reach_of},
        port::{Deed, GuestPort, Moment},
    },
};

/// Where lists begin: 512 entries from here on lie in several tables.
const FIRST: u64 = 300;
/// Entries of a short list.
const SHORT: u64 = 40;

/// What entries hold before a rule: every other one maps something.
fn old<P: GuestPort>(guest: &Guest<'_, P>, number: u64) -> u64 {
    let page = guest.plain(number % 8, 0);
    if number.is_multiple_of(2) { page | READ } else { page + 8 }
}

/// Fills `count` entries, one at a time.
fn fill<P: GuestPort>(guest: &mut Guest<'_, P>, count: u64) -> Result<(), Failure> {
    (0..count).try_for_each(|number| {
        let status = guest.put(FIRST + number, old(guest, number));
        guest.commits(status)
    })
}

/// All entries are as [`fill`] left them.
fn unchanged<P: GuestPort>(guest: &mut Guest<'_, P>, count: u64) -> Result<(), Failure> {
    (0..count).try_for_each(|number| guest.holds(FIRST + number, old(guest, number)))
}

/// Entries that are good.
fn write_good_list<P: GuestPort>(guest: &mut Guest<'_, P>, count: u64) {
    let base = guest.plain(8, BOTH);
    guest.write_list(count, |number| base + ((number % 8) << 12));
}

pub(super) fn list_too_long_or_misaligned<P: GuestPort>(guest: &mut Guest<'_, P>) -> Result<(), Failure> {
    fill(guest, 4)?;
    write_good_list(guest, LIST_ENTRIES);
    let (liobn, ioba, list) = (guest.window.liobn, guest.ioba(FIRST), guest.list());
    for count in [LIST_ENTRIES + 1, 600, 1 << 32 | 1, 1 << 61, 1 << 63, u64::MAX] {
        let call = Call::indirect(liobn, ioba, list, count);
        guest.refuses("a list of more than 512 entries", call, PARAMETER)?;
    }
    for bit in 0..12 {
        let call = Call::indirect(liobn, ioba, list | 1 << bit, 1);
        guest.refuses("a list that is not aligned to 4 KiB", call, PARAMETER)?;
    }
    unchanged(guest, 4)
}

pub(super) fn list_not_registered<P: GuestPort>(guest: &mut Guest<'_, P>) -> Result<(), Failure> {
    fill(guest, 4)?;
    let (liobn, ioba) = (guest.window.liobn, guest.ioba(FIRST));
    for list in [guest.layout().wild().guest, u64::MAX << 12, 1 << 63] {
        let call = Call::indirect(liobn, ioba, list, 4);
        guest.refuses("a list in memory that is not registered", call, PARAMETER)?;
    }
    unchanged(guest, 4)
}

pub(super) fn no_entries<P: GuestPort>(guest: &mut Guest<'_, P>) -> Result<(), Failure> {
    fill(guest, 2)?;
    write_good_list(guest, 2);
    let (liobn, ioba) = (guest.window.liobn, guest.ioba(FIRST));
    for list in [guest.list(), guest.layout().wild().guest] {
        let answer = guest.call(Call::indirect(liobn, ioba, list, 0));
        guest.commits(answer.status)?;
    }
    unchanged(guest, 2)
}

/// Entries that nobody may make.
fn bad_entries<P: GuestPort>(guest: &Guest<'_, P>) -> [u64; 4] {
    let wild = guest.layout().wild().guest;
    [guest.plain(3, BOTH) | 0x800, wild | READ, (u64::MAX << 12) | BOTH, 1 << 63 | BOTH]
}

pub(super) fn all_or_nothing<P: GuestPort>(guest: &mut Guest<'_, P>) -> Result<(), Failure> {
    for count in [1, SHORT, LIST_ENTRIES] {
        fill(guest, count)?;
        let counted = guest.port.counted();
        for (place, bad) in [0, count / 2, count - 1].into_iter().zip(bad_entries(guest).into_iter().cycle())
        {
            refuses_list_with(guest, count, place, bad)?;
        }
        for bad in bad_entries(guest) {
            refuses_list_with(guest, count, count - 1, bad)?;
        }
        guest.counts(counted)?;
        unchanged(guest, count)?;
    }
    Ok(())
}

fn refuses_list_with<P: GuestPort>(
    guest: &mut Guest<'_, P>,
    count: u64,
    place: u64,
    bad: u64,
) -> Result<(), Failure> {
    write_good_list(guest, count);
    let list = guest.list();
    guest.port.write(list + place * 8, bad);
    let call = guest.indirect_call(FIRST, count);
    guest.refuses("a list with one bad entry", call, PARAMETER)?;
    // The bad entry's neighbours and both ends; the whole list is looked at in the end.
    [0, place.saturating_sub(1), place, count - 1]
        .into_iter()
        .try_for_each(|number| guest.holds(FIRST + number, old(guest, number)))
}

pub(super) fn list_read_once<P: GuestPort>(guest: &mut Guest<'_, P>) -> Result<(), Failure> {
    // Tables are there, so that the call is not handed over: virtual mode would read the list anew.
    fill(guest, 4)?;
    let (list, good) = (guest.list(), guest.plain(8, BOTH));
    for changed in bad_entries(guest).into_iter().chain([guest.plain(12, BOTH), 0]) {
        guest.write_list(4, |number| good + (number << 12));
        let (call, deed) = (guest.indirect_call(FIRST, 4), Deed::Write(list + 16, changed));
        let (answer, _) = guest.call_while(call, Moment::ListRead, deed)?;
        guest.commits(answer.status)?;
        ensure(guest.port.read(list + 16) == changed, "the list was not changed meanwhile")?;
        guest.holds_each(FIRST, 4, |number| good + (number << 12))?;
        guest.counts(4)?;
    }
    Ok(())
}

pub(super) fn each_entry_as_put_makes_it<P: GuestPort>(guest: &mut Guest<'_, P>) -> Result<(), Failure> {
    guest.set_bench()?;
    let base = guest.plain(0, 0);
    // All permissions, and entries without any.
    let tce = |number: u64| {
        let page = base + ((number * 5 % 16) << 12);
        if number.is_multiple_of(4) { page + 0x7f8 } else { page | (number % 4) }
    };
    for _ in 0..2 {
        let status = guest.indirect(FIRST, LIST_ENTRIES, tce);
        guest.commits(status)?;
        guest.holds_each(FIRST, LIST_ENTRIES, tce)?;
        guest.counts(1 + LIST_ENTRIES / 4 * 3)?;
    }
    guest.holds(FIRST - 1, 0)?;
    guest.holds(FIRST + LIST_ENTRIES, 0)?;
    for number in [0, 1, 2, 3, 211, 212, 213, 510, 511] {
        let (page, permissions) = (tce(number) & !0xfff, tce(number) & BOTH);
        guest.reaches(guest.ioba(FIRST + number), page, reach_of(permissions))?;
    }
    Ok(())
}
