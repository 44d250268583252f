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
    /// The units' when all units of the context have snoop control, else the device's.
    IfPossible,
    /// The device's: what it marks "no snoop" goes past the caches.
    Device,
    /// The unit's: every DMA snoops, SNP is set in every leaf. Devices behind a unit without snoop control
    /// are refused.
    Enforced(SnoopControl),
}
