//! Attaching and detaching, with what a device needs before and after.

use core::time::Duration;

use portcullis_hal::{ConfigSpace, DeviceId};
use portcullis_iommu::{ContextHandle, Error, QuiescedGroup, pci::Method};

use super::{
    Failure,
    stage::{Owned, Stage},
};
use crate::{
    board::{Board, DmaDevice},
    event::Event,
};

/// How long a device may take to end what it was told to do.
const QUIESCE_LIMIT: Duration = Duration::from_millis(100);
/// Command and Status registers.
const COMMAND: u16 = 0x04;
const BUS_MASTER_ENABLE: u32 = 1 << 2;

impl<'b, B: Board> Stage<'b, B> {
    pub(super) fn attach(
        &self,
        claim: &mut Owned<'b, B>,
        index: usize,
        context: ContextHandle,
    ) -> Result<(), Failure> {
        let device = self.device(index)?.id();
        self.quiesce_and_attach(claim, context)?;
        self.let_master(device);
        let requester = device.requester.as_u16();
        self.board.emit(&Event::Attached { requester, context: context.slot() });
        Ok(())
    }

    /// Attaches a claim, and quiesces its devices first where that was not done under this ownership.
    pub(super) fn quiesce_and_attach(
        &self,
        claim: &mut Owned<'b, B>,
        context: ContextHandle,
    ) -> Result<(), Error> {
        match claim.switch(context) {
            Err(Error::NotQuiesced { .. }) => {}
            switched => return switched,
        }
        let quiesced = self.quiesce(claim)?;
        claim.attach(context, quiesced)
    }

    /// Makes the devices of a claim end their DMA.
    fn quiesce(&self, claim: &Owned<'b, B>) -> Result<QuiescedGroup, Error> {
        let (config, clock) = (self.board.config_space(), self.board.clock());
        claim.quiesce(&config, &clock, Method::BusMasterOff, QUIESCE_LIMIT)
    }

    /// Tells the host that device `index` was blocked.
    pub(super) fn blocked(&self, index: usize) -> Result<(), Failure> {
        let requester = self.device(index)?.id().requester.as_u16();
        self.board.emit(&Event::Detached { requester });
        Ok(())
    }

    /// Turns bus mastering on again (PCI Express 6.0, 7.5.1.1.3).
    fn let_master(&self, device: DeviceId) {
        let config = self.board.config_space();
        let command = config.read32(device, COMMAND) & 0xffff;
        config.write32(device, COMMAND, command | BUS_MASTER_ENABLE);
    }

    pub(super) fn detach(&self, claim: &mut Owned<'b, B>, index: usize) -> Result<(), Failure> {
        claim.detach()?;
        self.blocked(index)
    }
}
