//! What a target tells its host: one definition for both ends.
//!
//! An event travels as postcard bytes in one defmt frame `event {=[u8]}`; the host decodes it and
//! renders what a person reads.

use serde::{Deserialize, Serialize};

/// Longest encoded event, in bytes.
pub const MAX_EVENT_BYTES: usize = 256;

/// Something that the target did or saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event<'a> {
    /// The image runs; its IOMMU is up.
    Ready {
        /// What drives the hardware, as `VT-d` or `PHB4`.
        iommu: &'a str,
        /// Whether every unit can make DMA cache-coherent; `None` where the bus always is.
        snoop_control: Option<bool>,
        /// Bits of I/O virtual address.
        address_bits: u8,
    },
    /// A scenario begins.
    Begin {
        /// Its name.
        scenario: &'a str,
    },
    /// What the scenario is about to do, in words.
    Step {
        /// The words.
        text: &'a str,
    },
    /// Which devices the board has.
    Device {
        /// Index in the suite.
        index: u8,
        /// Requester ID.
        requester: u16,
        /// What it is, as `edu`.
        name: &'a str,
    },
    /// A device was switched to a context.
    Attached {
        /// Requester ID.
        requester: u16,
        /// Number of the context.
        context: u32,
    },
    /// A device was blocked.
    Detached {
        /// Requester ID.
        requester: u16,
    },
    /// A mapping was made.
    Mapped {
        /// Number of the context.
        context: u32,
        /// First I/O virtual address.
        iova: u64,
        /// First physical address.
        phys: u64,
        /// Length.
        bytes: u64,
        /// Bit 0: read, bit 1: write.
        access: u8,
    },
    /// Mappings were taken out and invalidated.
    Unmapped {
        /// Number of the context.
        context: u32,
        /// First I/O virtual address.
        iova: u64,
        /// Length of the range.
        bytes: u64,
    },
    /// A device finished a transfer, or gave up.
    Dma {
        /// Requester ID.
        requester: u16,
        /// I/O virtual address.
        iova: u64,
        /// Length.
        bytes: u32,
        /// What the device wanted.
        direction: Direction,
        /// What memory, or the device's own buffer, holds afterwards.
        effect: Effect,
    },
    /// The IOMMU recorded a blocked transaction.
    Fault {
        /// Requester ID.
        requester: u16,
        /// I/O virtual address, page aligned, when hardware knows.
        iova: Option<u64>,
        /// What the device wanted.
        direction: Direction,
        /// Why, in words.
        reason: &'a str,
    },
    /// A call was refused, as it should be.
    Refused {
        /// What was tried.
        what: &'a str,
        /// The error, in words.
        why: &'a str,
    },
    /// The scenario is over and held.
    Passed {
        /// Its name.
        scenario: &'a str,
    },
    /// The scenario is over: something was not as promised.
    Failed {
        /// Its name.
        scenario: &'a str,
        /// What was not as promised.
        what: &'a str,
        /// Line in the suite.
        line: u32,
    },
    /// The image panicked or trapped.
    Crashed {
        /// What happened.
        what: &'a str,
        /// Line of the source, or address of the instruction.
        at: u64,
    },
    /// A VM owns a device from here on; the device is blocked.
    Claimed {
        /// Requester ID.
        requester: u16,
        /// The VM.
        vm: u32,
    },
    /// A VM gave a device up; the device is blocked.
    Released {
        /// Requester ID.
        requester: u16,
        /// The VM.
        vm: u32,
    },
    /// A device's bus mastering was turned off, and nothing of it is under way.
    Quiesced {
        /// Requester ID.
        requester: u16,
    },
    /// A device whose bus mastering is off had orders to write, and memory stayed as it was.
    Silent {
        /// Requester ID.
        requester: u16,
        /// I/O virtual address.
        iova: u64,
    },
    /// An external user was told that the ownership which it relies on ends.
    Notified {
        /// Its number.
        user: u32,
    },
    /// A VM's ownership of a device was ended for it; the device is blocked.
    Revoked {
        /// Requester ID.
        requester: u16,
        /// The VM.
        vm: u32,
    },
    /// All that a VM had was ended.
    Died {
        /// The VM.
        vm: u32,
    },
    /// What a VM's WBINVD must do.
    Coherency {
        /// The VM.
        vm: u32,
        /// Whether it may do nothing.
        coherent: bool,
        /// Number of the answer.
        epoch: u32,
    },
    /// A guest made a hypercall.
    Called {
        /// Which, as `H_PUT_TCE`.
        call: &'a str,
        /// First I/O bus address.
        ioba: u64,
        /// Entries.
        count: u64,
        /// What came back, as `H_SUCCESS`.
        status: &'a str,
    },
    /// Something was counted or timed.
    Measured {
        /// What, in words.
        what: &'a str,
        /// How much.
        value: u64,
        /// Of what, as `ticks`.
        unit: &'a str,
    },
    /// The policy's log names the VM that owned a device when its fault was read.
    Blamed {
        /// Requester ID.
        requester: u16,
        /// The VM.
        vm: u32,
    },
    /// All of something was read, and this is its [checksum](crate::checksum): the host knows the right one.
    Checksum {
        /// What was read: [`DISK`].
        what: &'a str,
        /// The sum.
        value: u32,
        /// Bytes that were read.
        bytes: u64,
    },
}

/// What [`Event::Checksum`] calls the disk that the host gave to the board.
pub const DISK: &str = "disk";

/// Which way a transfer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Direction {
    /// The device reads memory.
    Read,
    /// The device writes memory.
    Write,
}

/// What a transfer did, judged by data and not by the device's status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Effect {
    /// The data arrived.
    Landed,
    /// Nothing changed.
    Blocked,
    /// Something else than the data, or part of it, arrived.
    Garbled,
}

/// Encodes an event; `None` when it is longer than the buffer.
#[must_use]
pub fn encode<'b>(event: &Event<'_>, buffer: &'b mut [u8]) -> Option<&'b [u8]> {
    postcard::to_slice(event, buffer).ok().map(|bytes| &*bytes)
}

/// Decodes an event; `None` when the bytes are no event.
#[must_use]
pub fn decode(bytes: &[u8]) -> Option<Event<'_>> {
    postcard::from_bytes(bytes).ok()
}
