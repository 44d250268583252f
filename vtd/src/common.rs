//! What the units of a context have in common.

use portcullis_hal::{
    CacheMaintenance, Clock, Iova, IovaRange, RegisterIo, TableMemory,
    sync::{Ordering, fence},
};
use portcullis_iommu::{Because, Error};

use crate::{
    context::{ContextSpec, Needs, VtdContext},
    placement::UnitSet,
    remapping::VtdIommu,
    second_stage::Format,
    snoop::{Coherency, SnoopControl},
};

impl<R: RegisterIo, M: TableMemory, C: Clock, K: CacheMaintenance, const UNITS: usize>
    VtdIommu<R, M, C, K, UNITS>
{
    /// The units that a new context may be on.
    pub(crate) fn units_for(&self, spec: &ContextSpec) -> Result<UnitSet, Error> {
        let with = |units: UnitSet, (place, _): (usize, _)| units.with(place);
        let alive = self.of(spec.units).filter(|(_, unit)| unit.unit.check_alive().is_ok());
        let alive = alive.fold(UnitSet::NONE, with);
        if alive.is_empty() {
            return Err(Error::Quarantined);
        }
        let Coherency::Enforced(_) = spec.coherency else { return Ok(alive) };
        // The witness may come from another unit.
        let able = self.of(alive).filter(|(_, unit)| unit.snoop_control().is_some());
        let able = able.fold(UnitSet::NONE, with);
        if able.is_empty() { Err(Error::NoSnoopControl) } else { Ok(able) }
    }

    /// The witness with which tables for these units are made, where their pages are to carry SNP.
    pub(crate) fn snoop_of(&self, units: UnitSet, coherency: Coherency) -> Option<SnoopControl> {
        match coherency {
            Coherency::Device => None,
            Coherency::Enforced(witness) => Some(witness),
            Coherency::IfPossible => {
                let mut witnesses = self.of(units).map(|(_, unit)| unit.snoop_control());
                witnesses.try_fold(None, |_, witness| witness.map(Some)).flatten()
            }
        }
    }

    /// The format that all the units have and that serves so many bits of address.
    pub(crate) fn format(&self, units: UnitSet, address_bits: u8) -> Result<Format, Error> {
        let capabilities = || self.of(units).map(|(_, unit)| unit.unit.capability);
        let serves = |levels: u8| {
            let wide = 12 + 9 * levels >= address_bits;
            wide && capabilities().all(|capability| capability.supports_levels(levels))
        };
        let reach = capabilities().all(|capability| address_bits <= capability.address_bits());
        let levels = (3..=5).find(|&levels| reach && serves(levels));
        let levels = levels.ok_or(Error::Unsupported { value: address_bits.into() })?;
        let largest = capabilities().map(|capability| match (capability.large_2m(), capability.large_1g()) {
            (true, true) => 3,
            (true, false) => 2,
            _ => 1,
        });
        let (largest_page, physical_bits) = (largest.min().unwrap_or(1), self.host_address_bits);
        Ok(Format { levels, address_bits, largest_page, physical_bits })
    }

    /// What tables for these units need.
    pub(crate) fn needs(&self, units: UnitSet) -> Needs {
        let any_lacks_snoop_control = self.of(units).any(|(_, unit)| unit.snoop_control().is_none());
        Needs {
            write_back: self.of(units).any(|(_, unit)| !unit.unit.extended.coherent()),
            news: self.of(units).any(|(_, unit)| unit.wants_news()),
            because: if any_lacks_snoop_control { Because::NoSnoopControl } else { Because::NotEnforced },
        }
    }

    /// Tells the units of a context of a new mapping.
    #[cold]
    pub(crate) fn announce(&self, context: &VtdContext, iova: Iova, bytes: u64) -> Result<(), Error> {
        let range = IovaRange::new(iova, bytes).map_err(|_| Error::OutsideAperture { iova, bytes })?;
        // A unit that the context comes to later sees the mapping: the look at who uses the domain comes
        // after the stores.
        fence(Ordering::SeqCst);
        let domain = context.domain;
        self.on_each(self.using(domain), |_, unit, tables| unit.announce(tables, domain, range))
    }
}
