//! A guest's hypercalls.

use core::arch::asm;

use super::calls;

/// Makes a hypercall; the answer.
pub fn call(number: u64, arguments: [u64; 3]) -> u64 {
    let [first, second, third] = arguments;
    let answer;
    // SAFETY: the hypervisor answers in RAX and changes no other register and none of this guest's memory that Rust
    // knows; outside a guest VMMCALL is an invalid opcode.
    unsafe {
        asm!("vmmcall", inlateout("rax") number => answer, in("rdi") first, in("rsi") second, in("rdx") third,
            options(nostack));
    }
    answer
}

/// Tells the scenario a value; its answer.
pub fn report(value: u64) -> u64 {
    call(calls::REPORT, [value, 0, 0])
}

/// Says which step has come.
pub fn step(number: u64) {
    call(calls::STEP, [number, 0, 0]);
}

/// Ends the program.
pub fn exit(code: u64) -> ! {
    loop {
        call(calls::EXIT, [code, 0, 0]);
    }
}
