//! What PAPR says of the calls (*Linux on Power Architecture Reference*, "TCE Access hcall()s" and "Multi-TCE").

use portcullis_hal::Access;

/// Opcodes, as a guest puts them into r3.
pub mod opcode {
    /// `H_GET_TCE(liobn, ioba)`: the entry comes back in r4.
    pub const GET_TCE: u64 = 0x1c;
    /// `H_PUT_TCE(liobn, ioba, tce)`.
    pub const PUT_TCE: u64 = 0x20;
    /// `H_STUFF_TCE(liobn, ioba, tce value, count)`.
    pub const STUFF_TCE: u64 = 0x138;
    /// `H_PUT_TCE_INDIRECT(liobn, ioba, address of the list, count)`.
    pub const PUT_TCE_INDIRECT: u64 = 0x13c;
}

/// Entries of one list, which is a page of 4 KiB.
pub const LIST_ENTRIES: usize = 512;
/// Bytes of a list, and what its address is a multiple of.
pub const LIST_BYTES: u64 = 4096;

/// What a call returns in r3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(i8)]
#[non_exhaustive]
pub enum Status {
    /// H_SUCCESS.
    Success = 0,
    /// H_BUSY: nothing changed, the guest may call again.
    Busy = 1,
    /// H_HARDWARE: the change is made, and hardware did not confirm that it forgot what was there before.
    Hardware = -1,
    /// H_FUNCTION: not one of these calls.
    Function = -2,
    /// H_PARAMETER: nothing changed.
    Parameter = -4,
    /// H_NOT_ENOUGH_RESOURCES: there is no page for tables, nothing changed.
    NotEnoughResources = -44,
}

impl Status {
    /// The number for r3.
    #[inline]
    #[must_use]
    pub const fn as_i64(self) -> i64 {
        self as i64
    }
}

/// H_TOO_HARD: what a real-mode handler returns to the hypervisor when the call goes on in virtual mode. No
/// guest ever sees it.
pub const TOO_HARD: i64 = 9999;

/// An entry as a guest writes it: address and permissions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct GuestTce(u64);

/// Permission bits of an entry.
const PERMISSIONS: u64 = 3;

impl GuestTce {
    /// The entry with this number.
    #[inline]
    #[must_use]
    pub const fn new(entry: u64) -> Self {
        Self(entry)
    }

    /// The entry as the guest wrote it.
    #[inline]
    #[must_use]
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// What a device may do through it; without any permission the entry maps nothing, whatever its address.
    #[inline]
    #[must_use]
    pub const fn access(self) -> Access {
        Access::from_bits_truncate((self.0 & PERMISSIONS) as u8)
    }

    /// Whether it maps something.
    #[inline]
    #[must_use]
    pub const fn maps(self) -> bool {
        self.0 & PERMISSIONS != 0
    }

    /// The guest-physical address.
    #[inline]
    #[must_use]
    pub const fn address(self) -> u64 {
        self.0 & !PERMISSIONS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_as_papr_has_them() {
        assert_eq!(GuestTce::new(0x1001).access(), Access::READ);
        assert_eq!(GuestTce::new(0x1002).access(), Access::WRITE);
        assert_eq!(GuestTce::new(0x1ff3).address(), 0x1ff0);
        assert!(!GuestTce::new(u64::MAX << 2).maps());
    }
}
