//! A guest reaches its memory and nothing else.

use portcullis_suite::Failure;

use super::{LIMIT, Machine, Noted, Stage, ended, ensure, fail, load, no_call, outcome, turn};
use crate::x86::{
    caching::CacheInstruction,
    guest::{
        layout::{FREE, GUEST_BYTES},
        programs::Program,
        script::{DONE, GENERAL_PROTECTION, INVALID_OPCODE, MAX_RECORDS, Op, What},
    },
    memory::GuestMemory,
    state,
    vcpu::{Counts, NoCacheControl, Stop},
};

/// Registers of VT-d and of the local APIC, the ports' memory window, and what is far away.
pub(super) const OUTSIDE: [u64; 6] =
    [0xfed9_0000, 0xfed9_0018, 0xfee0_0020, 0xfee0_0300, 0xe000_0000, 0xffff_fff0];
/// EFER, VM_CR, VM_HSAVE_PA, APIC_BASE, x2APIC's ID and command, SMM's base.
pub(super) const MSRS: [u64; 7] = [0xc000_0080, 0xc001_0114, 0xc001_0117, 0x1b, 0x802, 0x830, 0xc001_0111];
const EFER: u64 = 0xc000_0080;
const EFER_SVME: u64 = 1 << 12;
/// Configuration space, the debug exit, the serial port, the interval timer, the keyboard's reset line.
const PORTS: [u64; 6] = [0xcf8, 0xcfc, 0xf4, 0x3f8, 0x40, 0x64];
const SVM: [What; 7] =
    [What::Vmrun, What::Vmload, What::Vmsave, What::Stgi, What::Clgi, What::Skinit, What::Invlpga];
/// Behind every attempt: a hypercall's worth of proof that the guest goes on.
const ALIVE: Op = Op(What::Load, FREE, 0);
const CR0_TASK_SWITCHED: u64 = 1 << 3;

/// X03 to X06, X08, X09.
pub(super) fn svm_guest_is_confined<M: Machine>(stage: &mut Stage<'_, M>) -> Result<(), Failure> {
    let (digest, controls) = (stage.machine.digest(), state::controls());
    accesses(stage)?;
    cpuid(stage)?;
    msrs(stage)?;
    ports(stage)?;
    instructions(stage)?;
    caches(stage)?;
    programs(stage)?;
    death(stage)?;
    ensure(state::controls() == controls, "the guest changed a register of the hypervisor")?;
    ensure(stage.machine.digest() == digest, "the hypervisor's image has changed")
}

/// Has a fresh vCPU of guest 0 carry a script out, refusing what it has not; the faults' addresses go to `faults`.
fn carry_out<M: Machine>(
    stage: &mut Stage<'_, M>,
    script: &[Op],
    faults: &mut dyn FnMut(usize, u64),
) -> Result<(GuestMemory, Counts, Option<CacheInstruction>), Failure> {
    let machine = stage.machine;
    let guest = stage.guest(0)?;
    let at = load(guest.memory(), script.iter().copied())?;
    let mut vcpu = stage.vcpu(&guest, Program::Script, at)?;
    let mut noted = Noted::default();
    for number in 0..MAX_RECORDS as usize {
        match turn(machine, &mut vcpu, &mut noted, &mut no_call, LIMIT) {
            Stop::Fault(fault) => {
                faults(number, fault.address);
                vcpu.refuse();
            }
            stop => {
                ended(stop)?;
                return Ok((guest.memory(), vcpu.counts(), noted.0));
            }
        }
    }
    fail("the guest had more faults than operations")
}

/// Each operation of a script ends in `vector`, brings nothing, and the guest goes on.
fn refused<M: Machine>(
    stage: &mut Stage<'_, M>,
    ops: impl IntoIterator<Item = Op>,
    vector: u64,
    what: &'static str,
) -> Result<Counts, Failure> {
    let mut script = [ALIVE; 2 * 16];
    let mut used = 0;
    for (pair, op) in script.chunks_exact_mut(2).zip(ops) {
        pair.iter_mut().take(1).for_each(|place| *place = op);
        used += 2;
    }
    let (memory, counts, _) = carry_out(stage, script.get(..used).unwrap_or_default(), &mut |_, _| ())?;
    for index in (0..used as u64).step_by(2) {
        ensure(outcome(memory, index)?.vector == vector, what)?;
        ensure(outcome(memory, index + 1)?.vector == DONE, "the guest does not go on after a refusal")?;
    }
    Ok(counts)
}

/// Loads, stores and fetches: of what is mapped to nobody, of devices, and of where the hypervisor lies in its own
/// addresses, as far as that is beyond the guest's memory.
fn accesses<M: Machine>(stage: &mut Stage<'_, M>) -> Result<(), Failure> {
    stage.step("the guest stores to, loads from and jumps to what is not its memory");
    let hypervisor = core::ptr::from_ref(stage.machine).addr() as u64;
    let memory = stage.guest(1)?.memory().address().as_u64();
    let places = [GUEST_BYTES, GUEST_BYTES + 0x1000, memory, hypervisor].into_iter().chain(OUTSIDE);
    for at in places.filter(|at| *at >= GUEST_BYTES) {
        let script = [Op(What::Store, at, 1), Op(What::Load, at, 0), Op(What::Jump, at, 0), ALIVE];
        let mut told = [0; 3];
        let (guest, counts, _) = carry_out(stage, &script, &mut |number, address| {
            told.iter_mut().skip(number).take(1).for_each(|place| *place = address);
        })?;
        ensure(told == [at; 3] && counts.faults == 3, "an access beyond the guest's memory was not told")?;
        for index in 0..3 {
            let outcome = outcome(guest, index)?;
            ensure(
                outcome.vector == GENERAL_PROTECTION,
                "an access beyond the guest's memory was not refused",
            )?;
            ensure(outcome.value == 0, "a refused load brought a value")?;
        }
        ensure(outcome(guest, 3)?.vector == DONE, "the guest does not go on after a refusal")?;
    }
    own_copy(stage)
}

/// Where the hypervisor's image lies the guest has a copy of it: what it stores there changes the copy.
fn own_copy<M: Machine>(stage: &mut Stage<'_, M>) -> Result<(), Failure> {
    let (start, words) = stage.machine.image();
    let last = start.addr() as u64 + (words as u64 - 1) * 8;
    let digest = stage.machine.digest();
    let marker = 0x5afe_c0de_5afe_c0de;
    let script = [start.addr() as u64, last].map(|at| Op(What::Store, at, marker));
    let (memory, counts, _) = carry_out(stage, &script, &mut |_, _| ())?;
    ensure(counts.faults == 0, "the guest does not reach its own copy")?;
    let copied = memory.read(start.addr() as u64) == Some(marker) && memory.read(last) == Some(marker);
    ensure(copied, "the guest's store is not in its own memory")?;
    ensure(stage.machine.digest() == digest, "the guest changed the hypervisor's image")
}

fn cpuid<M: Machine>(stage: &mut Stage<'_, M>) -> Result<(), Failure> {
    stage.step("the guest asks CPUID");
    let word = |leaf, word| Op(What::Cpuid, leaf, word);
    let script = [word(0x8000_0001, 2), word(0x8000_000a, 1), word(1, 2), word(1, 3), word(0x4000_0000, 1)];
    let (memory, counts, _) = carry_out(stage, &script, &mut |_, _| ())?;
    let value = |index| outcome(memory, index).map(|outcome| outcome.value);
    ensure(counts.cpuid == 5, "another number of CPUID instructions arrived")?;
    ensure(value(0)? >> 2 & 1 == 0 && value(1)? == 0, "CPUID shows SVM")?;
    ensure(value(2)? >> 31 & 1 == 1 && value(4)? == 0x7472_6f50, "CPUID does not show the hypervisor")?;
    ensure(value(2)? >> 21 & 1 == 0 && value(3)? >> 9 & 1 == 0, "CPUID shows a local APIC")?;
    ensure(value(3)? >> 19 & 1 == 1, "CPUID hides CLFLUSH")
}

fn msrs<M: Machine>(stage: &mut Stage<'_, M>) -> Result<(), Failure> {
    stage.step("the guest reads and writes MSRs");
    let reads = MSRS.into_iter().skip(1).map(|number| Op(What::ReadMsr, number, 0));
    refused(stage, reads, GENERAL_PROTECTION, "the guest may read an MSR of the hypervisor's")?;
    let writes = MSRS.into_iter().map(|number| Op(What::WriteMsr, number, 0));
    let counts =
        refused(stage, writes, GENERAL_PROTECTION, "the guest may write an MSR of the hypervisor's")?;
    ensure(counts.msr == MSRS.len() as u64, "another number of accesses to MSRs arrived")?;
    let script = [
        Op(What::WriteMsr, EFER, 0x500 | EFER_SVME),
        Op(What::WriteMsr, EFER, 0x501),
        Op(What::ReadMsr, EFER, 0),
        Op(What::WriteMsr, 0xc000_0102, 0x1234_5000),
        Op(What::ReadMsr, 0xc000_0102, 0),
    ];
    let (memory, counts, _) = carry_out(stage, &script, &mut |_, _| ())?;
    ensure(outcome(memory, 0)?.vector == GENERAL_PROTECTION, "the guest may turn SVM on")?;
    ensure(outcome(memory, 1)?.vector == DONE, "the guest may not turn SYSCALL on")?;
    ensure(outcome(memory, 2)?.value == 0x501, "EFER is not what the guest wrote")?;
    ensure(outcome(memory, 4)?.value == 0x1234_5000, "an MSR is not what the guest wrote")?;
    ensure(counts.msr == 3, "an MSR that is switched with the guest made it exit")
}

fn ports<M: Machine>(stage: &mut Stage<'_, M>) -> Result<(), Failure> {
    stage.step("the guest reads and writes ports");
    let reads = PORTS.into_iter().map(|port| Op(What::ReadPort, port, 0));
    refused(stage, reads, GENERAL_PROTECTION, "the guest may read a port")?;
    let writes = PORTS.into_iter().map(|port| Op(What::WritePort, port, 0x10));
    let counts = refused(stage, writes, GENERAL_PROTECTION, "the guest may write a port")?;
    ensure(counts.io == PORTS.len() as u64, "another number of accesses to ports arrived")
}

fn instructions<M: Machine>(stage: &mut Stage<'_, M>) -> Result<(), Failure> {
    stage.step("the guest tries the hypervisor's instructions");
    let svm = SVM.into_iter().map(|what| Op(what, FREE, 0));
    refused(stage, svm, INVALID_OPCODE, "the guest may use an instruction of SVM")?;
    let monitor = [Op(What::Monitor, FREE, 0)];
    refused(stage, monitor, INVALID_OPCODE, "the guest may use MONITOR")?;
    let not_lent = [Op(What::WriteDebug, FREE, 0), Op(What::WriteCr4, 1 << 18 | 1 << 5, 0)];
    refused(stage, not_lent, GENERAL_PROTECTION, "the guest may write DR0, or turn XSAVE on")?;
    let hidden = [Op(What::Xsetbv, 3, 0)];
    refused(stage, hidden, INVALID_OPCODE, "the guest may write XCR0")?;
    stage.step("the guest writes CR0");
    let write = |value| Op(What::WriteCr0, value, 0);
    let no_paging = [write(0x11), write(0x8000_0010), write(0xa000_0011), write(0x1_8000_0011)];
    refused(stage, no_paging, GENERAL_PROTECTION, "the guest may write nonsense to CR0")?;
    let script = [write(0x8001_0033 | CR0_TASK_SWITCHED), Op(What::ReadCr0, 0, 0)];
    let (memory, counts, _) = carry_out(stage, &script, &mut |_, _| ())?;
    ensure(outcome(memory, 1)?.value == 0x8001_003b, "CR0 is not what the guest wrote")?;
    ensure(counts.control_writes == 1, "another number of writes to CR0 arrived")
}

/// X09: which instruction it was, also where the exit code says it wrongly.
fn caches<M: Machine>(stage: &mut Stage<'_, M>) -> Result<(), Failure> {
    stage.step("the guest writes back and invalidates caches");
    let kinds = [
        (What::Wbinvd, CacheInstruction::Wbinvd),
        (What::Wbnoinvd, CacheInstruction::Wbnoinvd),
        (What::Invd, CacheInstruction::Invd),
    ];
    for (what, kind) in kinds {
        let (memory, counts, noted) = carry_out(stage, &[Op(what, 0, 0), ALIVE], &mut |_, _| ())?;
        ensure(noted == Some(kind), "a cache instruction was taken for another one, or not seen")?;
        ensure(counts.wbinvd + counts.wbnoinvd + counts.invd == 1, "another number of them arrived")?;
        ensure(outcome(memory, 0)?.vector == DONE, "a cache instruction was refused")?;
    }
    Ok(())
}

/// X08: what a program of the guest's kernel has no right to.
fn programs<M: Machine>(stage: &mut Stage<'_, M>) -> Result<(), Failure> {
    stage.step("a program of the guest executes WBINVD, and makes a hypercall");
    let wbinvd = [Op(What::WbinvdAsProgram, 0, 0)];
    let counts = refused(stage, wbinvd, GENERAL_PROTECTION, "a program may execute WBINVD")?;
    ensure(counts.wbinvd == 0, "WBINVD of a program arrived in the hypervisor")?;
    let call = [Op(What::CallAsProgram, 0, 0)];
    refused(stage, call, INVALID_OPCODE, "a program may make a hypercall").map(|_| ())
}

/// X06.
fn death<M: Machine>(stage: &mut Stage<'_, M>) -> Result<(), Failure> {
    stage.step("the guest halts; another one dies of a triple fault");
    let machine = stage.machine;
    let guest = stage.guest(0)?;
    let script = load(guest.memory(), [Op(What::Halt, 0, 0), Op(What::TripleFault, 0, 0)])?;
    let mut vcpu = stage.vcpu(&guest, Program::Script, script)?;
    let mut run = || turn(machine, &mut vcpu, &mut NoCacheControl, &mut no_call, LIMIT);
    ensure(run() == Stop::Halted, "the guest did not halt")?;
    ensure(run() == Stop::Shutdown, "a triple fault did not end the guest")?;
    ensure(run() == Stop::Shutdown, "a dead guest runs again")?;
    carry_out(stage, &[ALIVE], &mut |_, _| ()).map(|_| ())
}
