//! H_PUT_TCE_INDIRECT and H_STUFF_TCE: many entries a call.
#![allow(missing_docs, reason = "tests document themselves by their names")]

mod guest;
mod machine;

use guest::{
    BIG, BUSY, Guest, LIOBN, LIST, NEXT, PAGES, PARAMETER, SMALL, SUCCESS, budget, calls, counted, for_ever,
    leads_to, window,
};
use machine::{GIB, KINDS, Machine, PAGE, VM};
use portcullis_hal::IoPageSize;
use portcullis_ppc_tce::hcall::{Liobn, Reply, Why, WindowSpec, opcode};

const RW: u64 = 3;
/// First entry whose view is in the second table.
const SECOND_TABLE: u64 = 512 * PAGE;

fn pages_from(start: u64, count: u64) -> Vec<u64> {
    (0..count).map(|page| (start + page * PAGE) | RW).collect()
}

#[test]
fn d20_a_list_maps_pages_of_several_regions_beside_entries_that_map_nothing() {
    for kind in KINDS {
        let machine = Machine::new(kind);
        let calls = calls(&machine);
        let mut guest = Guest::with_window(&machine, &calls);
        let (context, _claim) = guest.device(0x100, IoPageSize::SIZE_4K);
        // The last pages of one region, the first of the next, which follows in the guest only.
        let mut list = pages_from(NEXT.0 - 4 * PAGE, 8);
        list.extend([0x7000, SMALL.0 | 1, 0, SMALL.0 + PAGE | 2, BIG.0 | RW, BIG.0 | RW]);
        let ioba = SECOND_TABLE - 5 * PAGE;
        assert_eq!(guest.indirect(ioba, &list), SUCCESS);
        for (number, &tce) in (0..).zip(&list) {
            let at = ioba + number * PAGE;
            assert_eq!(guest.get(at), tce);
            let page = tce & !RW;
            let host =
                [BIG, NEXT, SMALL].iter().find(|(start, _, bytes)| (*start..start + bytes).contains(&page));
            let host = host.filter(|_| tce & RW != 0).map(|(start, host, _)| host + (page - start));
            assert_eq!(leads_to(&machine, context, at), host, "entry {number}");
        }
        assert_eq!(counted(&guest), [6, 4, 2]);
        assert_eq!(guest.indirect(ioba, &[0; 14]), SUCCESS);
        assert_eq!(counted(&guest), [0; 3]);
        machine.assert_obedient();
    }
}

#[test]
fn d21_a_list_is_put_whole_or_not_at_all() {
    let machine = Machine::new(KINDS[1]);
    let calls = calls(&machine);
    let mut guest = Guest::with_window(&machine, &calls);
    let (context, _claim) = guest.device(0x100, IoPageSize::SIZE_4K);
    assert_eq!(guest.put(0, BIG.0 | RW), SUCCESS);
    let good = pages_from(BIG.0 + PAGE, 512);
    for (bad, at) in [(SMALL.0 - PAGE | RW, 511), (BIG.0 | 4 | RW, 0), (!0, 300), (NEXT.0 + NEXT.2 | 1, 1)] {
        let mut list = good[..100].repeat(6)[..512].to_vec();
        list[at] = bad;
        assert_eq!(guest.indirect(0, &list), PARAMETER);
        assert_eq!((counted(&guest), guest.get(0), guest.get(PAGE)), ([1, 0, 0], BIG.0 | RW, 0));
        assert_eq!(leads_to(&machine, context, PAGE), None);
    }
}

#[test]
fn d22_what_is_wrong_with_a_lists_arguments_is_refused() {
    let machine = Machine::new(KINDS[1]);
    let calls = calls(&machine);
    let mut guest = Guest::with_window(&machine, &calls);
    guest.write_list(&[BIG.0 | RW; 512]);
    let liobn = u64::from(LIOBN.0);
    let wrong = [
        [liobn, 0, LIST, 513],
        [liobn, 0, LIST, u64::MAX],
        [liobn, 0, LIST + 8, 1],
        [liobn, GIB - PAGE, LIST, 2],
        [liobn, 0, SMALL.0 - PAGE, 1],
        [liobn, 0, u64::MAX << 12, 1],
        [liobn + 1, 0, LIST, 1],
        [liobn + 1, 0, LIST, 0],
    ];
    for arguments in wrong {
        assert_eq!(guest.call(opcode::PUT_TCE_INDIRECT, arguments).0, PARAMETER, "{arguments:x?}");
    }
    let unreadable = guest.real(opcode::PUT_TCE_INDIRECT, [liobn, 0, SMALL.0 - PAGE, 1]);
    assert_eq!(unreadable, Reply::TooHard(Why::Unregistered));
    assert_eq!(guest.call(opcode::PUT_TCE_INDIRECT, [liobn, 0, SMALL.0 - PAGE, 0]).0, SUCCESS);
    assert_eq!(counted(&guest), [0; 3]);
}

#[test]
fn d23_a_list_is_read_once_so_that_a_guest_cannot_change_it_after_it_was_judged() {
    let (machine, calls, _, memory) = for_ever(KINDS[1]);
    let mut guest = Guest::with_window(machine, calls);
    let (context, _claim) = guest.device(0x100, IoPageSize::SIZE_4K);
    assert_eq!(guest.put(0, BIG.0 | RW), SUCCESS);
    guest.write_list(&pages_from(BIG.0, 8));
    let list = LIST - BIG.0 + BIG.1;
    memory.after(1, move || assert!(machine.memory.write(list, &[0xff; 64])));
    let put = guest.real(opcode::PUT_TCE_INDIRECT, [LIOBN.0.into(), 0, LIST, 8]);
    assert_eq!(put.status(), SUCCESS);
    assert!(memory.was_called());
    assert_eq!(
        (guest.get(7 * PAGE), leads_to(machine, context, 7 * PAGE)),
        (BIG.0 + 7 * PAGE | RW, Some(7 * PAGE))
    );
}

#[test]
fn d24_an_entry_that_another_cpu_has_is_handed_over_then_busy_and_nothing_changes() {
    let (machine, calls, views, _) = for_ever(KINDS[1]);
    let mut guest = Guest::with_window(machine, calls);
    let (context, _claim) = guest.device(0x100, IoPageSize::SIZE_4K);
    // Both tables of the view exist; the first has the entries before `SECOND_TABLE`.
    assert_eq!(guest.indirect(SECOND_TABLE - PAGE, &pages_from(BIG.0, 2)), SUCCESS);
    assert_eq!(guest.stuff(SECOND_TABLE - PAGE, 0, 2), SUCCESS);
    guest.write_list(&pages_from(BIG.0, 8));
    let call = [LIOBN.0.into(), SECOND_TABLE - 4 * PAGE, LIST, 8];
    let regions = guest.regions;
    let liobn = u64::from(LIOBN.0);
    for uses in 1..200 {
        let mut other = Guest::on_cpu(machine, calls, 1, regions);
        let (found, heard) = std::sync::mpsc::channel();
        views.after(uses, move || {
            let put = [liobn, SECOND_TABLE - PAGE, BIG.0 | RW, 0];
            let stuff = [liobn, SECOND_TABLE - 2 * PAGE, 0, 2];
            let replies = (
                other.real(opcode::PUT_TCE, put),
                other.virt(opcode::PUT_TCE, put),
                other.virt(opcode::STUFF_TCE, stuff),
                other.virt(opcode::PUT_TCE_INDIRECT, [liobn, SECOND_TABLE - PAGE, LIST, 1]),
            );
            found.send(replies).expect("somebody listens");
        });
        assert_eq!(guest.real(opcode::PUT_TCE_INDIRECT, call).status(), SUCCESS);
        let (real, put, stuff, indirect) = heard.recv().expect("the list has more uses");
        if real == Reply::TooHard(Why::Contended) {
            assert_eq!([put.status(), stuff.status(), indirect.status()], [BUSY; 3]);
            assert_eq!(counted(&guest), [8, 0, 0]);
            assert_eq!(leads_to(machine, context, SECOND_TABLE - PAGE), Some(3 * PAGE));
            return;
        }
    }
    panic!("no use found an entry taken");
}

#[test]
fn d30_a_stuff_clears_and_the_guest_reads_back_what_it_wrote() {
    for kind in KINDS {
        let machine = Machine::new(kind);
        let calls = calls(&machine);
        let mut guest = Guest::with_window(&machine, &calls);
        let (context, _claim) = guest.device(0x100, IoPageSize::SIZE_4K);
        assert_eq!(guest.indirect(SECOND_TABLE - 50 * PAGE, &pages_from(BIG.0, 100)), SUCCESS);
        assert!(machine.read(0x100, SECOND_TABLE).is_ok());
        assert_eq!(guest.stuff(SECOND_TABLE - 49 * PAGE, 0xabc0, 98), SUCCESS);
        assert!(machine.read(0x100, SECOND_TABLE).is_err(), "the bridge has forgotten it");
        assert_eq!(counted(&guest), [2, 0, 0]);
        assert_eq!((guest.get(SECOND_TABLE), guest.get(SECOND_TABLE + 48 * PAGE)), (0xabc0, 0xabc0));
        assert_eq!(leads_to(&machine, context, SECOND_TABLE + 49 * PAGE), Some(99 * PAGE));
        for (value, count) in [(1, 1), (2, 1), (0x1003, 1), (0, PAGES + 1), (0, u64::MAX)] {
            assert_eq!(guest.stuff(0, value, count), PARAMETER);
        }
        assert_eq!(guest.stuff(0, 0, 0), SUCCESS);
        machine.assert_obedient();
    }
}

#[test]
fn d31_the_cap_of_a_window_holds_for_its_stuffs() {
    let machine = Machine::new(KINDS[1]);
    let calls = calls(&machine);
    let capped = WindowSpec { stuff_cap: Some(budget(512)), ..window() };
    calls.register(VM, LIOBN, &capped).expect("a window");
    let mut guest = Guest::new(&machine, &calls);
    assert_eq!(guest.stuff(0, 0, 512), SUCCESS);
    assert_eq!(guest.stuff(0, 0, 513), PARAMETER);
}

#[test]
fn d32_a_long_stuff_goes_on_in_steps_and_spares_what_was_mapped_behind_it_meanwhile() {
    let machine = Machine::new(KINDS[1]);
    let calls = calls(&machine);
    let small_steps = WindowSpec { budget: budget(16), ..window() };
    calls.register(VM, LIOBN, &small_steps).expect("a window");
    let mut guest = Guest::new(&machine, &calls);
    let (context, _claim) = guest.device(0x100, IoPageSize::SIZE_4K);
    assert_eq!(guest.indirect(0, &pages_from(BIG.0, 60)), SUCCESS);
    let call = [LIOBN.0.into(), 0, 0, 60];
    assert_eq!(guest.real(opcode::STUFF_TCE, call), Reply::TooHard(Why::Budget));
    assert_eq!(counted(&guest), [44, 0, 0]);
    let mut other = Guest::on_cpu(&machine, &calls, 1, guest.regions);
    assert_eq!(other.put(0, NEXT.0 | RW), SUCCESS);
    assert_eq!(guest.virt(opcode::STUFF_TCE, call), Reply::TooHard(Why::Budget));
    assert_eq!(counted(&guest), [28, 1, 0]);
    assert!(guest.vcpu.is_unfinished());
    assert_eq!(guest.real(opcode::STUFF_TCE, call), Reply::TooHard(Why::Budget));
    assert_eq!(guest.virt(opcode::STUFF_TCE, call).status(), SUCCESS);
    assert!(!guest.vcpu.is_unfinished());
    assert_eq!((counted(&guest), leads_to(&machine, context, 0)), ([0, 1, 0], Some(NEXT.1)));
    // Anew: the cursor is of that call alone.
    assert_eq!(guest.stuff(0, 0, 60), SUCCESS);
    assert_eq!(counted(&guest), [0; 3]);
}

#[test]
fn d33_a_call_that_was_abandoned_leaves_no_cursor_behind() {
    let machine = Machine::new(KINDS[1]);
    let calls = calls(&machine);
    calls.register(VM, LIOBN, &WindowSpec { budget: budget(4), ..window() }).expect("a window");
    let mut guest = Guest::new(&machine, &calls);
    let call = [LIOBN.0.into(), 0, 0, 8];
    for abandon in [true, false] {
        assert_eq!(guest.indirect(0, &pages_from(BIG.0, 8)), SUCCESS);
        assert_eq!(guest.real(opcode::STUFF_TCE, call), Reply::TooHard(Why::Budget));
        if abandon {
            guest.vcpu.abandon();
        } else {
            let _ = guest.real(opcode::GET_TCE, [LIOBN.0.into(), 0, 0, 0]);
        }
        assert_eq!(guest.put(0, BIG.0 | RW), SUCCESS);
        assert_eq!(guest.stuff(0, 0, 8), SUCCESS);
        assert_eq!((0..8).map(|page| guest.get(page * PAGE)).sum::<u64>(), 0);
    }
}

#[test]
fn d34_a_stuff_skips_what_has_no_tables_and_needs_them_only_for_what_it_must_remember() {
    let machine = Machine::new(KINDS[1]);
    let (calls, ..) = guest::calls_with(&machine, 8);
    let huge = WindowSpec { bytes: 1 << 56, view_levels: 5, ..window() };
    calls.register(VM, Liobn(7), &huge).expect("a window");
    let mut guest = Guest::new(&machine, &calls);
    let free = calls.pool().free_pages();
    let whole = [7, 0, 0, 1 << 44];
    assert_eq!(guest.real(opcode::STUFF_TCE, whole).status(), SUCCESS);
    assert_eq!(calls.pool().free_pages(), free);
    let remembered = [7, 0, 0x1000, 300];
    assert_eq!(guest.real(opcode::STUFF_TCE, remembered), Reply::TooHard(Why::NeedPages));
    assert_eq!(guest.virt(opcode::STUFF_TCE, remembered).status(), SUCCESS);
    assert_eq!(guest.call(opcode::GET_TCE, [7, 299 << 12, 0, 0]), (SUCCESS, 0x1000));
    let too_much = [7, 0, 0x2000, 1 << 14];
    assert_eq!(guest.call(opcode::STUFF_TCE, too_much).0, guest::NO_RESOURCES);
    assert_eq!(guest.call(opcode::GET_TCE, [7, 0, 0, 0]), (SUCCESS, 0x1000), "nothing changed");
    assert_eq!(guest.call(opcode::STUFF_TCE, whole).0, SUCCESS);
    assert_eq!(guest.call(opcode::GET_TCE, [7, 0, 0, 0]), (SUCCESS, 0));
}
