//! How a hypervisor links Portcullis, from firmware's table to a guest's DMA and back.
//!
//! A model stands in for the machine. On a real one you pass `hal::arch::x86_64::MmioRegisters` over the
//! unit's registers, `hal::DonatedPages` over memory that you vouch for, `TimeStampClock` and
//! `CacheLines`; everything below the first function stays as it is.
//!
//! Run it with `cargo run -p portcullis-vtd --example hypervisor`.

use std::time::Duration;

use portcullis_fake::{
    memory::{FakeCache, FakeClock, FakeMemory},
    obedient::ObedientFunctions,
    vtd::{DmarRegion, DmarScope, DmarUnit, FakeVtd, FakeVtdRegisters, VtdConfig, dmar},
};
use portcullis_hal::{
    Access, CacheMaintenance, Clock, DeviceId, Iova, IovaRange, PhysAddr, RegisterIo, RequesterId, Segment,
    TableMemory, page_pool::PagePool,
};
use portcullis_iommu::{Driver, Error, GroupId, Iommu, VmId, pci::Method};
use portcullis_vtd::{
    Coherency, ContextSpec, Dmar, MachineConfig, UnitAt, UnitScope, VtdIommu, dmar::BusRange,
};

/// The guest and its network card, 00:03.0.
const GUEST: VmId = VmId(7);
const OTHER_GUEST: VmId = VmId(8);
const CARD: DeviceId = DeviceId { segment: Segment(0), requester: RequesterId::new(0x0018) };
/// The integrated graphics device, 00:02.0, behind a unit of its own without snoop control. Firmware has
/// promised it memory at a fixed address.
const GRAPHICS: DeviceId = DeviceId { segment: Segment(0), requester: RequesterId::new(0x0010) };
/// Where the guest's driver told the card to write: one page of I/O virtual addresses.
const BUFFER: Iova = Iova::new(0x10_0000);

/// How long the card may take to end the DMA that it was told to do before.
const QUIESCE_LIMIT: Duration = Duration::from_millis(1);

/// A machine: memory, and two units whose registers firmware announces.
struct Machine {
    memory: FakeMemory,
    graphics_unit: FakeVtd,
    unit: FakeVtd,
    dmar: Vec<u8>,
}

/// Where the units' registers are.
const GRAPHICS_UNIT: u64 = 0xfed9_0000;
const UNIT: u64 = 0xfed9_1000;
/// Room for the units of this machine.
const UNITS: usize = 2;

/// This machine has no bridges; a real one asks their configuration space.
fn bridges(_: DeviceId) -> Option<BusRange> {
    None
}

/// Steps 1 to 3: find the units, donate pages, take all over. Every device is blocked from here on.
fn bring_up<R: RegisterIo, M: TableMemory, C: Clock + Clone, K: CacheMaintenance>(
    dmar: &Dmar<'_>,
    registers_at: impl Fn(PhysAddr) -> R,
    donated: M,
    clock: C,
    cache: K,
) -> Result<VtdIommu<R, M, C, K, UNITS>, Error> {
    let mut units = Vec::new();
    for unit in dmar.units() {
        let scope = UnitScope::of(&unit, &bridges)?;
        units.push(UnitAt { registers: registers_at(unit.base), scope });
    }
    let pool = PagePool::new(donated).expect("donated memory holds more than its bitmap");
    let host_address_bits = dmar.host_address_bits();
    let config = MachineConfig { host_address_bits, ..MachineConfig::default() };
    VtdIommu::bring_up_all(units, pool, clock, cache, config)
}

/// Step 4: what the control plane decides. Without a grant nobody can claim the device; with one, nobody
/// claims a device from which blocking would take memory that it needs.
fn register<D: Driver>(iommu: &Iommu<D>, dmar: &Dmar<'_>, device: DeviceId) -> Result<GroupId, Error> {
    let group = iommu.add_group(&[device])?;
    dmar.reserved_for(device, &bridges).try_for_each(|region| iommu.declare_reserved(region))?;
    iommu.grant(GUEST, group)?;
    Ok(group)
}

fn run(machine: &Machine) -> Result<(), Error> {
    let registers_at = |base: PhysAddr| -> FakeVtdRegisters {
        let unit = if base.as_u64() == UNIT { &machine.unit } else { &machine.graphics_unit };
        unit.registers()
    };
    let dmar = Dmar::parse(&machine.dmar).expect("firmware's table is sound");
    let tables = machine.memory.part(0, 32);
    let cache = FakeCache::new(&tables);
    let driver = bring_up(&dmar, registers_at, tables, FakeClock::default(), cache)?;
    let snoop_control = driver.snoop_control();
    let iommu: Iommu<_> = Iommu::new(driver);
    let group = register(&iommu, &dmar, CARD)?;
    let graphics = register(&iommu, &dmar, GRAPHICS)?;
    assert!(matches!(iommu.claim(GUEST, graphics), Err(Error::ReservedRegion { device: GRAPHICS, .. })));
    let card_writes = |byte| machine.unit.dma_write(CARD.requester.as_u16(), BUFFER.as_u64(), &[byte]);
    assert!(card_writes(1).is_err(), "blocked: nobody owns the card");

    // 5. The guest takes the card. Nobody else can, before or after.
    assert_eq!(iommu.claim(OTHER_GUEST, group).err(), Some(Error::NotGranted { vm: OTHER_GUEST, group }));
    let mut claim = iommu.claim(GUEST, group)?;

    // 6. Its context: 39 bits of address, cache-coherent as the card's unit has proved that it can; a device
    //    behind the other unit would be refused.
    let coherency = snoop_control.map_or(Coherency::Device, Coherency::Enforced);
    let spec = ContextSpec { coherency, page_limit: Some(16), ..ContextSpec::new(39) };
    let context = iommu.create_context(GUEST, &spec)?;
    // The device may still hold addresses of its former owner; the claim has blocked it.
    let quiesced =
        claim.quiesce(&ObedientFunctions, &FakeClock::default(), Method::BusMasterOff, QUIESCE_LIMIT)?;
    claim.attach(context, quiesced)?;
    assert!(card_writes(2).is_err(), "blocked: nothing is mapped");

    // 7. One page of the guest's memory, and DMA lands in it.
    let page = machine.memory.extent(40, 1);
    iommu.map(context, BUFFER, page, Access::READ | Access::WRITE)?;
    assert_eq!(card_writes(3), Ok(()));
    assert_eq!(first_byte(machine, page.start()), 3, "the card's byte is in the guest's page");

    // 8. When unmap returns, the card reaches the page no more: it may be given to anybody.
    let range = IovaRange::new(BUFFER, page.bytes()).expect("a page is a range");
    assert_eq!(iommu.unmap(context, range)?, page.bytes());
    assert!(card_writes(4).is_err(), "blocked: unmapped");
    let fault = iommu.take_fault().expect("the unit has recorded a blocked write");
    assert_eq!((fault.device, fault.access), (CARD, Access::WRITE));

    // 9. The guest is gone: release blocks the card, then the context's pages come back.
    claim.release()?;
    iommu.destroy_context(context)?;
    assert_eq!(first_byte(machine, page.start()), 3, "nothing landed since");
    Ok(())
}

fn first_byte(machine: &Machine, at: PhysAddr) -> u8 {
    let mut byte = [0];
    assert!(machine.memory.read(at.as_u64(), &mut byte));
    byte[0]
}

/// What firmware says: the graphics device behind the first unit, all others behind the second.
fn firmware() -> Vec<u8> {
    let graphics = vec![DmarScope::endpoint(0, &[(2, 0)])];
    let region = DmarRegion { first: 0x7000_0000, last: 0x77ff_ffff, segment: 0, scopes: graphics.clone() };
    let first = DmarUnit { registers: GRAPHICS_UNIT, segment: 0, includes_all: false, scopes: graphics };
    let second = DmarUnit { registers: UNIT, segment: 0, includes_all: true, scopes: Vec::new() };
    dmar(&[first, second], &[region])
}

fn main() {
    let memory = FakeMemory::coherent(PhysAddr::new(0x100_0000), 64);
    let unit = FakeVtd::new(memory.clone(), VtdConfig::default());
    let plain = VtdConfig { snoop_control: false, ..VtdConfig::default() };
    let graphics_unit = FakeVtd::new(memory.clone(), plain);
    let machine = Machine { memory, graphics_unit, unit, dmar: firmware() };
    run(&machine).expect("every step succeeds");
    for unit in [&machine.unit, &machine.graphics_unit] {
        assert!(unit.take_violations().is_empty(), "the driver kept to the manual");
    }
    println!("DMA landed where it was allowed to, and nowhere else.");
}

#[test]
fn the_example_keeps_its_word() {
    main();
}
