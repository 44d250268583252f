//! Commands and completions as they lie in memory (NVM Express Base Specification 1.4).

use portcullis_hal::Iova;

use crate::board::DmaError;

/// Pages of the controller (field MPS of CC is 0).
pub(super) const PAGE: u64 = 4096;
/// Bytes of a submission entry.
pub(super) const COMMAND_BYTES: u32 = 64;
/// Bytes of a completion entry.
pub(super) const COMPLETION_BYTES: u32 = 16;
/// Bytes of a list of PRP entries: enough for the most bytes of one command.
pub(super) const LIST_BYTES: u32 = 128;
/// Most bytes that one command moves: its pages fill a list, wherever in a page it begins.
pub(super) const MAX_BYTES: u64 = PAGE * (LIST_BYTES as u64 / 8);

pub(super) const CREATE_SUBMISSION: u8 = 0x01;
pub(super) const CREATE_COMPLETION: u8 = 0x05;
pub(super) const IDENTIFY: u8 = 0x06;
pub(super) const WRITE: u8 = 0x01;
pub(super) const READ: u8 = 0x02;
/// The only namespace that is used.
pub(super) const NAMESPACE: u32 = 1;

/// The fields of a command that are not zero (4.2).
#[derive(Clone, Copy, Default)]
pub(super) struct Command {
    pub(super) opcode: u8,
    pub(super) namespace: u32,
    /// PRP entries 1 and 2.
    pub(super) pages: [u64; 2],
    /// Dwords 10 to 12.
    pub(super) arguments: [u32; 3],
}

impl Command {
    /// The entry as it lies in the queue; `identifier` comes back in its completion.
    pub(super) fn bytes(&self, identifier: u16) -> [u8; COMMAND_BYTES as usize] {
        let (first, [one, two], [ten, eleven, twelve]) =
            (u64::from(self.opcode) | u64::from(identifier) << 16, self.pages, self.arguments);
        let arguments = [pair(ten, eleven), pair(twelve, 0)];
        let head = [pair(first as u32, self.namespace), 0, 0, one, two];
        let mut bytes = [0; COMMAND_BYTES as usize];
        let words = head.into_iter().chain(arguments);
        bytes.iter_mut().zip(words.flat_map(u64::to_le_bytes)).for_each(|(byte, value)| *byte = value);
        bytes
    }
}

const fn pair(low: u32, high: u32) -> u64 {
    low as u64 | (high as u64) << 32
}

/// What a completion entry says (4.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Completion {
    /// Of the command.
    pub(super) identifier: u16,
    /// Status code and type; 0 is success.
    pub(super) status: u16,
}

impl Completion {
    /// From the entry's last four bytes: command identifier, phase tag and status.
    pub(super) const fn new(tail: [u8; 4]) -> Self {
        let [low, high, status, type_] = tail;
        let status = u16::from_le_bytes([status, type_]) >> 1;
        // More, Do Not Retry and the retry delay are no part of the code.
        Self { identifier: u16::from_le_bytes([low, high]), status: status & 0x7ff }
    }
}

/// Pages of the controller that `bytes` bytes at `start` touch, as PRP entries (4.3): the first one as it
/// is, the others at their beginning.
pub(super) fn pages(start: Iova, bytes: u64) -> impl Iterator<Item = u64> + Clone {
    let (first, end) = (start.as_u64(), start.as_u64().saturating_add(bytes));
    let next = (first / PAGE + 1) * PAGE;
    core::iter::once(first).chain((next..end).step_by(PAGE as usize))
}

/// Whether a transfer can be told by PRP entries: whole double words (4.3), within 64 bits.
pub(super) const fn check(start: Iova, bytes: u64) -> Result<(), DmaError> {
    if start.as_u64() & 3 != 0 || start.as_u64().checked_add(bytes).is_none() {
        return Err(DmaError::Misaligned { iova: start });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_lies_as_the_specification_says() {
        let command =
            Command { opcode: READ, namespace: 1, pages: [0x1_0000_2000, 0x3000], arguments: [5, 6, 7] };
        let bytes = command.bytes(0x1234);
        let word = |index: usize| u32::from_le_bytes(bytes[index * 4..index * 4 + 4].try_into().unwrap());
        let expected = [0x1234_0002, 1, 0, 0, 0, 0, 0x2000, 1, 0x3000, 0, 5, 6, 7, 0, 0, 0];
        assert_eq!(core::array::from_fn::<u32, 16, _>(word), expected);
    }

    #[test]
    fn a_completion_is_read_without_its_phase() {
        assert_eq!(Completion::new([2, 1, 0x05, 0x42]), Completion { identifier: 0x102, status: 0x102 });
        assert_eq!(Completion::new([0, 0, 1, 0]), Completion { identifier: 0, status: 0 });
    }

    #[test]
    fn pages_begin_where_the_transfer_does_and_cover_all_of_it() {
        let list = |start, bytes| pages(Iova::new(start), bytes).collect::<heapless::Vec<_, 20>>();
        assert_eq!(list(0x1000, 0x1000), [0x1000]);
        assert_eq!(list(0x1200, 0x1000), [0x1200, 0x2000]);
        assert_eq!(list(0x1000, 0x2200), [0x1000, 0x2000, 0x3000]);
        assert_eq!(list(0x1ffc, MAX_BYTES).len(), 17, "the first is in the command, sixteen fit a list");
    }

    #[test]
    fn what_prp_entries_cannot_tell_is_refused() {
        assert_eq!(check(Iova::new(0x1002), 512), Err(DmaError::Misaligned { iova: Iova::new(0x1002) }));
        let top = Iova::new(u64::MAX - 3);
        assert_eq!(check(top, 512), Err(DmaError::Misaligned { iova: top }));
        assert_eq!(check(Iova::new(0x1004), 512), Ok(()));
    }
}
