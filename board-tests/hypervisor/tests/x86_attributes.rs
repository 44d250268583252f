#![allow(missing_docs, reason = "tests document themselves by their names")]

mod reference;

use portcullis_hypervisor::x86::caching::{
    GuestRegisters, HardwareRegisters, MemoryType, Mtrrs, Pat, Planner, Rebuild,
    attributes::{CR0_CACHE_DISABLE as CD, CR0_NOT_WRITE_THROUGH as NW, is_valid_cr0},
    mtrr::{DEFAULT_TYPE_MSR, FIRST_VARIABLE_MSR, Run},
};
use portcullis_iommu::{Because, Coherency, Notice};
use proptest::{collection::vec, prelude::*};
use reference::run;

const NON_COHERENT: Coherency = Coherency::NonCoherent { because: Because::NoSnoopControl };
const MEMORY: u64 = 16 << 20;
/// Paging, protection and the like.
const OTHERS: u64 = 0x8005_0033;

const fn notice(verdict: Coherency, epoch: u32) -> Notice {
    Notice { verdict, epoch }
}

/// The second MiB is uncacheable.
fn mtrrs() -> Mtrrs {
    let mut mtrrs = Mtrrs::after_firmware(40);
    mtrrs.write(FIRST_VARIABLE_MSR, 0x10_0000).unwrap();
    mtrrs.write(FIRST_VARIABLE_MSR + 1, 0xff_fff0_0800).unwrap();
    mtrrs
}

fn types(rebuild: Rebuild) -> Vec<(u64, u64, MemoryType)> {
    rebuild.runs(0, MEMORY).map(|Run { start, end, memory_type }| (start, end, memory_type)).collect()
}

#[test]
fn x21_while_coherent_all_memory_is_write_back() {
    let rebuild = Planner::new().plan(notice(Coherency::Coherent, 0), &mtrrs()).unwrap();
    assert_eq!(types(rebuild), [(0, MEMORY, MemoryType::WriteBack)]);
    assert_eq!(rebuild.runs(MEMORY, MEMORY).count(), 0);
    assert_eq!(rebuild.registers(), MemoryType::Uncacheable);
}

#[test]
fn x21_while_not_coherent_memory_is_what_the_guest_says() {
    for because in [Because::NoSnoopControl, Because::NotEnforced] {
        let verdict = Coherency::NonCoherent { because };
        let rebuild = Planner::new().plan(notice(verdict, 1), &mtrrs()).unwrap();
        let expected = [
            (0, 0x10_0000, MemoryType::WriteBack),
            (0x10_0000, 0x20_0000, MemoryType::Uncacheable),
            (0x20_0000, MEMORY, MemoryType::WriteBack),
        ];
        assert_eq!(types(rebuild), expected);
        assert_eq!(rebuild.registers(), MemoryType::Uncacheable);
    }
}

#[test]
fn x21_while_coherent_hardware_gets_neither_cd_nor_the_pat() {
    let pat = Pat::new(0).unwrap();
    for (caching, cr0_is_shadowed) in [(0, false), (CD, true), (CD | NW, true)] {
        let guest = GuestRegisters { cr0: OTHERS | caching, pat };
        let expected = HardwareRegisters { cr0: OTHERS, pat: Pat::ALL_WRITE_BACK, cr0_is_shadowed };
        assert_eq!(guest.under(Coherency::Coherent), expected);
        let honoured = HardwareRegisters { cr0: guest.cr0, pat, cr0_is_shadowed: false };
        assert_eq!(guest.under(NON_COHERENT), honoured);
    }
}

#[test]
fn x21_hardware_never_gets_nw_without_cd() {
    let valid: Vec<u64> =
        [0, CD, NW, CD | NW].into_iter().filter(|&caching| is_valid_cr0(OTHERS | caching)).collect();
    assert_eq!(valid, [0, CD, CD | NW]);
    for cr0 in valid {
        let guest = GuestRegisters { cr0, pat: Pat::RESET };
        let verdicts = [Coherency::Coherent, NON_COHERENT];
        assert!(verdicts.into_iter().all(|verdict| is_valid_cr0(guest.under(verdict).cr0)));
    }
}

#[test]
fn x23_each_change_of_the_notice_rebuilds_once() {
    let (mut planner, mtrrs) = (Planner::new(), mtrrs());
    let changes = [
        (notice(Coherency::Coherent, 0), false),
        (notice(NON_COHERENT, 1), true),
        (notice(Coherency::NonCoherent { because: Because::NotEnforced }, 2), true),
        (notice(Coherency::Coherent, 3), true),
        (notice(Coherency::Coherent, 5), false),
    ];
    for ((notice, must_flush), generation) in changes.into_iter().zip(1..) {
        assert!(!planner.is_current(notice));
        let rebuild = planner.plan(notice, &mtrrs).unwrap();
        assert_eq!((rebuild.generation, rebuild.must_flush), (generation, must_flush), "{notice:?}");
        assert!(planner.is_current(notice));
        assert_eq!(planner.plan(notice, &mtrrs), None);
    }
}

#[test]
fn x23_the_first_tables_of_a_guest_with_types_of_its_own_flush_too() {
    let rebuild = Planner::new().plan(notice(NON_COHERENT, 7), &mtrrs()).unwrap();
    assert!(rebuild.must_flush, "the hypervisor filled the memory through the cache");
}

#[test]
fn x23_mtrrs_rebuild_only_while_they_count() {
    let (mut planner, mut mtrrs) = (Planner::new(), mtrrs());
    assert!(planner.plan(notice(Coherency::Coherent, 0), &mtrrs).is_some());
    mtrrs.write(DEFAULT_TYPE_MSR, 0).unwrap();
    assert_eq!(planner.plan(notice(Coherency::Coherent, 0), &mtrrs), None, "no guest can cause one");

    let rebuild = planner.plan(notice(NON_COHERENT, 1), &mtrrs).unwrap();
    assert_eq!(types(rebuild), [(0, MEMORY, MemoryType::Uncacheable)], "what was written before counts now");
    mtrrs.write(DEFAULT_TYPE_MSR, 0x806).unwrap();
    assert_eq!(planner.plan(notice(NON_COHERENT, 1), &mtrrs).map(|rebuild| rebuild.must_flush), Some(true));
    assert_eq!(planner.plan(notice(NON_COHERENT, 1), &mtrrs), None);
}

/// Whatever happens between two plans: what is there afterwards is right for notice and registers at that time.
#[test]
fn x23_tables_are_right_after_each_plan() {
    let step = (0..3u8, 0..2u32, 0..4u8);
    run(2_000, vec(step, 1..20), |steps| {
        let (mut planner, mut mtrrs) = (Planner::new(), mtrrs());
        let (mut epoch, mut verdict, mut there) = (0, Coherency::Coherent, None);
        for (new_verdict, skipped_epochs, default) in steps {
            let next = match new_verdict {
                0 => Coherency::Coherent,
                1 => NON_COHERENT,
                _ => Coherency::NonCoherent { because: Because::NotEnforced },
            };
            epoch += u32::from(next != verdict) + 2 * skipped_epochs;
            verdict = next;
            mtrrs.write(DEFAULT_TYPE_MSR, 0x800 | [0, 1, 4, 6][usize::from(default)]).unwrap();
            let generation = there.map_or(0, |rebuild: Rebuild| rebuild.generation);
            if let Some(rebuild) = planner.plan(notice(verdict, epoch), &mtrrs) {
                prop_assert_eq!(rebuild.generation, generation + 1);
                there = Some(rebuild);
            }
            for Run { start, memory_type, .. } in there.unwrap().runs(0, MEMORY) {
                let is_forced = verdict == Coherency::Coherent;
                let right = if is_forced { MemoryType::WriteBack } else { mtrrs.type_at(start) };
                prop_assert_eq!(memory_type, right);
            }
        }
        Ok(())
    });
}
