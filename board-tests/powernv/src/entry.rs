//! Entry from skiboot, the way into OPAL and back, and the entry of further CPUs.

use core::arch::global_asm;

// Entry (real mode, big-endian, r3 = device tree, r8 = OPAL base, r9 = OPAL entry). The first word is a
// branch in little-endian order and a trap that never traps in big-endian order.
//
// `little` goes on at its end in little-endian mode; it changes r10, r11, LR and HSRR0/1.
global_asm!(
    ".macro be word",
    ".byte (\\word >> 24) & 0xff, (\\word >> 16) & 0xff, (\\word >> 8) & 0xff, \\word & 0xff",
    ".endm",
    ".macro little",
    "be 0x7d4000a6", // mfmsr r10
    "be 0x614a0001", // ori r10, r10, 1 (LE)
    "be 0x429f0005", // bcl 20, 31, .+4
    "be 0x7d6802a6", // mflr r11
    "be 0x396b0014", // addi r11, r11, 20
    "be 0x7d7a4ba6", // mthsrr0 r11
    "be 0x7d5b4ba6", // mthsrr1 r10
    "be 0x4c000224", // hrfid
    ".endm",
    ".section .text.entry, \"ax\"",
    ".global _start",
    "_start:",
    "b 2f",          // big-endian: tdi 0, r0, 0x48: does nothing
    "be 0x48000008", // big-endian: b 1f
    "2: b 3f",
    "1: little",
    "3: b entry",
    // CPUs that a kexec sets aside enter here.
    ".space 0x60 - (. - _start)",
    "b 4f",
    "be 0x48000000",
    "4: b 4b",
    ".balign 0x100",
    "entry:",
    // The precompiled core holds vector and floating-point code: VEC, VSX, FP.
    "mfmsr 10",
    "oris 10, 10, 0x0280",
    "ori 10, 10, 0x2000",
    "mtmsrd 10",
    "isync",
    "lis 10, bss_start@ha",
    "addi 10, 10, bss_start@l",
    "lis 11, bss_end@ha",
    "addi 11, 11, bss_end@l",
    "li 0, 0",
    "5: std 0, 0(10)",
    "addi 10, 10, 8",
    "cmpld 10, 11",
    "blt 5b",
    "lis 10, opal_base@ha",
    "std 8, opal_base@l(10)",
    "lis 10, opal_entry@ha",
    "std 9, opal_entry@l(10)",
    "lis 1, stack_top@ha",
    "addi 1, 1, stack_top@l",
    "stdu 0, -128(1)",
    "lis 2, .TOC.@ha",
    "addi 2, 2, .TOC.@l",
    "bl image_main",
    "6: b 6b",
    ".section .bss.opal, \"aw\", @nobits",
    ".balign 8",
    "opal_base: .space 8",
    "opal_entry: .space 8",
);

// opal_call(seven arguments, token): HSRR1 is the present MSR without IR, DR and LE.
global_asm!(
    ".section .text.opal, \"ax\"",
    ".global opal_call",
    "opal_call:",
    "mflr 0",
    "std 0, 16(1)",
    "mfcr 0",
    "std 0, 8(1)",
    "stdu 1, -128(1)",
    "std 2, 24(1)",
    "mfmsr 11",
    "std 11, 40(1)",
    "li 12, 0x31",
    "andc 11, 11, 12",
    "mtspr 315, 11",
    "mr 0, 10",
    "lis 11, opal_entry@ha",
    "ld 12, opal_entry@l(11)",
    "mtspr 314, 12",
    "lis 11, opal_base@ha",
    "ld 2, opal_base@l(11)",
    "lis 11, 7f@ha",
    "addi 11, 11, 7f@l",
    "mtlr 11",
    "hrfid",
    ".balign 4",
    "7: little",
    "ld 11, 40(1)",
    "mtmsrd 11",
    "ld 2, 24(1)",
    "addi 1, 1, 128",
    "ld 0, 8(1)",
    "mtcr 0",
    "ld 0, 16(1)",
    "mtlr 0",
    "blr",
);

// Where firmware starts another CPU: as above, with r3 = the CPU's number.
global_asm!(
    ".section .text.secondary, \"ax\"",
    ".global secondary_entry",
    ".balign 4",
    "secondary_entry: little",
    "b hv_secondary",
);
