//! Memory types that a guest asks for: they count while a device of it may go past the caches.

use core::sync::atomic::Ordering;

use portcullis_suite::{Board, Event, Failure};

use super::Ward;
use crate::x86::{
    backend::{Backend, SystemRegister},
    caching::{MemoryType, Pat},
    guest::{
        layout::{ARGUMENTS, FREE},
        programs::Program,
        script::{DONE, GENERAL_PROTECTION, Op, What},
    },
    npt::Mapping,
    scenario::{LIMIT, Machine, Stage, ended, ensure, no_call, outcome, turn},
    svm::Svm,
    vcpu::{Stop, Vcpu},
};

const DEVICE: usize = 0;
const PAT_MSR: u64 = 0x277;
/// WB, WC, UC-, UC, and twice WB, WP, UC, WT.
const PAT: u64 = 0x0406_0506_0007_0106;
const RANGE: u64 = 0x200;
const RANGE_MASK: u64 = 0x201;
const DEFAULT_TYPE: u64 = 0x2ff;
const ON: u64 = 1 << 11;
/// 16 KiB at [`FREE`], WT.
const WRITE_THROUGH: u64 = FREE | 4;
const RANGE_BYTES: u64 = 0x4000;
/// Of addresses with 36 bits, which every CPU has.
const MASK: u64 = ((1 << 36) - RANGE_BYTES) | ON;
const CACHE_DISABLE: u64 = 1 << 30;
/// PG, CD, WP, NE, ET, MP, PE.
const CR0: u64 = 0xc001_0033;
const HALT: Op = Op(What::Halt, 0, 0);

/// What the guest does, and where it halts: four parts.
const SCRIPT: [Op; 20] = [
    Op(What::WriteMsr, PAT_MSR, PAT),
    Op(What::ReadMsr, PAT_MSR, 0),
    Op(What::WriteMsr, RANGE, WRITE_THROUGH),
    Op(What::WriteMsr, RANGE_MASK, MASK),
    Op(What::ReadMsr, RANGE, 0),
    Op(What::WriteCr0, CR0, 0),
    Op(What::ReadCr0, 0, 0),
    HALT,
    Op(What::ReadMsr, PAT_MSR, 0),
    Op(What::ReadMsr, RANGE_MASK, 0),
    Op(What::ReadCr0, 0, 0),
    HALT,
    Op(What::WriteMsr, DEFAULT_TYPE, ON),
    Op(What::WriteMsr, DEFAULT_TYPE, ON | 3),
    Op(What::ReadMsr, DEFAULT_TYPE, 0),
    HALT,
    Op(What::WriteMsr, DEFAULT_TYPE, ON | 5),
    Op(What::ReadMsr, DEFAULT_TYPE, 0),
    Op(What::ReadCr0, 0, 0),
    HALT,
];

/// X21, X23, X27.
pub(in super::super) fn svm_memory_types_by_notice<M: Machine>(
    stage: &mut Stage<'_, M>,
) -> Result<(), Failure> {
    let (machine, policy) = (stage.machine, stage.policy()?);
    let ward = Ward::new(stage, 0)?;
    let context = policy.iommu().create_context(ward.vm, &machine.board().spec())?;
    let group = policy.group(DEVICE)?;
    policy.iommu().grant(ward.vm, group)?;
    let mut claim = policy.claim(DEVICE, ward.vm, group)?;
    ward.load(0, &SCRIPT)?;
    stage.step("a guest without a device sets its PAT register, an MTRR and CR0.CD");
    let mut vcpu = stage.vcpu(&ward.guest, Program::Script, ARGUMENTS)?;
    let to_halt = |vcpu: &mut Vcpu<Svm<'_>>| {
        let stop = turn(machine, vcpu, &mut ward.exits(machine), &mut no_call, LIMIT);
        ensure(stop == Stop::Halted, "the guest did not come to the end of its part")
    };
    let step = |text| machine.emit(&Event::Step { text });
    to_halt(&mut vcpu)?;
    reads(&ward, [(1, PAT), (4, WRITE_THROUGH), (6, CR0)])?;
    has(&vcpu, CR0 & !CACHE_DISABLE, Pat::ALL_WRITE_BACK.value())?;
    built(&ward, [1, 0], [MemoryType::WriteBack; 2])?;
    step("its device is attached where it may go past the caches");
    policy.attach(&mut claim, DEVICE, context)?;
    ward.notice_changed(machine)?;
    to_halt(&mut vcpu)?;
    reads(&ward, [(8, PAT), (9, MASK), (10, CR0)])?;
    has(&vcpu, CR0, PAT)?;
    built(&ward, [2, 1], [MemoryType::WriteBack, MemoryType::WriteThrough])?;
    ensure(vcpu.counts().control_reads == 1, "a read of CR0 ended a turn where hardware has the guest's")?;
    step("it makes all other memory uncacheable, and runs on from there");
    to_halt(&mut vcpu)?;
    reads(&ward, [(14, ON)])?;
    ensure(outcome(ward.guest.memory(), 13)?.vector == GENERAL_PROTECTION, "an MTRR took a reserved type")?;
    built(&ward, [3, 2], [MemoryType::Uncacheable, MemoryType::WriteThrough])?;
    step("its device is taken back");
    policy.detach(&mut claim, DEVICE)?;
    ward.notice_changed(machine)?;
    to_halt(&mut vcpu)?;
    reads(&ward, [(17, ON | 5), (18, CR0)])?;
    has(&vcpu, CR0 & !CACHE_DISABLE, Pat::ALL_WRITE_BACK.value())?;
    built(&ward, [4, 3], [MemoryType::WriteBack; 2])?;
    ended(turn(machine, &mut vcpu, &mut ward.exits(machine), &mut no_call, LIMIT))?;
    policy.release(claim, DEVICE, ward.vm)
}

/// What the guest read back, of which scripts keep the low halves of MSRs.
fn reads<const COUNT: usize>(ward: &Ward<'_>, expected: [(u64, u64); COUNT]) -> Result<(), Failure> {
    for (index, value) in expected {
        let found = outcome(ward.guest.memory(), index)?;
        let same = found.vector == DONE && found.value as u32 == value as u32;
        ensure(same, "the guest does not read back what it wrote")?;
    }
    Ok(())
}

/// What hardware has.
fn has(vcpu: &Vcpu<Svm<'_>>, cr0: u64, pat: u64) -> Result<(), Failure> {
    ensure(vcpu.backend.read(SystemRegister::Cr0) == cr0, "hardware has another CR0")?;
    ensure(vcpu.backend.read(SystemRegister::Pat) == pat, "hardware has another PAT register")
}

/// How often the tables were rebuilt, how often with a flush, and the types behind and in the range.
fn built(ward: &Ward<'_>, rebuilds: [u64; 2], [outside, inside]: [MemoryType; 2]) -> Result<(), Failure> {
    let shared = &ward.shared;
    let counted = [&shared.rebuilds, &shared.rebuild_flushes].map(|count| count.load(Ordering::Relaxed));
    ensure(counted == rebuilds, "the nested tables were rebuilt more or less often")?;
    let is = |at, memory_type| ward.guest.mapping(at) == Some(Mapping::Memory(memory_type));
    let behind = FREE + RANGE_BYTES;
    ensure(is(0, outside) && is(FREE - 1, outside) && is(behind, outside), "memory has another type")?;
    ensure(is(FREE, inside) && is(behind - 1, inside), "a range has another type")
}
