//! The fault log: what hardware recorded of blocked transactions (manual, section 7.2, 11.4.7).

use portcullis_hal::{Clock, DeviceId, Iova, RegisterIo, Segment};
use portcullis_iommu::{Fault, FaultReason};

use crate::{
    spec::{
        fault::{self, HIGH_HALF, RECORD_BYTES, RecordHigh, TOP_WORD, TOP_WORD_FAULT, faulting_page},
        registers::{FSTS, FaultStatus},
    },
    unit::Unit,
};

/// Takes the oldest record and clears it. `next` is the one after the record that was taken last: hardware
/// fills them in a ring, and FRI names the oldest only until that one is cleared.
pub(crate) fn take<R: RegisterIo, C: Clock>(
    unit: &Unit<R, C>,
    segment: Segment,
    next: &mut Option<usize>,
) -> Option<Fault> {
    let status = unit.registers.read32(FSTS);
    let flags = FaultStatus::from_bits_truncate(status);
    if status == u32::MAX {
        return None;
    }
    let fault = flags.contains(FaultStatus::PENDING).then(|| {
        let records = unit.capability.fault_records();
        let first = next.unwrap_or(FaultStatus::first_record(status));
        (0..records).map(|step| (first + step) % records.max(1)).find_map(|index| {
            *next = Some(index + 1);
            take_record(unit, segment, index)
        })
    });
    if flags.contains(FaultStatus::OVERFLOW) {
        // Until it is cleared, hardware records nothing more.
        unit.registers.write32(FSTS, FaultStatus::OVERFLOW.bits());
    }
    fault.flatten()
}

fn take_record<R: RegisterIo, C: Clock>(unit: &Unit<R, C>, segment: Segment, index: usize) -> Option<Fault> {
    let record = unit.capability.fault_offset() + index * RECORD_BYTES;
    // The high half first: F says that the rest of the record is complete.
    let high = RecordHigh(unit.registers.read64(record + HIGH_HALF));
    if !high.is_valid() || high.0 == u64::MAX {
        return None;
    }
    let low = unit.registers.read64(record);
    unit.registers.write32(record + TOP_WORD, TOP_WORD_FAULT);
    // Of an interrupt request, the field holds an index and no address.
    let knows_address = !fault::INTERRUPT_REASONS.contains(&high.reason());
    Some(Fault {
        device: DeviceId { segment, requester: high.requester() },
        iova: knows_address.then_some(Iova::new(faulting_page(low))),
        access: high.access(),
        reason: reason(high.reason()),
    })
}

/// What a reason code of chapter 7 means to the policy.
const fn reason(code: u8) -> FaultReason {
    match code {
        fault::ROOT_NOT_PRESENT | fault::CONTEXT_NOT_PRESENT => FaultReason::NoContext,
        fault::CONTEXT_INVALID | fault::ROOT_RESERVED | fault::CONTEXT_RESERVED => {
            FaultReason::BadContext { code }
        }
        fault::BEYOND_WIDTH => FaultReason::BeyondWidth,
        fault::WRITE_DENIED => FaultReason::WriteDenied,
        fault::READ_DENIED => FaultReason::ReadDenied,
        fault::PAGING_ENTRY_RESERVED => FaultReason::ReservedBit,
        fault::PAGING_ENTRY_UNREADABLE | fault::ROOT_UNREADABLE | fault::CONTEXT_UNREADABLE => {
            FaultReason::TableUnreadable
        }
        _ => FaultReason::Other { code },
    }
}
