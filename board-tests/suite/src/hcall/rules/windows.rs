//! D02 to D04: what a call names.

use crate::{
    Failure,
    hcall::{
        call::{
            BOTH, Call, FUNCTION, GET_TCE, LIST_ENTRIES, OTHER, PARAMETER, PUT_TCE, PUT_TCE_INDIRECT,
            STUFF_TCE,
        },
        guest::Guest,
        port::{FOREIGN_LIOBN, GuestPort, NO_LIOBN, Window},
    },
};

/// Each call once, for one entry of a window, with arguments that are good by themselves.
fn each_call<P: GuestPort>(guest: &mut Guest<'_, P>, liobn: u64, ioba: u64) -> [Call; 4] {
    let (tce, list) = (guest.plain(0, BOTH), guest.list());
    guest.write_list(1, |_| tce);
    [
        Call::put(liobn, ioba, tce),
        Call::get(liobn, ioba),
        Call::stuff(liobn, ioba, 0, 1),
        Call::indirect(liobn, ioba, list, 1),
    ]
}

/// All calls are refused.
fn refuses_each<P: GuestPort>(
    guest: &mut Guest<'_, P>,
    what: &'static str,
    liobn: u64,
    ioba: u64,
) -> Result<(), Failure> {
    each_call(guest, liobn, ioba).into_iter().try_for_each(|call| guest.refuses(what, call, PARAMETER))
}

/// Runs `act` in each window with something in its first and its last entry, which must stay.
fn in_each_window<P: GuestPort>(
    guest: &mut Guest<'_, P>,
    mut act: impl FnMut(&mut Guest<'_, P>, Window) -> Result<(), Failure>,
) -> Result<(), Failure> {
    for window in guest.layout().windows() {
        guest.use_window(window);
        let (tce, last) = (guest.plain(0, BOTH), window.entries - 1);
        for entry in [0, last] {
            let status = guest.put(entry, tce);
            guest.commits(status)?;
        }
        act(guest, window)?;
        guest.holds(0, tce)?;
        guest.holds(last, tce)?;
        let status = guest.stuff(0, 0, window.entries.min(LIST_ENTRIES));
        guest.commits(status)?;
    }
    Ok(())
}

pub(super) fn ioba_misaligned<P: GuestPort>(guest: &mut Guest<'_, P>) -> Result<(), Failure> {
    in_each_window(guest, |guest, window| {
        (0..window.page_shift).try_for_each(|bit| {
            let ioba = window.ioba(1) | 1 << bit;
            refuses_each(guest, "an I/O bus address that is not page aligned", window.liobn, ioba)
        })
    })
}

pub(super) fn ioba_outside_the_window<P: GuestPort>(guest: &mut Guest<'_, P>) -> Result<(), Failure> {
    in_each_window(guest, |guest, window| {
        let page = window.page_bytes();
        // Behind the topmost window there is nothing, and below one that begins at 0 neither: then these
        // wrap, and lie outside all the same.
        let outside = [
            window.start.wrapping_sub(page),
            window.start.wrapping_sub(page * window.entries),
            window.ioba(window.entries),
            window.ioba(window.entries * 2),
            window.start ^ 1 << 63,
        ];
        outside.into_iter().try_for_each(|ioba| {
            refuses_each(guest, "an I/O bus address outside the window", window.liobn, ioba)
        })
    })
}

pub(super) fn count_beyond_the_window<P: GuestPort>(guest: &mut Guest<'_, P>) -> Result<(), Failure> {
    in_each_window(guest, |guest, window| {
        let tce = guest.plain(1, 0);
        guest.write_list(LIST_ENTRIES, |_| tce);
        let (last, more) = (window.entries - 1, window.entries + 1);
        for (entry, count) in [(last, 2), (last, 3), (window.entries / 2, window.entries / 2 + 1), (0, more)]
        {
            guest.use_window(window);
            let what = "more entries than the window has from there on";
            let (ioba, list) = (window.ioba(entry), guest.list());
            guest.refuses(what, Call::stuff(window.liobn, ioba, 0, count), PARAMETER)?;
            guest.refuses(what, Call::indirect(window.liobn, ioba, list, count), PARAMETER)?;
        }
        Ok(())
    })
}

pub(super) fn count_that_wraps<P: GuestPort>(guest: &mut Guest<'_, P>) -> Result<(), Failure> {
    in_each_window(guest, |guest, window| {
        // So many pages are 2^64 bytes.
        let around = 1 << (64 - window.page_shift);
        for count in [around, around + 1, around - 1, 1 << 63, u64::MAX, u64::MAX - 1] {
            let what = "a count that wraps around the address space";
            for entry in [0, window.entries - 1] {
                let ioba = window.ioba(entry);
                guest.refuses(what, Call::stuff(window.liobn, ioba, 0, count), PARAMETER)?;
            }
        }
        let top = u64::MAX << window.page_shift;
        let what = "a range that wraps into the window";
        let (list, tce) = (guest.list(), guest.plain(1, 0));
        guest.write_list(2, |_| tce);
        // The last page before the address space ends, and the one at its beginning.
        guest.refuses(what, Call::stuff(window.liobn, top, 0, 2), PARAMETER)?;
        guest.refuses(what, Call::indirect(window.liobn, top, list, 2), PARAMETER)
    })
}

pub(super) fn unknown_liobn<P: GuestPort>(guest: &mut Guest<'_, P>) -> Result<(), Failure> {
    let (main, ioba) = (guest.window.liobn, guest.ioba(0));
    for liobn in [NO_LIOBN, 0, u64::MAX, u64::from(u32::MAX), main | 1 << 32, main | 1 << 63] {
        refuses_each(guest, "a LIOBN that nobody has", liobn, ioba)?;
    }
    guest.holds(0, 0)
}

pub(super) fn liobn_of_another_vm<P: GuestPort>(guest: &mut Guest<'_, P>) -> Result<(), Failure> {
    let ioba = guest.ioba(0);
    refuses_each(guest, "a LIOBN of another VM", FOREIGN_LIOBN, ioba)
}

pub(super) fn other_opcode<P: GuestPort>(guest: &mut Guest<'_, P>) -> Result<(), Failure> {
    let tce = guest.plain(3, BOTH);
    let arguments = [guest.window.liobn, guest.ioba(0), tce, 1];
    let high = [GET_TCE, PUT_TCE, STUFF_TCE, PUT_TCE_INDIRECT].map(|opcode| opcode | 1 << 32);
    for opcode in [OTHER, 0, u64::MAX, PUT_TCE + 1].into_iter().chain(high) {
        guest.refuses("a call of another family", Call { opcode, arguments }, FUNCTION)?;
    }
    guest.holds(0, 0)
}
