//! Invalidation descriptors of 128 bits (manual, section 6.5.2).

use portcullis_hal::{Iova, PhysAddr, RequesterId};

use super::registers::Capability;

/// One descriptor: low and high half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Bits 63:0; the type is in bits 3:0.
    pub low: u64,
    /// Bits 127:64.
    pub high: u64,
}

/// Bytes of one descriptor in the queue.
pub const DESCRIPTOR_BYTES: u64 = 16;

const CONTEXT_CACHE: u64 = 1;
const IOTLB: u64 = 2;
const WAIT: u64 = 5;

/// Granularity in bits 5:4 (6.5.2.1, 6.5.2.3).
const GLOBAL: u64 = 1 << 4;
const DOMAIN: u64 = 2 << 4;
const SELECTIVE: u64 = 3 << 4;

/// Whether cached entries that point to tables may stay (6.5.2.3, IH).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidationHint {
    /// Tables may have changed: everything on the way goes, too.
    TablesToo,
    /// Only leaves changed.
    LeavesOnly,
}

const fn drain(capability: Capability) -> u64 {
    (capability.drains_writes() as u64) << 6 | (capability.drains_reads() as u64) << 7
}

impl Descriptor {
    /// All context entries (6.5.2.1).
    #[must_use]
    pub const fn context_cache_global() -> Self {
        Self { low: CONTEXT_CACHE | GLOBAL, high: 0 }
    }

    /// The context entry of one device that was cached with a domain ID (6.5.2.1).
    #[must_use]
    pub const fn context_cache_device(domain: u16, requester: RequesterId) -> Self {
        let low = CONTEXT_CACHE | SELECTIVE | (domain as u64) << 16 | (requester.as_u16() as u64) << 32;
        Self { low, high: 0 }
    }

    /// All of the IOTLB (6.5.2.3), with draining where the hardware can.
    #[must_use]
    pub const fn iotlb_global(capability: Capability) -> Self {
        Self { low: IOTLB | GLOBAL | drain(capability), high: 0 }
    }

    /// All of one domain (6.5.2.3), with draining where the hardware can.
    #[must_use]
    pub const fn iotlb_domain(capability: Capability, domain: u16) -> Self {
        Self { low: IOTLB | DOMAIN | drain(capability) | (domain as u64) << 16, high: 0 }
    }

    /// `2^mask` pages of one domain, from an address aligned to that (6.5.2.3), with draining where the
    /// hardware can.
    #[must_use]
    pub const fn iotlb_pages(
        capability: Capability,
        domain: u16,
        start: Iova,
        mask: u8,
        hint: InvalidationHint,
    ) -> Self {
        let hint = match hint {
            InvalidationHint::TablesToo => 0,
            InvalidationHint::LeavesOnly => 1 << 6,
        };
        Self {
            low: IOTLB | SELECTIVE | drain(capability) | (domain as u64) << 16,
            high: start.as_u64() & !0xfff | hint | (mask & 0x3f) as u64,
        }
    }

    /// Writes `value` to the 4 bytes at `status` when all earlier descriptors are done (6.5.2.8, SW = 1).
    #[must_use]
    pub const fn wait(status: PhysAddr, value: u32) -> Self {
        Self { low: WAIT | 1 << 5 | (value as u64) << 32, high: status.as_u64() & !3 }
    }
}
