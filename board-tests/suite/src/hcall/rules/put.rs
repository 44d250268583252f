//! D10 to D16: H_PUT_TCE and H_GET_TCE.

use crate::{
    Failure,
    hcall::{
        call::{BOTH, Call, READ, SUCCESS, WRITE},
        guest::{Guest, Reach, ensure, reach_of},
        port::{Area, Control, Deed, GuestPort, Moment},
    },
};

/// The entry that the rules change.
const ENTRY: u64 = 5;

/// Entries without permission, with whatever address.
fn without_permission<P: GuestPort>(guest: &Guest<'_, P>) -> [u64; 6] {
    [guest.plain(3, 0), guest.layout().wild().guest, !3, 4, 1 << 63, 0]
}

pub(super) fn permissions<P: GuestPort>(guest: &mut Guest<'_, P>) -> Result<(), Failure> {
    guest.set_bench()?;
    let page = guest.plain(3, 0);
    for permissions in [BOTH, READ, WRITE, READ, BOTH, 0, WRITE, 0] {
        let status = guest.put(ENTRY, page | permissions);
        guest.commits(status)?;
        guest.holds(ENTRY, page | permissions)?;
        guest.reaches(guest.ioba(ENTRY), page, reach_of(permissions))?;
        guest.counts(1 + u64::from(permissions != 0))?;
    }
    Ok(())
}

pub(super) fn another_page_in_its_place<P: GuestPort>(guest: &mut Guest<'_, P>) -> Result<(), Failure> {
    guest.set_bench()?;
    let (old, new) = (guest.plain(3, 0), guest.plain(4, 0));
    let status = guest.put(ENTRY, old | BOTH);
    guest.commits(status)?;
    guest.reaches(guest.ioba(ENTRY), old, Reach::ALL)?;
    let status = guest.put(ENTRY, new | BOTH);
    guest.commits(status)?;
    guest.reaches(guest.ioba(ENTRY), old, Reach::NOTHING)?;
    guest.reaches(guest.ioba(ENTRY), new, Reach::ALL)?;
    guest.counts(2)
}

pub(super) fn misaligned_address<P: GuestPort>(guest: &mut Guest<'_, P>) -> Result<(), Failure> {
    for window in [guest.layout().main(), guest.layout().coarse()] {
        guest.use_window(window);
        let page = guest.plain(0, 0);
        let status = guest.put(ENTRY, page | READ);
        guest.commits(status)?;
        for (bit, permissions) in (2..window.page_shift).flat_map(|bit| (1..=BOTH).map(move |p| (bit, p))) {
            let what = "an address that is not page aligned";
            guest.refuses_put(what, ENTRY, page | 1 << bit | permissions)?;
        }
    }
    Ok(())
}

pub(super) fn not_registered<P: GuestPort>(guest: &mut Guest<'_, P>) -> Result<(), Failure> {
    let (wild, small) = (guest.layout().wild(), guest.layout().small());
    for window in [guest.layout().main(), guest.layout().coarse()] {
        guest.use_window(window);
        let status = guest.put(ENTRY, guest.plain(0, READ));
        guest.commits(status)?;
        for permissions in 1..=BOTH {
            let what = "memory that is not registered";
            guest.refuses_put(what, ENTRY, wild.guest | permissions)?;
            guest.refuses_put(what, ENTRY, (u64::MAX << window.page_shift) | permissions)?;
            guest.refuses_put(what, ENTRY, 1 << 63 | permissions)?;
        }
    }
    let half = small.guest + (1 << guest.window.page_shift);
    guest.refuses_put("a page of which only a half is registered", ENTRY, half | BOTH)
}

pub(super) fn registered_by_then<P: GuestPort>(guest: &mut Guest<'_, P>) -> Result<(), Failure> {
    let wild = guest.layout().wild();
    let put = Call::put(guest.window.liobn, guest.ioba(ENTRY), wild.guest | BOTH);
    let deed = Deed::Control(Control::Register(wild));
    let (answer, registered) = guest.call_while(put, Moment::HandedOver, deed)?;
    ensure(registered.status == SUCCESS, "the hypervisor could not register memory meanwhile")?;
    guest.commits(answer.status)?;
    guest.holds(ENTRY, wild.guest | BOTH)?;
    guest.counts(1)?;
    let status = guest.put(ENTRY, 0);
    guest.commits(status)?;
    ensure(guest.unregisters(wild), "memory that is not mapped any more was not released")
}

pub(super) fn no_permission_unmaps<P: GuestPort>(guest: &mut Guest<'_, P>) -> Result<(), Failure> {
    guest.set_bench()?;
    let page = guest.plain(3, 0);
    for tce in without_permission(guest) {
        let status = guest.put(ENTRY, page | BOTH);
        guest.commits(status)?;
        guest.reaches(guest.ioba(ENTRY), page, Reach::ALL)?;
        // The second time there is nothing to take away.
        for _ in 0..2 {
            let status = guest.put(ENTRY, tce);
            guest.commits(status)?;
            guest.holds(ENTRY, tce)?;
            guest.counts(1)?;
        }
        guest.reaches(guest.ioba(ENTRY), page, Reach::NOTHING)?;
    }
    Ok(())
}

pub(super) fn guest_form_comes_back<P: GuestPort>(guest: &mut Guest<'_, P>) -> Result<(), Failure> {
    for window in guest.layout().windows() {
        guest.use_window(window);
        // Nothing was ever written there: no level, or an empty one.
        guest.holds_each(0, window.entries.min(64), |_| 0)?;
        guest.holds(window.entries - 1, 0)?;
        for permissions in 0..=BOTH {
            let status = guest.put(ENTRY, guest.plain(0, permissions));
            guest.commits(status)?;
            guest.holds(ENTRY, guest.plain(0, permissions))?;
        }
        for tce in without_permission(guest) {
            let status = guest.put(ENTRY, tce);
            guest.commits(status)?;
            guest.holds(ENTRY, tce)?;
        }
        guest.holds(ENTRY - 1, 0)?;
        guest.holds(ENTRY + 1, 0)?;
    }
    Ok(())
}

/// Puts the device behind the window of 64 KiB pages, through tables of such pages or of smaller ones.
fn use_coarse<P: GuestPort>(guest: &mut Guest<'_, P>, page_shift: u8) -> Result<(), Failure> {
    let window = guest.layout().coarse();
    guest.controls(Control::Disconnect { device: 0 })?;
    guest.controls(Control::Connect { device: 0, liobn: window.liobn, page_shift })?;
    guest.use_window(window);
    guest.set_bench()
}

pub(super) fn region_of_smaller_pages<P: GuestPort>(guest: &mut Guest<'_, P>) -> Result<(), Failure> {
    use_coarse(guest, 16)?;
    let (plain, small) = (guest.layout().plain(), guest.layout().small());
    let status = guest.put(ENTRY, plain.guest | BOTH);
    guest.commits(status)?;
    guest.refuses_put("a region with smaller pages than the IOMMU's", ENTRY, small.guest | BOTH)?;
    guest.reaches(guest.ioba(ENTRY), plain.guest, Reach::ALL)?;
    guest.reaches(guest.ioba(ENTRY), small.guest, Reach::NOTHING)?;
    guest.counts(32)
}

/// The device reaches each 4 KiB of the area's first 64 KiB, or none; a slow one shows it of both ends.
fn reaches_all<P: GuestPort>(guest: &mut Guest<'_, P>, area: Area, reach: Reach) -> Result<(), Failure> {
    let step = if guest.is_slow() { 15 } else { 1 };
    (0..16).step_by(step).try_for_each(|page| {
        let ioba = guest.ioba(ENTRY) + (page << 12);
        guest.reaches(ioba, area.page(page), reach)
    })
}

pub(super) fn several_iommu_pages<P: GuestPort>(guest: &mut Guest<'_, P>) -> Result<(), Failure> {
    use_coarse(guest, 12)?;
    let (plain, small) = (guest.layout().plain(), guest.layout().small());
    for area in [plain, small] {
        let status = guest.put(ENTRY, area.guest | BOTH);
        guest.commits(status)?;
        guest.counts(32)?;
        reaches_all(guest, area, Reach::ALL)?;
    }
    reaches_all(guest, plain, Reach::NOTHING)?;
    for permissions in [READ, 0] {
        let status = guest.put(ENTRY, small.guest | permissions);
        guest.commits(status)?;
        reaches_all(guest, small, reach_of(permissions))?;
    }
    guest.counts(16)
}
