# From the loader to Rust: PVH and Multiboot2 both enter in 32-bit protected mode without paging.

.set STACK_BYTES, 0x80000
.set MULTIBOOT2_MAGIC, 0xe85250d6
.set LARGE_PRESENT_WRITABLE, 0x83
.set UNCACHED, 0x18
.set PRESENT_WRITABLE, 3

.section .multiboot2, "a", @progbits
.balign 8
multiboot2_header:
    .long MULTIBOOT2_MAGIC
    .long 0                                     # i386, 32-bit protected mode
    .long multiboot2_end - multiboot2_header
    .long 0x100000000 - (MULTIBOOT2_MAGIC + 24)
    .short 0, 0                                 # end tag
    .long 8
multiboot2_end:

.section .note.pvh, "a", @note
.balign 4
    .long 4, 4, 18                              # XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long entry32

.section .bss.boot, "aw", @nobits
.balign 4096
.global level4
level4: .skip 4096
level3: .skip 4096
level2: .skip 4 * 4096                          # 4 GiB in pages of 2 MiB
stack:  .skip STACK_BYTES
stack_end:

.section .rodata.boot, "a", @progbits
.balign 8
.global gdt
gdt:
    .quad 0
    .quad 0x00af9a000000ffff                    # 08: 64-bit code
    .quad 0x00cf92000000ffff                    # 10: data
gdt_pointer:
    .short gdt_pointer - gdt - 1
    .long gdt

.section .text.boot, "ax", @progbits
.code32
.global entry32
entry32:
    cli
    cld
    mov edi, eax                                # the loader's magic number
    mov esi, ebx                                # what it hands over
    mov esp, offset stack_end

    # Everything below 4 GiB, one to one; the last GiB, where devices are, uncached.
    mov eax, offset level3
    or eax, PRESENT_WRITABLE
    mov [level4], eax
    mov eax, offset level2
    or eax, PRESENT_WRITABLE
    xor ecx, ecx
2:  mov [level3 + ecx * 8], eax
    add eax, 4096
    inc ecx
    cmp ecx, 4
    jb 2b
    mov eax, LARGE_PRESENT_WRITABLE
    xor ecx, ecx
3:  cmp ecx, 3 * 512
    jb 4f
    or eax, UNCACHED
4:  mov [level2 + ecx * 8], eax
    add eax, 0x200000
    inc ecx
    cmp ecx, 4 * 512
    jb 3b

    mov eax, cr4
    or eax, 0x20                                # PAE
    mov cr4, eax
    mov eax, offset level4
    mov cr3, eax
    mov ecx, 0xc0000080                         # EFER
    rdmsr
    or eax, 0x100                               # LME
    wrmsr
    mov eax, cr0
    or eax, 0x80010001                          # PG, WP, PE
    mov cr0, eax
    lgdt [gdt_pointer]
    # A far jump to 64-bit code, as bytes: assemblers differ on how to write it in this syntax.
    .byte 0xea
    .long entry64
    .short 8

.code64
entry64:
    mov ax, 0x10
    mov ds, ax
    mov es, ax
    mov ss, ax
    xor eax, eax
    mov fs, ax
    mov gs, ax
    mov rsp, offset stack_end
    mov edi, edi
    mov esi, esi
    xor ebp, ebp
    call rust_entry
5:  hlt
    jmp 5b

# One entry a vector: error code (or 0) and vector on the stack. The first 32 are exceptions.
.set EXCEPTIONS, 32
.set VECTORS, 256
.set SCRATCH_BYTES, 9 * 8
.macro trap_entry vector, has_error_code
trap_\vector:
    .if \has_error_code == 0
    push 0
    .endif
    push \vector
    .if \vector < EXCEPTIONS
    jmp trap_common
    .else
    jmp interrupt_common
    .endif
.endm

.altmacro
.macro trap_entry_of vector
    .if \vector == 8 || (\vector >= 10 && \vector <= 14) || \vector == 17 || \vector == 21 || \vector == 29 || \vector == 30
    trap_entry %vector, 1
    .else
    trap_entry %vector, 0
    .endif
.endm
.set vector, 0
.rept VECTORS
    trap_entry_of %vector
    .set vector, vector + 1
.endr
trap_common:
    mov rdi, rsp
    and rsp, -16
    call rust_trap
6:  hlt
    jmp 6b

# What a call may change is kept; the CPU has aligned the stack to 16 bytes, and with 2 + 5 + 9 words it still is.
interrupt_common:
    push rax
    push rcx
    push rdx
    push rsi
    push rdi
    push r8
    push r9
    push r10
    push r11
    cld
    mov rdi, [rsp + SCRATCH_BYTES]
    call rust_interrupt
    pop r11
    pop r10
    pop r9
    pop r8
    pop rdi
    pop rsi
    pop rdx
    pop rcx
    pop rax
    add rsp, 16                                 # vector and error code
    iretq

.section .rodata.traps, "a", @progbits
.balign 8
.global trap_entries
trap_entries:
.macro trap_address vector
    .quad trap_\vector
.endm
.set vector, 0
.rept VECTORS
    trap_address %vector
    .set vector, vector + 1
.endr
.noaltmacro
