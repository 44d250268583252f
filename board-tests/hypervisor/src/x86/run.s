# One turn of a guest (AMD64 manual, volume 2, 15.5).
# rdi: the guest's VMCB, rsi: page for the hypervisor's state, rdx: the guest's general-purpose registers by number.

.section .text.svm, "ax", @progbits
.global x86_svm_run
x86_svm_run:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    push rsi
    push rdi
    push rdx

    # No interrupt is taken until the guest runs; then IF lets physical ones end its turn (15.21.1).
    clgi
    sti
    mov rax, rsi
    vmsave rax
    mov rax, rdi
    vmload rax
    mov rcx, [rdx + 8 * 1]
    mov rbx, [rdx + 8 * 3]
    mov rbp, [rdx + 8 * 5]
    mov rsi, [rdx + 8 * 6]
    mov rdi, [rdx + 8 * 7]
    mov r8, [rdx + 8 * 8]
    mov r9, [rdx + 8 * 9]
    mov r10, [rdx + 8 * 10]
    mov r11, [rdx + 8 * 11]
    mov r12, [rdx + 8 * 12]
    mov r13, [rdx + 8 * 13]
    mov r14, [rdx + 8 * 14]
    mov r15, [rdx + 8 * 15]
    mov rdx, [rdx + 8 * 2]
    vmrun rax
    vmsave rax

    xchg rdx, [rsp]
    mov [rdx + 8 * 1], rcx
    mov [rdx + 8 * 3], rbx
    mov [rdx + 8 * 5], rbp
    mov [rdx + 8 * 6], rsi
    mov [rdx + 8 * 7], rdi
    mov [rdx + 8 * 8], r8
    mov [rdx + 8 * 9], r9
    mov [rdx + 8 * 10], r10
    mov [rdx + 8 * 11], r11
    mov [rdx + 8 * 12], r12
    mov [rdx + 8 * 13], r13
    mov [rdx + 8 * 14], r14
    mov [rdx + 8 * 15], r15
    pop rcx
    mov [rdx + 8 * 2], rcx
    pop rdi
    pop rax
    vmload rax
    cli
    stgi

    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret
