//! What scenarios do again and again: own, attach, map, and tell the host. Part of it is for scenarios with guests, which
//! images add to the suite's.

use portcullis_hal::{Access, DeviceId, DmaExtent, Iova, IovaRange};
use portcullis_iommu::{
    self as iommu, Claim, ContextHandle, Driver, Error, GroupId, Iommu, VmId, ownership::Owner,
};

use super::{Failure, words::describe};
use crate::{
    board::{Board, Buffer, DmaDevice},
    event::Event,
};

/// Bytes in an IOMMU page of the suite's contexts.
pub(super) const PAGE: u64 = 4096;
/// The VM that most scenarios act for.
pub(super) const VM: VmId = VmId(1);
/// One that gets a device next, or must not get in its way.
pub(super) const OTHER_VM: VmId = VmId(2);

/// The buffer whose data devices are loaded with; scenarios use the others.
pub(super) const LOADER: usize = 15;
/// The buffer that a device's own buffer is written out to.
pub(super) const UNLOADER: usize = 14;

/// A claim on a group of the board's.
pub type Owned<'b, B> = Claim<'b, <B as Board>::Driver, 32, 32>;
type Spec<B> = <<B as Board>::Driver as Driver>::Spec;

/// A board with a scenario on it.
pub struct Stage<'b, B: Board> {
    /// The board.
    pub board: &'b B,
}

impl<B: Board> Clone for Stage<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Board> Copy for Stage<'_, B> {}

/// Fails the scenario, with the line of the caller, unless `condition` holds.
#[track_caller]
pub(super) fn ensure(condition: bool, what: &'static str) -> Result<(), Failure> {
    let line = core::panic::Location::caller().line();
    if condition { Ok(()) } else { Err(Failure { what, error: None, line }) }
}

/// The value, or a failure with the line of the caller.
#[track_caller]
pub(super) fn need<T>(value: Option<T>, what: &'static str) -> Result<T, Failure> {
    let line = core::panic::Location::caller().line();
    value.ok_or(Failure { what, error: None, line })
}

impl<'b, B: Board> Stage<'b, B> {
    /// `None` when the board lacks two devices or sixteen buffers.
    pub fn new(board: &'b B) -> Option<Self> {
        board.device(1)?;
        for (index, device) in (0..=2u8).filter_map(|index| Some((index, board.device(index.into())?))) {
            let requester = device.id().requester.as_u16();
            board.emit(&Event::Device { index, requester, name: device.name() });
        }
        board.buffer(LOADER)?;
        Some(Self { board })
    }

    /// The board's policy.
    pub fn iommu(&self) -> &'b Iommu<B::Driver> {
        self.board.iommu()
    }

    /// Says what comes.
    pub fn step(&self, text: &'static str) {
        self.board.emit(&Event::Step { text });
    }

    /// Device `index`.
    ///
    /// # Errors
    /// The board lacks it.
    pub fn device(&self, index: usize) -> Result<&'b B::Device, Failure> {
        need(self.board.device(index), "the board lacks a device")
    }

    pub(super) fn buffer(&self, index: usize) -> Result<Buffer<'b>, Failure> {
        need(self.board.buffer(index), "the board lacks a buffer")
    }

    /// Registers device `index` as a group of its own.
    ///
    /// # Errors
    /// What the policy refuses.
    pub fn group(&self, index: usize) -> Result<GroupId, Failure> {
        let device = self.device(index)?.id();
        let group = self.iommu().add_group(&[device])?;
        self.board.declare_reserved(device)?;
        Ok(group)
    }

    /// Registers device `index`, grants it to `vm` and claims it.
    pub(super) fn own(&self, index: usize, vm: VmId) -> Result<Owned<'b, B>, Failure> {
        let group = self.group(index)?;
        self.iommu().grant(vm, group)?;
        Ok(self.iommu().claim(vm, group)?)
    }

    /// Claims the group of device `index`, and tells.
    ///
    /// # Errors
    /// What the policy refuses.
    pub fn claim(&self, index: usize, vm: VmId, group: GroupId) -> Result<Owned<'b, B>, Failure> {
        let claim = self.iommu().claim(vm, group)?;
        self.board.emit(&Event::Claimed { requester: self.requester(index)?, vm: vm.0 });
        Ok(claim)
    }

    /// Gives a VM's last claim of device `index` up, and tells.
    ///
    /// # Errors
    /// What the policy refuses.
    pub fn release(&self, claim: Owned<'b, B>, index: usize, vm: VmId) -> Result<(), Failure> {
        claim.release()?;
        self.tell_released(index, vm)
    }

    /// Tells that a VM gave device `index` up.
    ///
    /// # Errors
    /// The board lacks it.
    pub fn tell_released(&self, index: usize, vm: VmId) -> Result<(), Failure> {
        self.board.emit(&Event::Released { requester: self.requester(index)?, vm: vm.0 });
        Ok(())
    }

    /// A context with the page at [`loader`](Self::loader) and the one at
    /// [`unloader`](Self::unloader), through which transfers are checked.
    pub(super) fn context(&self, vm: VmId) -> Result<ContextHandle, Failure> {
        self.context_like(vm, &self.board.spec())
    }

    pub(super) fn context_like(&self, vm: VmId, spec: &Spec<B>) -> Result<ContextHandle, Failure> {
        self.furnish(self.iommu().create_context(vm, spec)?)
    }

    /// The same for the hypervisor's own drivers.
    pub(super) fn host_context(&self) -> Result<ContextHandle, Failure> {
        self.furnish(self.iommu().create_host_context(&self.board.spec())?)
    }

    fn furnish(&self, context: ContextHandle) -> Result<ContextHandle, Failure> {
        self.map(context, self.loader(context)?, LOADER, Access::READ)?;
        self.map(context, self.unloader(context)?, UNLOADER, Access::WRITE)?;
        Ok(context)
    }

    pub(super) fn loader(&self, context: ContextHandle) -> Result<Iova, Failure> {
        self.at(context, 1)
    }

    pub(super) fn unloader(&self, context: ContextHandle) -> Result<Iova, Failure> {
        self.at(context, 2)
    }

    /// Page `page` of the context's aperture.
    pub(super) fn at(&self, context: ContextHandle, page: u64) -> Result<Iova, Failure> {
        let aperture = self.iommu().aperture(context)?;
        need(aperture.range.start().checked_add(page * PAGE), "an address beyond 64 bits")
    }

    /// Maps buffer `index` at `iova` and checks that a look-up finds it there.
    pub(super) fn map(
        &self,
        context: ContextHandle,
        iova: Iova,
        index: usize,
        access: Access,
    ) -> Result<(), Failure> {
        self.map_buffer(context, iova, self.buffer(index)?, access)
    }

    pub(super) fn map_buffer(
        &self,
        context: ContextHandle,
        iova: Iova,
        buffer: Buffer<'b>,
        access: Access,
    ) -> Result<(), Failure> {
        let extent = buffer.extent;
        self.iommu().map(context, iova, extent, access)?;
        self.tell_mapped(context, iova, extent, access)
    }

    /// Tells of a mapping, and checks that a look-up finds it.
    ///
    /// # Errors
    /// The look-up's, or another answer.
    pub fn tell_mapped(
        &self,
        context: ContextHandle,
        iova: Iova,
        extent: DmaExtent,
        access: Access,
    ) -> Result<(), Failure> {
        self.board.emit(&Event::Mapped {
            context: context.slot(),
            iova: iova.as_u64(),
            phys: extent.start().as_u64(),
            bytes: extent.bytes(),
            access: access.bits(),
        });
        let found = self.iommu().iova_to_phys(context, iova)?;
        ensure(found == Some((extent.start(), access)), "a look-up does not find what was mapped")
    }

    pub(super) fn unmap(&self, context: ContextHandle, iova: Iova, bytes: u64) -> Result<(), Failure> {
        let range = need(IovaRange::new(iova, bytes).ok(), "an empty range")?;
        let unmapped = self.iommu().unmap(context, range)?;
        ensure(unmapped == bytes, "unmap counted other bytes than were mapped")?;
        self.board.emit(&Event::Unmapped { context: context.slot(), iova: iova.as_u64(), bytes });
        ensure(self.iommu().iova_to_phys(context, iova)?.is_none(), "a look-up finds what was unmapped")
    }

    /// Empties the policy's log, which keeps the oldest events only.
    pub fn forget_events(&self) {
        while self.iommu().take_event().is_some() {}
    }

    /// Fails unless the policy's log blames `vm` for what `device` tried at `page`, and tells.
    ///
    /// # Errors
    /// It blames somebody else, or nobody.
    pub fn expect_blame(&self, device: DeviceId, page: Iova, vm: VmId) -> Result<(), Failure> {
        let events = core::iter::from_fn(|| self.iommu().take_event());
        let blamed = events.filter_map(|event| match event {
            iommu::Event::Fault { fault, owner } if (fault.device, fault.iova) == (device, Some(page)) => {
                Some(owner)
            }
            _ => None,
        });
        ensure(
            blamed.last() == Some(Some(Owner::Guest(vm))),
            "the log does not name the owner of the device",
        )?;
        self.board.emit(&Event::Blamed { requester: device.requester.as_u16(), vm: vm.0 });
        Ok(())
    }

    /// Fails unless `result` is the error `expected`.
    #[track_caller]
    pub(super) fn refuses<T>(
        &self,
        what: &'static str,
        result: Result<T, Error>,
        expected: impl FnOnce(Error) -> bool,
    ) -> Result<(), Failure> {
        let line = core::panic::Location::caller().line();
        match result {
            Err(error) if expected(error) => {
                self.board.emit(&Event::Refused { what, why: describe(error) });
                Ok(())
            }
            Err(error) => Err(Failure { what: describe(error), error: Some(error), line }),
            Ok(_) => Err(Failure { what: "a call succeeded that must be refused", error: None, line }),
        }
    }
}
