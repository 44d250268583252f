//! The DMAR table of ACPI (manual, chapter 8).

/// Signature of the table (8.1).
pub const SIGNATURE: [u8; 4] = *b"DMAR";
/// Bytes of the ACPI header with the DMAR's own two fields and their padding (8.1).
pub const HEADER_BYTES: usize = 48;
/// Offset of the 32-bit table length (8.1).
pub const LENGTH: usize = 4;
/// Offset of the host address width, less one (8.1).
pub const HOST_ADDRESS_WIDTH: usize = 36;
/// Offset of the flags (8.1).
pub const FLAGS: usize = 37;
/// Flag: the platform supports interrupt remapping (8.1, INTR_REMAP).
pub const FLAG_INTERRUPT_REMAPPING: u8 = 1;

/// Bytes of the type and length that begin every remapping structure (8.2).
pub const STRUCTURE_HEADER_BYTES: usize = 4;
/// Type: DMA remapping hardware unit (8.3).
pub const TYPE_DRHD: u16 = 0;
/// Type: reserved memory region (8.4).
pub const TYPE_RMRR: u16 = 1;
/// Bytes of a DRHD before its device scopes (8.3).
pub const DRHD_BYTES: usize = 16;
/// DRHD flag: the unit covers all devices of the segment that no other unit names (8.3, INCLUDE_PCI_ALL).
pub const DRHD_INCLUDE_ALL: u8 = 1;
/// Bytes of an RMRR before its device scopes (8.4).
pub const RMRR_BYTES: usize = 24;

/// Bytes of a device scope before its path (8.3.1).
pub const SCOPE_BYTES: usize = 6;
/// Scope type: one function (8.3.1).
pub const SCOPE_ENDPOINT: u8 = 1;
/// Scope type: a bridge and all behind it (8.3.1).
pub const SCOPE_BRIDGE: u8 = 2;
/// Scope type: I/O APIC (8.3.1).
pub const SCOPE_IO_APIC: u8 = 3;
/// Scope type: HPET that sends messages (8.3.1).
pub const SCOPE_HPET: u8 = 4;
/// Scope type: device in the ACPI name space (8.3.1).
pub const SCOPE_NAMESPACE: u8 = 5;
