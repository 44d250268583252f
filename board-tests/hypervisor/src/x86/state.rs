//! The registers of this CPU that must be after a guest's turn what they were before it.

use core::arch::asm;

use x86_64::{
    instructions::tables::{sgdt, sidt},
    registers::{
        control::{Cr3, Cr4},
        model_specific::Msr,
    },
};

/// EFER, PAT, FS and GS bases, what SWAPGS exchanges, STAR, LSTAR, SFMASK, the local APIC's base, VM_HSAVE_PA.
const MSRS: [u32; 10] = [
    0xc000_0080,
    0x277,
    0xc000_0100,
    0xc000_0101,
    0xc000_0102,
    0xc000_0081,
    0xc000_0082,
    0xc000_0084,
    0x1b,
    0xc001_0117,
];

/// CR0, CR3, CR4, descriptor tables, debug registers, and MSRs.
#[must_use]
pub fn controls() -> [u64; 19] {
    let (cr0, dr0, dr3): (u64, u64, u64);
    // SAFETY: reads registers at privilege level 0.
    unsafe {
        asm!("mov {}, cr0", "mov {}, dr0", "mov {}, dr3", out(reg) cr0, out(reg) dr0, out(reg) dr3,
            options(nomem, nostack));
    }
    let (gdt, idt) = (sgdt(), sidt());
    let (table, flags) = Cr3::read_raw();
    let tables = [gdt.base.as_u64(), gdt.limit.into(), idt.base.as_u64(), idt.limit.into()];
    let mut all = [0; 19];
    let first = [cr0, table.start_address().as_u64() | u64::from(flags), Cr4::read_raw(), dr0, dr3];
    // SAFETY: every CPU with SVM has these MSRs, and reading them changes nothing.
    let msrs = MSRS.into_iter().map(|number| unsafe { Msr::new(number).read() });
    let values = first.into_iter().chain(tables).chain(msrs);
    all.iter_mut().zip(values).for_each(|(place, value)| *place = value);
    all
}
