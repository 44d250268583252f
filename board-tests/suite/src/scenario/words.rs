//! Errors and faults in words.

use portcullis_iommu::{Error, FaultReason};

/// An error in words.
pub(super) const fn describe(error: Error) -> &'static str {
    match error {
        Error::NotGranted { .. } => "the group was not granted to that VM",
        Error::OwnedBy { .. } => "another VM owns it",
        Error::OwnedByHost { .. } => "the hypervisor's own drivers have it",
        Error::NotQuiesced { .. } => "no proof that its devices forgot the former owner",
        Error::NotAttached { .. } => "the group is in no context",
        Error::Stale { .. } => "what the handle names has ended",
        Error::InUse { .. } => "the context is still in use",
        Error::Quarantined => "its hardware is quarantined",
        Error::OutsideAperture { .. } => "the range lies outside the aperture",
        Error::AlreadyMapped { .. } => "something is mapped there",
        Error::NeedPages { .. } => "table pages ran out",
        Error::NoSnoopControl => "a unit has no snoop control",
        Error::HasMappings => "mappings without snoop control exist",
        Error::Timeout(_) => "hardware did not answer in time",
        Error::Hardware { .. } => "hardware or firmware reported an error",
        Error::Misaligned { .. } => "an address or length is misaligned",
        Error::Unsupported { .. } => "hardware does not offer that",
        Error::StillMapped { .. } => "devices still reach it",
        Error::NotRegistered { .. } => "it is not inside one registered region of the VM",
        Error::Overlaps { .. } => "part of it is registered already",
        Error::OtherBacking => "the context maps registered memory only",
        Error::Busy => "another CPU holds it",
        Error::NotBehindUnit { .. } => "the device is not behind this unit",
        _ => "the call was refused",
    }
}

pub(super) const fn describe_fault(reason: FaultReason) -> &'static str {
    match reason {
        FaultReason::NoContext => "the device is in no context",
        FaultReason::BadContext { .. } => "the context entry is invalid",
        FaultReason::BeyondWidth => "the address is wider than the context",
        FaultReason::ReadDenied => "no mapping allows reading there",
        FaultReason::WriteDenied => "no mapping allows writing there",
        FaultReason::ReservedBit => "a reserved bit is set in an entry",
        FaultReason::TableUnreadable => "the tables could not be read",
        _ => "another reason",
    }
}
