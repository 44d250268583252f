//! Which functions an IOMMU cannot keep apart, and so must share a group.
//!
//! Two reasons: requests of one may carry the Requester ID of the other, or one may reach the other
//! without passing the root complex, where translation happens. What is joined:
//!
//! - **Conventional buses.** Whatever is behind a bridge to one shares a group with the bridge: requests
//!   carry the bridge's Requester ID, and devices see each other's cycles.
//! - **Ports.** A root port or downstream port that does not redirect (6.12.1.1: source validation, request
//!   and completion redirect, upstream forwarding; neither egress control nor direct translated) may pass
//!   requests from below it to the ports beside it. All ports of that bus join, with all that is below
//!   them. The path is as good as its worst port: a good one below a bad one isolates nothing.
//! - **Devices.** Functions of a device may reach each other inside it. If one of several redirects nothing
//!   (6.12.1.2), all join, with all that is below them. A link has one device, whatever the device numbers:
//!   alternative routing IDs (6.13) and virtual functions (9.2.1.2) take them all.
//! - **Aliases.** Functions whose requests may carry the same Requester ID join.
//!
//! Not known here, and so not joined: virtual functions of an endpoint inside the root complex that are
//! under other device numbers (give them the alias of their physical function if it lacks ACS), and paths
//! between root ports of different root buses, or between functions of a root bus that are no ports: whether
//! there are any is the root complex's own affair (1.3.1), and its maker's to say.

use portcullis_hal::DeviceId;

use super::{
    facts::{BusRange, PciFunction, PciKind},
    topology::{Bridge, Run, Topology, TopologyError},
    union::Union,
};

/// Computes groups: `groups` gets a number for each function, in the order of `functions`; the numbers
/// run from 0 without gaps. Returns how many groups there are.
///
/// The functions must be all there are, sorted by [`DeviceId`]: one that is left out isolates more than
/// there is. Takes time in proportion to `256 * functions.len()` at most, and about 5 KiB of stack.
///
/// # Errors
/// [`TopologyError`] if the facts contradict each other; `groups` then means nothing.
pub fn assign_groups(functions: &[PciFunction], groups: &mut [u16]) -> Result<u16, TopologyError> {
    let all = Run::of(functions)?;
    if functions.len() != groups.len() {
        return Err(TopologyError::SlotCount { functions: functions.len(), slots: groups.len() });
    }
    let mut union = Union::new(groups);
    for segment in all.split(|function| function.id.segment) {
        let topology = Topology::of(segment)?;
        Joining::new(&topology, segment, &mut union).join_all(segment);
        join_aliases(segment, &mut union);
    }
    Ok(union.number())
}

/// What is known about the one device on a link.
#[derive(Clone, Copy, Default)]
struct Linked {
    first: Option<u16>,
    several: bool,
    lacking: bool,
}

impl Linked {
    fn add(&mut self, number: u16, function: &PciFunction) {
        self.several |= function.multifunction || self.first.is_some();
        self.lacking |= !function.redirects();
        self.first.get_or_insert(number);
    }

    /// A member of the device, if its functions can reach each other.
    fn shared(self) -> Option<u16> {
        self.first.filter(|_| self.several && self.lacking)
    }
}

/// The joining of one segment, bus by bus, upper buses first.
struct Joining<'t, 'u, 's> {
    topology: &'t Topology,
    union: &'u mut Union<'s>,
    /// Buses whose functions share a group with the bridge above them.
    open: [bool; 256],
    /// Devices on links, by secondary bus of the port.
    links: [Linked; 256],
}

impl<'t, 'u, 's> Joining<'t, 'u, 's> {
    fn new(topology: &'t Topology, segment: Run<'_>, union: &'u mut Union<'s>) -> Self {
        let mut links = [Linked::default(); 256];
        for (number, function) in segment.numbered() {
            let port =
                topology.above(function.id.requester.bus()).filter(|bridge| bridge.kind.is_link_port());
            if let Some(link) = port.and_then(|port| links.get_mut(usize::from(port.buses.secondary))) {
                link.add(number, function);
            }
        }
        Self { topology, union, open: [false; 256], links }
    }

    fn join_all(mut self, segment: Run<'_>) {
        for bus in segment.split(|function| function.id.requester.bus()) {
            self.join_bus(bus);
        }
    }

    fn join_bus(&mut self, functions: Run<'_>) {
        let Some((_, any)) = functions.numbered().next() else { return };
        let bus = any.id.requester.bus();
        let above = self.topology.above(bus);
        if let Some(bridge) = above
            && self.open.get(usize::from(bus)) == Some(&true)
        {
            self.join(functions.numbered(), bridge.number);
        }
        self.join_ports(functions);
        match above {
            Some(port) if port.kind.is_link_port() => self.join_link(functions, port),
            _ => functions
                .split(|function| function.id.requester.device())
                .for_each(|device| self.join_device(device)),
        }
        for (_, function) in functions.numbered() {
            if function.kind.is_conventional_bridge() {
                self.open_below(function);
            }
        }
    }

    /// Joins the ports of a bus, and what is below them, if one of them does not redirect.
    fn join_ports(&mut self, functions: Run<'_>) {
        let ports = functions.numbered().filter(|(_, function)| function.kind.is_link_port());
        if ports.clone().any(|(_, port)| !port.redirects())
            && let Some((first, _)) = ports.clone().next()
        {
            self.join_with_buses(ports, first);
        }
    }

    fn join_link(&mut self, functions: Run<'_>, port: Bridge) {
        let link = self.links.get(usize::from(port.buses.secondary)).copied().unwrap_or_default();
        if let Some(member) = link.shared() {
            self.join_with_buses(functions.numbered(), member);
        }
    }

    /// Joins the functions of one device number, if one of several does not redirect.
    fn join_device(&mut self, functions: Run<'_>) {
        let mut device = Linked::default();
        let active = functions.numbered().filter(|(_, function)| function.kind != PciKind::HostBridge);
        active.clone().for_each(|(number, function)| device.add(number, function));
        if let Some(member) = device.shared() {
            self.join_with_buses(active, member);
        }
    }

    /// Joins the functions, and all that is below them, with `member`.
    fn join_with_buses<'f>(&mut self, functions: impl Iterator<Item = (u16, &'f PciFunction)>, member: u16) {
        for (number, function) in functions {
            self.union.join(number, member);
            self.open_below(function);
        }
    }

    fn join<'f>(&mut self, functions: impl Iterator<Item = (u16, &'f PciFunction)>, member: u16) {
        functions.for_each(|(number, _)| self.union.join(number, member));
    }

    fn open_below(&mut self, function: &PciFunction) {
        let Some(BusRange { secondary, subordinate }) = function.kind.buses() else { return };
        for (bus, open) in (0..=u8::MAX).zip(&mut self.open) {
            *open |= (secondary..=subordinate).contains(&bus);
        }
    }
}

/// Joins functions of a segment whose requests may carry the same Requester ID.
fn join_aliases(segment: Run<'_>, union: &mut Union<'_>) {
    for bus in 0..=u8::MAX {
        let mut aliases = segment.numbered().flat_map(|(_, function)| function.aliases());
        if !aliases.any(|alias| alias.requester.bus() == bus) {
            continue;
        }
        let mut users: [Option<u16>; 256] = [None; 256];
        for (number, id) in requester_ids(segment).filter(|(_, id)| id.requester.bus() == bus) {
            if let Some(user) = users.get_mut(usize::from(id.requester.devfn())) {
                union.join(number, *user.get_or_insert(number));
            }
        }
    }
}

/// All Requester IDs, with the function whose requests may carry it.
fn requester_ids(segment: Run<'_>) -> impl Iterator<Item = (u16, DeviceId)> {
    let all = |function: &PciFunction| function.aliases().chain([function.id]);
    segment.numbered().flat_map(move |(number, function)| all(function).map(move |id| (number, id)))
}
