//! What a guest's CPU held when it left for the hypervisor.

/// MSR bit LE: little-endian (section 3.2.1).
pub const MSR_LE: u64 = 1;
/// MSR bit DR: data accesses are translated.
pub const MSR_DR: u64 = 1 << 4;
/// MSR bit IR: instruction fetches are translated.
pub const MSR_IR: u64 = 1 << 5;
/// MSR bit ME: machine checks interrupt.
pub const MSR_ME: u64 = 1 << 12;
/// MSR bit FP: floating point is available.
pub const MSR_FP: u64 = 1 << 13;
/// MSR bit PR: problem state.
pub const MSR_PR: u64 = 1 << 14;
/// MSR bit EE: external interrupts are taken.
pub const MSR_EE: u64 = 1 << 15;
/// MSR bit VSX: vector-scalar instructions are available.
pub const MSR_VSX: u64 = 1 << 23;
/// MSR bit VEC: vector instructions are available.
pub const MSR_VEC: u64 = 1 << 25;
/// MSR bit HV: hypervisor state, together with PR = 0.
pub const MSR_HV: u64 = 1 << 60;
/// MSR bit SF: 64-bit mode.
pub const MSR_SF: u64 = 1 << 63;

/// The bits that the real-mode handler's MSR is checked for.
pub const HANDLER_MASK: u64 =
    MSR_SF | MSR_HV | MSR_EE | MSR_PR | MSR_IR | MSR_DR | MSR_FP | MSR_VEC | MSR_VSX | MSR_LE;
/// What they must be: hypervisor, real mode, nothing that would let a vector instruction through.
pub const HANDLER_MSR: u64 = MSR_SF | MSR_HV | MSR_LE;
/// With what a guest starts: privileged but no hypervisor, real mode, little-endian, all registers.
pub const GUEST_MSR: u64 = MSR_SF | MSR_ME | MSR_LE | MSR_FP | MSR_VEC | MSR_VSX;

/// What the real-mode handler says of a hypercall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Verdict {
    /// It is done: r3 and r4 of the frame hold status and result, and the guest goes on.
    Done = 0,
    /// Too hard for real mode: the hypervisor's full context has to handle it.
    TooHard = 1,
}

/// A guest's registers. In the real-mode handler the non-volatile ones (r14 to r31) are stale: they still are in
/// the CPU, and go to the frame only on the way to the full context. What it writes to `pc` or `msr` has no effect there.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Frame {
    /// General-purpose registers.
    pub gpr: [u64; 32],
    /// Where the guest goes on.
    pub pc: u64,
    /// With what MSR.
    pub msr: u64,
    /// Link register.
    pub lr: u64,
    /// Count register.
    pub ctr: u64,
    /// Fixed-point exception register.
    pub xer: u64,
    /// Condition register.
    pub cr: u64,
    /// The hypervisor's own MSR as the interrupt left it.
    pub handler_msr: u64,
    /// Offset of the interrupt that ended the guest's turn (section 6.5).
    pub vector: u64,
    /// HDAR: what the guest accessed, for hypervisor data storage interrupts.
    pub hdar: u64,
    /// HDSISR: why that was refused.
    pub hdsisr: u64,
    /// Index of the CPU, which is the number of the vCPU on it.
    pub cpu: u64,
}

impl Frame {
    /// All zeros.
    pub const ZERO: Self = Self {
        gpr: [0; 32],
        pc: 0,
        msr: 0,
        lr: 0,
        ctr: 0,
        xer: 0,
        cr: 0,
        handler_msr: 0,
        vector: 0,
        hdar: 0,
        hdsisr: 0,
        cpu: 0,
    };

    /// The number of the hypercall (r3).
    #[must_use]
    pub const fn opcode(&self) -> u64 {
        let [_, _, _, r3, ..] = self.gpr;
        r3
    }

    /// The arguments: r4 to r9.
    #[must_use]
    pub const fn arguments(&self) -> [u64; 6] {
        let [_, _, _, _, r4, r5, r6, r7, r8, r9, ..] = self.gpr;
        [r4, r5, r6, r7, r8, r9]
    }

    /// Answers with a status (r3).
    pub const fn set_status(&mut self, status: u64) {
        let [_, _, _, r3, ..] = &mut self.gpr;
        *r3 = status;
    }

    /// Answers with a result (r4).
    pub const fn set_result(&mut self, result: u64) {
        let [_, _, _, _, r4, ..] = &mut self.gpr;
        *r4 = result;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opcode_and_arguments_are_where_the_call_leaves_them() {
        let mut frame = Frame { gpr: core::array::from_fn(|n| n as u64), ..Frame::ZERO };
        assert_eq!((frame.opcode(), frame.arguments()), (3, [4, 5, 6, 7, 8, 9]));
        frame.set_status(30);
        frame.set_result(40);
        assert_eq!(frame.gpr[2..6], [2, 30, 40, 5]);
    }

    #[test]
    fn a_handler_has_no_vector_registers_and_a_guest_no_hypervisor_state() {
        assert_eq!(HANDLER_MSR & (MSR_FP | MSR_VEC | MSR_VSX | MSR_IR | MSR_DR | MSR_PR), 0);
        assert_eq!(HANDLER_MSR & !HANDLER_MASK, 0);
        let checked = MSR_HV | MSR_PR | MSR_IR | MSR_DR | MSR_FP | MSR_VEC | MSR_VSX;
        assert_eq!(HANDLER_MASK & checked, checked);
        assert_eq!(GUEST_MSR & (MSR_HV | MSR_EE | MSR_PR), 0);
    }
}
