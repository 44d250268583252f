//! The loop on a CPU that is told what to report.

use std::{cell::Cell, collections::VecDeque, vec::Vec};

use portcullis_iommu::{Because, Coherency};

use super::*;
use crate::x86::caching::{Obeyed, mtrr::BadMsr};

const SHORT: Duration = Duration::from_micros(10);

/// What a backend was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Did {
    Skipped,
    Raised(Exception),
    Wrote(SystemRegister, u64),
    Shadowed(bool),
    Forgot,
}

#[derive(Default)]
struct Told {
    exits: VecDeque<Exit>,
    did: Vec<Did>,
    program: bool,
    turns: u64,
    up: u64,
}

impl Backend for Told {
    fn run(&mut self, _: &mut Registers) -> Exit {
        assert_eq!(self.up, 1, "the vCPU's vector registers are not on the CPU");
        self.turns += 1;
        self.exits.pop_front().unwrap_or(Exit::Halt)
    }

    fn take_up(&mut self) {
        self.up += 1;
    }

    fn put_down(&mut self) {
        self.up -= 1;
    }

    fn instruction_pointer(&self) -> u64 {
        0
    }

    fn skip_instruction(&mut self) -> Option<()> {
        self.did.push(Did::Skipped);
        Some(())
    }

    fn raise(&mut self, exception: Exception) {
        self.did.push(Did::Raised(exception));
    }

    fn read(&self, _: SystemRegister) -> u64 {
        0x500
    }

    fn write(&mut self, register: SystemRegister, value: u64) {
        self.did.push(Did::Wrote(register, value));
    }

    fn intercept_cr0_reads(&mut self, intercept: bool) {
        self.did.push(Did::Shadowed(intercept));
    }

    fn forget_translations(&mut self) {
        self.did.push(Did::Forgot);
    }

    fn is_privileged(&self) -> bool {
        !self.program
    }

    fn cpuid(&self, _: u32, _: u32) -> cpuid::Answer {
        [u32::MAX; 4]
    }
}

/// A microsecond passes at each look.
struct Ticking(Cell<u64>);

impl Clock for Ticking {
    fn now(&self) -> Duration {
        self.0.set(self.0.get() + 1);
        Duration::from_micros(self.0.get())
    }
}

#[derive(Default)]
struct Timer {
    armed: u64,
    taken: u64,
    disarmed: u64,
}

impl TurnLimit for Timer {
    fn arm(&mut self, _: Duration) {
        self.armed += 1;
    }

    fn take_interrupts(&mut self) {
        self.taken += 1;
    }

    fn disarm(&mut self) {
        self.disarmed += 1;
    }
}

/// Notes cache instructions, stays and MTRRs; says what is to be given, or which error stops the guest.
struct Heard {
    kinds: Vec<CacheInstruction>,
    verdict: Coherency,
    generation: u64,
    inside: bool,
    stops: Option<NotObeyed>,
    keeps_out: Option<NotObeyed>,
    range: u64,
}

impl Default for Heard {
    fn default() -> Self {
        let verdict = Coherency::NonCoherent { because: Because::NotEnforced };
        Self {
            kinds: Vec::new(),
            verdict,
            generation: 0,
            inside: false,
            stops: None,
            keeps_out: None,
            range: 0,
        }
    }
}

impl CacheControl for Heard {
    fn cache_instruction(&mut self, kind: CacheInstruction) -> Result<Obeyed, NotObeyed> {
        assert!(!self.inside, "a guest that runs is no guest that left");
        self.kinds.push(kind);
        self.stops.map_or(Ok(Obeyed::Skipped), Err)
    }

    fn enter(&mut self, own: GuestRegisters) -> Result<Entry, NotObeyed> {
        assert!(!self.inside, "entered twice");
        self.keeps_out.map_or(Ok(()), Err)?;
        self.inside = true;
        Ok(Entry { hardware: own.under(self.verdict), generation: self.generation })
    }

    fn leave(&mut self) {
        assert!(self.inside, "left twice");
        self.inside = false;
    }

    fn read_mtrr(&mut self, _: u32) -> Result<u64, BadMsr> {
        Ok(self.range)
    }

    fn write_mtrr(&mut self, _: u32, value: u64) -> Result<(), BadMsr> {
        self.range = value;
        if value == 0 { Err(BadMsr::Value(value)) } else { Ok(()) }
    }
}

fn vcpu(exits: impl IntoIterator<Item = Exit>) -> Vcpu<Told> {
    let told = Told { exits: exits.into_iter().collect(), ..Told::default() };
    Vcpu::new(told, Registers::default())
}

fn run(vcpu: &mut Vcpu<Told>, cache: &mut Heard, limit: Duration) -> (Stop, Timer) {
    let mut timer = Timer::default();
    let clock = Ticking(Cell::new(0));
    let mut hypercall = |call: Call| call.number + 1;
    let mut around = Around { clock: &clock, limit: &mut timer, cache, hypercall: &mut hypercall };
    let stop = vcpu.run(&mut around, limit);
    assert_eq!(vcpu.backend.up, 0);
    assert!(!cache.inside, "the guest was not left");
    (stop, timer)
}

fn to_halt(vcpu: &mut Vcpu<Told>) -> Stop {
    run(vcpu, &mut Heard::default(), Duration::from_secs(1)).0
}

#[test]
fn x02_hypercalls_are_answered_and_counted() {
    let mut vcpu = vcpu([Exit::Hypercall; 3]);
    vcpu.registers.set(Registers::RAX, 100);
    assert_eq!(to_halt(&mut vcpu), Stop::Halted);
    assert_eq!((vcpu.registers.get(Registers::RAX), vcpu.counts().hypercalls), (103, 3));
    assert_eq!(vcpu.backend.did, [Did::Skipped; 4]);
}

#[test]
fn x07_a_guest_that_never_stops_is_ended_at_its_limit() {
    let mut vcpu = vcpu([Exit::Interrupt; 100]);
    let (stop, timer) = run(&mut vcpu, &mut Heard::default(), SHORT);
    assert_eq!((stop, timer.disarmed), (Stop::TimedOut, 1));
    assert_eq!((timer.taken, timer.armed), (vcpu.counts().interrupts, vcpu.counts().interrupts));
    assert!((5..20).contains(&vcpu.backend.turns), "{} turns", vcpu.backend.turns);
}

#[test]
fn x07_one_that_exits_for_ever_is_as_well() {
    let mut vcpu = vcpu([Exit::Cpuid; 100]);
    let (stop, timer) = run(&mut vcpu, &mut Heard::default(), SHORT);
    assert_eq!((stop, timer.taken, timer.disarmed), (Stop::TimedOut, 0, 1));
}

#[test]
fn x06_a_dead_guest_stays_dead() {
    let mut vcpu = vcpu([Exit::Shutdown]);
    assert_eq!([to_halt(&mut vcpu), to_halt(&mut vcpu)], [Stop::Shutdown; 2]);
    assert_eq!(vcpu.backend.turns, 1);
}

#[test]
fn x08_a_program_is_refused_what_only_a_kernel_may() {
    let kinds = [CacheInstruction::Wbinvd, CacheInstruction::Wbnoinvd, CacheInstruction::Invd];
    let exits = kinds.map(Exit::WriteBackInvalidate).into_iter().chain([
        Exit::Msr { write: true },
        Exit::Halt,
        Exit::Cr0Write { from: Some(0) },
        Exit::NotLent,
    ]);
    let mut vcpu = vcpu(exits.chain([Exit::Hypercall, Exit::Shutdown]));
    vcpu.backend.program = true;
    let mut heard = Heard::default();
    assert_eq!(run(&mut vcpu, &mut heard, Duration::from_secs(1)).0, Stop::Shutdown);
    let (last, others) = vcpu.backend.did.split_last().expect("refusals");
    assert_eq!(others, [Did::Raised(Exception::GeneralProtection); 7]);
    assert_eq!(*last, Did::Raised(Exception::InvalidOpcode));
    assert_eq!((heard.kinds.len(), vcpu.counts().wbinvd), (0, 0));
}

#[test]
fn x09_cache_instructions_reach_who_decides_about_them_and_are_counted() {
    let kinds = [CacheInstruction::Wbinvd, CacheInstruction::Invd, CacheInstruction::Wbinvd];
    let mut vcpu = vcpu(kinds.map(Exit::WriteBackInvalidate));
    let mut heard = Heard::default();
    assert_eq!(run(&mut vcpu, &mut heard, Duration::from_secs(1)).0, Stop::Halted);
    assert_eq!(heard.kinds, kinds);
    let counts = vcpu.counts();
    assert_eq!((counts.wbinvd, counts.wbnoinvd, counts.invd), (2, 0, 1));
}

#[test]
fn x05_ports_svm_and_unlent_registers_are_refused() {
    let mut vcpu =
        vcpu([Exit::Io { port: 0xf4 }, Exit::Svm, Exit::NotLent, Exit::Hidden, Exit::Msr { write: false }]);
    vcpu.registers.set(Registers::RCX, 0xc001_0117);
    assert_eq!(to_halt(&mut vcpu), Stop::Halted);
    let [gp, ud] = [Exception::GeneralProtection, Exception::InvalidOpcode].map(Did::Raised);
    assert_eq!(vcpu.backend.did, [gp, ud, gp, ud, gp, Did::Skipped]);
    assert_eq!((vcpu.counts().io, vcpu.counts().msr, vcpu.counts().refused), (1, 1, 3));
}

#[test]
fn x05_what_is_emulated_is_done_in_the_guests_place() {
    let mut vcpu = vcpu([Exit::Msr { write: true }, Exit::Cr0Write { from: Some(3) }]);
    for (register, value) in
        [(Registers::RCX, 0xc000_0080), (Registers::RAX, 0x501), (Registers::RBX, 0x8000_0001)]
    {
        vcpu.registers.set(register, value);
    }
    assert_eq!(to_halt(&mut vcpu), Stop::Halted);
    let wrote = |register, value| Did::Wrote(register, value);
    let expected = [
        wrote(SystemRegister::Efer, 0x501),
        Did::Skipped,
        Did::Skipped,
        wrote(SystemRegister::Cr0, 0x8000_0011),
        wrote(SystemRegister::Pat, 0x500),
        Did::Shadowed(false),
        Did::Skipped,
    ];
    assert_eq!(vcpu.backend.did, expected);
}

#[test]
fn x03_a_fault_stops_the_guest_with_its_address() {
    let fault = NestedFault { address: 0xfed9_0000, write: true, fetch: false, table_walk: false };
    let mut vcpu = vcpu([Exit::NestedFault(fault)]);
    assert_eq!(to_halt(&mut vcpu), Stop::Fault(fault));
    vcpu.refuse();
    assert_eq!(vcpu.backend.did, [Did::Raised(Exception::GeneralProtection)]);
}

#[test]
fn x26_what_was_not_obeyed_stops_the_guest_before_its_instruction_is_over() {
    let mut vcpu = vcpu([Exit::WriteBackInvalidate(CacheInstruction::Wbinvd); 2]);
    let mut heard = Heard { stops: Some(NotObeyed::Busy), ..Heard::default() };
    for _ in 0..2 {
        let stop = run(&mut vcpu, &mut heard, Duration::from_secs(1)).0;
        assert_eq!(stop, Stop::NotObeyed(NotObeyed::Busy));
    }
    assert_eq!(vcpu.backend.did, [], "the guest is still before it");
    assert_eq!(heard.kinds.len(), 2, "and asks again");
}

#[test]
fn x26_a_guest_that_must_not_be_entered_does_not_run_and_can_later() {
    let mut vcpu = vcpu([]);
    let mut heard = Heard { keeps_out: Some(NotObeyed::Busy), ..Heard::default() };
    let (stop, timer) = run(&mut vcpu, &mut heard, Duration::from_secs(1));
    assert_eq!((stop, timer.disarmed), (Stop::NotObeyed(NotObeyed::Busy), 1));
    assert_eq!(vcpu.backend.turns, 0);
    heard.keeps_out = None;
    assert_eq!(run(&mut vcpu, &mut heard, Duration::from_secs(1)).0, Stop::Halted);
}

#[test]
fn x27_while_coherent_a_guest_reads_back_what_hardware_does_not_have() {
    let exits = [
        Exit::Cr0Write { from: Some(3) },
        Exit::Cr0Read { to: Some(7) },
        Exit::Msr { write: true },
        Exit::Cr0Read { to: None },
    ];
    let mut vcpu = vcpu(exits);
    let off = 0xc000_0011;
    vcpu.registers.set(Registers::RBX, off);
    vcpu.registers.set(Registers::RCX, Pat::MSR.into());
    let mut heard = Heard { verdict: Coherency::Coherent, ..Heard::default() };
    assert_eq!(run(&mut vcpu, &mut heard, Duration::from_secs(1)).0, Stop::Halted);
    assert_eq!((vcpu.registers.get(Registers::RDI), vcpu.counts().control_reads), (off, 2));
    let gave = |cr0, shadowed| {
        let pat = Did::Wrote(SystemRegister::Pat, Pat::ALL_WRITE_BACK.value());
        [Did::Wrote(SystemRegister::Cr0, cr0), pat, Did::Shadowed(shadowed)]
    };
    let mut expected = gave(0x500, false).to_vec();
    expected.push(Did::Skipped);
    expected.extend(gave(off & !(1 << 30), true));
    expected.extend([Did::Skipped, Did::Skipped, Did::Raised(Exception::GeneralProtection), Did::Skipped]);
    assert_eq!(vcpu.backend.did, expected);
    heard.verdict = Coherency::NonCoherent { because: Because::NotEnforced };
    vcpu.backend.did.clear();
    run(&mut vcpu, &mut heard, Duration::from_secs(1));
    let cr0 = Did::Wrote(SystemRegister::Cr0, off);
    let pat = Did::Wrote(SystemRegister::Pat, 0);
    assert_eq!(vcpu.backend.did, [cr0, pat, Did::Shadowed(false), Did::Skipped]);
}

#[test]
fn x27_mtrrs_are_asked_of_who_keeps_them() {
    let mut vcpu = vcpu([Exit::Msr { write: true }, Exit::Msr { write: false }]);
    vcpu.registers.set(Registers::RCX, 0x2ff);
    vcpu.registers.set(Registers::RAX, 0xc06);
    let mut heard = Heard::default();
    run(&mut vcpu, &mut heard, Duration::from_secs(1));
    assert_eq!((heard.range, vcpu.registers.get(Registers::RAX)), (0xc06, 0xc06));
    vcpu.registers.set(Registers::RAX, 0);
    vcpu.backend.exits.push_back(Exit::Msr { write: true });
    vcpu.backend.did.clear();
    run(&mut vcpu, &mut heard, Duration::from_secs(1));
    assert_eq!(vcpu.backend.did, [Did::Raised(Exception::GeneralProtection), Did::Skipped]);
}

#[test]
fn x28_new_nested_tables_make_the_cpu_forget_once() {
    let mut vcpu = vcpu([]);
    let mut heard = Heard { generation: 3, ..Heard::default() };
    run(&mut vcpu, &mut heard, Duration::from_secs(1));
    run(&mut vcpu, &mut heard, Duration::from_secs(1));
    assert_eq!(vcpu.backend.did, [Did::Forgot, Did::Skipped, Did::Skipped]);
}
