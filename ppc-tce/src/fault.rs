//! What the bridge recorded when it froze a PE.

use portcullis_hal::{Access, DeviceId, IoPageSize, Iova, RequesterId, Segment};
use portcullis_iommu::{Fault, FaultReason};

use crate::{
    firmware::PestEntry,
    spec::{
        field,
        pest::{
            FAILED_ADDRESS, KIND, KIND_DMA_READ, KIND_DMA_WRITE, REQUESTER, TCE_ACCESS_FAULT, TCE_PAGE_FAULT,
        },
    },
};

/// A fault of the device in the frozen PE. An entry of zeros tells only that it is frozen: then the
/// access is empty and the address unknown.
pub(crate) fn decode(segment: Segment, device: RequesterId, entry: PestEntry) -> Fault {
    let PestEntry([state, address]) = entry;
    let unknown = state == 0 && address == 0;
    let access = match field(state, KIND.0, KIND.1) {
        _ if unknown => Access::empty(),
        KIND_DMA_WRITE => Access::WRITE,
        KIND_DMA_READ => Access::READ,
        _ => Access::empty(),
    };
    let recorded = RequesterId::new(field(state, REQUESTER.0, REQUESTER.1) as u16);
    let requester = if unknown { device } else { recorded };
    let page = address & FAILED_ADDRESS & !(IoPageSize::SIZE_4K.bytes() - 1);
    Fault {
        device: DeviceId { segment, requester },
        iova: (!unknown).then_some(Iova::new(page)),
        access,
        reason: reason(state, access),
    }
}

fn reason(state: u64, access: Access) -> FaultReason {
    let denied = state & (TCE_PAGE_FAULT | TCE_ACCESS_FAULT) != 0;
    match access {
        Access::WRITE if denied => FaultReason::WriteDenied,
        Access::READ if denied => FaultReason::ReadDenied,
        _ => FaultReason::Other { code: field(state, KIND.0, KIND.1) as u8 },
    }
}
