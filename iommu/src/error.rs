//! What can be wrong with a call, and the value that was wrong.

use portcullis_hal::{DeviceId, GuestPhysRange, IoPageSize, Iova, PhysRange, TimedOut};

use crate::{
    group::{GroupId, VmId},
    memory::RegionHandle,
    pci::QuiesceError,
};

/// Misuse, exhaustion, or hardware that did not answer. What a device did wrong is a
/// [`Fault`](crate::Fault) instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum Error {
    /// A fixed-size table is full.
    Full {
        /// How many it holds.
        capacity: usize,
    },
    /// A group needs at least one device and at most [`MAX_MEMBERS`](crate::driver::MAX_MEMBERS).
    BadMemberCount {
        /// Devices that were named.
        count: usize,
    },
    /// The device belongs to a group already, or is named twice.
    DuplicateDevice {
        /// The device.
        device: DeviceId,
    },
    /// No such group.
    UnknownGroup {
        /// The number that was passed.
        group: GroupId,
    },
    /// The hypervisor has not granted the group to this VM.
    NotGranted {
        /// Who asked.
        vm: VmId,
        /// What for.
        group: GroupId,
    },
    /// Another VM owns it.
    OwnedBy {
        /// The owner.
        owner: VmId,
    },
    /// The handle is older than what its slot holds now: its context, ownership or reference has ended.
    Stale {
        /// Slot that the handle names.
        slot: u32,
    },
    /// The context is still in use.
    InUse {
        /// Groups attached to it, or callers inside.
        users: u32,
    },
    /// The group is attached to a context already.
    AlreadyAttached,
    /// Hardware of this group stopped answering, or the hypervisor [set it aside](crate::Iommu::quarantine); the
    /// group stays blocked.
    Quarantined,
    /// An address or a length is no multiple of the page size.
    Misaligned {
        /// The number that was passed.
        value: u64,
    },
    /// Not wholly inside what the context can map.
    OutsideAperture {
        /// First address.
        iova: Iova,
        /// Length.
        bytes: u64,
    },
    /// The physical address is wider than hardware can express.
    PhysicalTooWide {
        /// The address.
        address: u64,
    },
    /// Neither reading nor writing was asked for.
    NoAccess,
    /// A mapping exists there.
    AlreadyMapped {
        /// First address in the way.
        iova: Iova,
    },
    /// The end of a range lies inside a larger page.
    SplitsPage {
        /// An address in that page.
        iova: Iova,
    },
    /// The guest range and the host memory for it are not equally long.
    SizesDiffer {
        /// Bytes of the guest range.
        guest: u64,
        /// Bytes of the memory.
        host: u64,
    },
    /// Guest addresses of the same VM, or host memory of any VM, are registered already.
    Overlaps {
        /// The region in the way.
        region: RegionHandle,
    },
    /// Tables still lead into the region.
    StillMapped {
        /// Units of 4 KiB that are mapped, or being mapped.
        pages: u64,
    },
    /// Not wholly inside one registered region of the VM.
    NotRegistered {
        /// What the guest asked for.
        guest: GuestPhysRange,
    },
    /// The context's pages are larger than the region's.
    PageTooLarge {
        /// The region's largest page.
        page_size: IoPageSize,
    },
    /// The context maps bare extents and no registered memory, or the other way round.
    OtherBacking,
    /// Donated table pages ran out; donate more, or unmap.
    NeedPages {
        /// Contiguous 4 KiB pages that were missing.
        count: usize,
    },
    /// A unit of the context has no snoop control.
    NoSnoopControl,
    /// Mappings exist that were made without snoop control.
    HasMappings,
    /// The context wants more than hardware offers.
    Unsupported {
        /// Bits of address, levels or log2 of the page size: what was asked for.
        value: u64,
    },
    /// The device is not behind this hardware.
    NotBehindUnit {
        /// The device.
        device: DeviceId,
    },
    /// Hardware numbers (domain IDs, PE numbers, windows) ran out.
    OutOfNumbers {
        /// How many there are.
        limit: u32,
    },
    /// Another CPU holds what this call needs; try again.
    Busy,
    /// Hardware did not do in time what its manual promises.
    Timeout(TimedOut),
    /// Hardware reported an error of its own.
    Hardware {
        /// Register offset or firmware call that reported it.
        source: u32,
        /// What it said.
        code: i64,
    },
    /// The host itself uses it.
    OwnedByHost {
        /// Host drivers that do DMA.
        drivers: u32,
    },
    /// The VM does not own the group.
    NotOwner {
        /// The VM.
        vm: VmId,
        /// The group.
        group: GroupId,
    },
    /// The devices of the group may still hold addresses of its former owner.
    NotQuiesced {
        /// The group.
        group: GroupId,
    },
    /// The device needs memory that blocking it would take away.
    ReservedRegion {
        /// The device.
        device: DeviceId,
        /// The memory.
        range: PhysRange,
    },
    /// The memory is registers of a device: [`map_bar`](crate::Iommu::map_bar) alone maps them, and only
    /// [`unmap_bar`](crate::Iommu::unmap_bar) unmaps them.
    IsBar {
        /// The device.
        device: DeviceId,
    },
    /// The owner of the context does not own the group of the device whose registers these are.
    ForeignBar {
        /// The device.
        device: DeviceId,
    },
    /// No declared BAR holds the memory, or none is mapped exactly there.
    UnknownBar {
        /// First address of the memory or the mapping.
        address: u64,
    },
    /// The device is in no group.
    UnknownDevice {
        /// The device.
        device: DeviceId,
    },
    /// The group is attached to no context.
    NotAttached {
        /// The group.
        group: GroupId,
    },
    /// A device did not end its DMA.
    NotQuiet {
        /// The device.
        device: DeviceId,
        /// Why.
        because: QuiesceError,
    },
    /// The handle does not give the right.
    NoRight {
        /// Bits of [`Rights`](crate::handle::Rights) that are needed.
        needed: u8,
    },
    /// The VM's number is not below [`MAX_VMS`](crate::coherency::MAX_VMS).
    UnknownVm {
        /// The number.
        vm: VmId,
    },
    /// Everything that the VM has is just being ended.
    Ending {
        /// The VM.
        vm: VmId,
    },
}

impl From<TimedOut> for Error {
    fn from(timed_out: TimedOut) -> Self {
        Self::Timeout(timed_out)
    }
}
