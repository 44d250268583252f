//! What a scenario needs of a machine.

use core::time::Duration;

use portcullis_hal::{Clock, ConfigSpace, DeviceId, DmaExtent, Iova, PhysAddr};
use portcullis_iommu::{Driver, Error, Fault, Iommu};

use crate::event::Event;

/// A machine with an IOMMU and at least two devices that do DMA, each in a group of its own.
///
/// Scenarios run on one CPU, one at a time, each on a freshly started board.
pub trait Board {
    /// The IOMMU's driver.
    type Driver: Driver;
    /// A device that does DMA.
    type Device: DmaDevice + ?Sized;

    /// The policy over that driver. The scenario registers the devices it uses.
    fn iommu(&self) -> &Iommu<Self::Driver>;

    /// Device `index`: 0 and 1 are alike; 2, when the board has one, keeps command queues in memory.
    fn device(&self, index: usize) -> Option<&Self::Device>;

    /// Tells the policy of the memory that firmware says a device must reach at fixed addresses. For devices that
    /// the scenario has just registered.
    ///
    /// # Errors
    /// Of [`Iommu::declare_reserved`].
    fn declare_reserved(&self, device: DeviceId) -> Result<(), Error> {
        let _ = device;
        Ok(())
    }

    /// A context as most scenarios want it: 4 KiB pages, the board's own width.
    fn spec(&self) -> <Self::Driver as Driver>::Spec;

    /// The same with DMA made cache-coherent from the start.
    ///
    /// # Errors
    /// [`Error::NoSnoopControl`] when no unit can.
    fn coherent_spec(&self) -> Result<<Self::Driver as Driver>::Spec, Error>;

    /// The same, but the context is allowed so few table pages that a few scattered mappings use them up.
    fn starved_spec(&self) -> <Self::Driver as Driver>::Spec;

    /// Table pages that are free now.
    fn table_pages_free(&self) -> usize;

    /// Buffer `index` of at least 16: one 4 KiB page of memory that devices may be pointed at. The
    /// pages are physically contiguous, and the first is aligned to 64 KiB.
    fn buffer(&self, index: usize) -> Option<Buffer<'_>>;

    /// A page of 2 MiB made of memory that devices may be pointed at, when the board has one.
    fn large_buffer(&self) -> Option<Buffer<'_>>;

    /// Physical address of the running image's first page.
    fn image(&self) -> PhysAddr;

    /// Byte `offset` of that page as memory holds it now (a volatile read).
    fn image_byte(&self, offset: usize) -> u8;

    /// Whether the leaf that `device` reaches at `iova` carries the snoop bit: walked from the hardware's
    /// own root pointer through table memory, not through the driver. `None` without a leaf, or where
    /// tables have no such bit.
    fn leaf_has_snoop(&self, device: DeviceId, iova: Iova) -> Option<bool>;

    /// Tries to bring up, over the same registers, an IOMMU whose status never changes. Returns what
    /// the driver reported, which must be a timeout.
    ///
    /// # Errors
    /// What the driver reported.
    fn bring_up_dead_unit(&self) -> Result<(), Error>;

    /// From now on hardware no longer sees or finishes invalidations: the board's wrapping register
    /// access withholds them.
    fn withhold_completion(&self);

    /// Whether hardware tells software of blocked transactions, so that [`take_fault`](Self::take_fault)
    /// finds them.
    fn reports_faults(&self) -> bool;

    /// Takes the oldest fault that hardware has recorded.
    fn take_fault(&self) -> Option<Fault> {
        self.iommu().take_fault()
    }

    /// How long the [disk](DmaDevice::disk) took before the IOMMU translated, if that was
    /// [measured](crate::bare::time_disk).
    fn bare_disk_time(&self) -> Option<Duration> {
        None
    }

    /// The configuration space of the devices.
    fn config_space(&self) -> impl ConfigSpace + '_;

    /// Time, for waits on devices.
    fn clock(&self) -> impl Clock + '_;

    /// Sends an event to the host.
    fn emit(&self, event: &Event<'_>);
}

/// Memory that a scenario and a device share: read and written by volatile accesses.
pub trait SharedBytes {
    /// Reads byte `offset`; 0 beyond the end.
    fn read(&self, offset: usize) -> u8;
    /// Writes byte `offset`; nothing beyond the end.
    fn write(&self, offset: usize, value: u8);
}

/// One buffer: where it is, how the CPU reaches it, and the right to point devices at it.
#[derive(Clone, Copy)]
pub struct Buffer<'b> {
    /// The right to point devices at it, with its physical address and length.
    pub extent: DmaExtent,
    /// How the CPU reaches it.
    pub bytes: &'b dyn SharedBytes,
}

/// A device with a buffer of its own that copies to and from memory.
pub trait DmaDevice {
    /// Who it is.
    fn id(&self) -> DeviceId;
    /// What it is, as `edu`.
    fn name(&self) -> &'static str;
    /// Memory for the device's own command queues, if it has such. The scenario maps it for reading and
    /// writing before it calls [`start`](Self::start).
    fn queues(&self) -> Option<Buffer<'_>> {
        None
    }
    /// The device as a disk, if it is one. It must have been [started](Self::start).
    fn disk(&self) -> Option<&dyn Disk> {
        None
    }
    /// Starts a device that has queues, which are mapped at `queues`. To be called once.
    ///
    /// # Errors
    /// [`DmaError`].
    fn start(&self, queues: Iova) -> Result<(), DmaError> {
        let _ = queues;
        Ok(())
    }
    /// Copies `bytes` bytes from memory at `iova` to the start of the device's buffer. Waits for the
    /// device, under a deadline; a blocked transfer is no error.
    ///
    /// # Errors
    /// [`DmaError`].
    fn read_memory(&self, iova: Iova, bytes: u32) -> Result<(), DmaError>;
    /// Copies `bytes` bytes from the start of the device's buffer to memory at `iova`.
    ///
    /// # Errors
    /// [`DmaError`].
    fn write_memory(&self, iova: Iova, bytes: u32) -> Result<(), DmaError>;
    /// Starts what [`write_memory`](Self::write_memory) does and returns at once, if the device takes
    /// its time; otherwise the transfer is over.
    ///
    /// # Errors
    /// [`DmaError`].
    fn begin_write(&self, iova: Iova, bytes: u32) -> Result<(), DmaError> {
        self.write_memory(iova, bytes)
    }
    /// Whether a transfer that was [begun](Self::begin_write) is not over.
    fn is_busy(&self) -> bool {
        false
    }
}

/// A device did not do its part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DmaError {
    /// The transfer did not end in time.
    TimedOut,
    /// More bytes than the device can copy at once.
    TooLong {
        /// Bytes asked for.
        bytes: u64,
    },
    /// The device ended a command with an error.
    Refused {
        /// Its status, as the device tells it.
        status: u16,
    },
    /// The device cannot be told of memory there.
    Misaligned {
        /// Where it begins.
        iova: Iova,
    },
}

/// How a disk is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Blocks that it has.
    pub blocks: u64,
    /// Bytes in a block: a power of two.
    pub block_bytes: u64,
    /// Most bytes that it moves at once.
    pub max_bytes: u64,
}

impl Geometry {
    /// Bytes of the whole disk.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.blocks.saturating_mul(self.block_bytes)
    }
}

/// A device that keeps blocks of data. Calls wait for it, under a deadline.
pub trait Disk {
    /// Asks how it is divided. The 4 KiB of `page`, which it writes, are mapped at `iova`.
    ///
    /// # Errors
    /// [`DmaError`].
    fn identify(&self, iova: Iova, page: &dyn SharedBytes) -> Result<Geometry, DmaError>;
    /// Reads whole blocks, from `block` on, into memory that lies at `memory` in the device's own address
    /// space. Whether all of it arrived, data tells.
    ///
    /// # Errors
    /// [`DmaError`]; after [`DmaError::Refused`] any part may have arrived.
    fn read(&self, geometry: Geometry, block: u64, memory: Iova, bytes: u64) -> Result<(), DmaError>;
    /// Writes whole blocks, from `block` on, with what lies at `memory`.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    fn write(&self, geometry: Geometry, block: u64, memory: Iova, bytes: u64) -> Result<(), DmaError>;
    /// Ends whatever is under way, until the device is [started](DmaDevice::start) anew.
    ///
    /// # Errors
    /// [`DmaError::TimedOut`].
    fn stop(&self) -> Result<(), DmaError>;
}
