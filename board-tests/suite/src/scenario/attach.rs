//! Attaching and detaching, with what a device needs before and after.

use core::time::Duration;

use portcullis_hal::{ConfigSpace, DeviceId};
use portcullis_iommu::{ContextHandle, Error, QuiescedGroup, pci::Method};

use super::{
    Failure,
    stage::{Owned, Stage, VM},
};
use crate::{
    board::{Board, DmaDevice},
    event::Event,
};

/// How long a device may take to end what it was told to do.
pub(super) const QUIESCE_LIMIT: Duration = Duration::from_millis(100);
/// Command and Status registers.
const COMMAND: u16 = 0x04;
const BUS_MASTER_ENABLE: u32 = 1 << 2;

impl<'b, B: Board> Stage<'b, B> {
    /// Attaches a claim of device `index`, quiesced first where that was not done, lets the device master the bus, and
    /// tells.
    ///
    /// # Errors
    /// What the policy refuses.
    pub fn attach(
        &self,
        claim: &mut Owned<'b, B>,
        index: usize,
        context: ContextHandle,
    ) -> Result<(), Failure> {
        let device = self.device(index)?.id();
        self.quiesce_and_attach(claim, context)?;
        self.let_master(device);
        self.tell_attached(index, context)
    }

    /// Tells that device `index` was attached.
    ///
    /// # Errors
    /// The board lacks it.
    pub fn tell_attached(&self, index: usize, context: ContextHandle) -> Result<(), Failure> {
        let requester = self.requester(index)?;
        self.board.emit(&Event::Attached { requester, context: context.slot() });
        Ok(())
    }

    /// Tells that device `index` was quiesced.
    ///
    /// # Errors
    /// The board lacks it.
    pub fn tell_quiesced(&self, index: usize) -> Result<(), Failure> {
        self.board.emit(&Event::Quiesced { requester: self.requester(index)? });
        Ok(())
    }

    /// Requester ID of device `index`.
    ///
    /// # Errors
    /// The board lacks it.
    pub fn requester(&self, index: usize) -> Result<u16, Failure> {
        Ok(self.device(index)?.id().requester.as_u16())
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
        claim.attach(context, self.quiesce(claim)?)
    }

    /// Turns bus mastering of a claim's devices off, and proves that they are quiet.
    ///
    /// # Errors
    /// What the policy refuses.
    pub fn quiesce(&self, claim: &Owned<'b, B>) -> Result<QuiescedGroup, Error> {
        let (config, clock) = (self.board.config_space(), self.board.clock());
        claim.quiesce(&config, &clock, Method::BusMasterOff, QUIESCE_LIMIT)
    }

    /// Whether bus mastering is on, as the device's own register says.
    pub(super) fn masters(&self, index: usize) -> Result<bool, Failure> {
        let command = self.board.config_space().read32(self.device(index)?.id(), COMMAND);
        Ok(command & BUS_MASTER_ENABLE != 0)
    }

    /// Turns bus mastering on again (PCI Express 6.0, 7.5.1.1.3).
    pub fn let_master(&self, device: DeviceId) {
        let config = self.board.config_space();
        let command = config.read32(device, COMMAND) & 0xffff;
        config.write32(device, COMMAND, command | BUS_MASTER_ENABLE);
    }

    /// Blocks device `index`, and tells.
    ///
    /// # Errors
    /// What the policy refuses.
    pub fn detach(&self, claim: &mut Owned<'b, B>, index: usize) -> Result<(), Failure> {
        claim.detach()?;
        self.board.emit(&Event::Detached { requester: self.requester(index)? });
        Ok(())
    }

    /// Lets the unit take the pages that it keeps for a device of [`VM`] whatever context comes and goes.
    pub(super) fn take_what_stays(&self, claim: &mut Owned<'b, B>, index: usize) -> Result<(), Failure> {
        let context = self.context(VM)?;
        self.attach(claim, index, context)?;
        self.detach(claim, index)?;
        Ok(self.iommu().destroy_context(context)?)
    }
}
