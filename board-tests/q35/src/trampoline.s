# How another CPU gets from its start-up interrupt into this image: real mode at a page below 1 MiB, where the code
# up to `trampoline_end` has been copied, then long mode at once, with the boot CPU's tables (Intel SDM volume 3,
# 10.8.5). Start-up leaves CR0.CD and CR0.NW set: the value here turns caches on.

.set PAGING_WRITE_PROTECT_PROTECTED, 0x80010031 # PG, WP, NE, ET, PE
.set GDT_BYTES, 3 * 8

.section .rodata.trampoline, "a", @progbits
.balign 16
.code16
.global trampoline_start
trampoline_start:
    cli
    cld
    mov ax, cs
    mov ds, ax
    # lgdt with a base of 32 bits and, for the address, the distance from the start of the page, which the
    # assembler takes for a difference of symbols only as bytes.
    .byte 0x66, 0x0f, 0x01, 0x16
    .short trampoline_gdt - trampoline_start
    mov eax, cr4
    or eax, 0x20                                # PAE
    mov cr4, eax
    mov eax, offset level4
    mov cr3, eax
    mov ecx, 0xc0000080                         # EFER
    rdmsr
    or eax, 0x100                               # LME
    wrmsr
    mov eax, PAGING_WRITE_PROTECT_PROTECTED
    mov cr0, eax
    .byte 0x66, 0xea                            # a far jump to 64-bit code
    .long secondary64
    .short 8
trampoline_gdt:
    .short GDT_BYTES - 1
    .long gdt
.global trampoline_end
trampoline_end:

.section .text.secondary, "ax", @progbits
.code64
secondary64:
    mov ax, 0x10
    mov ds, ax
    mov es, ax
    mov ss, ax
    xor eax, eax
    mov fs, ax
    mov gs, ax
    # A stack is for one CPU: who comes too late finds none.
    xchg [rip + secondary_stack], rax
    test rax, rax
    jz 1f
    mov rsp, rax
    mov rdi, [rsp]                              # this CPU's index
    xor ebp, ebp
    call secondary_entry
1:  cli
    hlt
    jmp 1b
