//! D40: what real mode hands over.

use crate::{
    Failure,
    hcall::{
        call::{BOTH, Call, PARAMETER, SUCCESS},
        guest::{Guest, ensure},
        port::{BUDGET, GuestPort},
    },
};

/// Makes a call that is handed over, or is not, and comes to `status`.
fn ends<P: GuestPort>(
    guest: &mut Guest<'_, P>,
    call: Call,
    handed_over: bool,
    status: i64,
) -> Result<(), Failure> {
    let before = guest.port.finished();
    let answer = guest.call(call);
    let after = guest.port.finished();
    ensure(answer.status == status, "the call came to another status")?;
    let (real, handed) = (after.real - before.real, after.handed_over - before.handed_over);
    ensure(real + handed == 1, "one call was not counted as one")?;
    ensure(handed <= u64::from(handed_over), "a call was handed over without a reason")?;
    ensure(handed == u64::from(handed_over), "real mode did what it must hand over")
}

pub(super) fn handed_over_for_a_reason<P: GuestPort>(guest: &mut Guest<'_, P>) -> Result<(), Failure> {
    let (liobn, page, list) = (guest.window.liobn, guest.plain(3, BOTH), guest.list());
    let (first, wild) = (guest.ioba(0), guest.layout().wild().guest);
    guest.write_list(16, |_| page);
    // Nothing to read, nothing to clear: no table is missing for that.
    ends(guest, Call::get(liobn, first), false, SUCCESS)?;
    ends(guest, Call::put(liobn, first, 0), false, SUCCESS)?;
    ends(guest, Call::stuff(liobn, first, 0, u64::from(BUDGET)), false, SUCCESS)?;
    // A table is missing, and then it is not.
    ends(guest, Call::put(liobn, first, page), true, SUCCESS)?;
    ends(guest, Call::put(liobn, first, page), false, SUCCESS)?;
    ends(guest, Call::put(liobn, first, 4), false, SUCCESS)?;
    ends(guest, Call::indirect(liobn, first, list, 16), false, SUCCESS)?;
    ends(guest, Call::stuff(liobn, first, 8, 16), false, SUCCESS)?;
    ends(guest, Call::put(liobn, first, wild | BOTH), true, PARAMETER)?;
    ends(guest, Call::indirect(liobn, first, wild, 1), true, PARAMETER)?;
    // What is wrong by itself is refused at once.
    ends(guest, Call::put(liobn, first, page | 8), false, PARAMETER)?;
    ends(guest, Call::put(liobn, first + 8, page), false, PARAMETER)?;
    ends(guest, Call::indirect(liobn, first, list | 8, 1), false, PARAMETER)?;
    ends(guest, Call::stuff(liobn, first, 1, 1), false, PARAMETER)?;
    ends(guest, Call::get(liobn, first + 1), false, PARAMETER)?;
    // More entries than one step deals with.
    let status = guest.indirect(0, u64::from(BUDGET) + 1, |_| page);
    guest.commits(status)?;
    ends(guest, Call::stuff(liobn, first, 0, u64::from(BUDGET)), false, SUCCESS)?;
    let status = guest.indirect(0, u64::from(BUDGET) + 1, |_| page);
    guest.commits(status)?;
    ends(guest, Call::stuff(liobn, first, 0, u64::from(BUDGET) + 1), true, SUCCESS)?;
    guest.counts(0)
}
