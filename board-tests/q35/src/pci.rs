//! PCI configuration space, by the ports that every PC has.

use pci_types::{
    Bar, CommandRegister, ConfigRegionAccess, EndpointHeader, HeaderType, PciAddress, PciHeader,
    PciPciBridgeHeader,
};
use portcullis_hal::{ConfigSpace, DeviceId, PhysAddr, PhysRange, RequesterId, Segment};
use portcullis_vtd::dmar::BusRange;
use x86_64::instructions::port::Port;

const ADDRESS_PORT: u16 = 0xcf8;
const DATA_PORT: u16 = 0xcfc;
const ENABLE: u32 = 1 << 31;
const PAGE: u64 = 4096;
/// QEMU's edu device.
const EDU: (u16, u16) = (0x1234, 0x11e8);
/// Mass storage, non-volatile memory, NVM Express.
const NVME_CLASS: (u8, u8, u8) = (1, 8, 2);

/// Access by ports 0xcf8 and 0xcfc (PCI Local Bus 3.0, 3.2.2.3.2): segment 0, 256 bytes a function.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConfigPorts;

impl ConfigPorts {
    fn select(address: PciAddress, offset: u16) -> Port<u32> {
        let function = u32::from(address.bus()) << 16
            | u32::from(address.device()) << 11
            | u32::from(address.function()) << 8;
        // SAFETY: the port selects a register and does nothing else; one CPU, no interrupts.
        unsafe { Port::new(ADDRESS_PORT).write(ENABLE | function | u32::from(offset & 0xfc)) };
        Port::new(DATA_PORT)
    }
}

impl ConfigRegionAccess for ConfigPorts {
    unsafe fn read(&self, address: PciAddress, offset: u16) -> u32 {
        // SAFETY: the caller says that the register may be read.
        unsafe { Self::select(address, offset).read() }
    }

    unsafe fn write(&self, address: PciAddress, offset: u16, value: u32) {
        // SAFETY: the caller says that the register may be written so.
        unsafe { Self::select(address, offset).write(value) }
    }
}

impl ConfigSpace for ConfigPorts {
    fn read32(&self, device: DeviceId, offset: u16) -> u32 {
        match reachable(device, offset) {
            // SAFETY: no register of the suite's devices acts on being read.
            Some(address) => unsafe { self.read(address, offset) },
            None => u32::MAX,
        }
    }

    fn write32(&self, device: DeviceId, offset: u16, value: u32) {
        if let Some(address) = reachable(device, offset) {
            // SAFETY: the policy writes Command registers of functions that the suite owns.
            unsafe { self.write(address, offset, value) };
        }
    }
}

/// Where the ports find a register: they end at 256 bytes.
fn reachable(device: DeviceId, offset: u16) -> Option<PciAddress> {
    let requester = device.requester;
    let address = PciAddress::new(0, requester.bus(), requester.device(), requester.function());
    (device.segment == Segment(0) && offset < 0x100).then_some(address)
}

/// All functions that answer, in the order of their addresses.
fn functions() -> impl Iterator<Item = PciHeader> {
    let devices = (0..=u8::MAX).flat_map(|bus| (0..32).map(move |device| (bus, device)));
    devices.flat_map(|(bus, device)| {
        let header = move |function| PciHeader::new(PciAddress::new(0, bus, device, function));
        let answers = |header: &PciHeader| header.id(ConfigPorts).0 != u16::MAX;
        let several = answers(&header(0)) && header(0).has_multiple_functions(ConfigPorts);
        (0..if several { 8 } else { 1 }).map(header).filter(answers)
    })
}

/// A function found: who it is, and where the registers of its BAR 0 are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Function {
    pub(crate) id: DeviceId,
    pub(crate) registers: u64,
    pub(crate) bytes: u64,
}

/// All edu devices, switched on.
pub(crate) fn edus() -> impl Iterator<Item = Function> {
    functions().filter(|header| header.id(ConfigPorts) == EDU).filter_map(switch_on)
}

/// The NVMe controllers, switched on.
pub(crate) fn nvmes() -> impl Iterator<Item = Function> {
    let class = |header: &PciHeader| {
        let (_, base, sub, interface) = header.revision_and_class(ConfigPorts);
        (base, sub, interface)
    };
    functions().filter(move |header| class(header) == NVME_CLASS).filter_map(switch_on)
}

/// Lets a function decode its BAR 0 and do DMA.
fn switch_on(header: PciHeader) -> Option<Function> {
    let address = header.address();
    let mut endpoint = EndpointHeader::from_header(header, ConfigPorts)?;
    let (registers, bytes) = first_bar(&endpoint)?;
    let wanted = CommandRegister::MEMORY_ENABLE | CommandRegister::BUS_MASTER_ENABLE;
    endpoint.update_command(ConfigPorts, |command| command | wanted);
    Some(Function { id: device_id(address)?, registers, bytes })
}

/// Where BAR 0 is, and how long: looked at while nobody uses it, since a BAR is sized by writing to it.
fn first_bar(endpoint: &EndpointHeader) -> Option<(u64, u64)> {
    match endpoint.bar(0, ConfigPorts)? {
        Bar::Memory32 { address, size, .. } => Some((address.into(), size.into())),
        Bar::Memory64 { address, size, .. } => Some((address, size)),
        Bar::Io { .. } => None,
    }
}

/// Where the registers of a function are, which nobody uses now: BAR 0, if it is whole pages.
pub(crate) fn registers_of(device: DeviceId) -> Option<PhysRange> {
    let header = PciHeader::new(reachable(device, 0)?);
    let (start, bytes) = first_bar(&EndpointHeader::from_header(header, ConfigPorts)?)?;
    let whole = start.is_multiple_of(PAGE) && bytes.is_multiple_of(PAGE);
    PhysRange::new(PhysAddr::new(start), bytes).ok().filter(|_| whole)
}

fn device_id(address: PciAddress) -> Option<DeviceId> {
    let requester = RequesterId::from_parts(address.bus(), address.device(), address.function())?;
    Some(DeviceId { segment: Segment(address.segment()), requester })
}

/// The buses behind a bridge, as its configuration space says.
pub(crate) fn buses_behind(bridge: DeviceId) -> Option<BusRange> {
    let requester = bridge.requester;
    let address =
        PciAddress::new(bridge.segment.0, requester.bus(), requester.device(), requester.function());
    let header = PciHeader::new(address);
    if header.id(ConfigPorts).0 == u16::MAX || header.header_type(ConfigPorts) != HeaderType::PciPciBridge {
        return None;
    }
    let bridge = PciPciBridgeHeader::from_header(header, ConfigPorts)?;
    Some(BusRange {
        secondary: bridge.secondary_bus_number(ConfigPorts),
        subordinate: bridge.subordinate_bus_number(ConfigPorts),
    })
}
