//! PEs: each device gets one of its own, for good, and is blocked in it until it joins a context.

use portcullis_hal::{
    DeviceId, RequesterId, array_of,
    sync::{AtomicU32, AtomicU64, Mutex, MutexGuard, Ordering},
};
use portcullis_iommu::{Error, driver::MAX_MEMBERS};

use crate::{
    driver::Config,
    firmware::{Firmware, PeNumber},
};

/// Devices by slot; slots of one group.
pub(crate) type Devices<const DEVICES: usize> = heapless::Vec<RequesterId, DEVICES>;
/// Slots of the members of one group.
pub(crate) type Slots = heapless::Vec<usize, MAX_MEMBERS>;

/// No context: contexts count from 1.
const NOBODY: u64 = 0;
/// Counters of joined slots; contexts share one only when more than so many were made.
const COUNTERS: usize = 64;

/// Which device sits in which PE, and which context the PE walks.
///
/// A device's slot fixes its PE. The list is the control plane's, behind its lock, which is also the
/// lock around firmware; the contexts are atomics, so that a flush needs no lock to find its PEs.
#[derive(Debug)]
pub(crate) struct PeTable<const DEVICES: usize> {
    devices: Mutex<Devices<DEVICES>>,
    contexts: [AtomicU64; DEVICES],
    /// Slots that joined a context whose number leaves this remainder: 0 spares a mapping call the search.
    joined: [AtomicU32; COUNTERS],
}

impl<const DEVICES: usize> PeTable<DEVICES> {
    pub(crate) fn new() -> Self {
        Self {
            devices: Mutex::new(heapless::Vec::new()),
            contexts: array_of![AtomicU64::new(NOBODY); DEVICES],
            joined: array_of![AtomicU32::new(0); COUNTERS],
        }
    }

    /// Enters the control plane.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Devices<DEVICES>> {
        self.devices.lock()
    }

    /// Notes which context the PE of `slot` walks. Counted in before it can be found and out after it
    /// cannot any more; the control plane's lock keeps other changes away.
    pub(crate) fn join(&self, slot: usize, context: u64) {
        if let Some(cell) = self.contexts.get(slot) {
            if context != NOBODY {
                self.counter(context).fetch_add(1, Ordering::SeqCst);
            }
            match cell.swap(context, Ordering::SeqCst) {
                NOBODY => {}
                before => {
                    self.counter(before).fetch_sub(1, Ordering::SeqCst);
                }
            }
        }
    }

    /// Notes that the PE of `slot` walks nothing and has nothing cached.
    pub(crate) fn leave(&self, slot: usize) {
        self.join(slot, NOBODY);
    }

    /// Whether some PE may walk `context`.
    #[inline]
    pub(crate) fn may_have_slots(&self, context: u64) -> bool {
        self.counter(context).load(Ordering::SeqCst) != 0
    }

    /// The slots whose PEs walk `context`.
    pub(crate) fn slots_of(&self, context: u64) -> impl Iterator<Item = usize> + '_ {
        self.contexts
            .iter()
            .enumerate()
            .filter_map(move |(slot, cell)| (cell.load(Ordering::SeqCst) == context).then_some(slot))
    }

    #[inline]
    fn counter(&self, context: u64) -> &AtomicU32 {
        let [first, ..] = &self.joined;
        self.joined.get(context as usize % COUNTERS).unwrap_or(first)
    }
}

/// The slots of those members that have one.
pub(crate) fn known_slots<const DEVICES: usize>(
    devices: &Devices<DEVICES>,
    config: &Config,
    members: &[DeviceId],
) -> Slots {
    let here = members.iter().filter(|member| member.segment == config.segment);
    here.filter_map(|member| slot_of(devices, member.requester)).take(MAX_MEMBERS).collect()
}

/// The slots of all members; a device without one gets a PE, which blocks it.
pub(crate) fn assign_slots<const DEVICES: usize>(
    devices: &mut Devices<DEVICES>,
    config: &Config,
    firmware: &impl Firmware,
    members: &[DeviceId],
) -> Result<Slots, Error> {
    let mut slots = Slots::new();
    for &device in members {
        if device.segment != config.segment {
            return Err(Error::NotBehindUnit { device });
        }
        let slot = match slot_of(devices, device.requester) {
            Some(slot) => slot,
            None => assign(devices, config, firmware, device.requester)?,
        };
        slots.push(slot).map_err(|_| Error::BadMemberCount { count: members.len() })?;
    }
    Ok(slots)
}

fn slot_of<const DEVICES: usize>(devices: &Devices<DEVICES>, requester: RequesterId) -> Option<usize> {
    devices.iter().position(|&known| known == requester)
}

fn assign<const DEVICES: usize>(
    devices: &mut Devices<DEVICES>,
    config: &Config,
    firmware: &impl Firmware,
    requester: RequesterId,
) -> Result<usize, Error> {
    let slot = devices.len();
    let limit = DEVICES.min(usize::from(config.pe_count) - 1);
    let out = Error::OutOfNumbers { limit: limit as u32 };
    if slot >= limit {
        return Err(out);
    }
    firmware.set_pe(requester, config.pe_of_slot(slot))?;
    devices.push(requester).map_err(|_| out)?;
    Ok(slot)
}

impl Config {
    /// The PE of a slot: in order, leaving out the reserved one.
    pub(crate) const fn pe_of_slot(&self, slot: usize) -> PeNumber {
        let number = slot as u16;
        PeNumber(if number < self.reserved_pe.0 { number } else { number + 1 })
    }
}
