//! The table in which firmware tells of the units (manual, chapter 8).

const ENDPOINT: u8 = 1;
const BRIDGE: u8 = 2;

/// What a unit or a reserved region names.
#[derive(Clone, Debug)]
pub struct DmarScope {
    is_bridge: bool,
    start_bus: u8,
    path: Vec<(u8, u8)>,
}

impl DmarScope {
    /// The function at the end of a path of devices and functions from a bus on.
    #[must_use]
    pub fn endpoint(start_bus: u8, path: &[(u8, u8)]) -> Self {
        Self { is_bridge: false, start_bus, path: path.to_vec() }
    }

    /// The bridge there, and all that is behind it.
    #[must_use]
    pub fn bridge(start_bus: u8, path: &[(u8, u8)]) -> Self {
        Self { is_bridge: true, ..Self::endpoint(start_bus, path) }
    }

    fn bytes(&self) -> Vec<u8> {
        let kind = if self.is_bridge { BRIDGE } else { ENDPOINT };
        let length = 6 + 2 * self.path.len() as u8;
        let mut bytes = vec![kind, length, 0, 0, 0, self.start_bus];
        bytes.extend(self.path.iter().flat_map(|&(device, function)| [device, function]));
        bytes
    }
}

/// A unit's entry.
#[derive(Clone, Debug)]
pub struct DmarUnit {
    /// Physical address of its registers.
    pub registers: u64,
    /// Segment of its devices.
    pub segment: u16,
    /// Whether it has all devices of the segment that no other unit names.
    pub includes_all: bool,
    /// What it names.
    pub scopes: Vec<DmarScope>,
}

/// A reserved region's entry.
#[derive(Clone, Debug)]
pub struct DmarRegion {
    /// First address.
    pub first: u64,
    /// Last address.
    pub last: u64,
    /// Segment of its devices.
    pub segment: u16,
    /// The devices that need it.
    pub scopes: Vec<DmarScope>,
}

/// A structure: type, length, 4 bytes that begin with the flags, two words or one, scopes.
fn structure(kind: u8, flags: u8, segment: u16, words: &[u64], scopes: &[DmarScope]) -> Vec<u8> {
    let scopes: Vec<u8> = scopes.iter().flat_map(DmarScope::bytes).collect();
    let length = (8 + 8 * words.len() + scopes.len()) as u16;
    let mut bytes = vec![kind, 0];
    bytes.extend(length.to_le_bytes());
    bytes.extend([flags, 0]);
    bytes.extend(segment.to_le_bytes());
    bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    bytes.extend(scopes);
    bytes
}

/// The DMAR table of a machine with these units and regions, and 46 bits of physical address.
#[must_use]
pub fn dmar(units: &[DmarUnit], regions: &[DmarRegion]) -> Vec<u8> {
    let mut table = vec![0; 48];
    table[..4].copy_from_slice(b"DMAR");
    // The host address width, less one.
    table[36] = 45;
    for unit in units {
        let flags = u8::from(unit.includes_all);
        table.extend(structure(0, flags, unit.segment, &[unit.registers], &unit.scopes));
    }
    for region in regions {
        table.extend(structure(1, 0, region.segment, &[region.first, region.last], &region.scopes));
    }
    let length = table.len() as u32;
    table[4..8].copy_from_slice(&length.to_le_bytes());
    let sum = table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    table[9] = sum.wrapping_neg();
    table
}

/// A DMAR table of a machine with one unit, whose registers are at `registers` and which all devices of
/// segment 0 are behind.
#[must_use]
pub fn dmar_with_one_unit(registers: u64) -> Vec<u8> {
    dmar(&[DmarUnit { registers, segment: 0, includes_all: true, scopes: Vec::new() }], &[])
}
