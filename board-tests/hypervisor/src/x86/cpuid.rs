//! What CPUID tells a guest: the CPU's own answer without what the guest has no right to or is not switched for it
//! (AMD64 manual, volume 3, appendix E).

/// EAX, EBX, ECX, EDX.
pub type Answer = [u32; 4];

/// First of the leaves that belong to hypervisors.
pub const HYPERVISOR_LEAF: u32 = 0x4000_0000;
/// First of AMD's leaves.
const EXTENDED: u32 = 0x8000_0000;
/// Says that a hypervisor runs below.
const HYPERVISOR_PRESENT: u32 = 1 << 31;
/// MONITOR, VMX, SMX, FMA, PCID, x2APIC, TSC deadline, XSAVE, OSXSAVE, AVX, F16C.
const HIDDEN_1_ECX: u32 =
    1 << 3 | 1 << 5 | 1 << 6 | 1 << 12 | 1 << 17 | 1 << 21 | 1 << 24 | 0b111 << 26 | 1 << 29;
/// Machine checks, local APIC.
const HIDDEN_1_EDX: u32 = 1 << 7 | 1 << 9 | 1 << 14;
/// What of leaf 7 needs no state of its own: FSGSBASE, BMI1, SMEP, BMI2, ERMS, RDSEED, ADX, SMAP, CLFLUSHOPT, CLWB.
const SHOWN_7_EBX: u32 =
    1 | 1 << 3 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 18 | 1 << 19 | 1 << 20 | 1 << 23 | 1 << 24;
/// SVM, extended APIC space, SKINIT, watchdog, performance counters, MWAITX.
const HIDDEN_EXTENDED_ECX: u32 = 1 << 2 | 1 << 3 | 0b11 << 12 | 0b11 << 23 | 1 << 28 | 1 << 29;

/// What the guest is told where the CPU says `own` to `leaf`.
#[must_use]
pub const fn answer(leaf: u32, own: Answer) -> Answer {
    let [eax, ebx, ecx, edx] = own;
    match leaf {
        1 => [eax, ebx, ecx & !HIDDEN_1_ECX | HYPERVISOR_PRESENT, edx & !HIDDEN_1_EDX],
        7 => [0, ebx & SHOWN_7_EBX, 0, 0],
        HYPERVISOR_LEAF => [
            HYPERVISOR_LEAF,
            u32::from_le_bytes(*b"Port"),
            u32::from_le_bytes(*b"cull"),
            u32::from_le_bytes(*b"is  "),
        ],
        // MONITOR, thermal sensors, performance counters, x2APIC topology, XSAVE, and what came later.
        5 | 6 | 0xa..=0x3fff_ffff => [0; 4],
        0x4000_0001..=0x7fff_ffff => [0; 4],
        0x8000_0001 => [eax, ebx, ecx & !HIDDEN_EXTENDED_ECX, edx & !HIDDEN_1_EDX],
        EXTENDED | 0x8000_0002..=0x8000_0008 => own,
        // SVM's own leaf is 0x8000_000a.
        0x8000_0009.. => [0; 4],
        _ => own,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Answer = [u32::MAX; 4];

    #[test]
    fn x04_no_guest_sees_svm_or_what_is_not_switched_for_it() {
        let [_, _, ecx, _] = answer(0x8000_0001, ALL);
        assert_eq!((ecx & 1 << 2, ecx & 1 << 12), (0, 0), "SVM, SKINIT");
        assert_eq!(answer(0x8000_000a, ALL), [0; 4]);
        let [_, _, ecx, edx] = answer(1, ALL);
        for hidden in [3, 5, 21, 24, 26, 27, 28] {
            assert_eq!(ecx >> hidden & 1, 0, "bit {hidden} of ECX");
        }
        assert_eq!(edx >> 9 & 1, 0, "local APIC");
        assert_eq!((answer(0xd, ALL), answer(0xb, ALL)), ([0; 4], [0; 4]), "XSAVE, x2APIC");
    }

    #[test]
    fn a_guest_knows_that_it_is_one_and_whose() {
        let [_, _, ecx, edx] = answer(1, [0; 4]);
        assert_eq!((ecx, edx), (1 << 31, 0));
        let [eax, ebx, ..] = answer(0x4000_0000, [0; 4]);
        assert_eq!((eax, ebx.to_le_bytes()), (0x4000_0000, *b"Port"));
    }

    #[test]
    fn self_snoop_and_clflush_are_the_cpus_own() {
        let [_, _, _, edx] = answer(1, ALL);
        assert_eq!(edx >> 19 & 1, 1, "CLFLUSH");
        assert_eq!(edx >> 27 & 1, 1, "self-snoop");
        assert_eq!(answer(1, [0, 0, 0, 0])[3], 0);
    }
}
