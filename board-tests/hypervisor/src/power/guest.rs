//! A guest: its memory, its CPUs' turns, and the scripts that it carries out in HV = 0.

use core::{
    arch::global_asm,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use portcullis_hal::{Clock, PhysAddr, arch::powerpc64::TimeBaseClock};

use super::{
    area::{self, Area, CPUS},
    cpu::{self, Processor, Translation},
    frame::{Frame, GUEST_MSR, MSR_PR},
    memory::GuestMemory,
    problem_state,
    registers::{self, Lent},
    script::{MAX_RECORDS, Op, RECORD_BYTES, Record, calls},
    tables::{self, REGISTERS_AT},
    virtual_mode,
};

/// First guest real address that neither the interpreter nor scripts use.
pub const FREE_START: u64 = 4 << 20;
/// Where the vCPUs have their scripts: `SCRIPTS * (number + 1)`, all below [`problem_state::PROCESSES`].
const SCRIPTS: u64 = 3 << 18;
/// From a script to its vCPU's scratch page, which holds patterns and what became of them.
const SCRATCH: u64 = MAX_RECORDS as u64 * RECORD_BYTES;
const _: () =
    assert!(SCRIPTS * CPUS as u64 + SCRATCH + PATTERNS * 16 <= problem_state::PROCESSES, "they fit");
/// Doublewords of patterns: 64 registers of 16 bytes, then 36 of 8.
const PATTERNS: u64 = 128 + 36;
/// Ticks of the time base in a microsecond (section 7.2: 512 MHz on these processors).
const TICKS_A_MICROSECOND: u64 = 512;

/// Vector of system calls (section 6.5).
const SYSTEM_CALL: u64 = 0xc00;
/// Vector of program interrupts: what a hypercall from problem state ends in.
const PROGRAM: u64 = 0x700;
const HYPERVISOR_DECREMENTER: u64 = 0x980;
/// What a guest's instruction runs into that belongs to the hypervisor: data storage, instruction storage,
/// emulation assistance, facility unavailable.
const REFUSED: [u64; 4] = [0xe00, 0xe20, 0xe40, 0xf80];

unsafe extern "C" {
    static hv_guest: u32;
    static hv_guest_end: u32;
    static hv_guest_start: u32;
    static hv_guest_reflected: u32;
    fn hv_enter(area: *mut Area);
}

global_asm!(include_str!("guest.s"));

/// Handles a hypercall in the hypervisor's full context: firmware and waiting are allowed, logging on the first
/// CPU only. Answers in the frame.
pub type FullContext = fn(&mut Frame);

/// Why a guest's turn ended before its script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It ran for longer than allowed.
    TimedOut,
    /// The script does not fit, or there is no such vCPU.
    NoSuchScript,
    /// Another vCPU of this number has its turn.
    Busy,
    /// An interrupt that no guest causes.
    Interrupt {
        /// Its offset.
        vector: u64,
        /// Where the guest was.
        pc: u64,
    },
}

/// A script that is in place.
#[derive(Clone, Copy, Debug)]
pub struct Loaded {
    records: usize,
}

/// The one guest that there is: vCPU n runs on CPU n.
#[derive(Clone, Copy, Debug)]
pub struct Guest {
    memory: GuestMemory,
    translation: Translation,
}

static TURN: [AtomicBool; CPUS] = [const { AtomicBool::new(false) }; CPUS];

impl Guest {
    /// Makes the memory a guest, zeroed but for its interpreter, and this CPU ready to enter it. `None` on an unknown
    /// processor.
    ///
    /// # Safety
    /// In hypervisor real mode, after [`install`](super::vectors::install), while no guest runs.
    #[must_use]
    pub unsafe fn new(memory: GuestMemory) -> Option<Self> {
        let translation = match Processor::this()? {
            Processor::Power8 => Translation::Offset(memory.address().as_u64()),
            Processor::Radix => {
                Translation::PartitionTable(tables::map_memory(memory.address(), problem_state::PROCESSES))
            }
        };
        memory.clear();
        copy_interpreter(memory);
        problem_state::make_tables(memory)?;
        let guest = Self { memory, translation };
        // SAFETY: as for this function.
        unsafe { guest.prepare_cpu() }
        Some(guest)
    }

    /// Makes this CPU ready to enter the guest.
    ///
    /// # Safety
    /// In hypervisor real mode.
    pub(super) unsafe fn prepare_cpu(&self) {
        // SAFETY: the guest's memory was donated; in hypervisor real mode, says the caller.
        unsafe { cpu::configure(self.translation) }
    }

    /// The guest's memory.
    #[must_use]
    pub const fn memory(&self) -> GuestMemory {
        self.memory
    }

    /// Lets the guest reach a device's registers: mapped cache-inhibited, or by hypercall on POWER8, whose real mode
    /// reaches nothing beyond its memory. `None` for registers that are not whole pages, or too many.
    ///
    /// # Safety
    /// The registers must be the guest's to use.
    #[must_use]
    pub unsafe fn lend_registers(&self, registers: PhysAddr, bytes: u64) -> Option<Lent> {
        tables::map_registers(registers, bytes)?;
        registers::allow_proxy(registers, bytes);
        if let Translation::Offset(_) = self.translation {
            return Some(Lent::ByProxy);
        }
        // SAFETY: this processor has radix tables.
        unsafe { cpu::forget_translations() }
        Some(Lent::Mapped(REGISTERS_AT))
    }

    /// Carries a script out on this CPU and waits for its end; hypercalls that are too hard go to `full`. What came
    /// of each operation is in [`outcome`](Self::outcome).
    ///
    /// # Errors
    /// [`Stop`]; what was done until then is in the outcomes.
    pub fn run_script(
        &self,
        script: impl IntoIterator<Item = Op>,
        full: FullContext,
        limit: Duration,
    ) -> Result<(), Stop> {
        let loaded = self.load(cpu::this(), script)?;
        self.run(loaded, full, limit)
    }

    /// Puts a script in place for a vCPU that has no turn now. Operation by operation, since a long script does not
    /// fit a stack.
    ///
    /// # Errors
    /// [`Stop::NoSuchScript`], [`Stop::Busy`].
    pub fn load(&self, vcpu: usize, script: impl IntoIterator<Item = Op>) -> Result<Loaded, Stop> {
        if vcpu >= CPUS {
            return Err(Stop::NoSuchScript);
        }
        if TURN.get(vcpu).is_some_and(|turn| turn.load(Ordering::Acquire)) {
            return Err(Stop::Busy);
        }
        let mut records = 0;
        for op in script {
            (records < MAX_RECORDS).then_some(()).ok_or(Stop::NoSuchScript)?;
            self.write_words(record_at(vcpu, records), &op.record().words()).ok_or(Stop::NoSuchScript)?;
            records += 1;
        }
        let scratch = record_at(vcpu, 0) + SCRATCH;
        for index in 0..PATTERNS {
            self.memory.write(scratch + index * 8, pattern(vcpu as u64, index)).ok_or(Stop::NoSuchScript)?;
        }
        Ok(Loaded { records })
    }

    /// What came of operation `index` of the vCPU's last script.
    #[must_use]
    pub fn outcome(&self, vcpu: usize, index: usize) -> Option<Record> {
        (vcpu < CPUS && index < MAX_RECORDS).then_some(())?;
        let mut words = [0; 16];
        for (word, at) in words.iter_mut().zip((record_at(vcpu, index)..).step_by(8)) {
            *word = self.memory.read(at)?;
        }
        Some(Record::from_words(words))
    }

    fn write_words(&self, at: u64, words: &[u64]) -> Option<()> {
        words.iter().zip((at..).step_by(8)).try_for_each(|(word, at)| self.memory.write(at, *word))
    }

    /// This CPU's vCPU carries out what was loaded.
    pub(super) fn run(&self, loaded: Loaded, full: FullContext, limit: Duration) -> Result<(), Stop> {
        let vcpu = cpu::this();
        let (area, turn) = area::area(vcpu).zip(TURN.get(vcpu)).ok_or(Stop::NoSuchScript)?;
        if turn.swap(true, Ordering::Acquire) {
            return Err(Stop::Busy);
        }
        // SAFETY: this CPU's area, and nobody else has it while the turn is taken.
        unsafe { (*area).frame = first_frame(vcpu, loaded.records) }
        let ended = turns(area, full, TimeBaseClock.now().saturating_add(limit));
        turn.store(false, Ordering::Release);
        ended
    }
}

/// One turn after the other until the script's end.
fn turns(area: *mut Area, full: FullContext, deadline: Duration) -> Result<(), Stop> {
    loop {
        let left = deadline.saturating_sub(TimeBaseClock.now());
        if left.is_zero() {
            return Err(Stop::TimedOut);
        }
        cpu::limit_turn((left.as_micros() as u64).saturating_mul(TICKS_A_MICROSECOND));
        // SAFETY: this CPU's area; its frame is that of a guest, which has none of the hypervisor's memory.
        unsafe { hv_enter(area) };
        // SAFETY: the guest's turn is over: the frame is this function's.
        let frame = unsafe { &mut (*area).frame };
        match frame.vector {
            SYSTEM_CALL if frame.msr & MSR_PR != 0 => reflect(frame, PROGRAM),
            SYSTEM_CALL => match frame.opcode() {
                calls::STOP => return Ok(()),
                calls::EMPTY | calls::EMPTY_FULL => frame.set_status(0),
                calls::READ_REGISTER | calls::WRITE_REGISTER => registers::answer(frame),
                _ => virtual_mode::call(full, frame),
            },
            // The limit has passed, or is further away than the decrementer counts.
            HYPERVISOR_DECREMENTER => {}
            vector if REFUSED.contains(&vector) => reflect(frame, vector),
            vector => return Err(Stop::Interrupt { vector, pc: frame.pc }),
        }
    }
}

/// Tells the guest's interpreter that its instruction was refused: it goes on with the next operation.
fn reflect(frame: &mut Frame, vector: u64) {
    let hdar = frame.hdar;
    let [r0, _, _, _, r4, ..] = &mut frame.gpr;
    (*r0, *r4) = (vector, hdar);
    frame.pc = offset(&raw const hv_guest_reflected);
    frame.msr = GUEST_MSR;
}

fn first_frame(vcpu: usize, records: usize) -> Frame {
    let mut frame = Frame { pc: offset(&raw const hv_guest_start), msr: GUEST_MSR, ..Frame::ZERO };
    frame.cpu = vcpu as u64;
    let [.., r27, _, _, r30, r31] = &mut frame.gpr;
    *r27 = record_at(vcpu, 0) + SCRATCH;
    *r30 = record_at(vcpu, records);
    *r31 = record_at(vcpu, 0);
    frame
}

/// Guest real address of something in the interpreter, which lies at 0.
fn offset(symbol: *const u32) -> u64 {
    (symbol.addr() - (&raw const hv_guest).addr()) as u64
}

const fn record_at(vcpu: usize, index: usize) -> u64 {
    SCRIPTS * (vcpu as u64 + 1) + index as u64 * RECORD_BYTES
}

/// A value of its own for each doubleword of each vCPU.
const fn pattern(vcpu: u64, index: u64) -> u64 {
    (0x9e37_79b9_7f4a_7c15 ^ vcpu << 7).wrapping_mul(index + 1)
}

fn copy_interpreter(memory: GuestMemory) {
    let (start, end) = (&raw const hv_guest, &raw const hv_guest_end);
    let words = (end.addr() - start.addr()) / 4;
    for index in (0..words).step_by(2) {
        // SAFETY: words of the code; past an odd end lies more code or padding of the same section.
        let (low, high) = unsafe { (start.add(index).read(), start.add(index + 1).read()) };
        let _ = memory.write(index as u64 * 4, u64::from(high) << 32 | u64::from(low));
    }
    for line in (0..words as u64 * 4).step_by(128) {
        let address = memory.address().as_u64() + line;
        // SAFETY: makes the new instructions visible to all CPUs.
        unsafe { core::arch::asm!("dcbst 0, {at}", "sync", "icbi 0, {at}", at = in(reg) address) }
    }
    // SAFETY: as above.
    unsafe { core::arch::asm!("sync", "isync") }
}
