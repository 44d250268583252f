//! Which bridge leads to which bus: the facts, checked.

use portcullis_hal::DeviceId;

use super::facts::{BusRange, PciFunction, PciKind};

/// Facts that no machine can have; each names the function at which it showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum TopologyError {
    /// A group number of 16 bits for each function: at most 65535.
    TooMany {
        /// Functions that were passed.
        functions: usize,
    },
    /// The memory for the numbers is not as long as the list of functions.
    SlotCount {
        /// Functions that were passed.
        functions: usize,
        /// Numbers that there is place for.
        slots: usize,
    },
    /// The functions must ascend by segment and Requester ID, and each appear once.
    OutOfOrder {
        /// The function that is not above the one before it.
        device: DeviceId,
    },
    /// A bridge must lead to buses above its own, its secondary bus being the lowest. This also keeps
    /// bridges from leading back to themselves.
    BadBuses {
        /// The bridge.
        device: DeviceId,
        /// What is said to be behind it.
        buses: BusRange,
    },
    /// Buses behind a bridge that lie only partly behind the bridge above it, or that another bridge leads
    /// to.
    BusesOverlap {
        /// The bridge.
        device: DeviceId,
        /// A bus that it cannot have.
        bus: u8,
    },
    /// The bus of this function lies behind some bridge, but none leads right to it. (On a link this is
    /// no error: virtual functions may take further buses there, 9.2.1.2.)
    UnknownBridge {
        /// The function.
        device: DeviceId,
    },
    /// A function of this kind cannot be at this place.
    Misplaced {
        /// The function.
        device: DeviceId,
        /// What it is said to be.
        kind: PciKind,
    },
}

/// Functions that follow one another in the list.
#[derive(Clone, Copy)]
pub(super) struct Run<'f> {
    first: u16,
    functions: &'f [PciFunction],
}

impl<'f> Run<'f> {
    /// The whole list.
    ///
    /// # Errors
    /// [`TopologyError::TooMany`], [`TopologyError::OutOfOrder`].
    pub(super) fn of(functions: &'f [PciFunction]) -> Result<Self, TopologyError> {
        if functions.len() > usize::from(u16::MAX) {
            return Err(TopologyError::TooMany { functions: functions.len() });
        }
        for pair in functions.windows(2) {
            if let [before, after] = pair
                && before.id >= after.id
            {
                return Err(TopologyError::OutOfOrder { device: after.id });
            }
        }
        Ok(Self { first: 0, functions })
    }

    /// Its functions, each with its number in the whole list.
    pub(super) fn numbered(self) -> impl Iterator<Item = (u16, &'f PciFunction)> + Clone {
        (self.first..=u16::MAX).zip(self.functions)
    }

    /// The runs in it that agree in a property.
    pub(super) fn split<K: PartialEq>(self, property: fn(&PciFunction) -> K) -> impl Iterator<Item = Self> {
        let mut rest = self;
        core::iter::from_fn(move || {
            let value = property(rest.functions.first()?);
            let same = rest.functions.iter().take_while(|function| property(function) == value).count();
            let (functions, others) = rest.functions.split_at_checked(same)?;
            let first = rest.first;
            rest = Self { first: first.wrapping_add(same as u16), functions: others };
            Some(Self { first, functions })
        })
    }
}

/// A bridge, and its number in the list.
#[derive(Clone, Copy)]
pub(super) struct Bridge {
    pub(super) number: u16,
    pub(super) kind: PciKind,
    pub(super) buses: BusRange,
}

/// The bridges of one segment.
pub(super) struct Topology {
    above: [Option<Bridge>; 256],
}

impl Topology {
    /// Checks the functions of one segment.
    ///
    /// A bridge leads to buses above its own. So in order of buses, all bridges above a function come
    /// before it, the nearest one last.
    ///
    /// # Errors
    /// The last four of [`TopologyError`].
    pub(super) fn of(segment: Run<'_>) -> Result<Self, TopologyError> {
        let mut topology = Self { above: [None; 256] };
        for (number, function) in segment.numbered() {
            topology.check_place(function)?;
            if let Some(buses) = function.kind.buses() {
                topology.place_bridge(function.id, Bridge { number, kind: function.kind, buses })?;
            }
        }
        Ok(topology)
    }

    /// The nearest bridge above a bus; `None` for a bus of the root complex.
    pub(super) fn above(&self, bus: u8) -> Option<Bridge> {
        self.above.get(usize::from(bus)).copied().flatten()
    }

    fn check_place(&self, function: &PciFunction) -> Result<(), TopologyError> {
        let device = function.id;
        let above = self.above(device.requester.bus());
        if !may_be_below(function.kind, above.map(|bridge| bridge.kind)) {
            return Err(TopologyError::Misplaced { device, kind: function.kind });
        }
        let Some(bridge) = above else { return Ok(()) };
        let further_bus = bridge.kind.is_link_port() && function.kind.buses().is_none();
        if bridge.buses.secondary != device.requester.bus() && !further_bus {
            return Err(TopologyError::UnknownBridge { device });
        }
        Ok(())
    }

    fn place_bridge(&mut self, device: DeviceId, bridge: Bridge) -> Result<(), TopologyError> {
        let BusRange { secondary, subordinate } = bridge.buses;
        if secondary <= device.requester.bus() || subordinate < secondary {
            return Err(TopologyError::BadBuses { device, buses: bridge.buses });
        }
        let outer = self.above(device.requester.bus()).map(|bridge| bridge.number);
        for (bus, place) in (0..=u8::MAX).zip(&mut self.above) {
            if !(secondary..=subordinate).contains(&bus) {
                continue;
            }
            if place.map(|bridge| bridge.number) != outer {
                return Err(TopologyError::BusesOverlap { device, bus });
            }
            *place = Some(bridge);
        }
        Ok(())
    }
}

/// Whether the specification lets a function of this kind be right below a bridge of that kind (1.3).
fn may_be_below(kind: PciKind, above: Option<PciKind>) -> bool {
    match kind {
        PciKind::HostBridge | PciKind::IntegratedEndpoint | PciKind::RootPort(_) => above.is_none(),
        PciKind::DownstreamPort(_) => matches!(above, Some(PciKind::UpstreamPort(_))),
        PciKind::UpstreamPort(_) => {
            above.is_some_and(|above| above.is_link_port() || above.is_conventional_bridge())
        }
        PciKind::Endpoint
        | PciKind::PcieToPciBridge(_)
        | PciKind::ConventionalBridge(_)
        | PciKind::ConventionalDevice => !matches!(above, Some(PciKind::UpstreamPort(_))),
    }
}
