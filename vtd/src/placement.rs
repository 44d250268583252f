//! Which unit a device is behind.

use heapless::Vec;
use portcullis_hal::{DeviceId, Segment};
use portcullis_iommu::Error;

use crate::dmar::{Bridges, Distance, Drhd, Named};

/// Most functions and bridges that one unit may name.
pub const MAX_NAMED: usize = 32;

/// The devices behind one unit, as firmware's table says and the machine's bridges lie.
#[derive(Clone, Debug)]
pub struct UnitScope {
    segment: Segment,
    includes_all: bool,
    named: Vec<Named, MAX_NAMED>,
}

impl UnitScope {
    /// All devices of a segment that no other unit names.
    #[must_use]
    pub const fn all(segment: Segment) -> Self {
        Self { segment, includes_all: true, named: Vec::new() }
    }

    /// What a unit's entry says. The bridges are asked now: buses that get other numbers later are not
    /// followed. A way that no bridge leads along names nothing.
    ///
    /// # Errors
    /// [`Error::Full`] when it names more than [`MAX_NAMED`].
    pub fn of(unit: &Drhd<'_>, bridges: &impl Bridges) -> Result<Self, Error> {
        let mut named = Vec::new();
        for found in unit.scopes().filter_map(|scope| scope.find(unit.segment, bridges)) {
            named.push(found).map_err(|_| Error::Full { capacity: MAX_NAMED })?;
        }
        Ok(Self { segment: unit.segment, includes_all: unit.includes_all(), named })
    }

    /// Segment of the devices.
    #[must_use]
    pub const fn segment(&self) -> Segment {
        self.segment
    }

    /// How near the unit is to a device; of several units the nearest has it.
    pub(crate) fn distance(&self, device: DeviceId) -> Option<Distance> {
        if device.segment != self.segment {
            return None;
        }
        let named = self.named.iter().filter_map(|named| named.distance(device.requester));
        named.min().or_else(|| self.includes_all.then_some(Distance::All))
    }
}

/// Units of one driver, each by its place in the order in which they were passed to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct UnitSet(u32);

/// Most units of one driver.
pub const MAX_UNITS: usize = u32::BITS as usize;

impl UnitSet {
    /// No unit.
    pub const NONE: Self = Self(0);
    /// All units of the driver.
    pub const ALL: Self = Self(u32::MAX);

    /// These units and one more. A place that no unit can have adds nothing.
    #[must_use]
    pub const fn with(self, place: usize) -> Self {
        if place < MAX_UNITS { Self(self.0 | 1 << place) } else { self }
    }

    /// Whether the unit is one of these.
    #[must_use]
    pub const fn contains(self, place: usize) -> bool {
        place < MAX_UNITS && self.0 >> place & 1 != 0
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}
