//! Addresses, ranges and device names. Each address space has a type of its own.

use bitflags::bitflags;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident, $range:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[cfg_attr(feature = "defmt", derive(defmt::Format))]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// The address with this number, in bytes.
            #[inline]
            #[must_use]
            pub const fn new(address: u64) -> Self {
                Self(address)
            }

            /// The number of the address, in bytes.
            #[inline]
            #[must_use]
            pub const fn as_u64(self) -> u64 {
                self.0
            }

            /// The address `bytes` further up, or `None` beyond 64 bits.
            #[inline]
            #[must_use]
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(address) => Some(Self(address)),
                    None => None,
                }
            }

            /// Whether the address is a multiple of the page size.
            #[inline]
            #[must_use]
            pub const fn is_aligned(self, size: IoPageSize) -> bool {
                self.0 & (size.bytes() - 1) == 0
            }
        }

        #[doc = concat!("A non-empty range of [`", stringify!($name), "`] that does not wrap around 64 bits.")]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[cfg_attr(feature = "defmt", derive(defmt::Format))]
        pub struct $range {
            start: $name,
            bytes: u64,
        }

        impl $range {
            /// The range of `bytes` bytes from `start`.
            ///
            /// # Errors
            /// [`RangeError`] when the range is empty or its last byte lies beyond 64 bits.
            #[inline]
            pub const fn new(start: $name, bytes: u64) -> Result<Self, RangeError> {
                if bytes == 0 {
                    return Err(RangeError::Empty);
                }
                match start.0.checked_add(bytes - 1) {
                    Some(_) => Ok(Self { start, bytes }),
                    None => Err(RangeError::Wraps { start: start.0, bytes }),
                }
            }

            /// The first address.
            #[inline]
            #[must_use]
            pub const fn start(self) -> $name {
                self.start
            }

            /// The last address inside the range.
            #[inline]
            #[must_use]
            pub const fn last(self) -> $name {
                $name(self.start.0 + (self.bytes - 1))
            }

            /// The length in bytes, never 0.
            #[inline]
            #[must_use]
            pub const fn bytes(self) -> u64 {
                self.bytes
            }

            /// The part of `bytes` bytes from `offset`, or `None` when it is empty or reaches beyond the end.
            #[inline(always)]
            #[must_use]
            pub const fn part(self, offset: u64, bytes: u64) -> Option<Self> {
                match self.bytes.checked_sub(bytes) {
                    Some(most) if offset <= most && bytes != 0 => {
                        Some(Self { start: $name(self.start.0.wrapping_add(offset)), bytes })
                    }
                    _ => None,
                }
            }

            /// Whether all of `other` lies inside.
            #[inline]
            #[must_use]
            pub const fn contains(self, other: Self) -> bool {
                self.start.0 <= other.start.0 && other.last().0 <= self.last().0
            }

            /// Whether some address lies in both.
            #[inline]
            #[must_use]
            pub const fn overlaps(self, other: Self) -> bool {
                self.start.0 <= other.last().0 && other.start.0 <= self.last().0
            }

            /// Whether both ends are multiples of the page size.
            #[inline]
            #[must_use]
            pub const fn is_aligned(self, size: IoPageSize) -> bool {
                (self.start.0 | self.bytes) & (size.bytes() - 1) == 0
            }
        }
    };
}

address!(
    /// A host physical address, as the memory controller sees it.
    PhysAddr,
    PhysRange
);
address!(
    /// An address that a guest believes to be physical.
    GuestPhysAddr,
    GuestPhysRange
);
address!(
    /// An I/O virtual address, as a device puts it on the bus.
    Iova,
    IovaRange
);

impl PhysRange {
    /// The range of which these numbers were kept; `None` for no bytes.
    #[inline(always)]
    pub(crate) const fn kept(start: PhysAddr, bytes: u64) -> Option<Self> {
        if bytes == 0 { None } else { Some(Self { start, bytes }) }
    }

    /// As many bytes from `offset` on. The caller knows that they lie below 2^64.
    #[inline(always)]
    pub(crate) const fn moved(self, offset: u64) -> Self {
        Self { start: PhysAddr(self.start.0.wrapping_add(offset)), bytes: self.bytes }
    }
}

/// Why two numbers do not make a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum RangeError {
    /// The length is 0.
    Empty,
    /// The last byte lies beyond 64 bits of address.
    Wraps {
        /// First address.
        start: u64,
        /// Length asked for.
        bytes: u64,
    },
}

/// The size of an IOMMU page: a power of two from 4 KiB to 16 GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct IoPageSize {
    shift: u8,
}

impl IoPageSize {
    /// 4 KiB.
    pub const SIZE_4K: Self = Self { shift: 12 };
    /// 64 KiB.
    pub const SIZE_64K: Self = Self { shift: 16 };
    /// 2 MiB.
    pub const SIZE_2M: Self = Self { shift: 21 };
    /// 16 MiB.
    pub const SIZE_16M: Self = Self { shift: 24 };
    /// 256 MiB.
    pub const SIZE_256M: Self = Self { shift: 28 };
    /// 1 GiB.
    pub const SIZE_1G: Self = Self { shift: 30 };

    /// The page of `2^shift` bytes, or `None` when `shift` is not in 12..=34.
    #[inline]
    #[must_use]
    pub const fn from_shift(shift: u8) -> Option<Self> {
        if shift >= 12 && shift <= 34 { Some(Self { shift }) } else { None }
    }

    /// log2 of the size in bytes.
    #[inline]
    #[must_use]
    pub const fn shift(self) -> u32 {
        self.shift as u32
    }

    /// The size in bytes.
    #[inline]
    #[must_use]
    pub const fn bytes(self) -> u64 {
        1 << self.shift
    }
}

bitflags! {
    /// What a device may do with a mapped page.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Access: u8 {
        /// The device may read memory.
        const READ = 1;
        /// The device may write memory.
        const WRITE = 2;
    }
}

#[cfg(feature = "defmt")]
impl defmt::Format for Access {
    fn format(&self, f: defmt::Formatter<'_>) {
        defmt::write!(f, "Access({=u8:b})", self.bits());
    }
}

/// A PCI segment (domain), or the number of a host bridge on POWER.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Segment(pub u16);

/// A PCI Requester ID: bus, device, function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct RequesterId(u16);

impl RequesterId {
    /// The Requester ID with this number, as a device puts it on the bus.
    #[must_use]
    pub const fn new(id: u16) -> Self {
        Self(id)
    }

    /// The Requester ID of a function, or `None` when device exceeds 31 or function exceeds 7.
    #[must_use]
    pub const fn from_parts(bus: u8, device: u8, function: u8) -> Option<Self> {
        if device > 31 || function > 7 {
            return None;
        }
        Some(Self((bus as u16) << 8 | (device as u16) << 3 | function as u16))
    }

    /// The number as it stands on the bus.
    #[must_use]
    pub const fn as_u16(self) -> u16 {
        self.0
    }

    /// Bus number.
    #[must_use]
    pub const fn bus(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// Device and function together: the index into a context table.
    #[must_use]
    pub const fn devfn(self) -> u8 {
        self.0 as u8
    }

    /// Device number, 0..=31.
    #[must_use]
    pub const fn device(self) -> u8 {
        (self.0 >> 3) as u8 & 31
    }

    /// Function number, 0..=7.
    #[must_use]
    pub const fn function(self) -> u8 {
        self.0 as u8 & 7
    }
}

/// A device as an IOMMU tells it from others: segment and Requester ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct DeviceId {
    /// Segment, or host bridge.
    pub segment: Segment,
    /// Who it is on the bus.
    pub requester: RequesterId,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_refuse_empty_and_wrapping() {
        assert_eq!(IovaRange::new(Iova::new(0), 0), Err(RangeError::Empty));
        let top = Iova::new(u64::MAX);
        assert!(IovaRange::new(top, 1).is_ok());
        assert_eq!(IovaRange::new(top, 2), Err(RangeError::Wraps { start: u64::MAX, bytes: 2 }));
    }

    #[test]
    fn ranges_know_what_they_hold() {
        let range = |start, bytes| IovaRange::new(Iova::new(start), bytes).expect("valid range");
        assert!(range(0x1000, 0x2000).contains(range(0x2000, 0x1000)));
        assert!(!range(0x1000, 0x2000).contains(range(0x2000, 0x1001)));
        assert!(range(0x1000, 0x1001).overlaps(range(0x2000, 1)));
        assert!(!range(0x1000, 0x1000).overlaps(range(0x2000, 1)));
        assert_eq!(range(u64::MAX - 0xfff, 0x1000).last().as_u64(), u64::MAX);
    }

    #[test]
    fn page_sizes_stay_in_their_bounds() {
        assert_eq!(IoPageSize::from_shift(11), None);
        assert_eq!(IoPageSize::from_shift(35), None);
        assert_eq!(IoPageSize::from_shift(21), Some(IoPageSize::SIZE_2M));
        assert!(Iova::new(0x20_0000).is_aligned(IoPageSize::SIZE_2M));
        assert!(!Iova::new(0x20_1000).is_aligned(IoPageSize::SIZE_2M));
    }

    #[test]
    fn requester_ids_split_and_join() {
        let id = RequesterId::from_parts(0x12, 31, 7).expect("valid parts");
        assert_eq!((id.bus(), id.device(), id.function(), id.as_u16()), (0x12, 31, 7, 0x12ff));
        assert_eq!(RequesterId::from_parts(0, 32, 0), None);
        assert_eq!(RequesterId::from_parts(0, 0, 8), None);
    }
}
