//! H_PUT_TCEs that begin where the last one was.
#![allow(missing_docs, reason = "tests document themselves by their names")]

mod guest;
mod machine;

use std::time::Duration;

use guest::{BIG, Guest, LIOBN, PARAMETER, SUCCESS, calls, calls_with, counted, leads_to, window};
use machine::{GIB, KINDS, Machine, MachineClaim, PAGE, QuiesceAndAttach, VM, spec};
use portcullis_hal::{IoPageSize, Iova};
use portcullis_iommu::ContextHandle;
use portcullis_ppc_tce::{
    ContextSpec,
    hcall::{Liobn, Patience, Reply, WindowSpec, opcode},
};

const RW: u64 = 3;
/// Entries of the window whose every entry is changed: many tables.
const PAGES: u64 = 1 << 14;

/// A call that must end in real mode.
fn put(guest: &mut Guest<'_, '_>, liobn: Liobn, ioba: u64, tce: u64) {
    let reply = guest.real(opcode::PUT_TCE, [liobn.0.into(), ioba, tce, 0]);
    assert_eq!(reply.status(), SUCCESS, "{ioba:#x}");
}

/// A call that finds everything, and one that begins there.
fn know(guest: &mut Guest<'_, '_>) {
    assert_eq!(guest.put(0, BIG.0 | RW), SUCCESS);
    put(guest, LIOBN, 0, BIG.0 | RW);
}

/// Sees to it that all tables exist.
fn warm(guest: &mut Guest<'_, '_>) {
    for entry in (0..PAGES).step_by(128) {
        assert_eq!((guest.put(entry * PAGE, BIG.0 | RW), guest.put(entry * PAGE, 0)), (SUCCESS, SUCCESS));
    }
}

#[test]
fn d58_every_entry_of_a_window_is_its_own_in_whatever_order_they_are_changed() {
    for (kind, view_levels) in KINDS.into_iter().zip([2, 3, 1].into_iter().cycle()) {
        let machine = Machine::new(kind);
        let (calls, ..) = calls_with(&machine, 128);
        calls
            .register(VM, LIOBN, &WindowSpec { view_levels, bytes: PAGES * PAGE, ..window() })
            .expect("a window");
        let mut guest = Guest::new(&machine, &calls);
        let (context, _claim) = guest.device(0x100, IoPageSize::SIZE_4K);
        warm(&mut guest);
        let page = |entry: u64| (entry * 7 % (BIG.2 / PAGE)) * PAGE;
        // Odd, so that each entry is met once; large, so that most calls are in another table than the last.
        for step in [1, 4_567] {
            for entry in (0..PAGES).map(|number| number * step % PAGES) {
                put(&mut guest, LIOBN, entry * PAGE, (BIG.0 + page(entry) + (step & 2)) | 1);
            }
            assert_eq!(counted(&guest)[0], PAGES);
            for entry in 0..PAGES {
                assert_eq!(leads_to(&machine, context, entry * PAGE), Some(BIG.1 + page(entry)), "{entry}");
                assert_eq!(guest.get(entry * PAGE) & !3, BIG.0 + page(entry), "{entry}");
            }
        }
        (0..PAGES).for_each(|entry| put(&mut guest, LIOBN, entry * PAGE, 0));
        assert_eq!(counted(&guest), [0; 3]);
    }
}

/// A device of the guest, behind a window that is as long and begins at `start`.
fn device_at<'m>(guest: &mut Guest<'_, 'm>, start: u64, bytes: u64) -> (ContextHandle, MachineClaim<'m>) {
    guest.calls.register(VM, LIOBN, &WindowSpec { start, bytes, ..window() }).expect("a window");
    let shape = ContextSpec { window_start: Iova::new(start), window_bytes: bytes, ..spec(2, GIB) };
    let context = guest.machine.context(&shape);
    let mut claim = guest.machine.claim(&[0x100]);
    claim.quiesce_and_attach(context).expect("an attach");
    guest.connect(&claim).expect("a connection");
    (context, claim)
}

#[test]
fn d58_a_window_may_begin_and_end_in_the_middle_of_a_table() {
    let machine = Machine::new(KINDS[1]);
    let calls = calls(&machine);
    let mut guest = Guest::new(&machine, &calls);
    let (start, bytes) = (0x1234_5000, 4 << 20);
    let (context, _claim) = device_at(&mut guest, start, bytes);
    let page = |entry: u64| entry % (BIG.2 / PAGE) * PAGE;
    for round in 0..2 {
        for entry in 0..bytes / PAGE {
            let ioba = start + entry * PAGE;
            assert_eq!(guest.put(ioba, (BIG.0 + page(entry + round)) | RW), SUCCESS);
        }
    }
    let wrong = (0..bytes / PAGE)
        .find(|entry| leads_to(&machine, context, start + entry * PAGE) != Some(BIG.1 + page(entry + 1)));
    assert_eq!((wrong, counted(&guest)[0]), (None, bytes / PAGE));
    for outside in [start - PAGE, start + bytes] {
        assert_eq!(guest.put(outside, BIG.0 | RW), PARAMETER);
    }
}

#[test]
fn d58_entries_beside_a_window_or_of_msis_are_refused_though_they_are_in_the_same_table() {
    let machine = Machine::new(KINDS[1]);
    let calls = calls(&machine);
    let high = 0xff00_0000;
    let mut guest = Guest::new(&machine, &calls);
    let (_context, _claim) = device_at(&mut guest, high, 16 << 20);
    let first_msi = 0xffff_0000;
    assert_eq!(guest.put(first_msi - PAGE, BIG.0 | RW), SUCCESS);
    put(&mut guest, LIOBN, first_msi - 2 * PAGE, BIG.0 | RW);
    for wrong in [first_msi, high - PAGE, high + (16 << 20), first_msi - PAGE + 8] {
        assert_eq!(guest.put(wrong, BIG.0 | RW), PARAMETER, "{wrong:#x}");
    }
    assert_eq!((counted(&guest)[0], guest.get(first_msi)), (2, 0));
}

#[test]
fn d58_entries_behind_a_window_shorter_than_its_context_are_refused() {
    for kind in KINDS {
        for view_levels in 1..=3 {
            let machine = Machine::new(kind);
            let calls = calls(&machine);
            let mut guest = Guest::new(&machine, &calls);
            let bytes = 16 * PAGE;
            calls.register(VM, LIOBN, &WindowSpec { bytes, view_levels, ..window() }).expect("a window");
            let (context, _claim) = guest.device(0x100, IoPageSize::SIZE_4K);
            for entry in 0..16 {
                assert_eq!(guest.put(entry * PAGE, BIG.0 | RW), SUCCESS);
            }
            for wrong in
                [bytes, bytes + PAGE, 255 * PAGE, GIB - PAGE, u64::MAX << 12, 0_u64.wrapping_sub(bytes)]
            {
                assert_eq!(guest.put(wrong, BIG.0 | RW), PARAMETER, "{wrong:#x}");
                assert_eq!(leads_to(&machine, context, wrong), None, "{wrong:#x}");
            }
            assert_eq!(counted(&guest)[0], 16);
            let [high, low] = [1_u64 << 32 | u64::from(LIOBN.0), u64::from(Liobn(LIOBN.0).0)];
            assert_eq!(guest.call(opcode::PUT_TCE, [high, 0, BIG.0 | RW, 0]).0, PARAMETER);
            assert_eq!(guest.call(opcode::PUT_TCE, [low, 0, BIG.0 | RW, 0]).0, SUCCESS);
        }
    }
}

#[test]
fn d58_a_page_that_hardware_does_not_reach_is_refused_and_the_entry_is_free_again() {
    for kind in KINDS {
        let machine = Machine::new(kind);
        let calls = calls(&machine);
        let mut guest = Guest::with_window(&machine, &calls);
        let (context, _claim) = guest.device(0x100, IoPageSize::SIZE_4K);
        guest::register(&machine, VM, (8 * GIB, 1 << 56, 16 * PAGE));
        assert_eq!(guest.put(0, BIG.0 | RW), SUCCESS);
        for _ in 0..3 {
            assert_eq!(guest.put(0, (8 * GIB) | RW), PARAMETER);
            assert_eq!(leads_to(&machine, context, 0), Some(BIG.1));
            assert_eq!(guest.get(0), BIG.0 | RW);
        }
        assert_eq!(guest.real(opcode::PUT_TCE, [LIOBN.0.into(), 0, BIG.0 | RW, 0]).status(), SUCCESS);
        assert_eq!(guest.real(opcode::PUT_TCE, [LIOBN.0.into(), 0, 0, 0]).status(), SUCCESS);
        assert_eq!(counted(&guest), [0; 3]);
    }
}

#[test]
fn d58_guest_pages_of_several_hardware_pages_are_changed_as_a_whole() {
    let machine = Machine::new(KINDS[1]);
    let calls = calls(&machine);
    calls.register(VM, LIOBN, &WindowSpec { page_shift: 16, ..window() }).expect("a window");
    let mut guest = Guest::new(&machine, &calls);
    let (context, _claim) = guest.device(0x100, IoPageSize::SIZE_4K);
    for _ in 0..3 {
        for page in 0..4 {
            assert_eq!(guest.put(page << 16, (BIG.0 + (page << 16)) | RW), SUCCESS);
            assert_eq!(
                leads_to(&machine, context, (page << 16) + 15 * PAGE),
                Some(BIG.1 + (page << 16) + 15 * PAGE)
            );
        }
    }
    assert_eq!(counted(&guest)[0], 64);
}

#[test]
fn d58_a_call_that_comes_after_a_change_of_its_window_looks_anew() {
    for kind in KINDS {
        let machine = Machine::new(kind);
        let calls = calls(&machine);
        let mut guest = Guest::with_window(&machine, &calls);
        let (first, claim) = guest.device(0x100, IoPageSize::SIZE_4K);
        know(&mut guest);
        put(&mut guest, LIOBN, PAGE, BIG.0 | RW);
        let (second, _other) = guest.device(0x200, IoPageSize::SIZE_4K);
        assert_eq!(guest.put(PAGE, 0), SUCCESS);
        assert_eq!([first, second].map(|context| leads_to(&machine, context, PAGE)), [None; 2], "connected");
        guest.disconnect(second).expect("connected");
        put(&mut guest, LIOBN, PAGE, BIG.0 | RW);
        assert_eq!(leads_to(&machine, second, PAGE), None, "disconnected");
        guest.disconnect(first).expect("connected");
        assert_eq!(guest.put(2 * PAGE, BIG.0 | RW), SUCCESS);
        assert_eq!((leads_to(&machine, first, 2 * PAGE), counted(&guest)), (None, [0; 3]), "disconnected");
        guest.connect(&claim).expect("a connection");
        put(&mut guest, LIOBN, 3 * PAGE, BIG.0 | RW);
        assert_eq!((leads_to(&machine, first, 3 * PAGE), counted(&guest)[0]), (Some(BIG.1), 4));
    }
}

#[test]
fn d58_a_call_touches_no_window_that_was_nor_the_next_one_in_its_place() {
    let machine = Machine::new(KINDS[1]);
    let calls = calls(&machine);
    let mut guest = Guest::with_window(&machine, &calls);
    let (context, claim) = guest.device(0x100, IoPageSize::SIZE_4K);
    know(&mut guest);
    guest.remove(VM, LIOBN).expect("a window");
    let gone: Reply = guest.real(opcode::PUT_TCE, [LIOBN.0.into(), PAGE, BIG.0 | RW, 0]);
    assert_eq!((gone.status(), counted(&guest)), (PARAMETER, [0; 3]));
    let (next, liobn) = (WindowSpec { bytes: GIB / 2, view_levels: 3, ..window() }, Liobn(7));
    calls.register(VM, liobn, &next).expect("the place of the first");
    assert_eq!(guest.call(opcode::PUT_TCE, [liobn.0.into(), PAGE, BIG.0 | RW, 0]).0, SUCCESS);
    assert_eq!(leads_to(&machine, context, PAGE), None, "nothing stands behind it");
    calls.register(VM, LIOBN, &window()).expect("a window");
    guest.connect(&claim).expect("a connection");
    assert_eq!(guest.put(2 * PAGE, BIG.0 | RW), SUCCESS);
    put(&mut guest, LIOBN, 3 * PAGE, BIG.0 | RW);
    let forms = [liobn, LIOBN].map(|liobn| {
        [1, 2, 3].map(|page| guest.call(opcode::GET_TCE, [liobn.0.into(), page * PAGE, 0, 0]).1 != 0)
    });
    assert_eq!(forms, [[true, false, false], [false, true, true]]);
    assert_eq!(counted(&guest)[0], 2);
}

#[test]
fn d58_calls_on_two_windows_by_turns_each_change_their_own() {
    let machine = Machine::new(KINDS[1]);
    let calls = calls(&machine);
    let mut guest = Guest::with_window(&machine, &calls);
    let (first, _claim) = guest.device(0x100, IoPageSize::SIZE_4K);
    let (second, other) = guest.loose_device(0x200, IoPageSize::SIZE_4K);
    let liobn = Liobn(7);
    calls.register(VM, liobn, &window()).expect("another window");
    let patience = Patience { clock: &guest.clock, limit: Duration::from_millis(5) };
    calls.connect(&mut guest.seat, &other, VM, liobn, patience).expect("a connection");
    for liobn in [LIOBN, liobn] {
        assert_eq!(guest.call(opcode::PUT_TCE, [liobn.0.into(), 0, BIG.0 | RW, 0]).0, SUCCESS);
    }
    for page in (2..10).step_by(2) {
        put(&mut guest, liobn, page * PAGE, (BIG.0 + page * PAGE) | RW);
        assert_eq!(guest.put((page + 1) * PAGE, BIG.0 | RW), SUCCESS);
    }
    let lead = |context| {
        (1..10).filter(|page| leads_to(&machine, context, page * PAGE).is_some()).collect::<Vec<_>>()
    };
    assert_eq!([first, second].map(lead), [vec![3, 5, 7, 9], vec![2, 4, 6, 8]]);
}

#[test]
fn d58_a_call_changes_no_context_that_came_into_the_slot_of_the_one_it_knew() {
    let machine = Machine::new(KINDS[1]);
    let calls = calls(&machine);
    let mut guest = Guest::with_window(&machine, &calls);
    let (first, claim) = guest.device(0x100, IoPageSize::SIZE_4K);
    know(&mut guest);
    drop(claim);
    machine.iommu.destroy_context(first).expect("idle");
    let (next, _claim) = guest.loose_device(0x200, IoPageSize::SIZE_4K);
    assert_eq!(next.slot(), first.slot());
    assert_eq!(guest.put(PAGE, BIG.0 | RW), SUCCESS, "no hardware table is left");
    assert_eq!((leads_to(&machine, next, PAGE), counted(&guest)), (None, [0; 3]));
}

#[test]
fn d58_a_virtual_cpu_that_calls_elsewhere_touches_nothing_of_what_it_knew() {
    let machine = Machine::new(KINDS[1]);
    let calls = [calls(&machine), calls(&machine)];
    let mut guest = Guest::with_window(&machine, &calls[0]);
    let (first, _claim) = guest.device(0x100, IoPageSize::SIZE_4K);
    guest.calls = &calls[1];
    calls[1].register(VM, LIOBN, &window()).expect("a window");
    let (second, _other) = guest.device(0x200, IoPageSize::SIZE_4K);
    for calls in &calls {
        guest.calls = calls;
        know(&mut guest);
        assert_eq!(guest.put(0, 0), SUCCESS);
    }
    put(&mut guest, LIOBN, PAGE, BIG.0 | RW);
    guest.calls = &calls[0];
    put(&mut guest, LIOBN, 2 * PAGE, BIG.0 | RW);
    let lead = |context| [1, 2].map(|page| leads_to(&machine, context, page * PAGE).is_some());
    assert_eq!([first, second].map(lead), [[false, true], [true, false]]);
    assert_eq!([1, 2].map(|page| guest.get(page * PAGE) != 0), [false, true]);
}
