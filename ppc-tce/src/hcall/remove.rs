//! Windows go.

use portcullis_hal::{Clock, GuestMemory, TableMemory};
use portcullis_iommu::{EntryDriver, Error, Seat, VmId};

use super::{
    HcallError, Hypercalls, Patience,
    slot::{Liobn, Slot},
};

impl<'i, D, V, M, const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize, const WINDOWS: usize>
    Hypercalls<'i, D, V, M, GROUPS, CONTEXTS, CPUS, WINDOWS>
where
    D: EntryDriver,
    V: TableMemory,
    M: GuestMemory,
{
    /// Takes a window from its VM: no call finds it any more, all contexts behind it are disconnected, and the pages of
    /// its view are free again. For the control plane, on the CPU that has the seat; takes a lock and waits for calls
    /// and for hardware.
    ///
    /// # Errors
    /// [`HcallError::UnknownLiobn`]. [`HcallError::Iommu`] with `Busy` when calls did not end in time, or a context is just
    /// being ended: no call finds the window any more; to be called again. With `Timeout`, `Hardware` or
    /// `Quarantined` when hardware did not confirm: the window is gone, and what its contexts led to stays counted.
    pub fn remove(
        &self,
        seat: &mut Seat<'i, D, GROUPS, CONTEXTS, CPUS>,
        vm: VmId,
        liobn: Liobn,
        patience: Patience<'_, impl Clock>,
    ) -> Result<(), HcallError> {
        let _control = self.lock();
        self.end(seat, vm, self.named(vm, liobn)?, patience)
    }

    /// Takes all windows of a VM that is going, as [`remove`](Self::remove) does; goes on after errors.
    ///
    /// # Errors
    /// The first of [`remove`](Self::remove).
    pub fn vm_died(
        &self,
        seat: &mut Seat<'i, D, GROUPS, CONTEXTS, CPUS>,
        vm: VmId,
        patience: Patience<'_, impl Clock>,
    ) -> Result<(), HcallError> {
        let _control = self.lock();
        let mut ended = Ok(());
        for slot in self.slots.iter().filter(|slot| slot.is_of(vm)) {
            ended = ended.and(self.end(seat, vm, slot, patience));
        }
        ended
    }

    fn end(
        &self,
        seat: &mut Seat<'i, D, GROUPS, CONTEXTS, CPUS>,
        vm: VmId,
        slot: &Slot,
        patience: Patience<'_, impl Clock>,
    ) -> Result<(), HcallError> {
        slot.close();
        self.iommu.wait_for_sessions(patience.clock, patience.limit)?;
        let mut ended = Ok(());
        for place in slot.places() {
            match self.leave(seat, vm, slot, place, patience) {
                busy @ Err(HcallError::Iommu(Error::Busy)) => return busy,
                left => ended = ended.and(left),
            }
        }
        slot.table().view.end(&self.pool);
        slot.empty();
        ended
    }
}
