//! The program that carries out a script.

use core::arch::{
    asm,
    x86_64::{__cpuid_count, _rdtsc},
};

use portcullis_hal::Iova;

use super::{
    devices::{EDU_BYTES, edu},
    hypercall::report,
    probe::{self, probe},
    script::{DONE, Outcome, What, record},
};

unsafe extern "C" {
    fn x86_guest_wbinvd_as_program();
    fn x86_guest_call_as_program();
}

/// Does what the records from `first` on say; writes down what came of each.
pub(super) fn carry_out(first: u64) {
    for at in (0..).map_while(record).skip_while(|at| *at < first) {
        let words: *mut u64 = core::ptr::with_exposed_provenance_mut(at as usize);
        // SAFETY: the records lie in this guest's memory, where its tables map it, and nothing of Rust's does.
        let [number, first, second] =
            unsafe { [words.read_volatile(), words.add(1).read_volatile(), words.add(2).read_volatile()] };
        let Some(what) = What::numbered(number) else { return };
        let Outcome { vector, value } = attempt(what, first, second);
        let value = if vector == DONE { value } else { 0 };
        // SAFETY: as above.
        unsafe {
            words.add(3).write_volatile(vector);
            words.add(4).write_volatile(value);
        }
    }
}

fn attempt(what: What, first: u64, second: u64) -> Outcome {
    match what {
        What::Load => probe::load(first),
        What::Store => probe::store(first, second),
        // No call: its return address would stay on the stack when the fetch is refused.
        What::Jump => probe!("jmp rcx", 0u64, first, 0u64),
        What::ReadMsr => probe::read_msr(first as u32),
        What::WriteMsr => probe::write_msr(first as u32, second),
        What::ReadPort => probe::read_port(first as u16),
        What::WritePort => probe::write_port(first as u16, second as u32),
        What::Cpuid => Outcome { vector: DONE, value: cpuid(first as u32, second) },
        What::Vmrun => probe!("vmrun rax", first, 0u64, 0u64),
        What::Vmload => probe!("vmload rax", first, 0u64, 0u64),
        What::Vmsave => probe!("vmsave rax", first, 0u64, 0u64),
        What::Stgi => probe!("stgi", 0u64, 0u64, 0u64),
        What::Clgi => probe!("clgi", 0u64, 0u64, 0u64),
        What::Skinit => probe!("skinit eax", first, 0u64, 0u64),
        What::Invlpga => probe!("invlpga rax, ecx", first, 1u64, 0u64),
        What::Wbinvd => probe!("wbinvd", 0u64, 0u64, 0u64),
        What::Wbnoinvd => probe!(".byte 0xf3, 0x0f, 0x09", 0u64, 0u64, 0u64),
        What::Invd => probe!("invd", 0u64, 0u64, 0u64),
        // SAFETY: returns with the registers that the calling convention keeps.
        What::WbinvdAsProgram => as_program(|| unsafe { x86_guest_wbinvd_as_program() }),
        // SAFETY: as above.
        What::CallAsProgram => as_program(|| unsafe { x86_guest_call_as_program() }),
        What::Halt => probe!("hlt", 0u64, 0u64, 0u64),
        What::Monitor => probe!("monitor", first, 0u64, 0u64),
        What::Xsetbv => probe!("xsetbv", first, 0u64, 0u64),
        What::WriteCr4 => probe!("mov cr4, rax", first, 0u64, 0u64),
        What::WriteDebug => probe!("mov dr0, rax", first, 0u64, 0u64),
        What::WriteCr0 => probe!("mov cr0, rax", first, 0u64, 0u64),
        What::ReadCr0 => probe!("mov rax, cr0", 0u64, 0u64, 0u64),
        // MOVQ between RAX and XMM0: the image is built without vector registers, and its assembler has none.
        What::WriteVector => probe!(".byte 0x66, 0x48, 0x0f, 0x6e, 0xc0", first, 0u64, 0u64),
        What::ReadVector => probe!(".byte 0x66, 0x48, 0x0f, 0x7e, 0xc0", 0u64, 0u64, 0u64),
        What::LeastWbinvd => Outcome { vector: DONE, value: least_wbinvd(first) },
        What::Report => Outcome { vector: DONE, value: report(first) },
        What::EduRead => told(edu(first, |device| device.read_memory(Iova::new(second), EDU_BYTES))),
        What::EduWrite => told(edu(first, |device| device.write_memory(Iova::new(second), EDU_BYTES))),
        What::TripleFault => triple_fault(),
        What::Spin => spin(),
    }
}

fn told<E>(result: Result<(), E>) -> Outcome {
    Outcome { vector: DONE, value: result.is_err().into() }
}

fn cpuid(leaf: u32, word: u64) -> u64 {
    let answer = __cpuid_count(leaf, 0);
    let words = [answer.eax, answer.ebx, answer.ecx, answer.edx];
    words.get(word as usize).copied().unwrap_or(0).into()
}

fn least_wbinvd(times: u64) -> u64 {
    let ticks = |_| {
        let before = ticks();
        probe!("wbinvd", 0u64, 0u64, 0u64);
        ticks().wrapping_sub(before)
    };
    (0..times).map(ticks).min().unwrap_or(0)
}

fn ticks() -> u64 {
    // SAFETY: every CPU with SVM has a time-stamp counter, and the guest may read it.
    unsafe { _rdtsc() }
}

/// Runs what ends in an exception at privilege level 3; its vector.
fn as_program(act: impl FnOnce()) -> Outcome {
    act();
    let vector;
    // SAFETY: reads what the exception's handler left in the vCPU's block.
    unsafe { asm!("mov {vector}, gs:[0x08]", vector = out(reg) vector, options(nostack, readonly)) }
    Outcome { vector, value: 0 }
}

/// An exception that no table leads away from.
pub(super) fn triple_fault() -> ! {
    let empty = [0u64; 2];
    // SAFETY: the guest ends here, and nothing but it.
    unsafe { asm!("lidt [{table}]", "ud2", table = in(reg) &raw const empty, options(noreturn)) }
}

fn spin() -> ! {
    loop {
        // SAFETY: nothing is done; the compiler must not find that out.
        unsafe { asm!("", options(nomem, nostack)) }
    }
}
