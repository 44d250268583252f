//! Device scopes: the way from a start bus through bridges to what a unit or region names.

use portcullis_hal::{DeviceId, RequesterId, Segment};
pub use portcullis_iommu::pci::BusRange;

use super::{DmarError, Piece, Structures, byte_at};
use crate::spec::dmar as layout;

/// What a device scope names (8.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ScopeKind {
    /// One function.
    Endpoint,
    /// A bridge and everything behind it.
    Bridge,
    /// An I/O APIC.
    IoApic,
    /// A timer that sends messages.
    Hpet,
    /// A device in the ACPI name space.
    Namespace,
    /// A kind that is not known to this driver.
    Unknown(u8),
}

/// Devices below a unit: a start bus and the way from there through bridges.
#[derive(Clone, Copy, Debug)]
pub struct DeviceScope<'t> {
    /// What is at the end of the path.
    pub kind: ScopeKind,
    /// Enumeration ID of an I/O APIC, timer or ACPI device.
    pub enumeration_id: u8,
    start_bus: u8,
    path: &'t [u8],
}

/// How far a device is from what covers it: the function itself, a bridge above so many buses, all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Distance {
    Itself,
    Buses(u8),
    All,
}

/// What a scope comes to on this machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Named {
    function: RequesterId,
    /// Of a bridge: everything there is named, too.
    behind: Option<BusRange>,
}

impl Named {
    /// How far away a function is, or `None` where it is not named.
    pub(crate) fn distance(&self, requester: RequesterId) -> Option<Distance> {
        if self.function == requester {
            return Some(Distance::Itself);
        }
        let BusRange { secondary, subordinate } = self.behind?;
        let inside = (secondary..=subordinate).contains(&requester.bus());
        inside.then(|| Distance::Buses(subordinate.saturating_sub(secondary)))
    }
}

/// What is known of the machine's bridges: their configuration space.
pub trait Bridges {
    /// The buses behind the bridge, or `None` when there is no bridge.
    fn buses_behind(&self, bridge: DeviceId) -> Option<BusRange>;
}

impl<F: Fn(DeviceId) -> Option<BusRange>> Bridges for F {
    fn buses_behind(&self, bridge: DeviceId) -> Option<BusRange> {
        self(bridge)
    }
}

pub(super) fn check_scope(piece: Piece<'_>) -> Result<(), DmarError> {
    let path = piece.bytes.get(layout::SCOPE_BYTES..).unwrap_or_default();
    // At least one step, each of two bytes.
    if path.is_empty() || path.len() % 2 != 0 {
        return Err(DmarError::BadLength { offset: piece.offset, length: piece.bytes.len() });
    }
    let steps_exist = path.chunks_exact(2).all(|step| byte_at(step, 0) < 32 && byte_at(step, 1) < 8);
    if steps_exist { Ok(()) } else { Err(DmarError::BadPath { offset: piece.offset }) }
}

pub(super) fn scopes<'t>(bytes: &'t [u8]) -> impl Iterator<Item = DeviceScope<'t>> + use<'t> {
    Structures::scopes(Piece { bytes, offset: 0 }, 0).map(|piece| DeviceScope::new(piece.bytes))
}

impl<'t> DeviceScope<'t> {
    fn new(bytes: &'t [u8]) -> Self {
        let kind = match byte_at(bytes, 0) {
            layout::SCOPE_ENDPOINT => ScopeKind::Endpoint,
            layout::SCOPE_BRIDGE => ScopeKind::Bridge,
            layout::SCOPE_IO_APIC => ScopeKind::IoApic,
            layout::SCOPE_HPET => ScopeKind::Hpet,
            layout::SCOPE_NAMESPACE => ScopeKind::Namespace,
            other => ScopeKind::Unknown(other),
        };
        let path = bytes.get(layout::SCOPE_BYTES..).unwrap_or_default();
        Self { kind, enumeration_id: byte_at(bytes, 4), start_bus: byte_at(bytes, 5), path }
    }

    /// The function at the end of the path; each step but the last goes through a bridge.
    pub fn resolve(&self, segment: Segment, bridges: &impl Bridges) -> Option<RequesterId> {
        let mut bus = self.start_bus;
        let mut steps = self.path.chunks_exact(2).peekable();
        while let Some(step) = steps.next() {
            let requester = RequesterId::from_parts(bus, byte_at(step, 0), byte_at(step, 1))?;
            if steps.peek().is_none() {
                return Some(requester);
            }
            bus = bridges.buses_behind(DeviceId { segment, requester })?.secondary;
        }
        None
    }

    /// What the scope names on a machine with these bridges.
    pub(crate) fn find(&self, segment: Segment, bridges: &impl Bridges) -> Option<Named> {
        let function = self.resolve(segment, bridges)?;
        let is_bridge = self.kind == ScopeKind::Bridge;
        let behind = || bridges.buses_behind(DeviceId { segment, requester: function });
        Some(Named { function, behind: is_bridge.then(behind).flatten() })
    }

    /// Whether the scope names a function, or a bridge above it.
    pub fn covers(&self, segment: Segment, requester: RequesterId, bridges: &impl Bridges) -> bool {
        self.find(segment, bridges).is_some_and(|named| named.distance(requester).is_some())
    }
}
