#![allow(missing_docs, reason = "tests document themselves by their names")]

use std::cell::{Cell, RefCell};

use portcullis_hal::PoolError;
use portcullis_hypervisor::x86::{
    caching::{
        CacheControl, Caches, Cpus, Flush, GuestRegisters, MemoryType, NotObeyed, Notices, OnCpu, Pat,
        Shared, Tables, mtrr::Run,
    },
    npt::NptError,
};
use portcullis_iommu::{Because, Coherency, Error, Notice, VmId};

const OWN: GuestRegisters = GuestRegisters { cr0: 0xc000_0011, pat: Pat::RESET };
const NO_PAGES: NptError = NptError::Pool(PoolError::NeedPages { count: 1 });
const DEFAULT_TYPE: u32 = 0x2ff;
const ALL_UNCACHEABLE: u64 = 1 << 11;

/// What was done, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Did {
    Interrupted(Cpus),
    Retyped(MemoryType),
    Flushed(Cpus),
}

/// A guest's tables, its notice, and CPUs that leave it when they are interrupted.
struct World {
    shared: Shared,
    notice: Cell<Option<Notice>>,
    has_pages: Cell<bool>,
    answers: Cell<bool>,
    did: RefCell<Vec<Did>>,
}

impl World {
    fn new() -> Self {
        let coherent = Notice { verdict: Coherency::Coherent, epoch: 0 };
        Self {
            shared: Shared::new(40),
            notice: Cell::new(Some(coherent)),
            has_pages: Cell::new(true),
            answers: Cell::new(true),
            did: RefCell::default(),
        }
    }

    fn goes_past_the_caches(&self, epoch: u32) {
        let verdict = Coherency::NonCoherent { because: Because::NotEnforced };
        self.notice.set(Some(Notice { verdict, epoch }));
    }

    fn on(&self, cpu: usize) -> OnCpu<'_, impl Notices, &Self, Self> {
        let notices = || self.notice.get().ok_or(Error::UnknownVm { vm: VmId(9) });
        OnCpu::new(&self.shared, self, cpu, notices, self)
    }

    fn did(&self) -> Vec<Did> {
        self.did.take()
    }
}

impl Tables for World {
    fn bytes(&self) -> u64 {
        0x10_0000
    }

    fn retype(&self, run: Run) -> Result<(), NptError> {
        assert_eq!((run.start, run.end), (0, self.bytes()));
        self.did.borrow_mut().push(Did::Retyped(run.memory_type));
        if self.has_pages.get() { Ok(()) } else { Err(NO_PAGES) }
    }
}

impl Caches for &World {
    fn flush(&mut self, _: Flush, cpus: Cpus) -> Result<(), Cpus> {
        self.did.borrow_mut().push(Did::Flushed(cpus));
        if self.answers.get() { Ok(()) } else { Err(cpus) }
    }

    fn interrupt(&mut self, cpus: Cpus) -> Result<(), Cpus> {
        if cpus.is_empty() {
            return Ok(());
        }
        self.did.borrow_mut().push(Did::Interrupted(cpus));
        if !self.answers.get() {
            return Err(cpus);
        }
        cpus.iter().for_each(|cpu| self.shared.footprint.left(cpu));
        Ok(())
    }

    fn wait(&mut self, ready: &mut dyn FnMut() -> bool) {
        ready();
    }
}

fn cpus(numbers: &[usize]) -> Cpus {
    numbers.iter().copied().collect()
}

#[test]
fn x28_other_cpus_leave_before_tables_change_and_all_flush_afterwards() {
    let world = World::new();
    let (mut one, mut other) = (world.on(0), world.on(3));
    assert_eq!(one.enter(OWN).unwrap().generation, 1);
    one.leave();
    assert_eq!(other.enter(OWN).unwrap().generation, 1);
    assert_eq!(world.did(), [Did::Retyped(MemoryType::WriteBack)]);
    world.goes_past_the_caches(1);
    let entry = one.enter(OWN).unwrap();
    assert_eq!((entry.generation, entry.hardware.cr0), (2, OWN.cr0));
    let expected =
        [Did::Interrupted(cpus(&[3])), Did::Retyped(MemoryType::WriteBack), Did::Flushed(cpus(&[0, 3]))];
    assert_eq!(world.did(), expected);
    assert_eq!(other.enter(OWN).unwrap().generation, 2, "and it comes back with the same tables");
    assert_eq!(world.did(), []);
}

#[test]
fn x28_a_rebuild_that_failed_is_done_again_with_a_flush_even_under_the_notice_of_before() {
    let world = World::new();
    let before = world.notice.get();
    let mut cpu = world.on(0);
    cpu.enter(OWN).unwrap();
    cpu.leave();
    world.goes_past_the_caches(1);
    world.has_pages.set(false);
    for _ in 0..2 {
        assert_eq!(cpu.enter(OWN), Err(NotObeyed::Tables(NO_PAGES)));
        assert_eq!(world.shared.footprint.inside(), Cpus::NONE, "it did not get in");
    }
    world.has_pages.set(true);
    world.notice.set(before);
    world.did();
    let generation = cpu.enter(OWN).unwrap().generation;
    assert!(generation > 1, "translations of before are forgotten");
    assert_eq!(world.did(), [Did::Retyped(MemoryType::WriteBack), Did::Flushed(cpus(&[0]))]);
}

#[test]
fn x28_a_cpu_that_does_not_leave_or_flush_keeps_the_guest_from_running() {
    let world = World::new();
    let (mut one, mut other) = (world.on(0), world.on(1));
    other.enter(OWN).unwrap();
    world.goes_past_the_caches(1);
    world.answers.set(false);
    world.did();
    assert_eq!(one.enter(OWN), Err(NotObeyed::Unanswered { cpus: cpus(&[1]) }));
    assert_eq!(world.did(), [Did::Interrupted(cpus(&[1]))], "the tables are left alone");
    other.leave();
    let silent = NotObeyed::Unanswered { cpus: cpus(&[1]) };
    assert_eq!(one.enter(OWN), Err(silent), "it has not flushed");
    world.did();
    assert_eq!(one.enter(OWN), Err(silent));
    assert_eq!(world.did(), [Did::Retyped(MemoryType::WriteBack), Did::Flushed(cpus(&[1]))], "asked again");
    world.answers.set(true);
    assert!(one.enter(OWN).is_ok());
}

#[test]
fn x28_mtrrs_that_count_rebuild_before_the_guest_goes_on() {
    let world = World::new();
    let mut cpu = world.on(0);
    cpu.enter(OWN).unwrap();
    cpu.leave();
    world.did();
    cpu.write_mtrr(DEFAULT_TYPE, ALL_UNCACHEABLE).unwrap();
    cpu.enter(OWN).unwrap();
    cpu.leave();
    assert_eq!((world.did(), cpu.read_mtrr(DEFAULT_TYPE)), (vec![], Ok(ALL_UNCACHEABLE)));
    world.goes_past_the_caches(1);
    cpu.enter(OWN).unwrap();
    assert_eq!(world.did(), [Did::Retyped(MemoryType::Uncacheable), Did::Flushed(cpus(&[0]))]);
}

#[test]
fn x26_a_guest_without_notice_or_on_a_cpu_without_number_does_not_run() {
    let world = World::new();
    assert!(matches!(world.on(64).enter(OWN), Err(NotObeyed::NoSuchCpu(_))));
    assert_eq!(
        world.shared.access(64, || ()).map_err(|error| matches!(error, NotObeyed::NoSuchCpu(_))),
        Err(true)
    );
    world.notice.set(None);
    assert!(matches!(world.on(0).enter(OWN), Err(NotObeyed::NoNotice(_))));
    assert_eq!(world.shared.footprint.inside(), Cpus::NONE);
}

#[test]
fn x28_what_the_hypervisor_stores_is_flushed_with_the_first_tables() {
    let world = World::new();
    world.shared.access(2, || ()).unwrap();
    world.goes_past_the_caches(1);
    world.on(0).enter(OWN).unwrap();
    assert_eq!(world.did(), [Did::Retyped(MemoryType::WriteBack), Did::Flushed(cpus(&[2]))]);
}
