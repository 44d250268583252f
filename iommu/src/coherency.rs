//! What a guest's WBINVD must do.

use const_fn::const_fn;
use portcullis_hal::{
    array_of,
    sync::{AtomicU32, Ordering},
};

use crate::{
    driver::Driver,
    error::Error,
    group::VmId,
    ownership::Owner,
    policy::{Control, Iommu},
};

/// Whether DMA through a context goes through the CPUs' caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Coherency {
    /// Hardware makes it so, whatever the device asks for.
    Coherent,
    /// A device may go past the caches.
    NonCoherent {
        /// Why.
        because: Because,
    },
}

/// Why DMA may go past the caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Because {
    /// A unit of the context cannot control it.
    NoSnoopControl,
    /// The context was made without it.
    NotEnforced,
}

/// VMs that there may be: their numbers are below. Few for the model checker, which tracks every word.
pub const MAX_VMS: usize = if cfg!(loom) { 4 } else { 256 };

/// What a guest's WBINVD and WBNOINVD must do. The same for INVD, which is never executed for a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Notice {
    /// `Coherent`: nothing. `NonCoherent`: a real flush on every CPU where the guest ran; and the guest's
    /// own caching attributes count.
    pub verdict: Coherency,
    /// Counts changes of the verdict: an answer with an older epoch is stale.
    pub epoch: u32,
}

/// One word for each VM: the epoch, and two bits of verdict.
#[derive(Debug)]
pub(crate) struct Notices([AtomicU32; MAX_VMS]);

const VERDICT_BITS: u32 = 2;

impl Notices {
    #[const_fn(cfg(not(loom)))]
    pub(crate) const fn new() -> Self {
        Self(array_of![AtomicU32::new(0); MAX_VMS])
    }

    pub(crate) fn check(&self, vm: VmId) -> Result<&AtomicU32, Error> {
        self.0.get(vm.0 as usize).ok_or(Error::UnknownVm { vm })
    }

    fn read(&self, vm: VmId) -> Result<Notice, Error> {
        let word = self.check(vm)?.load(Ordering::Acquire);
        let verdict = match word & 3 {
            0 => Coherency::Coherent,
            1 => Coherency::NonCoherent { because: Because::NoSnoopControl },
            _ => Coherency::NonCoherent { because: Because::NotEnforced },
        };
        Ok(Notice { verdict, epoch: word >> VERDICT_BITS })
    }

    /// Under the lock of the control plane only.
    fn write(&self, vm: VmId, verdict: Coherency) {
        let Ok(word) = self.check(vm) else { return };
        let bits = match verdict {
            Coherency::Coherent => 0,
            Coherency::NonCoherent { because: Because::NoSnoopControl } => 1,
            Coherency::NonCoherent { because: Because::NotEnforced } => 2,
        };
        let before = word.load(Ordering::Relaxed);
        if before & 3 != bits {
            let epoch = (before >> VERDICT_BITS).wrapping_add(1);
            word.store(epoch << VERDICT_BITS | bits, Ordering::Release);
        }
    }
}

impl<D: Driver, const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize>
    Iommu<D, GROUPS, CONTEXTS, CPUS>
{
    /// What a VM's WBINVD must do now: one load, from any CPU and in any mode. It says `NonCoherent` before
    /// a device of the VM can go past the caches, and until none can any more.
    ///
    /// # Errors
    /// [`Error::UnknownVm`].
    #[inline]
    pub fn coherency(&self, vm: VmId) -> Result<Notice, Error> {
        self.notices.read(vm)
    }

    pub(crate) fn renew(&self, control: &Control<GROUPS, CONTEXTS>, vm: Option<VmId>) {
        if let Some(vm) = vm {
            self.notices.write(vm, control.ownership.verdict(vm));
        }
    }

    pub(crate) fn note_coherency(&self, context: usize, coherency: Coherency) {
        let mut control = self.control.lock();
        control.ownership.set_coherency(context, coherency);
        if let Some(Owner::Guest(vm)) = control.ownership.owner_of(context) {
            self.renew(&control, Some(vm));
        }
    }
}
