//! Groups from PCI facts, and the proof that a function is silent.

use core::{hint::black_box, time::Duration};

use portcullis_hal::{ConfigSpace, DeviceId, RequesterId, Segment};
use portcullis_iommu::pci::{Acs, BusRange, Method, PciFunction, PciKind, assign_groups, quiesce};

use crate::machine::{AnyClock, unknown};

/// Configuration space that reads as anything.
pub(crate) struct AnyConfig;

impl ConfigSpace for AnyConfig {
    fn read32(&self, device: DeviceId, offset: u16) -> u32 {
        black_box((device, offset));
        unknown()
    }
    fn write32(&self, device: DeviceId, offset: u16, value: u32) {
        black_box((device, offset, value));
    }
}

fn device() -> DeviceId {
    DeviceId { segment: Segment(unknown()), requester: RequesterId::new(unknown()) }
}

fn kind() -> PciKind {
    let buses = BusRange { secondary: unknown(), subordinate: unknown() };
    match unknown::<u8>() {
        0 => PciKind::HostBridge,
        1 => PciKind::Endpoint,
        2 => PciKind::IntegratedEndpoint,
        3 => PciKind::RootPort(buses),
        4 => PciKind::UpstreamPort(buses),
        5 => PciKind::DownstreamPort(buses),
        6 => PciKind::PcieToPciBridge(buses),
        7 => PciKind::ConventionalBridge(buses),
        _ => PciKind::ConventionalDevice,
    }
}

fn function() -> PciFunction {
    let kind = kind();
    PciFunction {
        id: device(),
        kind,
        multifunction: unknown(),
        acs: kind.services(unknown(), unknown()) | Acs::from_bits_retain(unknown()),
        alias: (unknown::<u8>() == 1).then(|| RequesterId::new(unknown())),
    }
}

pub(crate) fn exercise() {
    let functions: [PciFunction; 16] = core::array::from_fn(|_| function());
    for function in &functions {
        black_box((function.kind.buses(), function.bridge_alias()));
        function.aliases().for_each(|alias| {
            black_box(alias);
        });
    }
    let mut slots = [0; 16];
    if let (Some(functions), Some(slots)) = (functions.get(..unknown()), slots.get_mut(..unknown())) {
        let _ = black_box(assign_groups(functions, slots));
    }
    let _ = black_box(slots);
    silence();
}

fn silence() {
    let method = if unknown::<u8>() == 1 { Method::FunctionLevelReset } else { Method::BusMasterOff };
    let limit = Duration::from_nanos(unknown());
    if let Ok(proof) = quiesce(&AnyConfig, &AnyClock, device(), method, limit) {
        black_box((proof.device(), proof.method()));
    }
}
