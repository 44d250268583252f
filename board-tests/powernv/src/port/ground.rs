//! The board below the hypervisor's control plane.

use core::time::Duration;

use portcullis_hal::{Access, Clock, ConfigSpace, DmaExtent, PhysAddr, arch::powerpc64::TimeBaseClock};
use portcullis_hypervisor::power::guest::Guest;
use portcullis_iommu::{Claim, EntryDriver, Error, QuiescedGroup, pci::Method};
use portcullis_suite::{
    Board, Failure,
    hcall::{
        Area,
        stand::{self, Ground},
    },
};

use crate::board::PowerNv;

/// How long calls may take: an emulated CPU may stand still in the middle of one.
const LIMIT: Duration = Duration::from_secs(5);
/// How long devices may take to end their DMA.
const QUIESCE_LIMIT: Duration = Duration::from_millis(500);
/// PCI's command register, and its bit that lets a function do DMA (PCI Local Bus Specification 3.0, 6.2.2).
const COMMAND: u16 = 4;
const BUS_MASTER: u32 = 1 << 2;

/// The board with the guest's memory.
pub(crate) struct OnBoard<'a, 'b> {
    pub(super) board: &'a PowerNv<'b>,
    pub(super) guest: Guest,
}

impl Ground for OnBoard<'_, '_> {
    fn clock(&self) -> impl Clock + '_ {
        TimeBaseClock
    }

    fn limit(&self) -> Duration {
        LIMIT
    }

    fn extent(&self, area: Area) -> Option<DmaExtent> {
        self.guest.memory().extent()?.part(area.guest, area.bytes)
    }

    /// Lets the devices go on, too: edu keeps no orders.
    fn quiesce<D: EntryDriver, const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize>(
        &self,
        claim: &Claim<'_, D, GROUPS, CONTEXTS, CPUS>,
    ) -> Result<QuiescedGroup, Error> {
        let config = self.board.config_space();
        let proof = claim.quiesce(&config, &TimeBaseClock, Method::BusMasterOff, QUIESCE_LIMIT)?;
        for device in (0..stand::DEVICES).filter_map(|number| self.board.device(number)) {
            let command = config.read32(device.id(), COMMAND) & 0xffff;
            config.write32(device.id(), COMMAND, command | BUS_MASTER);
        }
        Ok(proof)
    }

    /// Devices are too slow to ask.
    fn look(&self, _: usize, _: u64, _: Option<(PhysAddr, Access)>) -> Result<(), Failure> {
        Ok(())
    }
}
