//! D30 to D32: H_STUFF_TCE.

use crate::{
    Failure,
    hcall::{
        call::{BOTH, Call, LIST_ENTRIES, PARAMETER, READ, SUCCESS},
        guest::{Guest, Reach, ensure},
        port::{BUDGET, Deed, GuestPort, Moment},
    },
};

/// Maps `count` entries from `first` on.
fn map<P: GuestPort>(guest: &mut Guest<'_, P>, first: u64, count: u64) -> Result<(), Failure> {
    let tce = guest.plain(3, BOTH);
    let status = guest.indirect(first, count, |_| tce);
    guest.commits(status)
}

pub(super) fn value_with_permission<P: GuestPort>(guest: &mut Guest<'_, P>) -> Result<(), Failure> {
    map(guest, 10, 4)?;
    let (liobn, ioba, mapped) = (guest.window.liobn, guest.ioba(10), guest.plain(3, BOTH));
    for value in [1, 2, 3, guest.plain(4, READ), mapped, !0] {
        for count in [1, 4] {
            let call = Call::stuff(liobn, ioba, value, count);
            guest.refuses("a value with a permission", call, PARAMETER)?;
        }
        guest.holds_each(10, 4, |_| mapped)?;
    }
    guest.counts(4)
}

pub(super) fn any_other_value_clears<P: GuestPort>(guest: &mut Guest<'_, P>) -> Result<(), Failure> {
    guest.set_bench()?;
    let (page, wild) = (guest.plain(3, 0), guest.layout().wild().guest);
    for value in [0, 4, guest.plain(9, 0), wild + 8, !3] {
        for count in [0, 1, 2, 10] {
            map(guest, 250, 12)?;
            let status = guest.stuff(251, value, count);
            guest.commits(status)?;
            guest.holds_each(251, count, |_| value)?;
            guest.holds_each(251 + count, 11 - count, |_| page | BOTH)?;
            guest.holds(250, page | BOTH)?;
            guest.counts(13 - count)?;
            if guest.is_slow() && count != 10 {
                continue;
            }
            let reach = if count > 0 { Reach::NOTHING } else { Reach::ALL };
            guest.reaches(guest.ioba(251), page, reach)?;
            guest.reaches(guest.ioba(251 + count), page, Reach::ALL)?;
        }
    }
    Ok(())
}

pub(super) fn cap_of_the_window<P: GuestPort>(guest: &mut Guest<'_, P>) -> Result<(), Failure> {
    let (capped, main) = (guest.layout().capped(), guest.layout().main());
    guest.use_window(capped);
    map(guest, 0, LIST_ENTRIES)?;
    for count in [LIST_ENTRIES + 1, capped.entries] {
        let call = Call::stuff(capped.liobn, capped.start, 4, count);
        guest.refuses("more entries than the window's cap", call, PARAMETER)?;
    }
    let mapped = guest.plain(3, BOTH);
    guest.holds_each(0, LIST_ENTRIES, |_| mapped)?;
    let status = guest.stuff(0, 4, LIST_ENTRIES);
    guest.commits(status)?;
    guest.holds_each(0, LIST_ENTRIES, |_| 4)?;
    guest.use_window(main);
    map(guest, 0, LIST_ENTRIES)?;
    map(guest, main.entries - LIST_ENTRIES, LIST_ENTRIES)?;
    let status = guest.stuff(0, 8, main.entries);
    guest.commits(status)?;
    guest.holds_each(0, main.entries, |_| 8)?;
    guest.counts(0)
}

pub(super) fn newer_mapping_stays<P: GuestPort>(guest: &mut Guest<'_, P>) -> Result<(), Failure> {
    let (count, newer) = (3 * u64::from(BUDGET) + 5, guest.plain(7, BOTH));
    map(guest, 0, count)?;
    let stuff = Call::stuff(guest.window.liobn, guest.ioba(0), 4, count);
    let put = Deed::Call(Call::put(guest.window.liobn, guest.ioba(0), newer));
    let (answer, put) = guest.call_while(stuff, Moment::NextStep, put)?;
    ensure(put.status == SUCCESS, "the second virtual CPU was refused between two steps")?;
    guest.commits(answer.status)?;
    guest.holds(0, newer)?;
    guest.holds_each(1, count - 1, |_| 4)?;
    guest.counts(1)?;
    // The same call, made anew, begins at its beginning.
    let status = guest.stuff(0, 4, count);
    guest.commits(status)?;
    guest.holds_each(0, count, |_| 4)?;
    guest.counts(0)
}
