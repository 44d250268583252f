//! The public API of the VT-d driver.

use core::{hint::black_box, time::Duration};

use portcullis_hal::{CacheMaintenance, Clock, DeviceId, RegisterIo, RequesterId, Segment, TableMemory};
use portcullis_vtd::{
    Coherency, ContextSpec, Dmar, MachineConfig, UnitAt, UnitConfig, UnitScope, UnitSet, VtdIommu,
    dmar::BusRange,
};

use crate::{
    machine::{AnyClock, NoCaches, Registers, pool, unknown},
    policy,
};

pub(crate) fn exercise() {
    firmware_tables();
    one_unit();
    several_units();
}

fn one_unit() {
    let Some(pool) = pool() else { return };
    let mut config = UnitConfig::new(Segment(unknown()));
    config.host_address_bits = unknown();
    config.timeout = Duration::from_nanos(unknown());
    let Ok(driver) = VtdIommu::bring_up(Registers, pool, AnyClock, NoCaches, config) else { return };
    contexts(driver);
}

fn several_units() {
    let Some(pool) = pool() else { return };
    let config = MachineConfig { host_address_bits: unknown(), timeout: Duration::from_nanos(unknown()) };
    let table = black_box([0u8; 256]);
    let Some(bytes) = table.get(..unknown()) else { return };
    let Ok(dmar) = black_box(Dmar::parse(bytes)) else { return };
    let scopes = dmar.units().filter_map(|unit| UnitScope::of(&unit, &bridges).ok());
    let units = scopes.map(|scope| UnitAt { registers: Registers, scope });
    let driver: Result<VtdIommu<_, _, _, _, 4>, _> =
        VtdIommu::bring_up_all(units, pool, AnyClock, NoCaches, config);
    let Ok(driver) = driver else { return };
    let device = DeviceId { segment: Segment(unknown()), requester: RequesterId::new(unknown()) };
    black_box(driver.units_of(&[device]).is_ok_and(|units| units.contains(unknown())));
    contexts(driver);
}

fn contexts<R, M, C, K, const UNITS: usize>(driver: VtdIommu<R, M, C, K, UNITS>)
where
    R: RegisterIo,
    M: TableMemory,
    C: Clock,
    K: CacheMaintenance,
{
    black_box(driver.address_bits());
    black_box(driver.pool().free_pages());
    let coherency = match driver.snoop_control() {
        Some(witness) if unknown::<u8>() == 1 => Coherency::Enforced(witness),
        Some(_) => Coherency::IfPossible,
        None => Coherency::Device,
    };
    let page_limit = (unknown::<u8>() == 1).then(unknown);
    let units = UnitSet::NONE.with(unknown());
    policy::exercise(driver, &ContextSpec { address_bits: unknown(), coherency, page_limit, units });
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
        black_box(dmar.reserved_for(device, &bridges).count());
    }
}
