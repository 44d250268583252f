//! Several units: which device is behind which, and how they are taken over.
#![allow(missing_docs, reason = "tests document themselves by their names")]

mod machine;

use machine::{
    DATA, PAGE, QuiesceAndAttach, VM,
    several::{
        BRIDGED, DEVICES, GRAPHICS, REST, Several, UNITS, at, attach, bridges, context, firmware, map, own,
        scopes,
    },
};
use portcullis_fake::vtd::{DmarScope, DmarUnit, Reason, VtdConfig, dmar};
use portcullis_hal::{DeviceId, RegisterIo};
use portcullis_iommu::{Driver as _, Error, Event, Owner, VmId};
use portcullis_vtd::{Dmar, UnitSet, dmar::BusRange, placement::MAX_NAMED};

const ROOT_NOT_PRESENT: Reason = Reason(1);
const TRANSLATION: u32 = 1 << 31;
const ROOT_POINTER: u32 = 1 << 30;
const PMEN: usize = 0x64;

#[test]
fn f38_a_device_belongs_to_the_unit_that_names_it_most_closely() {
    // The last unit names one function behind the second unit's bridge, and a bridge below that bridge.
    let unit = |registers, includes_all, scopes: &[DmarScope]| DmarUnit {
        registers,
        segment: 0,
        includes_all,
        scopes: scopes.to_vec(),
    };
    let inner = [DmarScope::bridge(0, &[(0x1c, 0), (0, 0)]), DmarScope::endpoint(0, &[(0x1c, 0), (2, 0)])];
    let table = dmar(
        &[
            unit(0x1000, true, &[]),
            unit(0x2000, false, &[DmarScope::bridge(0, &[(0x1c, 0)])]),
            unit(0x3000, false, &inner),
        ],
        &[],
    );
    let (machine, firmware) = (Several::usual(), Dmar::parse(&table).unwrap());
    let driver = machine.bring_up_with(scopes(&table, &bridges)).unwrap();
    let cases = [
        (0x0010, 0), // nobody names 00:02.0
        (0x00e0, 1), // the bridge itself
        (0x0308, 1), // 03:01.0, behind it
        (0x0500, 1), // the last bus behind it
        (0x0600, 0), // the one after
        (0x0310, 2), // 03:02.0 by name
        (0x0300, 2), // the inner bridge
        (0x0400, 2), // 04:00.0: the nearer bridge
    ];
    for (requester, place) in cases {
        let unit = UnitSet::NONE.with(place);
        assert_eq!(driver.units_of(&[at(0, requester)]), Ok(unit), "{requester:#x}");
        let base = firmware.unit_of(at(0, requester), &bridges).unwrap().base.as_u64();
        assert_eq!(base, 0x1000 * (place as u64 + 1), "{requester:#x}");
    }
    assert_eq!(driver.units_of(&[at(1, 0x0010)]), Err(Error::NotBehindUnit { device: at(1, 0x0010) }));
}

#[test]
fn f38_each_unit_lets_its_own_devices_through() {
    let machine = Several::usual();
    let iommu = machine.iommu();
    let context = context(&iommu);
    map(&iommu, context, 0, DATA).unwrap();
    let _claims: Vec<_> = (0..UNITS).map(|unit| attach(&iommu, context, unit)).collect();
    for (unit, byte) in (0..UNITS).zip(1..) {
        machine.write(unit, 0, byte).unwrap();
        assert_eq!(machine.byte(DATA), byte);
        for other in (0..UNITS).filter(|&other| other != unit) {
            assert!(machine.units[other].dma_write(DEVICES[unit], 0, &[9]).is_err(), "it is not there");
        }
    }
}

#[test]
fn f38_a_device_behind_no_unit_is_refused_and_changes_nothing() {
    let machine = Several::usual();
    let mut named = scopes(&firmware(), &bridges);
    named.truncate(2);
    let iommu: machine::several::Policy = portcullis_iommu::Iommu::new(machine.bring_up_with(named).unwrap());
    let context = context(&iommu);
    let _claim = attach(&iommu, context, GRAPHICS);
    let free = iommu.driver().pool().free_pages();
    let mut stranger = own(&iommu, VM, REST);
    let refused = Error::NotBehindUnit { device: at(0, DEVICES[REST]) };
    assert_eq!(stranger.quiesce_and_attach(context), Err(refused));
    assert_eq!(iommu.driver().pool().free_pages(), free);
    stranger.release().expect("there is nothing to block");
    map(&iommu, context, 0, DATA).unwrap();
    machine.write(GRAPHICS, 0, 1).unwrap();
}

#[test]
fn f38_a_way_that_leads_nowhere_names_nothing_and_too_many_names_are_refused() {
    let lost = |_: DeviceId| -> Option<BusRange> { None };
    let machine = Several::usual();
    let driver = machine.bring_up_with(scopes(&firmware(), &lost)).unwrap();
    assert_eq!(driver.units_of(&[at(0, DEVICES[BRIDGED])]), Ok(UnitSet::NONE.with(REST)));
    let names = vec![DmarScope::endpoint(0, &[(2, 0)]); MAX_NAMED + 1];
    let table = dmar(&[DmarUnit { registers: 0x1000, segment: 0, includes_all: false, scopes: names }], &[]);
    let unit = Dmar::parse(&table).unwrap().units().next().unwrap();
    let full = Error::Full { capacity: MAX_NAMED };
    assert_eq!(portcullis_vtd::UnitScope::of(&unit, &bridges).map(drop), Err(full));
}

#[test]
fn f39_all_units_block_before_one_translates() {
    let machine = Several::usual();
    drop(machine.bring_up().unwrap());
    let commands = machine.commands.lock().unwrap().clone();
    let place =
        |unit, bit| commands.iter().position(|&(name, value)| name == unit && value & bit != 0).unwrap();
    let last_root = (0..UNITS).map(|unit| place(unit, ROOT_POINTER)).max();
    let first_translation = (0..UNITS).map(|unit| place(unit, TRANSLATION)).min();
    assert!(last_root < first_translation, "{commands:x?}");
    for unit in 0..UNITS {
        assert_eq!(machine.write(unit, DATA, 1), Err(ROOT_NOT_PRESENT));
    }
}

#[test]
fn f39_after_a_unit_that_fails_all_others_block() {
    for (broken, bit) in
        [(GRAPHICS, ROOT_POINTER), (REST, ROOT_POINTER), (BRIDGED, 1 << 26), (BRIDGED, TRANSLATION)]
    {
        let machine = Several::new([VtdConfig { protected_memory: true, ..VtdConfig::default() }; UNITS]);
        machine.misbehave(broken, |knobs| knobs.hang_status = bit);
        assert!(matches!(machine.bring_up(), Err(Error::Timeout(missing)) if missing.bits == bit.into()));
        for unit in 0..UNITS {
            let blocked = machine.write(unit, DATA, 1);
            assert_eq!(blocked.is_err(), unit != broken, "unit {unit} with {bit:#x} of {broken} broken");
            assert_eq!(machine.units[unit].registers().read32(PMEN) & 1, 1, "protected memory stays");
        }
    }
}

#[test]
fn f39_what_cannot_begin_touches_no_unit() {
    let lacking = |config, error: fn(Error) -> bool| {
        let machine = Several::with(REST, config);
        assert!(machine.bring_up().is_err_and(error));
        assert_eq!(*machine.commands.lock().unwrap(), []);
    };
    let usual = VtdConfig::default();
    lacking(VtdConfig { queued_invalidation: false, ..usual }, |error| {
        matches!(error, Error::Hardware { .. })
    });
    lacking(VtdConfig { widths: 0, ..usual }, |error| matches!(error, Error::Hardware { .. }));
    let mut poor = Several::usual();
    poor.table_pages = 3 * UNITS;
    assert!(matches!(poor.bring_up(), Err(Error::NeedPages { .. })), "one page holds the pool's map");
    assert_eq!(*poor.commands.lock().unwrap(), []);
    poor.table_pages = 3 * UNITS + 1;
    drop(poor.bring_up().unwrap());
    assert_eq!(poor.bring_up_with(Vec::new()).map(drop), Err(Error::Unsupported { value: 0 }));
}

#[test]
fn f39_more_units_than_there_is_room_for_are_refused() {
    use portcullis_fake::memory::{FakeCache, FakeClock};
    use portcullis_hal::page_pool::PagePool;
    use portcullis_vtd::{MachineConfig, UnitAt, VtdIommu};

    let machine = Several::usual();
    let units = machine.units.iter().zip(scopes(&firmware(), &bridges));
    let units = units.map(|(unit, scope)| UnitAt { registers: unit.registers(), scope });
    let pool = PagePool::new(machine.memory.part(0, 64)).unwrap();
    let (clock, cache) = (FakeClock::default(), FakeCache::new(&machine.memory));
    let driver: Result<VtdIommu<_, _, _, _, 2>, _> =
        VtdIommu::bring_up_all(units, pool, clock, cache, MachineConfig::default());
    assert_eq!(driver.map(drop), Err(Error::Full { capacity: 2 }));
    assert_eq!(*machine.commands.lock().unwrap(), []);
}

#[test]
fn f46_faults_of_all_units_are_read_and_none_hides_another() {
    let machine = Several::new([VtdConfig { fault_records: 4, ..VtdConfig::default() }; UNITS]);
    let iommu = machine.iommu();
    for unit in 0..UNITS {
        assert!(machine.write(unit, PAGE * unit as u64, 1).is_err());
    }
    let mut seen: Vec<_> = (0..UNITS).map(|_| iommu.driver().take_fault().unwrap()).collect();
    assert_eq!(iommu.driver().take_fault(), None);
    seen.sort_unstable_by_key(|fault| fault.iova.unwrap().as_u64());
    let devices: Vec<_> = seen.iter().map(|fault| fault.device).collect();
    assert_eq!(devices, DEVICES.map(|requester| at(0, requester)));
    // One device faults whenever it is looked at; the other's fault is read all the same.
    assert!(machine.write(REST, 0, 1).is_err());
    let read = |_| {
        let _ = machine.write(GRAPHICS, 0, 1);
        iommu.driver().take_fault().unwrap().device
    };
    assert!((0..2 * UNITS).map(read).any(|device| device == at(0, DEVICES[REST])));
}

#[test]
fn f46_a_fault_behind_any_unit_is_its_owners() {
    let machine = Several::usual();
    let iommu = machine.iommu();
    let _claims = [own(&iommu, VM, GRAPHICS), own(&iommu, VmId(2), BRIDGED)];
    while iommu.take_event().is_some() {}
    assert_eq!(machine.write(BRIDGED, 0, 1), Err(ROOT_NOT_PRESENT));
    let fault = iommu.take_fault().unwrap();
    let owner = Some(Owner::Guest(VmId(2)));
    assert_eq!(iommu.take_event(), Some(Event::Fault { fault, owner }));
}
