//! Hypercalls of two virtual CPUs in every interleaving, and on every value that weak memory lets a load return. They look
//! at too many words to be exhausted: a CPU is interrupted so often at most.
#![allow(missing_docs, reason = "tests document themselves by their names")]
#![cfg(loom)]

#[path = "../../iommu/tests/small/mod.rs"]
mod small;

use std::{num::NonZeroU32, time::Duration};

use loom::{
    model::Builder,
    sync::atomic::Ordering::Relaxed,
    thread::{self, JoinHandle},
};
use portcullis_fake::{checked::CheckedMemory, dma::extent};
use portcullis_hal::{GuestPhysAddr, GuestPhysRange, Iova, PagePool};
use portcullis_iommu::{Claim, Coherency, ContextHandle, GroupId, Iommu, RegionHandle};
use portcullis_ppc_tce::hcall::{Hypercalls, Liobn, Patience, RealMode, Reply, Vcpu, WindowSpec, opcode};
use small::{EMPTY, PAGE, Small, Stopped, VM, attach, machine_of};

type Policy = Iommu<Small, 1, 2, 2>;
type Calls = Hypercalls<'static, Small, CheckedMemory, CheckedMemory, 1, 2, 2, 1>;

const LIOBN: u64 = 5;
/// A host page.
const HOST: u32 = 7;
const MAPPED: u64 = 3;

#[derive(Clone, Copy)]
struct Machine {
    iommu: &'static Policy,
    calls: &'static Calls,
    context: ContextHandle,
    region: RegionHandle,
    group: GroupId,
}

/// Interrupts each CPU `interruptions` times at most.
fn check(interruptions: usize, run: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(interruptions);
    // Pages are cleared, cell by cell.
    builder.max_branches = 100_000;
    builder.check(run);
}

/// A window of one entry, and a context that stands behind it or not yet.
fn machine() -> (Machine, Claim<'static, Small, 1, 2, 2>) {
    let (iommu, group) = machine_of::<2>();
    // Leaked: calls borrow it, and CPUs borrow the calls.
    let iommu: &'static Policy = Box::leak(Box::new(iommu));
    let context = iommu.create_context(VM, &Coherency::Coherent).expect("a context");
    let mut claim = iommu.claim(VM, group).expect("a claim");
    attach(&mut claim, context);
    let guest = GuestPhysRange::new(GuestPhysAddr::new(0), PAGE).expect("a range");
    let region = iommu.register_memory(VM, guest, extent(u64::from(HOST) * PAGE, PAGE)).expect("a region");
    let pool = PagePool::new(CheckedMemory::new(2)).expect("a pool");
    let calls: &'static Calls = Box::leak(Box::new(Hypercalls::new(iommu, pool, CheckedMemory::new(0))));
    let budget = NonZeroU32::MIN;
    let window =
        WindowSpec { page_shift: 12, start: 0, bytes: PAGE, view_levels: 1, stuff_cap: None, budget };
    calls.register(VM, Liobn(LIOBN as u32), &window).expect("a window");
    (Machine { iommu, calls, context, region, group }, claim)
}

fn connected() -> Machine {
    let (machine, claim) = machine();
    machine.connect(&claim);
    // It is for revocation to end.
    std::mem::forget(claim);
    machine
}

impl Machine {
    fn connect(self, claim: &Claim<'_, Small, 1, 2, 2>) {
        let mut seat = self.iommu.seat(0).expect("a seat");
        let patience = Patience { clock: &Stopped, limit: Duration::MAX };
        self.calls.connect(&mut seat, claim, VM, Liobn(LIOBN as u32), patience).expect("a connection");
    }

    /// What a call of one virtual CPU comes to in real mode.
    fn call(self, cpu: usize, number: u64, tce: u64, count: u64) -> Reply {
        self.call_of(&mut Vcpu::new(VM), cpu, number, [tce, count])
    }

    fn call_of(self, vcpu: &mut Vcpu<'static>, cpu: usize, number: u64, [tce, count]: [u64; 2]) -> Reply {
        let mut seat = self.iommu.seat(cpu).expect("a seat");
        self.calls.call::<RealMode>(&mut seat, vcpu, number, [LIOBN, 0, tce, count])
    }

    /// A virtual CPU that knows where the entry is.
    fn knowing(self) -> Vcpu<'static> {
        let mut vcpu = Vcpu::new(VM);
        assert_eq!(self.call_of(&mut vcpu, 1, opcode::PUT_TCE, [0, 0]).status(), 0);
        vcpu
    }

    fn put(self, cpu: usize, tce: u64) -> bool {
        self.call(cpu, opcode::PUT_TCE, tce, 0).status() == 0
    }

    fn on_another_cpu<T: 'static>(self, act: impl FnOnce(Self) -> T + 'static) -> JoinHandle<T> {
        thread::spawn(move || act(self))
    }

    fn counted(self) -> u64 {
        self.iommu.region(VM, self.region).expect("a region").mapped
    }

    fn form(self) -> u64 {
        match self.call(0, opcode::GET_TCE, 0, 0) {
            Reply::Done { value, .. } => value,
            unfinished => panic!("{unfinished:?}"),
        }
    }

    /// Whether the guest's entry maps its page, in hardware, in the view and by the counts.
    fn is_mapped(self) -> bool {
        let found = self.iommu.iova_to_phys(self.context, Iova::new(0)).expect("a context").is_some();
        assert_eq!((self.counted(), self.form() & 3 != 0), (u64::from(found), found));
        found
    }
}

#[test]
fn d63_of_two_cpus_that_put_the_same_entry_one_is_last_and_nothing_is_counted_twice() {
    check(3, || {
        let machine = connected();
        let other = machine.on_another_cpu(|machine| machine.put(1, 1));
        let put = machine.put(0, MAPPED);
        let put_there = other.join().expect("no panic");
        assert!(put || put_there, "each found the other one");
        assert!(machine.is_mapped());
    });
}

#[test]
fn d64_a_stuff_and_a_put_of_the_same_entry_come_one_after_the_other() {
    check(3, || {
        let machine = connected();
        assert!(machine.put(0, MAPPED));
        let other = machine.on_another_cpu(|machine| machine.call(1, opcode::STUFF_TCE, 0, 1).status() == 0);
        let put = machine.put(0, 1);
        let cleared = other.join().expect("no panic");
        let mapped = machine.is_mapped();
        assert!(put || cleared);
        assert!(mapped || cleared, "nobody cleared it");
    });
}

#[test]
fn d65_what_is_put_while_a_table_is_connected_is_in_the_table() {
    check(3, || {
        let (machine, claim) = machine();
        let other = machine.on_another_cpu(|machine| machine.put(1, MAPPED));
        machine.connect(&claim);
        let put = other.join().expect("no panic");
        assert_eq!(machine.is_mapped(), put);
        std::mem::forget(claim);
    });
}

#[test]
fn d66_a_group_that_is_revoked_during_a_call_leaves_no_count_and_no_entry() {
    check(3, || {
        let machine = connected();
        let mut vcpu = machine.knowing();
        let other = machine.on_another_cpu(move |machine| {
            machine.call_of(&mut vcpu, 1, opcode::PUT_TCE, [MAPPED, 0]).status() == 0
        });
        let ended = machine.iommu.revoke(VM, machine.group, drop, &Stopped, Duration::MAX);
        assert_eq!(ended, Ok(()));
        let put = other.join().expect("no panic");
        assert_eq!((machine.counted(), machine.form()), (0, if put { MAPPED } else { 0 }));
        let left = machine.iommu.driver().left.load(Relaxed);
        assert!([EMPTY, HOST].contains(&left));
        assert!(machine.put(0, 0), "the window goes on without it");
    });
}

#[test]
fn d68_a_call_that_begins_where_the_last_one_was_touches_no_window_that_is_removed() {
    check(3, || {
        let machine = connected();
        let mut vcpu = machine.knowing();
        let other = machine.on_another_cpu(move |machine| {
            machine.call_of(&mut vcpu, 1, opcode::PUT_TCE, [MAPPED, 0]).status() == 0
        });
        let mut seat = machine.iommu.seat(0).expect("a seat");
        let patience = Patience { clock: &Stopped, limit: Duration::MAX };
        let removed = machine.calls.remove(&mut seat, VM, Liobn(LIOBN as u32), patience);
        drop(seat);
        other.join().expect("no panic");
        assert_eq!(removed, Ok(()));
        assert_eq!(machine.counted(), 0);
        let found = machine.iommu.iova_to_phys(machine.context, Iova::new(0)).expect("a context");
        assert!(found.is_none(), "an entry that nobody takes out any more");
    });
}
