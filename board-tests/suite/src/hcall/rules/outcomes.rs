//! D24, D41, D42, D44: what else a call may come to.

use crate::{
    Failure,
    hcall::{
        call::{BOTH, BUSY, Call, HARDWARE, LIST_ENTRIES, NOT_ENOUGH_RESOURCES},
        guest::{Guest, Reach, ensure},
        port::{Control, Deed, GuestPort, Moment},
    },
};

const ENTRY: u64 = 5;
/// 512 entries from here on lie in several tables.
const FIRST: u64 = 300;

pub(super) fn no_page_to_be_had<P: GuestPort>(guest: &mut Guest<'_, P>) -> Result<(), Failure> {
    let (tce, what) = (guest.plain(3, BOTH), "no page for tables to be had");
    let status = guest.put(FIRST, tce);
    guest.commits(status)?;
    guest.write_list(LIST_ENTRIES, |_| tce);
    let (liobn, far) = (guest.window.liobn, guest.ioba(FIRST + LIST_ENTRIES));
    let calls = [
        Call::put(liobn, far, tce),
        Call::put(liobn, far, 4),
        guest.indirect_call(FIRST, LIST_ENTRIES),
        Call::stuff(liobn, guest.ioba(FIRST), 4, LIST_ENTRIES),
    ];
    for call in calls {
        guest.controls(Control::Starve(true))?;
        guest.refuses(what, call, NOT_ENOUGH_RESOURCES)?;
        guest.holds(FIRST, tce)?;
        guest.holds_each(FIRST + 1, LIST_ENTRIES, |_| 0)?;
        guest.counts(1)?;
        // Clearing what was never written needs nothing.
        let status = guest.put(FIRST + LIST_ENTRIES, 0);
        guest.commits(status)?;
        guest.controls(Control::Starve(false))?;
    }
    for call in calls {
        let answer = guest.call(call);
        guest.commits(answer.status)?;
    }
    guest.holds_each(FIRST, LIST_ENTRIES, |_| 4)
}

/// The ways to take a page away from devices: each call replaces or clears [`ENTRY`].
fn ways<P: GuestPort>(guest: &mut Guest<'_, P>) -> [Call; 5] {
    let (liobn, ioba, other) = (guest.window.liobn, guest.ioba(ENTRY), guest.plain(4, BOTH));
    guest.write_list(2, |number| if number == 0 { other } else { 0 });
    [
        Call::put(liobn, ioba, other),
        Call::put(liobn, ioba, 0),
        Call::stuff(liobn, ioba, 0, 1),
        Call::indirect(liobn, ioba, guest.list(), 2),
        Call::indirect(liobn, ioba - guest.window.page_bytes(), guest.list(), 2),
    ]
}

pub(super) fn memory_is_released_after_the_kill<P: GuestPort>(
    guest: &mut Guest<'_, P>,
) -> Result<(), Failure> {
    guest.set_bench()?;
    let (small, ioba) = (guest.layout().small(), guest.ioba(ENTRY));
    for call in ways(guest) {
        let status = guest.put(ENTRY, small.guest | BOTH);
        guest.commits(status)?;
        // Now hardware has the entry in its cache.
        guest.reaches(ioba, small.guest, Reach::ALL)?;
        guest.refuses_control("end the registration of mapped memory", Control::Unregister(small))?;
        let answer = guest.call(call);
        guest.commits(answer.status)?;
        guest.reaches(ioba, small.guest, Reach::NOTHING)?;
        ensure(guest.unregisters(small), "memory that is not mapped any more was not released")?;
        guest.refuses_put("memory whose registration has ended", ENTRY, small.guest | BOTH)?;
        guest.controls(Control::Register(small))?;
    }
    Ok(())
}

pub(super) fn contended_entry<P: GuestPort>(guest: &mut Guest<'_, P>) -> Result<(), Failure> {
    let (first, old, new) = (ENTRY - 2, guest.plain(2, BOTH), guest.plain(3, BOTH));
    let other = guest.plain(6, BOTH);
    let status = guest.indirect(first, 4, |_| old);
    guest.commits(status)?;
    guest.write_list(4, |_| other);
    let liobn = guest.window.liobn;
    let inner = [
        Call::put(liobn, guest.ioba(ENTRY), other),
        Call::put(liobn, guest.ioba(ENTRY), 0),
        guest.indirect_call(first, 4),
        Call::stuff(liobn, guest.ioba(ENTRY), 0, 1),
    ];
    for inner in inner {
        let put = Call::put(liobn, guest.ioba(ENTRY), new);
        let (answer, contender) = guest.call_while(put, Moment::Taken, Deed::Call(inner))?;
        guest.was_refused("an entry that another CPU is changing", contender.status, BUSY)?;
        guest.commits(answer.status)?;
        guest.holds_each(first, 4, |number| if number == 2 { new } else { old })?;
        guest.counts(4)?;
    }
    let answer = guest.call(inner[2]);
    guest.commits(answer.status)?;
    guest.holds_each(first, 4, |_| other)
}

pub(super) fn unconfirmed_kill<P: GuestPort>(guest: &mut Guest<'_, P>) -> Result<(), Failure> {
    let (small, new) = (guest.layout().small(), guest.plain(4, BOTH));
    let status = guest.put(ENTRY, small.guest | BOTH);
    guest.commits(status)?;
    guest.controls(Control::Deafen(true))?;
    let put = Call::put(guest.window.liobn, guest.ioba(ENTRY), new);
    guest.refuses("a kill that hardware does not confirm", put, HARDWARE)?;
    guest.holds(ENTRY, new)?;
    // The device may still reach the old page.
    guest.counts(2)?;
    guest.refuses_control("end the registration of memory within reach", Control::Unregister(small))?;
    guest.controls(Control::Deafen(false))?;
    guest.refuses_control("end the registration of memory within reach", Control::Unregister(small))
}
