//! The table in which firmware tells of a unit (manual, chapter 8).

/// A DMAR table of a machine with one unit, whose registers are at `registers` and which all devices of
/// segment 0 are behind.
#[must_use]
pub fn dmar_with_one_unit(registers: u64) -> Vec<u8> {
    const LENGTH: u8 = 48 + 16;
    let mut table = vec![0; 48];
    table[..4].copy_from_slice(b"DMAR");
    table[4] = LENGTH;
    // The host address width, less one.
    table[36] = 45;
    // Type DRHD, 16 bytes, include-all, segment 0.
    table.extend([0, 0, 16, 0, 1, 0, 0, 0]);
    table.extend(registers.to_le_bytes());
    let sum = table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    table[9] = sum.wrapping_neg();
    table
}
