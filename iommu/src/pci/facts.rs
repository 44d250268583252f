//! What the hypervisor found on its buses.

use bitflags::bitflags;
use portcullis_hal::{DeviceId, RequesterId};

/// The buses behind a bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct BusRange {
    /// The bus right behind it.
    pub secondary: u8,
    /// The highest bus behind it.
    pub subordinate: u8,
}

/// What a function is (7.5.3.2, Device/Port Type; a function without that capability is conventional).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum PciKind {
    /// A host bridge (class code 06h, subclass 00h) of the root complex: it sends no request of its own,
    /// and none can be sent to it.
    HostBridge,
    /// An endpoint on a link; a virtual function, too.
    Endpoint,
    /// An endpoint, or an event collector, inside the root complex.
    IntegratedEndpoint,
    /// A port of the root complex.
    RootPort(BusRange),
    /// The port of a switch that faces the root complex.
    UpstreamPort(BusRange),
    /// A port of a switch that faces devices.
    DownstreamPort(BusRange),
    /// A bridge from a link to a conventional bus.
    PcieToPciBridge(BusRange),
    /// A bridge between conventional buses, or from one to a link.
    ConventionalBridge(BusRange),
    /// A device of a conventional bus; also one inside the root complex that hides its kind.
    ConventionalDevice,
}

impl PciKind {
    /// The buses behind it, if it is a bridge or a port.
    #[must_use]
    pub const fn buses(self) -> Option<BusRange> {
        match self {
            Self::RootPort(buses)
            | Self::UpstreamPort(buses)
            | Self::DownstreamPort(buses)
            | Self::PcieToPciBridge(buses)
            | Self::ConventionalBridge(buses) => Some(buses),
            Self::HostBridge | Self::Endpoint | Self::IntegratedEndpoint | Self::ConventionalDevice => None,
        }
    }

    /// The services that are in force, from the ACS Capability and ACS Control registers (6.12).
    ///
    /// A root port, or a function of a multi-function device, must offer a redirection only if it sends
    /// requests to its peers at all (6.12.1): what the capability of such a function lacks is in force.
    /// A function without the capability has no service in force: [`Acs::empty`].
    #[must_use]
    pub const fn services(self, capability: u16, control: u16) -> Acs {
        let may_lack = match self {
            Self::DownstreamPort(_) => 0,
            _ => Acs::REQUEST_REDIRECT.union(Acs::COMPLETION_REDIRECT).union(Acs::UPSTREAM_FORWARDING).bits(),
        };
        Acs::from_bits_truncate(control & capability | may_lack & !capability)
    }

    pub(crate) const fn is_link_port(self) -> bool {
        matches!(self, Self::RootPort(_) | Self::DownstreamPort(_))
    }

    pub(crate) const fn is_conventional_bridge(self) -> bool {
        matches!(self, Self::PcieToPciBridge(_) | Self::ConventionalBridge(_))
    }
}

bitflags! {
    /// Access Control Services, at the bits of the ACS Control register (6.12).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Acs: u16 {
        /// Requests with a Requester ID of another bus are refused.
        const SOURCE_VALIDATION = 1 << 0;
        /// Requests that claim to be translated are refused.
        const TRANSLATION_BLOCKING = 1 << 1;
        /// Requests to a peer go to the root complex instead.
        const REQUEST_REDIRECT = 1 << 2;
        /// Completions to a peer go to the root complex instead.
        const COMPLETION_REDIRECT = 1 << 3;
        /// A port passes on what the level below redirected, also if it leads back.
        const UPSTREAM_FORWARDING = 1 << 4;
        /// A vector says port by port what passes to a peer; it takes precedence over the redirection.
        const EGRESS_CONTROL = 1 << 5;
        /// Requests that claim to be translated pass to a peer in spite of the redirection.
        const DIRECT_TRANSLATED = 1 << 6;
    }
}

#[cfg(feature = "defmt")]
impl defmt::Format for Acs {
    fn format(&self, f: defmt::Formatter<'_>) {
        defmt::write!(f, "Acs({=u16:b})", self.bits());
    }
}

/// One function, and what is known about it.
///
/// Facts that are not given count as bad: services that a root complex or a device provides without
/// saying so by the capability are the hypervisor's to add, from the vendor's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct PciFunction {
    /// Where it is.
    pub id: DeviceId,
    /// What it is, and what is behind it.
    pub kind: PciKind,
    /// The multi-function bit of its header, or of function 0 of its device (7.5.1.1.9).
    pub multifunction: bool,
    /// The services in force, see [`PciKind::services`].
    pub acs: Acs,
    /// Another Requester ID, on the same segment, that it is known to put into its requests.
    pub alias: Option<RequesterId>,
}

impl PciFunction {
    /// Whether it redirects to the root complex all that could go to a peer at its own level.
    ///
    /// Egress control counts as open, as its vector is not among the facts.
    pub(crate) const fn redirects(&self) -> bool {
        let peer = Acs::REQUEST_REDIRECT.union(Acs::COMPLETION_REDIRECT);
        let needed = match self.kind {
            PciKind::RootPort(_) | PciKind::DownstreamPort(_) => {
                peer.union(Acs::UPSTREAM_FORWARDING).union(Acs::SOURCE_VALIDATION)
            }
            PciKind::UpstreamPort(_) | PciKind::Endpoint | PciKind::IntegratedEndpoint => peer,
            PciKind::HostBridge => return true,
            PciKind::PcieToPciBridge(_) | PciKind::ConventionalBridge(_) | PciKind::ConventionalDevice => {
                return false;
            }
        };
        let opens = Acs::EGRESS_CONTROL.union(Acs::DIRECT_TRANSLATED);
        self.acs.contains(needed) && !self.acs.intersects(opens)
    }

    /// The Requester ID, beside its own, that requests from behind a conventional bridge may carry.
    ///
    /// A bridge to a conventional bus puts its secondary bus, device 0, function 0 into requests that it
    /// forwards (PCI Express to PCI/PCI-X Bridge Specification 1.0, 2.3); one between conventional buses
    /// may do the same, or name itself. A hardware table needs this Requester ID, too.
    #[must_use]
    pub const fn bridge_alias(&self) -> Option<DeviceId> {
        let (PciKind::PcieToPciBridge(buses) | PciKind::ConventionalBridge(buses)) = self.kind else {
            return None;
        };
        let requester = RequesterId::new((buses.secondary as u16) << 8);
        Some(DeviceId { segment: self.id.segment, requester })
    }

    /// All Requester IDs, beside its own, that its requests, or those it forwards, may carry.
    pub fn aliases(&self) -> impl Iterator<Item = DeviceId> + use<> {
        let segment = self.id.segment;
        let own = self.alias.map(|requester| DeviceId { segment, requester });
        own.into_iter().chain(self.bridge_alias())
    }
}
