//! D14, D50 to D52, D62: hardware tables behind a window.

use crate::{
    Failure,
    hcall::{
        call::{BOTH, Call, READ, SUCCESS},
        guest::{Guest, Reach, ensure, reach_of},
        port::{BUDGET, Control, Deed, FOREIGN_LIOBN, GuestPort, Moment, NO_LIOBN},
    },
};

const ENTRY: u64 = 5;

/// Puts a device behind the window through tables of 4 KiB pages.
fn connect<P: GuestPort>(guest: &mut Guest<'_, P>, device: usize) -> Result<(), Failure> {
    let liobn = guest.window.liobn;
    guest.controls(Control::Connect { device, liobn, page_shift: 12 })
}

/// Both devices reach exactly `reach` of a page through an entry.
fn both_reach<P: GuestPort>(
    guest: &mut Guest<'_, P>,
    entry: u64,
    page: u64,
    reach: Reach,
) -> Result<(), Failure> {
    for device in 0..2 {
        guest.use_device(device);
        guest.reaches(guest.ioba(entry), page, reach)?;
    }
    Ok(())
}

pub(super) fn tables_in_step<P: GuestPort>(guest: &mut Guest<'_, P>) -> Result<(), Failure> {
    connect(guest, 1)?;
    guest.set_bench()?;
    let (page, liobn, ioba) = (guest.plain(3, 0), guest.window.liobn, guest.ioba(ENTRY));
    for permissions in [BOTH, READ, 0, BOTH] {
        let status = guest.put(ENTRY, page | permissions);
        guest.commits(status)?;
        both_reach(guest, ENTRY, page, reach_of(permissions))?;
        guest.counts(2 + 2 * u64::from(permissions != 0))?;
    }
    let answer = guest.call(Call::stuff(liobn, ioba, 0, 1));
    guest.commits(answer.status)?;
    both_reach(guest, ENTRY, page, Reach::NOTHING)?;
    let status = guest.indirect(ENTRY, 4, |number| page + (number << 12) + BOTH);
    guest.commits(status)?;
    for number in 0..4 {
        both_reach(guest, ENTRY + number, page + (number << 12), Reach::ALL)?;
    }
    guest.counts(10)?;
    guest.controls(Control::Disconnect { device: 1 })?;
    guest.counts(5)?;
    guest.use_device(1);
    guest.reaches(ioba, page, Reach::NOTHING)?;
    guest.use_device(0);
    guest.reaches(ioba, page, Reach::ALL)
}

/// Entries over all tables of the window, with all permissions.
fn populate<P: GuestPort>(guest: &mut Guest<'_, P>) -> Result<[(u64, u64); 6], Failure> {
    let far = guest.window.entries / 2;
    let entries = [
        (0, guest.plain(1, BOTH)),
        (ENTRY, guest.layout().small().page(2) | BOTH),
        (far - 1, guest.plain(2, READ)),
        (far, guest.plain(3, 2)),
        (far + 1, guest.plain(4, 0)),
        (far + 200, guest.plain(5, BOTH)),
    ];
    for (entry, tce) in entries {
        let status = guest.put(entry, tce);
        guest.commits(status)?;
    }
    Ok(entries)
}

/// The device reaches what the entries say.
fn reaches_each<P: GuestPort>(guest: &mut Guest<'_, P>, entries: &[(u64, u64)]) -> Result<(), Failure> {
    entries.iter().try_for_each(|&(entry, tce)| {
        guest.holds(entry, tce)?;
        guest.reaches(guest.ioba(entry), tce & !BOTH, reach_of(tce & BOTH))
    })
}

pub(super) fn replay<P: GuestPort>(guest: &mut Guest<'_, P>) -> Result<(), Failure> {
    guest.set_bench()?;
    let entries = populate(guest)?;
    guest.counts(6)?;
    connect(guest, 1)?;
    guest.counts(12)?;
    guest.use_device(1);
    reaches_each(guest, &entries)?;
    guest.use_device(0);
    reaches_each(guest, &entries)
}

pub(super) fn replay_is_all_or_nothing<P: GuestPort>(guest: &mut Guest<'_, P>) -> Result<(), Failure> {
    guest.set_bench()?;
    let (entries, small, liobn) = (populate(guest)?, guest.layout().small(), guest.window.liobn);
    guest.controls(Control::Disconnect { device: 0 })?;
    guest.counts(0)?;
    ensure(guest.unregisters(small), "memory that no device reaches was not released")?;
    let again = Control::Connect { device: 0, liobn, page_shift: 12 };
    guest.refuses_control("connect tables that cannot hold every entry", again)?;
    guest.counts(0)?;
    for (entry, tce) in entries {
        guest.holds(entry, tce)?;
        guest.reaches(guest.ioba(entry), tce & !BOTH, Reach::NOTHING)?;
    }
    guest.controls(Control::Register(small))?;
    guest.controls(again)?;
    guest.counts(6)?;
    reaches_each(guest, &entries)
}

pub(super) fn tables_that_do_not_fit<P: GuestPort>(guest: &mut Guest<'_, P>) -> Result<(), Failure> {
    let (main, topmost) = (guest.layout().main().liobn, guest.layout().topmost().liobn);
    guest.controls(Control::Disconnect { device: 0 })?;
    for (what, liobn, page_shift) in [
        ("tables with larger pages than the guest's", main, 16),
        ("tables of another window", topmost, 12),
        ("a window that nobody has", NO_LIOBN, 12),
        ("a window of another VM", FOREIGN_LIOBN, 12),
    ] {
        guest.refuses_control(what, Control::Connect { device: 0, liobn, page_shift })?;
    }
    guest.controls(Control::Connect { device: 0, liobn: main, page_shift: 12 })?;
    guest.set_bench()?;
    let page = guest.plain(3, 0);
    let status = guest.put(ENTRY, page | BOTH);
    guest.commits(status)?;
    guest.reaches(guest.ioba(ENTRY), page, Reach::ALL)
}

pub(super) fn revoked_between_steps<P: GuestPort>(guest: &mut Guest<'_, P>) -> Result<(), Failure> {
    connect(guest, 1)?;
    guest.set_bench()?;
    let (count, page) = (2 * u64::from(BUDGET) + 9, guest.plain(3, 0));
    let status = guest.indirect(0, count + 1, |_| page | BOTH);
    guest.commits(status)?;
    guest.counts(2 * (count + 2))?;
    let stuff = Call::stuff(guest.window.liobn, guest.ioba(0), 0, count);
    let revoke = Deed::Control(Control::Revoke { device: 1 });
    let (answer, revoked) = guest.call_while(stuff, Moment::NextStep, revoke)?;
    ensure(revoked.status == SUCCESS, "the revocation was refused")?;
    guest.commits(answer.status)?;
    guest.counts(2)?;
    guest.reaches(guest.ioba(count), page, Reach::ALL)?;
    guest.reaches(guest.ioba(count - 1), page, Reach::NOTHING)?;
    guest.use_device(1);
    guest.reaches(guest.ioba(count), page, Reach::NOTHING)?;
    let status = guest.put(ENTRY, page | BOTH);
    guest.commits(status)?;
    guest.counts(3)
}
