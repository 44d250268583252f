//! Pages that run out, hardware that does not answer, CPUs that meet.
#![allow(missing_docs, reason = "tests document themselves by their names")]

mod guest;
mod machine;

use std::thread;

use guest::{
    BIG, BUSY, Guest, HARDWARE, LIOBN, NEXT, NO_RESOURCES, SMALL, SUCCESS, calls, calls_with, counted,
    leads_to,
};
use machine::{KINDS, Machine, PAGE};
use portcullis_fake::phb::{Hang, PhbEvent, PhbKind};
use portcullis_hal::IoPageSize;
use portcullis_iommu::ContextHandle;
use portcullis_ppc_tce::hcall::{Reply, Why, opcode};

const RW: u64 = 3;
const SECOND_TABLE: u64 = 512 * PAGE;

fn pages_from(start: u64, count: u64) -> Vec<u64> {
    (0..count).map(|page| (start + page * PAGE) | RW).collect()
}

#[test]
fn d40_real_mode_takes_no_page_and_asks_for_it_once() {
    let machine = Machine::new(KINDS[1]);
    let calls = calls(&machine);
    let mut guest = Guest::with_window(&machine, &calls);
    let (_context, _claim) = guest.device(0x100, IoPageSize::SIZE_4K);
    let free = (calls.pool().free_pages(), machine.free_pages());
    guest.write_list(&pages_from(BIG.0, 4));
    let liobn = LIOBN.0.into();
    let missing = [
        (opcode::PUT_TCE, [liobn, 0, BIG.0 | RW, 0]),
        (opcode::PUT_TCE, [liobn, 0, 0x5000, 0]),
        (opcode::PUT_TCE_INDIRECT, [liobn, SECOND_TABLE - PAGE, guest::LIST, 2]),
        (opcode::STUFF_TCE, [liobn, 0, 0x5000, 1]),
    ];
    for (number, arguments) in missing {
        assert_eq!(guest.real(number, arguments), Reply::TooHard(Why::NeedPages));
    }
    assert_eq!(
        guest.real(opcode::PUT_TCE, [liobn, 0, 0, 0]).status(),
        SUCCESS,
        "there is nothing to remember"
    );
    assert_eq!((calls.pool().free_pages(), machine.free_pages()), free);
    assert_eq!(guest.virt(opcode::PUT_TCE, [liobn, 0, BIG.0 | RW, 0]).status(), SUCCESS);
    assert_eq!(guest.real(opcode::PUT_TCE, [liobn, PAGE, BIG.0 | RW, 0]).status(), SUCCESS);
}

/// Runs `call` with ever more pages, first in the views' pool, then in the driver's, until there are enough; each time
/// it is refused, nothing may have changed.
fn with_ever_more_pages(call: impl Fn(&mut Guest<'_, '_>) -> i64) {
    let mut refused = 0;
    // The root of the view takes two pages.
    for (views, tables) in (3..12).map(|pages| (pages, 256)).chain((0..9).map(|pages| (63, pages))) {
        // The driver's pool holds a bitmap and the root of a context beside what is asked for.
        let machine = Machine::with_pool(KINDS[1], tables + 2);
        let (calls, ..) = calls_with(&machine, views);
        let mut guest = Guest::with_window(&machine, &calls);
        let (context, _claim) = guest.device(0x100, IoPageSize::SIZE_4K);
        let status = call(&mut guest);
        if status != SUCCESS {
            assert_eq!(status, NO_RESOURCES);
            refused += 1;
            let changed = (508..516).map(|page| page * PAGE);
            assert!(changed.clone().all(|ioba| leads_to(&machine, context, ioba).is_none()));
            assert!(changed.clone().all(|ioba| guest.get(ioba) == 0));
            assert_eq!(counted(&guest), [0; 3]);
        }
        guest.remove(machine::VM, LIOBN).expect("a window");
        assert_eq!(calls.pool().free_pages(), views);
    }
    assert!(refused > 2, "only {refused} were refused");
}

#[test]
fn d41_whichever_page_cannot_be_had_nothing_has_changed() {
    with_ever_more_pages(|guest| guest.indirect(SECOND_TABLE - 4 * PAGE, &pages_from(BIG.0, 8)));
    with_ever_more_pages(|guest| match guest.put(SECOND_TABLE - PAGE, BIG.0 | RW) {
        SUCCESS => match guest.put(SECOND_TABLE, BIG.0 | RW) {
            SUCCESS => SUCCESS,
            refused => {
                assert_eq!(guest.put(SECOND_TABLE - PAGE, 0), SUCCESS);
                refused
            }
        },
        refused => refused,
    });
}

#[test]
fn d42_a_kill_that_is_not_confirmed_is_told_and_what_was_there_stays_counted() {
    let calls_that_replace: [fn(&mut Guest<'_, '_>) -> i64; 3] = [
        |guest| guest.put(0, NEXT.0 | RW),
        |guest| guest.indirect(0, &[NEXT.0 | RW, 0]),
        |guest| guest.stuff(0, 0, 2),
    ];
    for (kind, hang) in [(KINDS[1], Hang::Kill), (KINDS[2], Hang::Sync), (KINDS[1], Hang::Slot)] {
        for (number, call) in calls_that_replace.into_iter().enumerate() {
            let machine = Machine::new(kind);
            let calls = calls(&machine);
            let mut guest = Guest::with_window(&machine, &calls);
            let (_context, _claim) = guest.device(0x100, IoPageSize::SIZE_4K);
            assert_eq!(guest.indirect(0, &pages_from(BIG.0, 2)), SUCCESS);
            machine.phb.set_hang(Some(hang));
            assert_eq!(call(&mut guest), HARDWARE);
            assert!(machine.iommu.driver().is_quarantined());
            let new = [1, 1, 0][number];
            assert_eq!(counted(&guest), [2, new, 0], "the bridge may still lead there");
            let region = machine.iommu.unregister_memory(machine::VM, guest.regions[0]);
            assert_eq!(region, Err(portcullis_iommu::Error::StillMapped { pages: 2 }));
        }
    }
}

#[test]
fn d43_a_call_or_step_kills_once_a_context_however_many_entries_it_changes() {
    let machine = Machine::new(PhbKind::Phb4);
    let calls = calls(&machine);
    let mut guest = Guest::with_window(&machine, &calls);
    let (_first, _one) = guest.device(0x100, IoPageSize::SIZE_4K);
    let (_second, _two) = guest.device(0x200, IoPageSize::SIZE_4K);
    let mut kills = |call: &mut dyn FnMut(&mut Guest<'_, '_>) -> i64| {
        let _ = machine.events();
        assert_eq!(call(&mut guest), SUCCESS);
        machine.events().iter().filter(|event| matches!(event, PhbEvent::PeKilled { .. })).count()
    };
    assert_eq!(kills(&mut |guest| guest.indirect(0, &pages_from(BIG.0, 100))), 2);
    assert_eq!(kills(&mut |guest| guest.put(0, NEXT.0 | RW)), 2);
    assert_eq!(kills(&mut |guest| guest.stuff(0, 0, 100)), 2);
    assert_eq!(kills(&mut |guest| guest.stuff(0, 0, 100)), 0, "nothing was there");
    assert_eq!(kills(&mut |guest| guest.put(0, 0x7000)), 0);
    assert_eq!(kills(&mut |guest| guest.indirect(0, &[0, 0x8000])), 0);
}

/// Marsaglia's xorshift.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

const WINDOW: u64 = 24;
/// The window's entries lie in two tables of the view.
const START: u64 = SECOND_TABLE - WINDOW / 2 * PAGE;

fn any_call(guest: &mut Guest<'_, '_>, numbers: &mut Numbers) -> i64 {
    let ioba = START + numbers.below(WINDOW) * PAGE;
    let left = (START + WINDOW * PAGE - ioba) / PAGE;
    let count = 1 + numbers.below(left);
    let mut page = || [BIG.0, NEXT.0, SMALL.0][numbers.below(3) as usize] + numbers.below(15) * PAGE;
    match page() % 7 {
        0..4 => guest.put(ioba, page() | RW),
        4 => guest.put(ioba, page()),
        5 => guest.stuff(ioba, 0, count),
        _ => {
            // The other CPU may write its list over this one: any list will do.
            let first = page();
            let list: Vec<_> = (0..count).map(|_| first | RW).collect();
            guest.indirect(ioba, &list)
        }
    }
}

/// Counts equal live entries, and hardware what the guest wrote.
fn check(guest: &mut Guest<'_, '_>, contexts: &[ContextHandle]) {
    let mut live = [0; 3];
    for ioba in (0..WINDOW).map(|page| START + page * PAGE) {
        let form = guest.get(ioba);
        let page = form & !RW;
        let region =
            [BIG, NEXT, SMALL].iter().position(|(start, _, bytes)| (*start..start + bytes).contains(&page));
        let region = region.filter(|_| form & RW != 0);
        let host =
            region.map(|region| [BIG, NEXT, SMALL][region]).map(|(start, host, _)| host + (page - start));
        for &context in contexts {
            assert_eq!(leads_to(guest.machine, context, ioba), host, "{ioba:x}");
            if let Some(region) = region {
                live[region] += 1;
            }
        }
    }
    assert_eq!(counted(guest), live);
}

#[test]
fn d60_whatever_two_cpus_call_counts_are_live_entries_and_hardware_is_what_the_guest_wrote() {
    let machine = Machine::patient(PhbKind::Phb4);
    let calls = calls(&machine);
    let mut guest = Guest::with_window(&machine, &calls);
    let (first, _one) = guest.device(0x100, IoPageSize::SIZE_4K);
    let (second, _two) = guest.device(0x200, IoPageSize::SIZE_4K);
    let regions = guest.regions;
    for round in 0..20 {
        thread::scope(|scope| {
            for cpu in 1..3 {
                let (machine, calls) = (&machine, &calls);
                scope.spawn(move || {
                    let mut guest = Guest::on_cpu(machine, calls, cpu, regions);
                    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15 + round * 64 + cpu as u64);
                    for _ in 0..60 {
                        let status = any_call(&mut guest, &mut numbers);
                        assert!([SUCCESS, BUSY, guest::PARAMETER].contains(&status), "{status}");
                    }
                });
            }
        });
        check(&mut guest, &[first, second]);
    }
    machine.assert_obedient();
}

#[test]
fn d61_connections_come_and_go_while_guests_call_and_nothing_is_lost() {
    let machine = Machine::patient(PhbKind::Phb4);
    let calls = calls(&machine);
    let mut guest = Guest::with_window(&machine, &calls);
    let (first, _one) = guest.device(0x100, IoPageSize::SIZE_4K);
    let (second, two) = guest.loose_device(0x200, IoPageSize::SIZE_4K);
    let regions = guest.regions;
    thread::scope(|scope| {
        for cpu in 1..3 {
            let (machine, calls) = (&machine, &calls);
            scope.spawn(move || {
                let mut guest = Guest::on_cpu(machine, calls, cpu, regions);
                let mut numbers = Numbers(0x1234_5678_9abc + cpu as u64);
                for _ in 0..600 {
                    let _ = any_call(&mut guest, &mut numbers);
                }
            });
        }
        let mut connected = 0;
        for _ in 0..60 {
            if guest.connect(&two).is_ok() {
                connected += 1;
            }
            let _ = guest.disconnect(second);
        }
        assert!(connected > 0);
    });
    let _ = guest.disconnect(second);
    check(&mut guest, &[first]);
    guest.connect(&two).expect("nobody else is here");
    check(&mut guest, &[first, second]);
    machine.assert_obedient();
}

#[test]
fn d62_a_group_is_revoked_while_two_cpus_call_and_no_count_and_no_entry_is_left() {
    for round in 0..8 {
        let machine = Machine::patient(PhbKind::Phb4);
        let calls = calls(&machine);
        let mut guest = Guest::with_window(&machine, &calls);
        let (first, _one) = guest.device(0x100, IoPageSize::SIZE_4K);
        let (second, two) = guest.device(0x200, IoPageSize::SIZE_4K);
        let (regions, group) = (guest.regions, two.group());
        thread::scope(|scope| {
            for cpu in 1..3 {
                let (machine, calls) = (&machine, &calls);
                scope.spawn(move || {
                    let mut guest = Guest::on_cpu(machine, calls, cpu, regions);
                    let mut numbers = Numbers(0xfeed_5678_9abc + round * 16 + cpu as u64);
                    for _ in 0..100 {
                        let _ = any_call(&mut guest, &mut numbers);
                    }
                });
            }
            let limit = std::time::Duration::from_secs(3600);
            machine.iommu.revoke(machine::VM, group, |_| {}, &guest.clock, limit).expect("an end");
        });
        assert!(machine.iommu.iova_to_phys(second, portcullis_hal::Iova::new(0)).is_err());
        check(&mut guest, &[first]);
        assert!((0..WINDOW).all(|page| machine.read(0x200, START + page * PAGE).is_err()));
        machine.assert_obedient();
    }
}
