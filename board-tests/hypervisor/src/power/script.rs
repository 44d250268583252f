//! Scripts: what a guest is to do, as records in its memory that its interpreter carries out in HV = 0.

/// Bytes of a record.
pub const RECORD_BYTES: u64 = 128;
/// Records that fit a vCPU's script.
pub const MAX_RECORDS: usize = 1024;

/// Hypercalls of the test hypervisor itself, beyond what the platform architecture numbers.
pub mod calls {
    /// The script is over: always exits.
    pub const STOP: u64 = 0xf000;
    /// Does nothing, in real mode.
    pub const EMPTY: u64 = 0xf004;
    /// Does nothing, in the full context.
    pub const EMPTY_FULL: u64 = 0xf008;
    /// Reads a device's register by proxy: offset, bytes. In the full context.
    pub const READ_REGISTER: u64 = 0xf00c;
    /// Writes a device's register by proxy: offset, bytes, value. In the full context.
    pub const WRITE_REGISTER: u64 = 0xf010;
    /// Whatever the script's author wants, in the full context.
    pub const REPORT: u64 = 0xf014;
    /// The last of these numbers.
    pub const LAST: u64 = REPORT;
    /// All of these numbers.
    pub const OWN: core::ops::RangeInclusive<u64> = STOP..=LAST;
}

/// How much an access moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Width {
    /// A byte.
    One = 1,
    /// A word.
    Four = 4,
    /// A doubleword.
    Eight = 8,
}

/// An instruction that HV = 0 has no right to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Privileged {
    /// `mtspr LPCR`: would switch translation.
    WriteLpcr = 0,
    /// `mtspr PTCR`: would replace the partition table.
    WritePtcr = 1,
    /// `mtspr RMOR`: would move the guest's memory.
    WriteRmor = 2,
    /// `mtspr HRMOR`: would move the hypervisor's memory.
    WriteHrmor = 3,
    /// `mtspr LPIDR`: would make the guest another one.
    WriteLpidr = 4,
    /// `mtspr HSPRG0`: would give the hypervisor another stack.
    WriteHsprg0 = 5,
    /// `hrfid`: would set MSR at will.
    ReturnFromHypervisor = 6,
    /// `lwzcix`: would reach all of real memory.
    LoadInhibited = 7,
    /// `mfspr HSRR1`: would look into the hypervisor.
    ReadHsrr1 = 8,
}

/// One thing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// `sc 1`: r3 and r4 to r11. The outcome has status (r3), result (r4) and how often it ran.
    Call([u64; 9]),
    /// The same with patterns in all registers; the outcome counts the doublewords that changed.
    PoisonedCall([u64; 9]),
    /// Loads from a guest real address; the status is the value.
    Load(Width, u64),
    /// Stores a value to a guest real address.
    Store(Width, u64, u64),
    /// What follows, up to [`End`](Self::End), is done that often. Not nested.
    Repeat(u64),
    /// End of what is repeated.
    End,
    /// An instruction that must trap.
    Privileged(Privileged),
    /// Stores the value at the first address and waits until the second holds at least as much; the status is 1
    /// when that takes more than so many ticks.
    Meet {
        /// What this vCPU writes.
        own: u64,
        /// What it waits for.
        other: u64,
        /// Number of the meeting.
        value: u64,
        /// Limit in ticks of the time base.
        ticks: u64,
    },
    /// Lets so many ticks pass.
    Wait(u64),
    /// Writes PIDR, as a guest may, which chooses a process table's entry for whoever translates.
    WriteProcess(u64),
    /// Makes the call with this number from problem state, which has no right to: must trap. POWER9 and POWER10.
    CallAsProcess(u64),
    /// Jumps to a guest real address that must not be fetched from.
    Jump(u64),
}

/// A record as it lies in the guest's memory: numbers of the guest's own byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Record {
    /// What to do.
    pub op: u64,
    /// With what.
    pub arguments: [u64; 9],
    /// r3, or what was loaded.
    pub status: u64,
    /// r4.
    pub result: u64,
    /// Time base before it was done first.
    pub before: u64,
    /// Time base after it was done last.
    pub after: u64,
    /// Offset of the interrupt that it ran into; 0 for none.
    pub trap: u64,
    /// How often it was done; doublewords that changed; the address that the interrupt is about.
    pub extra: u64,
}

const _: () = assert!(size_of::<Record>() == RECORD_BYTES as usize, "the interpreter counts on it");

impl Op {
    /// The record that makes the interpreter do this.
    #[must_use]
    pub fn record(self) -> Record {
        let (op, first): (u64, [u64; 4]) = match self {
            Self::Call(arguments) => return Record { op: 1, arguments, ..Record::default() },
            Self::PoisonedCall(arguments) => return Record { op: 2, arguments, ..Record::default() },
            Self::Load(width, at) => (3, [width as u64, at, 0, 0]),
            Self::Store(width, at, value) => (4, [width as u64, at, value, 0]),
            Self::Repeat(times) => (5, [times, 0, 0, 0]),
            Self::End => (6, [0; 4]),
            Self::Privileged(what) => (7, [what as u64, 0, 0, 0]),
            Self::Meet { own, other, value, ticks } => (8, [own, other, value, ticks]),
            Self::Wait(ticks) => (9, [ticks, 0, 0, 0]),
            Self::WriteProcess(process) => (10, [process, 0, 0, 0]),
            Self::Jump(at) => (11, [at, 0, 0, 0]),
            Self::CallAsProcess(opcode) => (12, [opcode, 0, 0, 0]),
        };
        let [a, b, c, d] = first;
        Record { op, arguments: [a, b, c, d, 0, 0, 0, 0, 0], ..Record::default() }
    }
}

impl Record {
    /// The record as doublewords.
    #[must_use]
    pub const fn words(&self) -> [u64; 16] {
        let [a, b, c, d, e, f, g, h, i] = self.arguments;
        let Self { op, status, result, before, after, trap, extra, .. } = *self;
        [op, a, b, c, d, e, f, g, h, i, status, result, before, after, trap, extra]
    }

    /// The record that these doublewords are.
    #[must_use]
    pub const fn from_words(words: [u64; 16]) -> Self {
        let [op, a, b, c, d, e, f, g, h, i, status, result, before, after, trap, extra] = words;
        Self { op, arguments: [a, b, c, d, e, f, g, h, i], status, result, before, after, trap, extra }
    }
}

/// A call with these arguments, the others 0.
#[must_use]
pub fn call(opcode: u64, arguments: &[u64]) -> Op {
    let mut all = [0; 9];
    let given = core::iter::once(&opcode).chain(arguments);
    all.iter_mut().zip(given).for_each(|(to, from)| *to = *from);
    Op::Call(all)
}

/// Whether a register of `width` bytes at `offset` is one of a device with that many bytes of registers.
#[must_use]
pub const fn is_register(offset: u64, width: u64, bytes: u64) -> bool {
    let Some(end) = offset.checked_add(width) else { return false };
    matches!(width, 4 | 8) && offset.is_multiple_of(width) && end <= bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_the_way_through_memory() {
        let mut record = Op::Store(Width::Eight, 0x1000, 42).record();
        record.extra = 7;
        record.before = 9;
        assert_eq!(Record::from_words(record.words()), record);
        assert_eq!(record.words()[..4], [4, 8, 0x1000, 42]);
        assert_eq!((record.words()[12], record.words()[15]), (9, 7));
    }

    #[test]
    fn a_proxy_stays_in_the_device() {
        assert!(is_register(0, 8, 8) && is_register(4, 4, 8) && is_register(0xff8, 8, 0x1000));
        let outside = [(8, 4, 8), (4, 8, 8), (2, 4, 8), (0, 1, 8), (0, 0, 8), (0, 16, 32), (0, 4, 0)];
        outside.iter().for_each(|&(offset, width, bytes)| assert!(!is_register(offset, width, bytes)));
        assert!(!is_register(u64::MAX - 3, 4, u64::MAX) && !is_register(u64::MAX - 7, 8, 0x1000));
    }

    #[test]
    fn a_call_fills_registers_from_r3_on() {
        assert_eq!(call(0xf004, &[1, 2]), Op::Call([0xf004, 1, 2, 0, 0, 0, 0, 0, 0]));
        assert_eq!(call(1, &[2; 20]), Op::Call([1, 2, 2, 2, 2, 2, 2, 2, 2]));
    }
}
