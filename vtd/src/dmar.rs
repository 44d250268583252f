//! The DMAR table: which units there are, and which devices are behind them (manual, chapter 8).
//!
//! Firmware wrote it, so nothing in it is trusted: [`Dmar::parse`] checks every length before anything
//! is handed out, and the iterators cannot leave the table whatever it says.

mod scope;

use portcullis_hal::{DeviceId, PhysAddr, PhysRange, Segment};
use portcullis_iommu::ownership::{Harm, Reserved};

use crate::spec::dmar as layout;
pub use scope::{Bridges, BusRange, DeviceScope, ScopeKind};
pub(crate) use scope::{Distance, Named};
use scope::{check_scope, scopes};

/// What is wrong with a table, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum DmarError {
    /// The bytes end before the structure that begins here does.
    Truncated {
        /// Offset in the table.
        offset: usize,
        /// Bytes that the structure needs or claims.
        needs: usize,
    },
    /// Not "DMAR".
    BadSignature {
        /// What is there instead.
        found: [u8; 4],
    },
    /// The bytes do not sum up to 0.
    BadChecksum {
        /// Their sum.
        sum: u8,
    },
    /// A structure claims fewer bytes than its kind has.
    BadLength {
        /// Offset of the structure.
        offset: usize,
        /// What it claims.
        length: usize,
    },
    /// A reserved memory region is not 4 KiB aligned, is empty or ends before it begins.
    BadRegion {
        /// Offset of the structure.
        offset: usize,
    },
    /// A unit's registers are at 0 or not 4 KiB aligned.
    BadRegisterBase {
        /// Offset of the structure.
        offset: usize,
    },
    /// A path of a device scope names a device above 31 or a function above 7.
    BadPath {
        /// Offset of the device scope.
        offset: usize,
    },
}

/// A table that was checked.
#[derive(Clone, Copy, Debug)]
pub struct Dmar<'t> {
    bytes: &'t [u8],
}

/// A DMA remapping hardware unit (8.3).
#[derive(Clone, Copy, Debug)]
pub struct Drhd<'t> {
    /// Physical address of its registers.
    pub base: PhysAddr,
    /// Segment of the devices behind it.
    pub segment: Segment,
    flags: u8,
    scopes: &'t [u8],
}

/// A memory region that a device needs mapped one to one (8.4).
#[derive(Clone, Copy, Debug)]
pub struct Rmrr<'t> {
    /// Segment of its devices.
    pub segment: Segment,
    /// The memory.
    pub range: PhysRange,
    scopes: &'t [u8],
}

fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    bytes.get(offset..).and_then(|rest| rest.first_chunk()).map_or(0, |&value| u16::from_le_bytes(value))
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    bytes.get(offset..).and_then(|rest| rest.first_chunk()).map_or(0, |&value| u64::from_le_bytes(value))
}

fn byte_at(bytes: &[u8], offset: usize) -> u8 {
    bytes.get(offset).copied().unwrap_or(0)
}

impl<'t> Dmar<'t> {
    /// Checks a table. `bytes` may be longer than it.
    ///
    /// # Errors
    /// The first thing that is wrong, with its offset.
    pub fn parse(bytes: &'t [u8]) -> Result<Self, DmarError> {
        let header = bytes.first_chunk::<{ layout::HEADER_BYTES }>();
        let header = header.ok_or(DmarError::Truncated { offset: 0, needs: layout::HEADER_BYTES })?;
        let found = *header.first_chunk().unwrap_or(&[0; 4]);
        if found != layout::SIGNATURE {
            return Err(DmarError::BadSignature { found });
        }
        let length = header.get(layout::LENGTH..).and_then(|rest| rest.first_chunk());
        let length = length.map_or(0, |&length| u32::from_le_bytes(length) as usize);
        if length < layout::HEADER_BYTES {
            return Err(DmarError::BadLength { offset: 0, length });
        }
        let bytes = bytes.get(..length).ok_or(DmarError::Truncated { offset: 0, needs: length })?;
        let sum = bytes.iter().fold(0_u8, |sum, &byte| sum.wrapping_add(byte));
        if sum != 0 {
            return Err(DmarError::BadChecksum { sum });
        }
        let dmar = Self { bytes };
        dmar.check()?;
        Ok(dmar)
    }

    /// Bits of physical address that DMA can reach.
    #[must_use]
    pub fn host_address_bits(&self) -> u8 {
        byte_at(self.bytes, layout::HOST_ADDRESS_WIDTH).saturating_add(1)
    }

    /// Whether the platform says that it can remap interrupts.
    #[must_use]
    pub fn interrupt_remapping(&self) -> bool {
        byte_at(self.bytes, layout::FLAGS) & layout::FLAG_INTERRUPT_REMAPPING != 0
    }

    /// All units, in the table's order.
    pub fn units(&self) -> impl Iterator<Item = Drhd<'t>> + use<'t> {
        self.structures().filter_map(|structure| Drhd::new(structure.bytes))
    }

    /// All reserved memory regions, in the table's order.
    pub fn reserved_regions(&self) -> impl Iterator<Item = Rmrr<'t>> + use<'t> {
        self.structures().filter_map(|structure| Rmrr::new(structure.bytes))
    }

    /// The unit that a device is behind: one that names it, else one that names the nearest bridge above
    /// it, else the segment's include-all unit.
    pub fn unit_of(&self, device: DeviceId, bridges: &impl Bridges) -> Option<Drhd<'t>> {
        self.units()
            .filter_map(|unit| Some((unit.distance(device, bridges)?, unit)))
            .min_by_key(|&(distance, _)| distance)
            .map(|(_, unit)| unit)
    }

    /// The regions that a device needs, as the policy wants to be told of them
    /// ([`Iommu::declare_reserved`](portcullis_iommu::Iommu::declare_reserved)).
    pub fn reserved_for(&self, device: DeviceId, bridges: &impl Bridges) -> impl Iterator<Item = Reserved> {
        let needed = self.reserved_regions().filter(move |region| region.covers(device, bridges));
        needed.map(move |region| Reserved { device, range: region.range, harm: Harm::Needed })
    }

    fn structures(&self) -> Structures<'t> {
        let rest = self.bytes.get(layout::HEADER_BYTES..).unwrap_or_default();
        Structures { rest, offset: layout::HEADER_BYTES, header: layout::STRUCTURE_HEADER_BYTES }
    }

    fn check(&self) -> Result<(), DmarError> {
        let mut structures = self.structures();
        while let Some(structure) = structures.advance()? {
            check_structure(structure)?;
        }
        Ok(())
    }
}

/// Bytes with their offset in the table.
#[derive(Clone, Copy)]
struct Piece<'t> {
    bytes: &'t [u8],
    offset: usize,
}

/// Pieces that follow each other, each with its own length in its header.
struct Structures<'t> {
    rest: &'t [u8],
    offset: usize,
    /// Bytes of a header: 4 (type and length of 16 bits) for structures, 6 (8 bits) for scopes.
    header: usize,
}

impl<'t> Structures<'t> {
    fn scopes(piece: Piece<'t>, after: usize) -> Self {
        let rest = piece.bytes.get(after..).unwrap_or_default();
        Self { rest, offset: piece.offset.saturating_add(after), header: layout::SCOPE_BYTES }
    }

    fn advance(&mut self) -> Result<Option<Piece<'t>>, DmarError> {
        let offset = self.offset;
        if self.rest.is_empty() {
            return Ok(None);
        }
        if self.rest.len() < self.header {
            return Err(DmarError::Truncated { offset, needs: self.header });
        }
        let is_scope = self.header == layout::SCOPE_BYTES;
        let length = if is_scope { byte_at(self.rest, 1).into() } else { usize::from(u16_at(self.rest, 2)) };
        if length < self.header {
            return Err(DmarError::BadLength { offset, length });
        }
        let truncated = DmarError::Truncated { offset, needs: length };
        let (bytes, rest) = self.rest.split_at_checked(length).ok_or(truncated)?;
        (self.rest, self.offset) = (rest, offset.saturating_add(length));
        Ok(Some(Piece { bytes, offset }))
    }
}

impl<'t> Iterator for Structures<'t> {
    type Item = Piece<'t>;

    fn next(&mut self) -> Option<Piece<'t>> {
        // `parse` has seen that none fails.
        self.advance().ok().flatten()
    }
}

fn check_structure(piece: Piece<'_>) -> Result<(), DmarError> {
    let Piece { bytes, offset } = piece;
    let fixed = match u16_at(bytes, 0) {
        layout::TYPE_DRHD => layout::DRHD_BYTES,
        layout::TYPE_RMRR => layout::RMRR_BYTES,
        _ => return Ok(()),
    };
    if bytes.len() < fixed {
        return Err(DmarError::BadLength { offset, length: bytes.len() });
    }
    if u16_at(bytes, 0) == layout::TYPE_RMRR {
        Rmrr::new(bytes).ok_or(DmarError::BadRegion { offset })?;
    } else {
        Drhd::new(bytes).ok_or(DmarError::BadRegisterBase { offset })?;
    }
    let mut scopes = Structures::scopes(piece, fixed);
    while let Some(scope) = scopes.advance()? {
        check_scope(scope)?;
    }
    Ok(())
}

impl<'t> Drhd<'t> {
    fn new(bytes: &'t [u8]) -> Option<Self> {
        let base = u64_at(bytes, 8);
        let valid = u16_at(bytes, 0) == layout::TYPE_DRHD && base != 0 && base & 0xfff == 0;
        valid.then_some(Self {
            base: PhysAddr::new(base),
            segment: Segment(u16_at(bytes, 6)),
            flags: byte_at(bytes, 4),
            scopes: bytes.get(layout::DRHD_BYTES..)?,
        })
    }

    /// Whether the unit covers every device of its segment that no other unit names.
    #[must_use]
    pub const fn includes_all(&self) -> bool {
        self.flags & layout::DRHD_INCLUDE_ALL != 0
    }

    /// The devices that the unit names.
    pub fn scopes(&self) -> impl Iterator<Item = DeviceScope<'t>> + use<'t> {
        scopes(self.scopes)
    }

    /// Whether the unit names the device itself, or a bridge above it.
    pub fn names(&self, device: DeviceId, bridges: &impl Bridges) -> bool {
        device.segment == self.segment
            && self.scopes().any(|scope| scope.covers(self.segment, device.requester, bridges))
    }

    fn distance(&self, device: DeviceId, bridges: &impl Bridges) -> Option<Distance> {
        if device.segment != self.segment {
            return None;
        }
        let named =
            self.scopes().filter_map(|scope| scope.find(self.segment, bridges)?.distance(device.requester));
        named.min().or_else(|| self.includes_all().then_some(Distance::All))
    }

    /// Whether the device is behind the unit as far as this unit's own entry says: it names the device,
    /// or includes all. Another unit that names the device goes before one that includes all:
    /// [`Dmar::unit_of`] knows.
    pub fn covers(&self, device: DeviceId, bridges: &impl Bridges) -> bool {
        device.segment == self.segment && (self.includes_all() || self.names(device, bridges))
    }
}

impl<'t> Rmrr<'t> {
    fn new(bytes: &'t [u8]) -> Option<Self> {
        let (first, last) = (u64_at(bytes, 8), u64_at(bytes, 16));
        let length = last.checked_sub(first)?.checked_add(1)?;
        let range = PhysRange::new(PhysAddr::new(first), length).ok()?;
        let valid = u16_at(bytes, 0) == layout::TYPE_RMRR && (first | length) & 0xfff == 0;
        let (segment, scopes) = (Segment(u16_at(bytes, 6)), bytes.get(layout::RMRR_BYTES..)?);
        valid.then_some(Self { segment, range, scopes })
    }

    /// The devices that need the region.
    pub fn scopes(&self) -> impl Iterator<Item = DeviceScope<'t>> + use<'t> {
        scopes(self.scopes)
    }

    /// Whether the device needs the region.
    pub fn covers(&self, device: DeviceId, bridges: &impl Bridges) -> bool {
        device.segment == self.segment
            && self.scopes().any(|scope| scope.covers(self.segment, device.requester, bridges))
    }
}
