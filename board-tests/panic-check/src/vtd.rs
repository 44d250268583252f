//! The public API of the VT-d driver.

use core::{hint::black_box, time::Duration};

use portcullis_hal::{DeviceId, RequesterId, Segment};
use portcullis_vtd::{Coherency, ContextSpec, Dmar, UnitConfig, VtdIommu, dmar::BusRange};

use crate::{
    machine::{AnyClock, NoCaches, Registers, pool, unknown},
    policy,
};

pub(crate) fn exercise() {
    firmware_tables();
    let Some(pool) = pool() else { return };
    let mut config = UnitConfig::new(Segment(unknown()));
    config.host_address_bits = unknown();
    config.timeout = Duration::from_nanos(unknown());
    let Ok(driver) = VtdIommu::bring_up(Registers, pool, AnyClock, NoCaches, config) else { return };
    black_box(driver.address_bits());
    black_box(driver.pool().free_pages());
    let coherency = match driver.snoop_control() {
        Some(witness) if unknown::<u8>() == 1 => Coherency::Enforced(witness),
        _ => Coherency::Device,
    };
    let page_limit = (unknown::<u8>() == 1).then(unknown);
    policy::exercise(driver, &ContextSpec { coherency, page_limit, ..ContextSpec::new(unknown()) });
}

/// A machine whose every bridge leads anywhere.
fn bridges(_: DeviceId) -> Option<BusRange> {
    (unknown::<u8>() == 1).then(|| BusRange { secondary: unknown(), subordinate: unknown() })
}

/// A DMAR table of any bytes.
fn firmware_tables() {
    let table = black_box([0u8; 256]);
    let Some(bytes) = table.get(..unknown()) else { return };
    let Ok(dmar) = black_box(Dmar::parse(bytes)) else { return };
    let device = DeviceId { segment: Segment(unknown()), requester: RequesterId::new(unknown()) };
    black_box((dmar.host_address_bits(), dmar.interrupt_remapping()));
    black_box(dmar.unit_of(device, &bridges).map(|unit| unit.includes_all()));
    for unit in dmar.units() {
        black_box((unit.base, unit.names(device, &bridges), unit.covers(device, &bridges)));
        unit.scopes().for_each(|scope| {
            black_box(scope.resolve(unit.segment, &bridges));
        });
    }
    for region in dmar.reserved_regions() {
        black_box((region.range, region.covers(device, &bridges)));
    }
}
