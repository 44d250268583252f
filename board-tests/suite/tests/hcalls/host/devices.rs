//! The machine below the control plane: memory, and devices that copy through the bridge.

use std::{cell::Cell, time::Duration};

use portcullis_fake::{
    obedient::ObedientFunctions,
    phb::{Opal, PhbKind},
};
use portcullis_hal::{Access, Clock, DmaExtent, PhysAddr};
use portcullis_iommu::{Claim, EntryDriver, Error, QuiescedGroup, pci::Method};
use portcullis_suite::{
    Failure,
    hcall::{
        Area, Layout,
        stand::{DEVICES, Ground},
    },
};

use super::machine::{HOST, Made};
use crate::machine::extent;

/// Requester IDs of the two devices.
pub const REQUESTERS: [u16; DEVICES] = [0x100, 0x200];
/// How long the control plane waits for calls on the fake clock: a thread may be off its CPU for long.
pub const LIMIT: Duration = Duration::from_secs(3600);
/// How long devices may take to end their DMA.
const QUIESCE_LIMIT: Duration = Duration::from_millis(1);
/// Where each page of the guest's memory has a word of its own, which no rule writes.
const OWN: u64 = 0xff0;

/// A modelled machine.
pub struct OnModel {
    made: Made,
    opal: Opal,
    layout: Layout,
    /// Number of the first device's PE.
    first_pe: u16,
    /// What each device has read last.
    buffers: [Cell<[u8; 8]>; DEVICES],
}

impl OnModel {
    pub fn new(made: Made, kind: PhbKind, layout: Layout) -> Self {
        let first_pe = u16::from(kind == PhbKind::Phb3);
        Self { opal: made.phb.opal(), made, layout, first_pe, buffers: Default::default() }
    }

    /// Gives each page of the guest's memory its word.
    pub fn mark_pages(&self, bytes: u64) {
        for page in 0..bytes >> 12 {
            let own = (page | 0xabcd << 32).to_be_bytes();
            assert!(self.made.memory.write(HOST + (page << 12) + OWN, &own));
        }
    }

    /// The device reads a word into its buffer; whether it could. One that was blocked goes on afterwards.
    pub fn fetch(&self, device: usize, from: u64) -> bool {
        let mut word = [0; 8];
        let read = self.made.phb.dma_read(REQUESTERS[device], from, &mut word).is_ok();
        if read {
            self.buffers[device].set(word);
        } else {
            self.thaw(device);
        }
        read
    }

    /// The device writes its buffer.
    pub fn deliver(&self, device: usize, to: u64) -> bool {
        let word = self.buffers[device].get();
        let written = self.made.phb.dma_write(REQUESTERS[device], to, &word).is_ok();
        if !written {
            self.thaw(device);
        }
        written
    }

    fn thaw(&self, device: usize) {
        assert_eq!(self.opal.freeze_clear(self.first_pe + device as u16), 0, "firmware knows the PE");
    }
}

fn ensure(condition: bool, what: &'static str) -> Result<(), Failure> {
    if condition { Ok(()) } else { Err(Failure { what, error: None, line: line!() }) }
}

impl Ground for OnModel {
    fn clock(&self) -> impl Clock + '_ {
        self.made.clock.clone()
    }

    fn limit(&self) -> Duration {
        LIMIT
    }

    fn extent(&self, area: Area) -> Option<DmaExtent> {
        Some(extent(HOST + (area.guest - self.layout.memory), area.bytes))
    }

    fn quiesce<D: EntryDriver, const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize>(
        &self,
        claim: &Claim<'_, D, GROUPS, CONTEXTS, CPUS>,
    ) -> Result<QuiescedGroup, Error> {
        claim.quiesce(&ObedientFunctions, &self.made.clock, Method::BusMasterOff, QUIESCE_LIMIT)
    }

    /// The device's cache of entries is on.
    fn look(&self, device: usize, ioba: u64, page: Option<(PhysAddr, Access)>) -> Result<(), Failure> {
        let may = |access| page.is_some_and(|(_, granted)| granted.contains(access));
        let mut own = [0; 8];
        if let Some((host, _)) = page {
            ensure(self.made.memory.read(host.as_u64() + OWN, &mut own), "an entry leads to no memory")?;
        }
        let read = self.fetch(device, ioba + OWN);
        ensure(read == may(Access::READ), "a device's reads are not what the guest permits")?;
        let found = self.buffers[device].replace(own);
        ensure(!read || own == found, "a device reads another page than the guest wrote")?;
        let written = self.deliver(device, ioba + OWN);
        ensure(written == may(Access::WRITE), "a device's writes are not what the guest permits")
    }
}
