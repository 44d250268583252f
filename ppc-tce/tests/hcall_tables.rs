//! Windows, and the hardware tables behind them.
#![allow(missing_docs, reason = "tests document themselves by their names")]

mod guest;
mod machine;

use std::{
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    time::Duration,
};

use guest::{
    BIG, Guest, LIOBN, LIST, NEXT, PARAMETER, SMALL, SUCCESS, calls, counted, for_ever, leads_to, register,
    window,
};
use machine::{GIB, KINDS, Machine, PAGE, QuiesceAndAttach, VM, spec};
use portcullis_hal::{Clock, IoPageSize, Iova};
use portcullis_iommu::{Error, VmId};
use portcullis_ppc_tce::{
    ContextSpec,
    hcall::{HcallError, Liobn, PLACES, Patience, RealMode, Reply, Vcpu, Why, WindowSpec, opcode},
};

const RW: u64 = 3;
const OTHER: VmId = VmId(2);
const BIG_PAGE: u64 = 0x1_0000;

#[test]
fn d03_a_liobn_is_of_one_vm_and_names_one_window() {
    let machine = Machine::new(KINDS[1]);
    let calls = calls(&machine);
    let mut guest = Guest::with_window(&machine, &calls);
    let duplicate = Err(HcallError::DuplicateLiobn { vm: VM, liobn: LIOBN });
    assert_eq!(calls.register(VM, LIOBN, &window()), duplicate);
    calls.register(OTHER, LIOBN, &window()).expect("another VM's");
    calls.register(VM, Liobn(7), &window()).expect("another number");
    calls.register(OTHER, Liobn(8), &window()).expect("a number that the first VM has not");
    assert_eq!(calls.register(VM, Liobn(9), &window()), Err(HcallError::Full { capacity: 4 }));
    let unknown = VmId(u32::MAX);
    assert_eq!(calls.register(unknown, LIOBN, &window()), Err(Error::UnknownVm { vm: unknown }.into()));
    assert_eq!(guest.put(PAGE, BIG.0 | RW), SUCCESS);
    assert_eq!(guest.call(opcode::GET_TCE, [7, PAGE, 0, 0]), (SUCCESS, 0));
    assert_eq!(guest.call(opcode::GET_TCE, [8, PAGE, 0, 0]).0, PARAMETER);
    guest.vcpu = Vcpu::new(OTHER);
    assert_eq!(guest.get(PAGE), 0);
}

#[test]
fn d15_memory_of_another_vm_is_refused() {
    let machine = Machine::new(KINDS[1]);
    let calls = calls(&machine);
    let mut guest = Guest::with_window(&machine, &calls);
    register(&machine, OTHER, (4 * GIB, 0xc_0000, BIG_PAGE));
    assert_eq!(guest.put(0, BIG.0 | RW), SUCCESS);
    assert_eq!(guest.put(0, (4 * GIB) | RW), PARAMETER);
    guest.write_list(&[(4 * GIB) | RW]);
    assert_eq!(guest.indirect(0, &[(4 * GIB) | RW]), PARAMETER);
    let list_of_another = [LIOBN.0.into(), 0, 4 * GIB, 1];
    assert_eq!(guest.call(opcode::PUT_TCE_INDIRECT, list_of_another).0, PARAMETER);
    assert_eq!(guest.get(0), BIG.0 | RW);
}

#[test]
fn d13_pages_larger_than_the_regions_are_handed_over_and_refused_at_last() {
    let machine = Machine::new(KINDS[1]);
    let calls = calls(&machine);
    calls.register(VM, LIOBN, &WindowSpec { page_shift: 16, ..window() }).expect("a window");
    let mut guest = Guest::new(&machine, &calls);
    register(&machine, VM, (8 * GIB, 0xc_1000, BIG_PAGE));
    let small_pages = [LIOBN.0.into(), 0, (8 * GIB) | RW, 0];
    assert_eq!(guest.put(0, (8 * GIB) | RW), SUCCESS, "no hardware table is there yet");
    assert_eq!(guest.put(0, 0), SUCCESS);
    let (_context, _claim) = guest.device(0x100, IoPageSize::SIZE_64K);
    assert_eq!(guest.real(opcode::PUT_TCE, small_pages), Reply::TooHard(Why::Unregistered));
    assert_eq!(guest.virt(opcode::PUT_TCE, small_pages).status(), PARAMETER);
    assert_eq!(guest.indirect(0, &[BIG.0 | RW, (8 * GIB) | RW]), PARAMETER);
    assert_eq!((guest.put(0, BIG.0 | RW), counted(&guest)), (SUCCESS, [16, 0, 0]));
}

#[test]
fn d11_a_page_begins_at_a_multiple_of_the_guests_page() {
    let machine = Machine::new(KINDS[1]);
    let calls = calls(&machine);
    calls.register(VM, LIOBN, &WindowSpec { page_shift: 16, ..window() }).expect("a window");
    let mut guest = Guest::new(&machine, &calls);
    let (_context, _claim) = guest.device(0x100, IoPageSize::SIZE_4K);
    for page in [BIG.0 + PAGE, BIG.0 + 0xf000, BIG.0 + 8] {
        assert_eq!(guest.put(0, page | RW), PARAMETER);
        assert_eq!(guest.indirect(0, &[BIG.0 | RW, page | RW]), PARAMETER);
    }
    assert_eq!(guest.put(PAGE, BIG.0 | RW), PARAMETER, "so does its address on the bus");
    assert_eq!((guest.get(0), counted(&guest)), (0, [0; 3]));
}

#[test]
fn d14_a_guest_page_spans_several_pages_of_the_iommu_and_several_tables_are_kept_in_step() {
    for kind in KINDS {
        let machine = Machine::new(kind);
        let calls = calls(&machine);
        calls.register(VM, LIOBN, &WindowSpec { page_shift: 16, ..window() }).expect("a window");
        let mut guest = Guest::new(&machine, &calls);
        let (small, _first) = guest.device(0x100, IoPageSize::SIZE_4K);
        let (large, _second) = guest.device(0x200, IoPageSize::SIZE_64K);
        assert_eq!(guest.put(BIG_PAGE, (BIG.0 + BIG_PAGE) | RW), SUCCESS);
        assert_eq!(counted(&guest), [32, 0, 0], "each table counts in units of 4 KiB");
        machine.store(BIG_PAGE + 0xf123, 0x77);
        for rid in [0x100, 0x200] {
            assert_eq!(machine.read(rid, BIG_PAGE + 0xf123), Ok(0x77));
        }
        assert_eq!(guest.indirect(0, &[NEXT.0 | RW, 0, BIG.0 | 1]), SUCCESS);
        assert_eq!(counted(&guest), [32, 32, 0]);
        assert_eq!(leads_to(&machine, small, 0xf000), Some(NEXT.1 + 0xf000));
        assert_eq!((leads_to(&machine, small, BIG_PAGE), leads_to(&machine, large, BIG_PAGE)), (None, None));
        assert_eq!(guest.stuff(0, 0, 3), SUCCESS);
        assert_eq!(counted(&guest), [0; 3]);
        assert!(machine.read(0x100, 0x2_0000).is_err() && machine.read(0x200, 0x2_0000).is_err());
        machine.assert_obedient();
    }
}

#[test]
fn d50_a_connection_writes_what_the_guest_wrote_before() {
    for kind in KINDS {
        let machine = Machine::new(kind);
        let calls = calls(&machine);
        let mut guest = Guest::with_window(&machine, &calls);
        let (first, _first) = guest.device(0x100, IoPageSize::SIZE_4K);
        assert_eq!(guest.indirect(510 * PAGE, &[BIG.0 | RW, 0x5000, SMALL.0 | 1, NEXT.0 | 2]), SUCCESS);
        let (second, second_claim) = guest.loose_device(0x200, IoPageSize::SIZE_4K);
        assert!(machine.read(0x200, 510 * PAGE).is_err());
        guest.connect(&second_claim).expect("a connection");
        for ioba in (509..515).map(|page| page * PAGE) {
            assert_eq!(leads_to(&machine, first, ioba), leads_to(&machine, second, ioba));
        }
        assert!(machine.read(0x200, 510 * PAGE).is_ok());
        assert!(machine.write(0x200, 512 * PAGE, 1).is_err());
        assert_eq!(counted(&guest), [2, 2, 2]);
        guest.disconnect(second).expect("connected");
        assert!(machine.read(0x200, 510 * PAGE).is_err());
        assert_eq!((counted(&guest), leads_to(&machine, second, 510 * PAGE)), ([1, 1, 1], None));
        assert_eq!(guest.get(510 * PAGE), BIG.0 | RW);
        assert_eq!(guest.disconnect(second), Err(HcallError::NotConnected));
        guest.connect(&second_claim).expect("once more");
        assert_eq!(counted(&guest), [2, 2, 2]);
        machine.assert_obedient();
    }
}

#[test]
fn d51_a_replay_that_fails_leaves_nothing_behind() {
    let machine = Machine::new(KINDS[1]);
    let calls = calls(&machine);
    calls.register(VM, LIOBN, &WindowSpec { page_shift: 16, ..window() }).expect("a window");
    let mut guest = Guest::new(&machine, &calls);
    register(&machine, VM, (8 * GIB, 0xc_1000, BIG_PAGE));
    assert_eq!(guest.indirect(0, &[BIG.0 | RW, NEXT.0 | RW]), SUCCESS);
    assert_eq!(guest.put(600 * BIG_PAGE, (8 * GIB) | RW), SUCCESS);
    let (context, claim) = guest.loose_device(0x100, IoPageSize::SIZE_64K);
    assert_eq!(guest.connect(&claim), Err(HcallError::NotReplayed { ioba: 600 * BIG_PAGE }));
    assert_eq!((counted(&guest), leads_to(&machine, context, 0)), ([0; 3], None));
    assert!(machine.read(0x100, 0).is_err());
    assert_eq!(guest.put(BIG_PAGE, BIG.0 | RW), SUCCESS);
    assert_eq!(leads_to(&machine, context, BIG_PAGE), None, "calls do not know it");
    assert_eq!(guest.put(600 * BIG_PAGE, 0), SUCCESS);
    guest.connect(&claim).expect("all of it can be written now");
    assert_eq!(counted(&guest), [32, 0, 0]);
    assert_eq!(guest.get(0), BIG.0 | RW);
}

#[test]
fn d52_what_does_not_fit_behind_a_window_is_refused() {
    let machine = Machine::new(KINDS[1]);
    let calls = calls(&machine);
    let mut guest = Guest::with_window(&machine, &calls);
    let (_, large) = guest.loose_device(0x100, IoPageSize::SIZE_64K);
    let guest_page = IoPageSize::SIZE_4K;
    assert_eq!(
        guest.connect(&large),
        Err(HcallError::IommuPageTooLarge { bytes: BIG_PAGE, guest: guest_page })
    );
    let elsewhere = [(0, GIB / 2), (GIB, GIB)];
    for (rid, (start, bytes)) in (0x200..).zip(elsewhere) {
        let spec = ContextSpec { window_start: Iova::new(start), window_bytes: bytes, ..spec(2, GIB) };
        let context = machine.context(&spec);
        let mut claim = machine.claim(&[rid]);
        assert!(matches!(guest.connect(&claim), Err(HcallError::Iommu(Error::NotAttached { .. }))));
        claim.quiesce_and_attach(context).expect("an attach");
        let range = machine::range(start, bytes);
        assert_eq!(guest.connect(&claim), Err(HcallError::OtherWindow { range }));
    }
    let (_, claim) = guest.device(0x300, IoPageSize::SIZE_4K);
    assert_eq!(guest.connect(&claim), Err(HcallError::AlreadyConnected { liobn: LIOBN }));
    let (mapped, claim) = guest.loose_device(0x400, IoPageSize::SIZE_4K);
    machine.map(mapped, 0, 0xd_0000, PAGE).expect("a map");
    assert_eq!(guest.connect(&claim), Err(Error::OtherBacking.into()));
}

#[test]
fn d53_there_is_room_for_four_tables_and_the_place_of_one_that_ended_is_used_again() {
    let machine = Machine::new(KINDS[1]);
    let calls = calls(&machine);
    let mut guest = Guest::with_window(&machine, &calls);
    let devices: Vec<_> = (1..=PLACES as u16).map(|n| guest.device(n << 8, IoPageSize::SIZE_4K)).collect();
    assert_eq!(guest.put(0, BIG.0 | RW), SUCCESS);
    assert_eq!(counted(&guest), [4, 0, 0]);
    let (fifth, claim) = guest.loose_device(0x500, IoPageSize::SIZE_4K);
    assert_eq!(guest.connect(&claim), Err(HcallError::Full { capacity: PLACES }));
    machine.iommu.destroy_context(fifth).expect_err("in use");
    let group = devices[1].1.group();
    let clock = guest.clock.clone();
    machine.iommu.revoke(VM, group, |_| {}, &clock, std::time::Duration::from_millis(5)).expect("an end");
    assert_eq!(counted(&guest), [3, 0, 0]);
    assert_eq!(guest.put(PAGE, BIG.0 | RW), SUCCESS, "the others go on");
    assert_eq!(counted(&guest), [6, 0, 0]);
    guest.connect(&claim).expect("there is room again");
    assert_eq!((counted(&guest), leads_to(&machine, fifth, 0)), ([8, 0, 0], Some(0)));
    drop(devices);
}

#[test]
fn d54_a_window_goes_with_its_connections_and_its_pages() {
    let machine = Machine::new(KINDS[1]);
    let calls = calls(&machine);
    let free = calls.pool().free_pages();
    let mut guest = Guest::with_window(&machine, &calls);
    calls.register(VM, Liobn(7), &window()).expect("another window");
    calls.register(OTHER, LIOBN, &window()).expect("another VM's");
    let with_roots = calls.pool().free_pages();
    let (context, claim) = guest.device(0x100, IoPageSize::SIZE_4K);
    assert_eq!(guest.put(0, BIG.0 | RW), SUCCESS);
    assert_eq!(guest.call(opcode::PUT_TCE, [7, 0, NEXT.0 | RW, 0]).0, SUCCESS);
    guest.remove(VM, LIOBN).expect("a window");
    assert_eq!((counted(&guest), leads_to(&machine, context, 0)), ([0; 3], None));
    assert!(machine.read(0x100, 0).is_err());
    assert_eq!(guest.put(0, BIG.0 | RW), PARAMETER);
    assert_eq!(guest.remove(VM, LIOBN), Err(HcallError::UnknownLiobn { vm: VM, liobn: LIOBN }));
    calls.register(VM, LIOBN, &window()).expect("its number is free");
    guest.connect(&claim).expect("and its context");
    assert_eq!((guest.get(0), guest.put(0, BIG.0 | RW)), (0, SUCCESS));
    guest.vm_died(VM).expect("all of them");
    assert_eq!(counted(&guest), [0; 3]);
    assert_eq!(guest.call(opcode::GET_TCE, [7, 0, 0, 0]).0, PARAMETER);
    guest.vcpu = Vcpu::new(OTHER);
    assert_eq!(guest.get(0), 0, "another VM's stays");
    guest.vm_died(OTHER).expect("the last one");
    assert_eq!(calls.pool().free_pages(), free);
    assert!(with_roots < free);
}

#[test]
fn d55_who_ends_a_window_waits_for_calls_that_are_under_way_and_may_come_again() {
    let (machine, calls, views, _) = for_ever(KINDS[1]);
    let mut guest = Guest::with_window(machine, calls);
    let (context, _claim) = guest.device(0x100, IoPageSize::SIZE_4K);
    assert_eq!(guest.put(0, BIG.0 | RW), SUCCESS);
    let mut other = Guest::on_cpu(machine, calls, 1, guest.regions);
    let (found, heard) = std::sync::mpsc::channel();
    views.after(1, move || found.send(other.remove(VM, LIOBN)).expect("somebody listens"));
    // In the middle of this call the window is to be removed: it is not, because the call does not end.
    assert_eq!(guest.put(0, (BIG.0 + PAGE) | RW), SUCCESS);
    assert_eq!(heard.recv(), Ok(Err(Error::Busy.into())));
    assert_eq!((counted(&guest), leads_to(machine, context, 0)), ([1, 0, 0], Some(PAGE)));
    let gone =
        calls.call::<RealMode>(&mut guest.seat, &mut guest.vcpu, opcode::GET_TCE, [LIOBN.0.into(), 0, 0, 0]);
    assert_eq!(gone.status(), PARAMETER, "no call finds it any more");
    guest.remove(VM, LIOBN).expect("nobody is inside");
    assert_eq!((counted(&guest), leads_to(machine, context, 0)), ([0; 3], None));
}

#[test]
fn d56_a_table_of_which_one_guest_page_would_be_too_many_pages_is_refused() {
    let machine = Machine::new(KINDS[1]);
    let calls = calls(&machine);
    let mut guest = Guest::new(&machine, &calls);
    let (_, claim) = guest.loose_device(0x100, IoPageSize::SIZE_4K);
    let mut connect = |page_shift| {
        calls.register(VM, LIOBN, &WindowSpec { page_shift, ..window() }).expect("a window");
        let connected = guest.connect(&claim);
        guest.remove(VM, LIOBN).expect("a window");
        connected
    };
    for page_shift in [25, 30] {
        let large = IoPageSize::from_shift(page_shift).expect("a page");
        assert_eq!(connect(page_shift), Err(HcallError::GuestPageTooLarge { guest: large, bytes: PAGE }));
    }
    assert_eq!(connect(24), Ok(()), "4096 pages");
}

/// Shows later times; at the end of a number of looks lets somebody go and waits until they have gone.
struct Releasing {
    looks: AtomicU64,
    left: AtomicU64,
    let_go: Mutex<(Sender<()>, Receiver<i64>)>,
}

impl Clock for Releasing {
    fn now(&self) -> Duration {
        if self.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            let let_go = self.let_go.lock().expect("no thread died");
            let_go.0.send(()).expect("somebody waits");
            assert_eq!(let_go.1.recv(), Ok(SUCCESS));
        }
        Duration::from_micros(self.looks.fetch_add(1, Ordering::SeqCst))
    }
}

#[test]
fn d57_connecting_waits_for_a_contended_entry_with_all_its_patience() {
    let (machine, calls, views, _) = for_ever(KINDS[1]);
    let mut guest = Guest::with_window(machine, calls);
    let (context, claim) = guest.loose_device(0x100, IoPageSize::SIZE_4K);
    // The list is put into two tables of the view: entries of the first are taken while the second is looked up.
    let second_table = 512 * PAGE;
    let pages: Vec<_> = (0..8).map(|page| (BIG.0 + page * PAGE) | RW).collect();
    let call = [LIOBN.0.into(), second_table - 4 * PAGE, LIST, 8];
    assert_eq!(guest.indirect(call[1], &pages), SUCCESS);
    for uses in 1..100 {
        let mut other = Guest::on_cpu(machine, calls, 1, guest.regions);
        let ((go, gone), (done, finished)) = (channel(), channel());
        let clock = Releasing { looks: 0.into(), left: u64::MAX.into(), let_go: Mutex::new((go, finished)) };
        let in_replay = views.clone();
        views.after(1, move || {
            let (inside, heard) = channel();
            let end = inside.clone();
            in_replay.after(uses, move || {
                inside.send(true).expect("somebody listens");
                gone.recv().expect("somebody lets us go");
            });
            std::thread::spawn(move || {
                let put = other.virt(opcode::PUT_TCE_INDIRECT, call).status();
                drop(other);
                let _ = end.send(false);
                let _ = done.send(put);
            });
            assert_eq!(heard.recv(), Ok(true), "no use found an entry taken");
        });
        clock.left.store(100, Ordering::SeqCst);
        let patience = Patience { clock: &clock, limit: Duration::from_millis(5) };
        let connected = calls.connect(&mut guest.seat, &claim, VM, LIOBN, patience);
        assert_eq!(connected, Ok(()));
        assert_eq!(leads_to(machine, context, call[1]), Some(0));
        if clock.left.load(Ordering::SeqCst) > 100 {
            return;
        }
        while clock.left.load(Ordering::SeqCst) <= 100 {
            let _ = clock.now();
        }
        guest.disconnect(context).expect("a connection");
    }
    panic!("no use found an entry taken");
}
