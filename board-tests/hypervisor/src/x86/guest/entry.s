# What a guest runs before and beside its programs. Nothing here is for the hypervisor.
# GS leads to the vCPU's block: 0x00 where to go on after an exception (0: none is expected), 0x08 its vector,
# 0x10 its error code, 0x18 CR2, 0x20 and 0x28 scratch.

.set CRASH, 2
.set EMPTY, 3
# Vectors whose exceptions push an error code: 8, 10 to 14, 17, 21, 29, 30.
.set WITH_ERROR_CODE, 0x60227d00

.section .text.guest, "ax", @progbits
# rdi: number of the program, rsi: its arguments.
.global x86_guest_entry
x86_guest_entry:
    xor ebp, ebp
    call x86_guest_main
    ud2

# 32 entries of 16 bytes; the return address tells which.
.balign 16
.global x86_guest_traps
x86_guest_traps:
.rept 32
    call guest_trap
    .balign 16
.endr

guest_trap:
    mov gs:[0x20], rax
    mov gs:[0x28], rcx
    pop rax
    lea rcx, [rip + x86_guest_traps + 5]
    sub rax, rcx
    shr rax, 4
    mov gs:[0x08], rax
    mov qword ptr gs:[0x10], 0
    mov ecx, WITH_ERROR_CODE
    bt ecx, eax
    jnc 2f
    pop rax
    mov gs:[0x10], rax
2:  mov rax, cr2
    mov gs:[0x18], rax
    mov rax, gs:[0x00]
    test rax, rax
    jz 3f
    # Back to the kernel, wherever the exception was.
    mov [rsp], rax
    mov qword ptr [rsp + 8], 8
    mov qword ptr [rsp + 32], 16
    mov qword ptr gs:[0x00], 0
    mov rax, gs:[0x20]
    mov rcx, gs:[0x28]
    iretq
3:  mov rdi, gs:[0x08]
    mov rsi, [rsp]
    mov eax, CRASH
    vmmcall
    ud2

# rdi: 16 values by number of register, rsi: 16 places for what they are after an exit. RAX is the hypercall's
# number; the stack pointer's place takes the flags, carry and direction set.
.global x86_guest_poisoned_call
x86_guest_poisoned_call:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    push rsi
    mov rax, [rdi]
    mov rcx, [rdi + 8 * 1]
    mov rdx, [rdi + 8 * 2]
    mov rbx, [rdi + 8 * 3]
    mov rbp, [rdi + 8 * 5]
    mov rsi, [rdi + 8 * 6]
    mov r8, [rdi + 8 * 8]
    mov r9, [rdi + 8 * 9]
    mov r10, [rdi + 8 * 10]
    mov r11, [rdi + 8 * 11]
    mov r12, [rdi + 8 * 12]
    mov r13, [rdi + 8 * 13]
    mov r14, [rdi + 8 * 14]
    mov r15, [rdi + 8 * 15]
    mov rdi, [rdi + 8 * 7]
    stc
    std
    vmmcall
    pushfq
    cld
    push rax
    mov rax, [rsp + 16]
    mov [rax + 8 * 1], rcx
    mov [rax + 8 * 2], rdx
    mov [rax + 8 * 3], rbx
    mov [rax + 8 * 5], rbp
    mov [rax + 8 * 6], rsi
    mov [rax + 8 * 7], rdi
    mov [rax + 8 * 8], r8
    mov [rax + 8 * 9], r9
    mov [rax + 8 * 10], r10
    mov [rax + 8 * 11], r11
    mov [rax + 8 * 12], r12
    mov [rax + 8 * 13], r13
    mov [rax + 8 * 14], r14
    mov [rax + 8 * 15], r15
    pop rcx
    mov [rax], rcx
    pop rcx
    mov [rax + 8 * 4], rcx
    pop rsi
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret

# Executes an instruction as a program of the guest's kernel: ends in an exception that leads back here.
.macro as_program name, instruction:vararg
.global \name
\name:
    mov rcx, rsp
    lea rax, [rip + 5f]
    mov gs:[0x00], rax
    push 0x23
    push rcx
    push 2
    push 0x1b
    lea rax, [rip + 4f]
    push rax
    mov eax, EMPTY
    iretq
4:  \instruction
    ud2
5:  mov rsp, rcx
    ret
.endm

as_program x86_guest_wbinvd_as_program, wbinvd
# With the number of a hypercall that does nothing.
as_program x86_guest_call_as_program, vmmcall
