//! PCI behind one bridge: finds the devices and gives them addresses, which skiboot leaves to the system.

use heapless::Vec;
use pci_types::{
    Bar, CommandRegister, ConfigRegionAccess, EndpointHeader, PciAddress, PciHeader, PciPciBridgeHeader,
};
use portcullis_hal::{ConfigSpace, DeviceId, RequesterId, Segment};

use crate::{
    opal,
    tree::{Phb, Window},
};

/// QEMU's edu device.
const EDU: (u16, u16) = (0x1234, 0x11e8);
/// A bridge's memory base (low half) and limit (high half), in units of 1 MiB (PCI-to-PCI Bridge
/// Architecture 1.2, 3.2.5.8).
const MEMORY_WINDOW: u16 = 0x20;
/// A window with base above limit forwards nothing.
const MEMORY_WINDOW_CLOSED: u32 = 0x0000_fff0;
/// Alignment of a bridge's window.
const MEBIBYTE: u64 = 1 << 20;
const MAX_BUSES: usize = 16;
const MAX_FUNCTIONS: usize = 8;
/// Class, subclass and interface of an NVMe controller.
const NVME_CLASS: (u8, u8, u8) = (1, 8, 2);

/// Configuration space by OPAL.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OpalConfig {
    pub(crate) phb: u64,
}

impl ConfigSpace for OpalConfig {
    fn read32(&self, device: DeviceId, offset: u16) -> u32 {
        opal::config_read(self.phb, device.requester.as_u16(), offset.into())
    }

    fn write32(&self, device: DeviceId, offset: u16, value: u32) {
        opal::config_write(self.phb, device.requester.as_u16(), offset.into(), value);
    }
}

impl ConfigRegionAccess for OpalConfig {
    unsafe fn read(&self, address: PciAddress, offset: u16) -> u32 {
        requester(address)
            .map_or(u32::MAX, |function| opal::config_read(self.phb, function.as_u16(), offset.into()))
    }

    unsafe fn write(&self, address: PciAddress, offset: u16, value: u32) {
        if let Some(function) = requester(address) {
            opal::config_write(self.phb, function.as_u16(), offset.into(), value);
        }
    }
}

/// What the suite can drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Edu,
    Nvme,
}

/// A function found: what it is, who it is, and where the CPU finds the registers of its BAR 0.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Function {
    pub(crate) kind: Kind,
    pub(crate) id: DeviceId,
    pub(crate) registers: u64,
    pub(crate) bytes: usize,
}

/// Finds the functions that the suite can drive, in the order of their buses, places them in the
/// bridge's window and switches them on.
pub(crate) fn bring_up(phb: &Phb) -> Vec<Function, MAX_FUNCTIONS> {
    let access = OpalConfig { phb: phb.id };
    let (mut bridges, mut found) = scan(access);
    bridges.iter().for_each(|bridge| close(access, bridge));
    // What lies behind one bridge has neighbouring bus numbers, and so gets neighbouring addresses.
    found.sort_unstable_by_key(PciHeader::address);
    let mut free = u64::from(phb.window.pci);
    found
        .into_iter()
        .filter_map(|header| place(access, header, &phb.window, &mut free, &mut bridges))
        .collect()
}

/// All bridges, and the functions that the suite can drive.
fn scan(access: OpalConfig) -> (Vec<PciPciBridgeHeader, MAX_BUSES>, Vec<PciHeader, MAX_FUNCTIONS>) {
    let (mut bridges, mut found) = (Vec::<PciPciBridgeHeader, MAX_BUSES>::new(), Vec::new());
    let mut next = 0;
    let mut bus = Some(0);
    while let Some(number) = bus {
        for header in functions(access, number) {
            if kind(access, &header).is_some() {
                let _ = found.push(header);
            } else if let Some(bridge) = PciPciBridgeHeader::from_header(header, access) {
                // Firmware numbers buses upwards; anything else would be scanned twice.
                if bridge.secondary_bus_number(access) > number {
                    let _ = bridges.push(bridge);
                }
            }
        }
        bus = bridges.get(next).map(|bridge| bridge.secondary_bus_number(access));
        next += 1;
    }
    (bridges, found)
}

fn kind(access: OpalConfig, header: &PciHeader) -> Option<Kind> {
    let (_, class, subclass, interface) = header.revision_and_class(access);
    if header.id(access) == EDU {
        Some(Kind::Edu)
    } else {
        ((class, subclass, interface) == NVME_CLASS).then_some(Kind::Nvme)
    }
}

/// All functions on a bus that answer.
fn functions(access: OpalConfig, bus: u8) -> impl Iterator<Item = PciHeader> {
    (0..32).flat_map(move |device| {
        let header = move |function| PciHeader::new(PciAddress::new(0, bus, device, function));
        let answers = move |header: &PciHeader| header.id(access).0 != u16::MAX;
        let several = answers(&header(0)) && header(0).has_multiple_functions(access);
        (0..if several { 8 } else { 1 }).map(header).filter(answers)
    })
}

/// Gives a device the next addresses and opens the bridges on the way.
fn place(
    access: OpalConfig,
    header: PciHeader,
    window: &Window,
    free: &mut u64,
    bridges: &mut [PciPciBridgeHeader],
) -> Option<Function> {
    let (address, kind) = (header.address(), kind(access, &header)?);
    let mut endpoint = EndpointHeader::from_header(header, access)?;
    let bytes = match endpoint.bar(0, access)? {
        Bar::Memory32 { size, .. } => size.into(),
        Bar::Memory64 { size, .. } => size,
        Bar::Io { .. } => return None,
    };
    let start = free.next_multiple_of(bytes.max(MEBIBYTE));
    let end = start.checked_add(bytes)?;
    if end > u64::from(window.pci) + window.bytes {
        return None;
    }
    *free = end.next_multiple_of(MEBIBYTE);
    // SAFETY: the range lies in the bridge's window and was given to nobody else.
    unsafe { endpoint.write_bar(0, access, start as usize) }.ok()?;
    for bridge in bridges.iter_mut() {
        if (bridge.secondary_bus_number(access)..=bridge.subordinate_bus_number(access))
            .contains(&address.bus())
        {
            open(access, bridge, start as u32, (end - 1) as u32);
        }
    }
    endpoint.update_command(access, switched_on);
    let id = DeviceId { segment: Segment(0), requester: requester(address)? };
    Some(Function {
        kind,
        id,
        registers: window.cpu + (start - u64::from(window.pci)),
        bytes: bytes as usize,
    })
}

fn switched_on(command: CommandRegister) -> CommandRegister {
    command | CommandRegister::MEMORY_ENABLE | CommandRegister::BUS_MASTER_ENABLE
}

fn close(access: OpalConfig, bridge: &PciPciBridgeHeader) {
    // SAFETY: a bridge's memory window; nothing behind it is in use.
    unsafe { access.write(bridge.header().address(), MEMORY_WINDOW, MEMORY_WINDOW_CLOSED) };
}

/// Widens a bridge's memory window to hold `first..=last`.
fn open(access: OpalConfig, bridge: &mut PciPciBridgeHeader, first: u32, last: u32) {
    let address = bridge.header().address();
    // SAFETY: reads a bridge's memory window.
    let present = unsafe { access.read(address, MEMORY_WINDOW) };
    let base = (present & 0xfff0).min(first >> 16 & 0xfff0);
    let limit = (present >> 16 & 0xfff0).max(last >> 16 & 0xfff0);
    // SAFETY: what lies behind one bridge was placed in one piece, so the window covers nothing else.
    unsafe { access.write(address, MEMORY_WINDOW, limit << 16 | base) };
    bridge.update_command(access, switched_on);
}

fn requester(address: PciAddress) -> Option<RequesterId> {
    RequesterId::from_parts(address.bus(), address.device(), address.function())
}
