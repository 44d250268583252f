//! What a CPU needs set to run guests.

use core::arch::asm;

use super::{GUEST_BYTES, script::Privileged};

/// The guest's number; 0 is the hypervisor's.
const GUEST_ID: u64 = 1;
/// `LPCR[ILE]`: the guest's interrupts enter in little-endian mode (section 2.2; the bits below as well).
const LPCR_ILE: u64 = 1 << 25;
/// `LPCR[LPES]`: external interrupts go to the guest, which has them off: none ends its turn.
const LPCR_LPES: u64 = 1 << 3;
/// `LPCR[HDICE]`: the hypervisor decrementer interrupts, which ends a guest's turn.
const LPCR_HDICE: u64 = 1;
/// `LPCR[HVICE]`: hypervisor virtualization interrupts.
const LPCR_HVICE: u64 = 1 << 1;
/// `LPCR[UPRT]`: process tables are used.
const LPCR_UPRT: u64 = 1 << 22;
/// `LPCR[EVIRT]`: hypervisor instructions of a guest interrupt to the hypervisor instead of the guest.
const LPCR_EVIRT: u64 = 1 << 21;
/// `LPCR[HR]`: the hypervisor uses radix tables.
const LPCR_HR: u64 = 1 << 20;
/// `LPCR[LD]`: a decrementer wider than 32 bits.
const LPCR_LD: u64 = 1 << 17;
/// `LPCR[AIL]`, and `[HAIL]` of ISA 3.1: interrupts that enter with translation on.
const LPCR_AIL: u64 = 3 << 23 | 1 << 26;
/// `LPCR[VPM0, VPM1]` of 2.07B: the guest's real mode is virtualised by a hash table.
const LPCR_VPM: u64 = 3 << 62;
/// `LPCR[RMLS]` of 2.07B: where the guest's real mode ends.
const LPCR_RMLS: u64 = 0xf << 26;
/// 32 MiB in `LPCR[RMLS]` (POWER8 Processor User's Manual, "Logical Partitioning Control Register"). Sizes whose number
/// is odd do not work on QEMU: it takes the last bit for POWER10's HAIL.
const RMLS_32_MIB: u64 = 8 << 26;
/// `HFSCR[FP]` and `HFSCR[VECVSX]`: what a guest may use beyond the fixed-point facility (section 6.2.11).
const HFSCR_FP_VECTOR: u64 = 0b11;

const _: () = assert!(GUEST_BYTES == 32 << 20, "RMLS says so");

/// Which processor this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Processor {
    /// POWER8: the guest's real mode is an offset and a limit.
    Power8,
    /// POWER9 or POWER10: radix tables.
    Radix,
}

impl Processor {
    /// The one this runs on, by PVR; `None` for one that is not known.
    #[must_use]
    pub fn this() -> Option<Self> {
        let version: u64;
        // SAFETY: reads PVR, and nothing else.
        unsafe { asm!("mfspr {version}, 287", version = out(reg) version, options(nostack, nomem)) }
        match version >> 16 {
            0x4b..=0x4d => Some(Self::Power8),
            0x4e | 0x80 => Some(Self::Radix),
            _ => None,
        }
    }
}

macro_rules! read_spr {
    ($number:literal) => {{
        let value: u64;
        asm!("mfspr {value}, {number}", value = out(reg) value, number = const $number, options(nostack));
        value
    }};
}

macro_rules! write_spr {
    ($number:literal, $value:expr) => {
        asm!("mtspr {number}, {value}", value = in(reg) $value, number = const $number, options(nostack))
    };
}

/// Where the CPU finds the guest's memory.
#[derive(Clone, Copy, Debug)]
pub(super) enum Translation {
    /// Address of the guest's memory, for RMOR.
    Offset(u64),
    /// Address of the partition table, for PTCR.
    PartitionTable(u64),
}

/// Makes this CPU ready to enter the guest.
///
/// # Safety
/// In hypervisor real mode; the memory that `translation` leads to must be the guest's, or say what is.
pub(super) unsafe fn configure(translation: Translation) {
    // SAFETY: registers that act on guests alone, as long as this CPU is in hypervisor real mode.
    unsafe {
        let kept = read_spr!(318)
            & !(LPCR_VPM | LPCR_RMLS | LPCR_AIL | LPCR_UPRT | LPCR_EVIRT | LPCR_HR | LPCR_LD | LPCR_HVICE);
        let common = kept | LPCR_ILE | LPCR_LPES | LPCR_HDICE;
        write_spr!(190, HFSCR_FP_VECTOR);
        write_spr!(319, GUEST_ID); // LPIDR
        match translation {
            Translation::Offset(memory) => {
                write_spr!(312, memory); // RMOR
                write_spr!(318, common | RMLS_32_MIB); // LPCR
            }
            Translation::PartitionTable(table) => {
                write_spr!(464, table); // PTCR: the table has 4 KiB
                write_spr!(318, common | LPCR_UPRT | LPCR_HR | LPCR_EVIRT); // LPCR
                forget_translations();
            }
        }
        asm!("isync", options(nostack));
    }
}

/// Makes every CPU forget all translations of the guest and of the hypervisor.
///
/// # Safety
/// On a processor with radix tables, in hypervisor state.
pub(super) unsafe fn forget_translations() {
    const ALL_OF_ONE_PARTITION: u64 = 2 << 10;
    // SAFETY: `tlbie r5, r4` with RIC = 2, R = 1, and PRS = 0 for the guest's partition, 1 for the processes of the
    // hypervisor's (section 5.9.3.3); forgetting is harmless.
    unsafe {
        asm!(
            "ptesync",
            ".long 0x7c892a64",
            "li 4, 0",
            ".long 0x7c8b2a64",
            "eieio",
            "tlbsync",
            "ptesync",
            inout("r4") GUEST_ID => _,
            in("r5") ALL_OF_ONE_PARTITION,
            options(nostack),
        );
    }
}

/// Whether this processor has the register that `what` writes; where it has not, the instruction does nothing.
pub fn has(what: Privileged) -> bool {
    match what {
        Privileged::WritePtcr => Processor::this() == Some(Processor::Radix),
        Privileged::WriteRmor => Processor::this() == Some(Processor::Power8),
        _ => true,
    }
}

/// The registers of this CPU that keep guests confined: LPCR, LPIDR, HSPRG0, HRMOR, and PTCR or RMOR.
pub fn controls() -> [u64; 5] {
    // SAFETY: reads registers that the processor has.
    unsafe {
        let memory =
            if Processor::this() == Some(Processor::Radix) { read_spr!(464) } else { read_spr!(312) };
        [read_spr!(318), read_spr!(319), read_spr!(304), read_spr!(313), memory]
    }
}

/// This CPU's MSR.
pub fn machine_state() -> u64 {
    let state: u64;
    // SAFETY: reads MSR, and nothing else.
    unsafe { asm!("mfmsr {state}", state = out(reg) state, options(nostack)) }
    state
}

/// Writes PIDR and returns what it held.
pub(super) fn exchange_process(process: u64) -> u64 {
    // SAFETY: PIDR acts on translated accesses only, of which there are none.
    unsafe {
        let old = read_spr!(48);
        write_spr!(48, process);
        asm!("isync", options(nostack));
        old
    }
}

/// Ends the guest's turn after so many ticks of the time base, at most 2^31 - 1.
pub(super) fn limit_turn(ticks: u64) {
    let ticks = ticks.min(i32::MAX as u64);
    // SAFETY: HDEC acts on guests only: the hypervisor has interrupts off.
    unsafe { write_spr!(310, ticks) }
}

/// The CPU that this is: the index of its area.
pub fn this() -> usize {
    // SAFETY: HSPRG0 holds the area's address from `install` or the start of the CPU on.
    unsafe { (*(read_spr!(304) as *const super::frame::Frame)).cpu as usize }
}

/// The number that firmware knows this CPU by (PIR, section 5.4.4).
pub fn number() -> u64 {
    // SAFETY: reads PIR, and nothing else.
    unsafe { read_spr!(1023) }
}
