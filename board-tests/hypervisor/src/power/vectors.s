# Interrupt vectors, the real-mode hypercall path, and the ways into a guest and out of it.
#
# r13 is this CPU's area (HSPRG0), r12 the vector. Offsets F_* and A_* are those of `Area`.

# ---- What is copied to real address 0 ----------------------------------------------------------------

.macro vector at, common
    .space \at - (. - hv_vectors)
    mtspr 305, 13               # HSPRG1
    mfspr 13, 304               # HSPRG0
    std 12, 12*8(13)
    li 12, \at
    b \common
.endm

.macro far target
    std 11, 11*8(13)
    mfctr 11
    std 11, F_CTR(13)
    lis 11, \target@ha
    addi 11, 11, \target@l
    mtctr 11
    bctr
.endm

.section .text.hv_vectors, "ax"
.balign 16
.global hv_vectors
.global hv_vectors_end
hv_vectors:
    # SRR0 and SRR1 hold where the interrupt came from (section 6.5, figure 64), or HSRR0 and HSRR1.
    vector 0x100, 1f
    vector 0x200, 1f
    vector 0x300, 1f
    vector 0x380, 1f
    vector 0x400, 1f
    vector 0x480, 1f
    vector 0x500, 2f
    vector 0x600, 1f
    vector 0x700, 1f
    vector 0x800, 1f
    vector 0x900, 1f
    vector 0x980, 2f
    vector 0xc00, 3f
    vector 0xd00, 1f
    vector 0xe00, 2f
    vector 0xe20, 2f
    vector 0xe40, 2f
    vector 0xe60, 2f
    vector 0xe80, 2f
    vector 0xea0, 2f
    vector 0xf20, 1f
    vector 0xf40, 1f
    vector 0xf60, 1f
    vector 0xf80, 2f
1:  far hv_interrupt
2:  far hv_hypervisor_interrupt
3:  far hv_hypercall
hv_vectors_end:

# ---- Interrupts -------------------------------------------------------------------------------------

# The registers that a call in Rust may change, and those that change on the way.
.macro save_volatile srr0, srr1
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10
    std \n, \n*8(13)
    .endr
    mfspr 3, 305                # HSPRG1: the guest's r13
    std 3, 13*8(13)
    mfspr 3, \srr0
    std 3, F_PC(13)
    mfspr 4, \srr1
    std 4, F_MSR(13)
    mflr 5
    std 5, F_LR(13)
    mfxer 5
    std 5, F_XER(13)
    mfcr 5
    std 5, F_CR(13)
    mfmsr 6
    std 6, F_HANDLER_MSR(13)
    std 12, F_VECTOR(13)
.endm

# Leaves to hv_crash when r4, the MSR of whoever was interrupted, is the hypervisor's.
.macro guest_only
    rldicl 5, 4, 4, 63          # MSR[HV]
    cmpldi 5, 0
    bne hv_crash
.endm

.section .text.hv, "ax"
.global hv_hypercall
.type hv_hypercall, @function
hv_hypercall:
    save_volatile 26, 27        # SRR0, SRR1
    guest_only
    # This code's own MSR: hypervisor, real mode, no vector or float unit.
    ld 7, A_HANDLER_MASK(13)
    and 6, 6, 7
    ld 7, A_HANDLER_MSR(13)
    cmpld 6, 7
    bne hv_crash
    # Problem state has no hypercalls: the full context decides.
    andi. 5, 4, 0x4000
    bne hv_leave
    ld 1, A_REAL_STACK(13)
    lis 2, .TOC.@ha
    addi 2, 2, .TOC.@l
    mr 3, 13
    bl {guest_call}
    nop
    mfspr 13, 304
    cmpldi 3, 0
    bne hv_leave
    # SRR0 and SRR1 are as the interrupt left them: nothing here interrupts.
    ld 5, F_LR(13)
    mtlr 5
    ld 5, F_CTR(13)
    mtctr 5
    ld 5, F_XER(13)
    mtxer 5
    ld 5, F_CR(13)
    mtcr 5
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13
    ld \n, \n*8(13)
    .endr
    rfid

.global hv_interrupt
hv_interrupt:
    save_volatile 26, 27        # SRR0, SRR1
    guest_only
    b hv_leave

.global hv_hypervisor_interrupt
hv_hypervisor_interrupt:
    save_volatile 314, 315      # HSRR0, HSRR1
    guest_only
    b hv_leave

# The hypervisor itself was interrupted: tells, and never returns.
hv_crash:
    oris 6, 6, 0x0280           # VEC, VSX and FP, for the report
    ori 6, 6, 0x2000
    mtmsrd 6
    isync
    mr 4, 3
    mr 3, 12
    ld 1, A_CRASH_STACK(13)
    lis 2, .TOC.@ha
    addi 2, 2, .TOC.@l
    bl {host_trap}
    nop
    b .

# ---- Out of a guest and into one ---------------------------------------------------------------------

# All 64 VSRs, FPSCR, VSCR and VRSAVE at offset `at` of the area. Changes r4, r5 and, last, VSR0 and VSR32.
.macro save_vectors at
    addi 4, 13, \at
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    stxvd2x \n, 0, 4
    addi 4, 4, 16
    .endr
    .irp n, 32,33,34,35,36,37,38,39,40,41,42,43,44,45,46,47,48,49,50,51,52,53,54,55,56,57,58,59,60,61,62,63
    stxvd2x \n, 0, 4
    addi 4, 4, 16
    .endr
    mfvscr 0
    stvx 0, 0, 4
    mffs 0
    stfd 0, 16(4)
    mfspr 5, 256
    std 5, 24(4)
.endm

.macro load_vectors at
    addi 4, 13, \at + 1024
    lvx 0, 0, 4
    mtvscr 0
    lfd 0, 16(4)
    mtfsf 255, 0
    ld 5, 24(4)
    mtspr 256, 5
    addi 4, 13, \at
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    lxvd2x \n, 0, 4
    addi 4, 4, 16
    .endr
    .irp n, 32,33,34,35,36,37,38,39,40,41,42,43,44,45,46,47,48,49,50,51,52,53,54,55,56,57,58,59,60,61,62,63
    lxvd2x \n, 0, 4
    addi 4, 4, 16
    .endr
.endm

# Ends the guest's turn: the rest of its registers, then the full context's, which called hv_enter.
hv_leave:
    mfspr 13, 304
    .irp n, 14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    std \n, \n*8(13)
    .endr
    mfspr 5, 307                # HDAR
    std 5, F_HDAR(13)
    mfspr 5, 306                # HDSISR
    std 5, F_HDSISR(13)
    ld 5, A_HOST_MSR(13)
    mtmsrd 5
    isync
    save_vectors A_GUEST_VECTORS
    load_vectors A_HOST_VECTORS
    ld 1, A_HOST_STACK(13)
    .irp n, 14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    ld \n, \n*8(1)
    .endr
    ld 13, 13*8(1)
    ld 2, 24(1)
    addi 1, 1, 288
    ld 0, 16(1)
    mtlr 0
    lwz 0, 8(1)
    mtcr 0
    blr

# hv_enter(area): runs the guest whose frame the area holds until it comes back by hv_leave.
.global hv_enter
.type hv_enter, @function
hv_enter:
    mflr 0
    std 0, 16(1)
    mfcr 0
    stw 0, 8(1)
    stdu 1, -288(1)
    std 2, 24(1)
    .irp n, 13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    std \n, \n*8(1)
    .endr
    mr 13, 3
    std 1, A_HOST_STACK(13)
    mfmsr 5
    std 5, A_HOST_MSR(13)
    save_vectors A_HOST_VECTORS
    load_vectors A_GUEST_VECTORS
    ld 5, F_PC(13)
    mtspr 314, 5                # HSRR0
    ld 5, F_MSR(13)
    mtspr 315, 5                # HSRR1
    ld 5, F_LR(13)
    mtlr 5
    ld 5, F_CTR(13)
    mtctr 5
    ld 5, F_XER(13)
    mtxer 5
    ld 5, F_CR(13)
    mtcr 5
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12
    ld \n, \n*8(13)
    .endr
    .irp n, 14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    ld \n, \n*8(13)
    .endr
    ld 13, 13*8(13)
    hrfid
