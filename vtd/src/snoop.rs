//! Snoop control: the proof that hardware can make DMA cache-coherent.

use crate::spec::registers::ExtendedCapability;

/// Proof that the unit has snoop control (ECAP.SC). Only a unit's own register makes one.
///
/// It is what [`Coherency::Enforced`] asks for: without it no table can be made whose leaves carry SNP,
/// which such a unit takes for a reserved bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct SnoopControl(());

impl SnoopControl {
    pub(crate) fn of(capability: ExtendedCapability) -> Option<Self> {
        capability.snoop_control().then_some(Self(()))
    }
}

/// Whose word counts on whether a DMA is cache-coherent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Coherency {
    /// The device's: what it marks "no snoop" goes past the caches.
    Device,
    /// The unit's: every DMA snoops, SNP is set in every leaf.
    Enforced(SnoopControl),
}

impl Coherency {
    pub(crate) const fn witness(self) -> Option<SnoopControl> {
        match self {
            Self::Device => None,
            Self::Enforced(witness) => Some(witness),
        }
    }
}
