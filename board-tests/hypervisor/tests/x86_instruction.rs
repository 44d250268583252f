#![allow(missing_docs, reason = "tests document themselves by their names")]

use std::{cell::RefCell, collections::VecDeque, sync::atomic::Ordering::SeqCst};

use portcullis_hal::footprint::{MAX_CPUS, NoSuchCpu};
use portcullis_hypervisor::x86::caching::{
    ByNotice,
    CacheInstruction::{self, Invd, Wbinvd, Wbnoinvd},
    Caches, Counts, Cpus, Flush, Footprint, NotObeyed, Notices, Obeyed,
};
use portcullis_iommu::{Because, Coherency, Error, Notice, VmId};

const KINDS: [CacheInstruction; 3] = [Wbinvd, Wbnoinvd, Invd];
const NON_COHERENT: Coherency = Coherency::NonCoherent { because: Because::NotEnforced };

/// CPUs that note what they flush, and some that never answer.
#[derive(Default)]
struct FakeCpus<'a> {
    silent: Vec<usize>,
    flushed: Vec<(Flush, Cpus)>,
    /// What another CPU does while these flush.
    meanwhile: Option<&'a dyn Fn()>,
}

impl Caches for &mut FakeCpus<'_> {
    fn flush(&mut self, flush: Flush, cpus: Cpus) -> Result<(), Cpus> {
        self.flushed.push((flush, cpus));
        self.meanwhile.iter().for_each(|act| act());
        let silent: Cpus = cpus.iter().filter(|cpu| self.silent.contains(cpu)).collect();
        if silent.is_empty() { Ok(()) } else { Err(silent) }
    }

    fn interrupt(&mut self, _: Cpus) -> Result<(), Cpus> {
        Ok(())
    }

    fn wait(&mut self, ready: &mut dyn FnMut() -> bool) {
        ready();
    }
}

/// A guest, and the notices that are read one after the other; the last stays.
#[derive(Default)]
struct Guest {
    footprint: Footprint,
    counts: Counts,
    notices: RefCell<VecDeque<Notice>>,
}

impl Guest {
    fn told(notices: &[(Coherency, u32)]) -> Self {
        let guest = Self::default();
        guest.tell(notices);
        guest
    }

    fn tell(&self, notices: &[(Coherency, u32)]) {
        *self.notices.borrow_mut() =
            notices.iter().map(|&(verdict, epoch)| Notice { verdict, epoch }).collect();
    }

    fn ran_on(&self, cpus: &[usize]) {
        for &cpu in cpus {
            self.footprint.entered(cpu).expect("there is room");
            self.footprint.left(cpu);
        }
    }

    fn does(&self, kind: CacheInstruction, cpus: &mut FakeCpus<'_>) -> Result<Obeyed, NotObeyed> {
        self.exits(cpus).cache_instruction(kind)
    }

    /// What handles its exits.
    fn exits<'a>(&'a self, caches: &'a mut FakeCpus<'_>) -> ByNotice<'a, impl Notices, impl Caches> {
        let notices = || {
            let mut notices = self.notices.borrow_mut();
            let next = if notices.len() > 1 { notices.pop_front() } else { notices.front().copied() };
            next.ok_or(Error::UnknownVm { vm: VmId(9) })
        };
        ByNotice { notices, footprint: &self.footprint, caches, counts: &self.counts }
    }
}

fn cpus(numbers: &[usize]) -> Cpus {
    numbers.iter().copied().collect()
}

#[test]
fn x16_while_coherent_nothing_is_flushed() {
    let guest = Guest::told(&[(Coherency::Coherent, 0)]);
    let mut machine = FakeCpus::default();
    for kind in KINDS {
        guest.ran_on(&[0, 1]);
        assert_eq!(guest.does(kind, &mut machine), Ok(Obeyed::Skipped));
        assert_eq!(guest.counts.skipped.count(kind), 1);
    }
    assert_eq!(machine.flushed, []);
    assert_eq!((guest.counts.skipped.total(), guest.counts.flushed.total()), (3, 0));
}

#[test]
fn x16_while_not_coherent_each_cpu_where_the_guest_ran_flushes() {
    for because in [Because::NotEnforced, Because::NoSnoopControl] {
        let guest = Guest::told(&[(Coherency::NonCoherent { because }, 1)]);
        let mut machine = FakeCpus::default();
        for kind in KINDS {
            guest.ran_on(&[0, 3, 63]);
            assert_eq!(guest.does(kind, &mut machine), Ok(Obeyed::Flushed(cpus(&[0, 3, 63]))));
            assert_eq!((guest.counts.flushed.count(kind), guest.counts.skipped.count(kind)), (1, 0));
        }
        assert_eq!(machine.flushed.len(), 3);
        assert_eq!((guest.counts.flushed.total(), guest.counts.skipped.total()), (3, 0));
    }
}

#[test]
fn x17_a_cpu_flushes_once_for_what_was_done_there() {
    let guest = Guest::told(&[(NON_COHERENT, 1)]);
    let mut machine = FakeCpus::default();
    guest.ran_on(&[0, 1, 1]);
    assert_eq!(guest.does(Wbinvd, &mut machine), Ok(Obeyed::Flushed(cpus(&[0, 1]))));
    guest.ran_on(&[1]);
    assert_eq!(guest.does(Wbinvd, &mut machine), Ok(Obeyed::Flushed(cpus(&[1]))));
    assert_eq!(guest.does(Wbinvd, &mut machine), Ok(Obeyed::Flushed(Cpus::NONE)));
    assert_eq!(machine.flushed.len(), 2, "no CPU was left to ask");
}

#[test]
fn x17_lines_that_were_only_written_back_are_still_dropped_later() {
    let guest = Guest::told(&[(NON_COHERENT, 1)]);
    let mut machine = FakeCpus::default();
    guest.ran_on(&[0, 1]);
    assert_eq!(guest.does(Wbnoinvd, &mut machine), Ok(Obeyed::Flushed(cpus(&[0, 1]))));
    assert_eq!(guest.does(Wbnoinvd, &mut machine), Ok(Obeyed::Flushed(Cpus::NONE)));
    assert_eq!(guest.does(Wbinvd, &mut machine), Ok(Obeyed::Flushed(cpus(&[0, 1]))));
    guest.ran_on(&[1]);
    assert_eq!(guest.does(Wbinvd, &mut machine), Ok(Obeyed::Flushed(cpus(&[1]))));
    assert_eq!(
        guest.does(Wbnoinvd, &mut machine),
        Ok(Obeyed::Flushed(Cpus::NONE)),
        "dropped is written back"
    );
}

#[test]
fn x17_a_cpu_that_is_inside_the_guest_flushes_each_time() {
    let guest = Guest::told(&[(NON_COHERENT, 1)]);
    let mut machine = FakeCpus::default();
    guest.ran_on(&[0]);
    guest.footprint.entered(5).unwrap();
    assert_eq!(guest.does(Wbinvd, &mut machine), Ok(Obeyed::Flushed(cpus(&[0, 5]))));
    assert_eq!(guest.does(Wbinvd, &mut machine), Ok(Obeyed::Flushed(cpus(&[5]))));
    guest.footprint.left(5);
    assert_eq!(guest.does(Wbinvd, &mut machine), Ok(Obeyed::Flushed(cpus(&[5]))));
    assert_eq!(guest.does(Wbinvd, &mut machine), Ok(Obeyed::Flushed(Cpus::NONE)));
}

#[test]
fn x17_what_a_guest_does_during_a_flush_is_left_for_the_next() {
    let guest = Guest::told(&[(NON_COHERENT, 1)]);
    guest.ran_on(&[0]);
    guest.footprint.entered(2).unwrap();
    let meanwhile = || {
        guest.footprint.left(2);
        guest.ran_on(&[0, 7]);
    };
    let mut machine = FakeCpus { meanwhile: Some(&meanwhile), ..FakeCpus::default() };
    assert_eq!(guest.does(Wbinvd, &mut machine), Ok(Obeyed::Flushed(cpus(&[0, 2]))));
    machine.meanwhile = None;
    assert_eq!(guest.does(Wbinvd, &mut machine), Ok(Obeyed::Flushed(cpus(&[0, 2, 7]))));
}

#[test]
fn x17_nobody_takes_a_flush_that_is_under_way_for_done() {
    let guest = Guest::told(&[(NON_COHERENT, 1)]);
    guest.ran_on(&[4]);
    let second = RefCell::new(None);
    let meanwhile = || {
        *second.borrow_mut() = Some(guest.does(Wbinvd, &mut FakeCpus::default()));
    };
    let mut machine = FakeCpus { meanwhile: Some(&meanwhile), ..FakeCpus::default() };
    assert_eq!(guest.does(Wbinvd, &mut machine), Ok(Obeyed::Flushed(cpus(&[4]))));
    assert_eq!(second.take(), Some(Ok(Obeyed::Flushed(cpus(&[4])))));
}

#[test]
fn x17_a_guest_does_not_run_on_a_cpu_that_nobody_could_flush() {
    let footprint = Footprint::new();
    for cpu in [MAX_CPUS, usize::MAX] {
        assert_eq!(footprint.entered(cpu), Err(NoSuchCpu { cpu }));
        footprint.left(cpu);
    }
    assert!(footprint.open(Flush::WriteBackInvalidate).cpus().is_empty());
}

#[test]
fn x18_a_cpu_that_does_not_answer_is_told_and_asked_again() {
    let guest = Guest::told(&[(NON_COHERENT, 1)]);
    let mut machine = FakeCpus { silent: vec![1, 2], ..FakeCpus::default() };
    for kind in KINDS {
        guest.ran_on(&[0, 1, 2]);
        assert_eq!(guest.does(kind, &mut machine), Err(NotObeyed::Unanswered { cpus: cpus(&[1, 2]) }));
        assert_eq!(guest.counts.failed.count(kind), 1);
    }
    assert_eq!((guest.counts.flushed.total(), guest.counts.skipped.total()), (0, 0));
    machine.silent.clear();
    assert_eq!(guest.does(Wbnoinvd, &mut machine), Ok(Obeyed::Flushed(cpus(&[0, 1, 2]))));
}

#[test]
fn x18_an_unknown_guest_is_no_coherent_one() {
    let guest = Guest::default();
    guest.ran_on(&[0]);
    for kind in KINDS {
        let unknown = NotObeyed::NoNotice(Error::UnknownVm { vm: VmId(9) });
        assert_eq!(guest.does(kind, &mut FakeCpus::default()), Err(unknown));
    }
    assert_eq!((guest.counts.failed.total(), guest.counts.skipped.total()), (3, 0));
}

#[test]
fn x19_what_the_machine_does_for_each_instruction() {
    let guest = Guest::told(&[(NON_COHERENT, 1)]);
    let mut machine = FakeCpus::default();
    for kind in KINDS {
        guest.ran_on(&[0]);
        guest.does(kind, &mut machine).unwrap();
    }
    let done: Vec<Flush> = machine.flushed.iter().map(|&(flush, _)| flush).collect();
    assert_eq!(done, [Flush::WriteBackInvalidate, Flush::WriteBack, Flush::WriteBackInvalidate]);
}

#[test]
fn x20_a_notice_that_ends_before_the_skip_is_over_is_not_obeyed() {
    for after in [(NON_COHERENT, 5), (Coherency::Coherent, 6)] {
        let guest = Guest::told(&[(Coherency::Coherent, 4), after]);
        let mut machine = FakeCpus::default();
        guest.ran_on(&[0, 1]);
        let obeyed = guest.does(Wbinvd, &mut machine);
        assert_eq!(obeyed, Ok(Obeyed::Flushed(cpus(&[0, 1]))), "{after:?}");
        assert_eq!(guest.counts.overtaken.load(SeqCst), 1);
        assert_eq!((guest.counts.skipped.total(), guest.counts.flushed.total()), (0, 1));
    }
}

#[test]
fn x20_notices_that_never_stand_still_hold_nobody_up() {
    let changes: Vec<_> = (0..100).map(|epoch| (Coherency::Coherent, epoch)).collect();
    let guest = Guest::told(&changes);
    guest.ran_on(&[0]);
    assert_eq!(guest.does(Invd, &mut FakeCpus::default()), Ok(Obeyed::Flushed(cpus(&[0]))));
    assert_eq!(guest.notices.borrow().len(), 98, "two are read");
}

#[test]
fn x23_a_rebuild_flushes_as_an_instruction_does_and_counts_as_none() {
    let guest = Guest::told(&[(Coherency::Coherent, 2)]);
    let mut machine = FakeCpus { silent: vec![1], ..FakeCpus::default() };
    guest.ran_on(&[0, 1]);
    let unanswered = NotObeyed::Unanswered { cpus: cpus(&[1]) };
    assert_eq!(guest.exits(&mut machine).flush_for_rebuild(), Err(unanswered));
    machine.silent.clear();
    assert_eq!(guest.exits(&mut machine).flush_for_rebuild(), Ok(cpus(&[0, 1])));
    assert_eq!(guest.exits(&mut machine).flush_for_rebuild(), Ok(Cpus::NONE));
    assert_eq!(machine.flushed.last(), Some(&(Flush::WriteBackInvalidate, cpus(&[0, 1]))));
    let counts = [&guest.counts.skipped, &guest.counts.flushed, &guest.counts.failed];
    assert_eq!(counts.map(|count| count.total()), [0; 3]);
}
