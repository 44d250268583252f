# What lies at guest real address 0: the guest's own vectors, and the interpreter of its script.
#
# r31 = record, r30 = end of the script, r27 = this vCPU's scratch page. r29 and r28 belong to `repeat`.
# Position-independent. Offsets in a record: 0 op, 8.. nine arguments, 80 status, 88 result, 96 before, 104 after,
# 112 trap, 120 extra.

.macro guest_vector at
    .space \at - (. - hv_guest)
    li 0, \at
    b guest_interrupted
.endm

.section .text.hv_guest, "ax"
.balign 16
.global hv_guest
.global hv_guest_end
.global hv_guest_reflected
.global hv_guest_start
hv_guest:
    guest_vector 0x300
    guest_vector 0x380
    guest_vector 0x400
    guest_vector 0x480
    guest_vector 0x600
    guest_vector 0x700
    guest_vector 0x800
    guest_vector 0xc00
    guest_vector 0xd00
    guest_vector 0xf20
    guest_vector 0xf40
    guest_vector 0xf60
    .space 0x1000 - (. - hv_guest)

hv_guest_start:
    cmpld 31, 30
    bge guest_stop
    ld 3, 0(31)
    cmpldi 3, 1
    beq guest_call
    cmpldi 3, 2
    beq guest_poisoned_call
    cmpldi 3, 3
    beq guest_load
    cmpldi 3, 4
    beq guest_store
    cmpldi 3, 5
    beq guest_repeat
    cmpldi 3, 6
    beq guest_end
    cmpldi 3, 7
    beq guest_privileged
    cmpldi 3, 8
    beq guest_meet
    cmpldi 3, 9
    beq guest_wait
    cmpldi 3, 10
    beq guest_write_process
    cmpldi 3, 11
    beq guest_jump
    cmpldi 3, 12
    beq guest_call_as_process
guest_stop:
    li 3, 0
    ori 3, 3, 0xf000            # calls::STOP
    sc 1
    b guest_stop

guest_next:
    addi 31, 31, 128
    b hv_guest_start

# Its own interrupt vectors lead here, with the vector in r0.
guest_interrupted:
    mfdar 4
# The hypervisor tells of an interrupt that it took: vector in r0, address in r4.
hv_guest_reflected:
    std 0, 112(31)
    std 4, 120(31)
    mfmsr 3                     # interrupts switch FP, VEC and VSX off
    oris 3, 3, 0x0280
    ori 3, 3, 0x2000
    mtmsrd 3
    isync
    b guest_next

# Stamps: `before` is that of the first time, r26 holds it.
.macro stamp_before
    ld 3, 96(31)
    cmpdi 3, 0
    bne 9f
    std 26, 96(31)
9:
.endm

guest_call:
    ld 4, 16(31)
    ld 5, 24(31)
    ld 6, 32(31)
    ld 7, 40(31)
    ld 8, 48(31)
    ld 9, 56(31)
    ld 10, 64(31)
    ld 11, 72(31)
    ld 3, 8(31)
    mftb 26
    sc 1
    mftb 12
    std 12, 104(31)
    std 3, 80(31)
    std 4, 88(31)
    ld 5, 120(31)
    addi 5, 5, 1
    std 5, 120(31)
    stamp_before
    b guest_next

# In the scratch page: 0 patterns of 64 VSRs, 1024 patterns of registers, 1536 registers before the call,
# 2048 VSRs after it, 3072 registers after it.
.macro save_all at
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    std \n, \at + 8 * \n(27)
    .endr
    mfcr 0
    std 0, \at + 256(27)
    mflr 0
    std 0, \at + 264(27)
    mfctr 0
    std 0, \at + 272(27)
    mfxer 0
    std 0, \at + 280(27)
.endm

guest_poisoned_call:
    mr 4, 27
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    lxvd2x \n, 0, 4
    addi 4, 4, 16
    .endr
    .irp n, 32,33,34,35,36,37,38,39,40,41,42,43,44,45,46,47,48,49,50,51,52,53,54,55,56,57,58,59,60,61,62,63
    lxvd2x \n, 0, 4
    addi 4, 4, 16
    .endr
    ld 0, 1024 + 264(27)
    mtlr 0
    ld 0, 1024 + 272(27)
    mtctr 0
    ld 0, 1024 + 256(27)
    mtcr 0
    .irp n, 0, 1, 2, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25
    ld \n, 1024 + 8 * \n(27)
    .endr
    ld 4, 16(31)
    ld 5, 24(31)
    ld 6, 32(31)
    ld 7, 40(31)
    ld 8, 48(31)
    ld 9, 56(31)
    ld 10, 64(31)
    ld 11, 72(31)
    ld 3, 8(31)
    mftb 26
    save_all 1536
    ld 0, 1024(27)
    sc 1
    save_all 3072
    mftb 12
    std 12, 104(31)
    std 3, 80(31)
    std 4, 88(31)
    stamp_before
    addi 4, 27, 2048
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    stxvd2x \n, 0, 4
    addi 4, 4, 16
    .endr
    .irp n, 32,33,34,35,36,37,38,39,40,41,42,43,44,45,46,47,48,49,50,51,52,53,54,55,56,57,58,59,60,61,62,63
    stxvd2x \n, 0, 4
    addi 4, 4, 16
    .endr
    # r3 and r4 are answers: they count as unchanged.
    ld 3, 1536 + 24(27)
    std 3, 3072 + 24(27)
    ld 3, 1536 + 32(27)
    std 3, 3072 + 32(27)
    li 3, 0
    mr 4, 27
    addi 5, 27, 2048
    li 6, 128
    bl guest_compare
    addi 4, 27, 1536
    addi 5, 27, 3072
    li 6, 36
    bl guest_compare
    std 3, 120(31)
    b guest_next

# Adds to r3 how many of the r6 doublewords at r4 and r5 differ.
guest_compare:
    mtctr 6
1:  ld 7, 0(4)
    ld 8, 0(5)
    cmpld 7, 8
    beq 2f
    addi 3, 3, 1
2:  addi 4, 4, 8
    addi 5, 5, 8
    bdnz 1b
    blr

guest_load:
    ld 4, 16(31)
    ld 3, 8(31)
    cmpldi 3, 1
    beq 1f
    cmpldi 3, 4
    beq 2f
    ld 5, 0(4)
    b 3f
1:  lbz 5, 0(4)
    b 3f
2:  lwz 5, 0(4)
3:  sync
    std 5, 80(31)
    b guest_next

guest_store:
    ld 4, 16(31)
    ld 5, 24(31)
    ld 3, 8(31)
    cmpldi 3, 1
    beq 1f
    cmpldi 3, 4
    beq 2f
    std 5, 0(4)
    b 3f
1:  stb 5, 0(4)
    b 3f
2:  stw 5, 0(4)
3:  sync
    b guest_next

guest_repeat:
    mftb 26
    stamp_before
    addi 29, 31, 128
    ld 28, 8(31)
    b guest_next

guest_end:
    mftb 26
    stamp_before
    std 26, 104(31)
    ld 5, 120(31)
    addi 5, 5, 1
    std 5, 120(31)
    addi 28, 28, -1
    cmpdi 28, 0
    ble guest_next
    mr 31, 29
    b hv_guest_start

guest_privileged:
    ld 3, 8(31)
    li 4, 0
    cmpldi 3, 0
    beq 1f
    cmpldi 3, 1
    beq 2f
    cmpldi 3, 2
    beq 3f
    cmpldi 3, 3
    beq 4f
    cmpldi 3, 4
    beq 5f
    cmpldi 3, 5
    beq 6f
    cmpldi 3, 6
    beq 7f
    cmpldi 3, 7
    beq 8f
    mfspr 5, 315                # HSRR1
    std 5, 80(31)
    b guest_next
1:  mtspr 318, 4                # LPCR
    b guest_next
2:  mtspr 464, 4                # PTCR
    b guest_next
3:  mtspr 312, 4                # RMOR
    b guest_next
4:  mtspr 313, 4                # HRMOR
    b guest_next
5:  mtspr 319, 4                # LPIDR
    b guest_next
6:  mtspr 304, 4                # HSPRG0
    b guest_next
7:  hrfid
    b guest_next
8:  lwzcix 5, 0, 4
    std 5, 80(31)
    b guest_next

guest_meet:
    ld 3, 8(31)
    ld 4, 16(31)
    ld 5, 24(31)
    ld 6, 32(31)
    mftb 26
    std 5, 0(3)
    sync
1:  ld 7, 0(4)
    cmpld 7, 5
    bge 2f
    mftb 7
    subf 7, 26, 7
    cmpld 7, 6
    blt 1b
    li 7, 1
    std 7, 80(31)
2:  mftb 7
    std 7, 104(31)
    stamp_before
    b guest_next

guest_write_process:
    ld 3, 8(31)
    mtspr 48, 3                 # PIDR
    isync
    b guest_next

guest_jump:
    ld 3, 8(31)
    mtctr 3
    bctr

guest_call_as_process:
    li 4, 0
    mtspr 48, 4                 # PIDR
    isync
    lis 5, 0x7fff               # problem state has interrupts on: none from the decrementer
    mtdec 5
    mfmsr 6
    ori 6, 6, 0xc030            # EE, PR, IR, DR
    mtspr 27, 6                 # SRR1
    li 7, guest_process - hv_guest
    mtspr 26, 7                 # SRR0
    ld 3, 8(31)
    rfid
# In problem state. Answered, the call would lead to the guest's own vector.
guest_process:
    sc 1
    sc

guest_wait:
    mftb 26
    ld 6, 8(31)
1:  mftb 7
    subf 8, 26, 7
    cmpld 8, 6
    blt 1b
    std 7, 104(31)
    stamp_before
    b guest_next
hv_guest_end:
