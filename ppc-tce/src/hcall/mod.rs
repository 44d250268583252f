//! The hypercalls by which a POWER guest maps its own DMA: H_PUT_TCE, H_PUT_TCE_INDIRECT, H_STUFF_TCE, H_GET_TCE.
//!
//! A guest names a window by its LIOBN and an entry by its I/O bus address. Behind a window stand up to [`PLACES`]
//! hardware tables, security contexts of the same VM, which are all kept in step; and the owner's view, which
//! remembers what the guest wrote and says who changes an entry just now.
//!
//! One source, two instances: [`call`](Hypercalls::call) in [`RealMode`] runs in the guest's exit and hands over what
//! it cannot do; in [`VirtualMode`] it finishes. What can fail happens before the first entry changes. Each call ends
//! with one kill a context; only then what was counted for the old pages goes back.
//!
//! # Concurrency
//! Any CPU that has a seat may call at any time. A call takes no lock: the busy bit of a view word makes one CPU the
//! owner of an entry, and in real mode who meets it hands over. The control plane (windows, connections) takes a lock
//! and waits for calls that are under way, under a deadline.

mod connect;
mod connected;
mod error;
mod get;
mod indirect;
mod lately;
mod put;
mod remove;
mod reply;
mod slot;
pub mod spec;
mod stuff;
mod vcpu;
mod view;
mod window;

use const_fn::const_fn;
use portcullis_hal::{
    GuestMemory, PagePool, TableMemory, array_of,
    sync::{Mutex, MutexGuard},
};
use portcullis_iommu::{EntryDriver, Error, Iommu, Seat, VmId, coherency::MAX_VMS};

pub use self::{
    connect::Patience,
    error::HcallError,
    reply::{Mode, RealMode, Reply, VirtualMode, Why},
    slot::{Liobn, PLACES},
    spec::{Status, TOO_HARD, opcode},
    vcpu::Vcpu,
    window::WindowSpec,
};
use self::{
    reply::{Stop, done},
    slot::{GuestTable, Limits, Slot, key},
    view::View,
};

/// The windows of all VMs, at most `WINDOWS`, and the calls on them.
///
/// `V` is where views live, `M` how guests' memory is read.
pub struct Hypercalls<
    'i,
    D: EntryDriver,
    V,
    M,
    const GROUPS: usize,
    const CONTEXTS: usize,
    const CPUS: usize,
    const WINDOWS: usize = 16,
> {
    iommu: &'i Iommu<D, GROUPS, CONTEXTS, CPUS>,
    pool: PagePool<V>,
    memory: M,
    slots: [Slot; WINDOWS],
    /// Held by whoever changes slots.
    control: Mutex<()>,
}

impl<'i, D, V, M, const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize, const WINDOWS: usize>
    Hypercalls<'i, D, V, M, GROUPS, CONTEXTS, CPUS, WINDOWS>
where
    D: EntryDriver,
    V: TableMemory,
    M: GuestMemory,
{
    /// No windows yet; their views will live in `pool`.
    #[must_use]
    #[const_fn(cfg(not(loom)))]
    pub const fn new(iommu: &'i Iommu<D, GROUPS, CONTEXTS, CPUS>, pool: PagePool<V>, memory: M) -> Self {
        Self { iommu, pool, memory, slots: array_of![Slot::new(); WINDOWS], control: Mutex::new(()) }
    }

    /// The pool of the views' pages, to see how many are free. Any CPU, at any time.
    #[must_use]
    pub const fn pool(&self) -> &PagePool<V> {
        &self.pool
    }

    /// Gives a VM a window with no entry set and nothing connected. Takes a lock.
    ///
    /// # Errors
    /// [`HcallError::BadPageShift`], [`HcallError::BadWindow`], [`HcallError::DuplicateLiobn`], [`HcallError::Full`];
    /// [`HcallError::Iommu`] with `UnknownVm`, with `Unsupported` when so many levels cannot hold the view, or with
    /// `NeedPages` when there is no page for its root. Nothing changed.
    pub fn register(&self, vm: VmId, liobn: Liobn, spec: &WindowSpec) -> Result<(), HcallError> {
        if vm.0 as usize >= MAX_VMS {
            return Err(Error::UnknownVm { vm }.into());
        }
        let window = spec.check()?;
        let key = key(vm, liobn);
        let _control = self.lock();
        if self.slots.iter().any(|slot| slot.key() == key) {
            return Err(HcallError::DuplicateLiobn { vm, liobn });
        }
        let slot = self.slots.iter().find(|slot| slot.key() == 0);
        let slot = slot.ok_or(HcallError::Full { capacity: WINDOWS })?;
        let view = View::new(&self.pool, window.entries(), spec.view_levels)?;
        let stuff_cap = spec.stuff_cap.map_or(u64::MAX, |cap| u64::from(cap.get()));
        let limits = Limits { stuff_cap, budget: spec.budget.get() };
        slot.fill(key, &GuestTable { window, view }, limits);
        Ok(())
    }

    /// Makes the call that a guest made: `number` from r3, `arguments` from r4 on. `seat` is the CPU's, `vcpu` who calls.
    ///
    /// After a [`Reply::TooHard`] the hypervisor makes the same call again, in virtual mode, before the virtual CPU makes
    /// any other; or [abandons](Vcpu::abandon) it. The list of an H_PUT_TCE_INDIRECT is read anew by each of them.
    #[inline]
    pub fn call<N: Mode>(
        &self,
        seat: &mut Seat<'i, D, GROUPS, CONTEXTS, CPUS>,
        vcpu: &mut Vcpu<'i>,
        number: u64,
        arguments: [u64; 4],
    ) -> Reply {
        if number != opcode::STUFF_TCE {
            // The one that was not finished never will be: a virtual CPU makes one call at a time.
            vcpu.abandon();
        }
        let session = seat.enter(vcpu.vm());
        let finished = match number {
            opcode::PUT_TCE => self.put_tce::<N>(&session, vcpu, arguments),
            opcode::PUT_TCE_INDIRECT => self.put_tce_indirect::<N>(&session, vcpu, arguments),
            opcode::STUFF_TCE => self.stuff_tce::<N>(&session, vcpu, arguments),
            opcode::GET_TCE => match self.get_tce(vcpu, arguments) {
                Ok(value) => return Reply::Done { status: Status::Success, value },
                Err(stop) => Err(stop),
            },
            _ => Err(Stop::Refused(Status::Function)),
        };
        match finished {
            Ok(()) => done(Status::Success),
            Err(stop) => stop.reply::<N>(),
        }
    }

    /// The window that a guest names. The slot stays as it is while the caller's session lives.
    #[inline(always)]
    fn find(&self, vcpu: &mut Vcpu, liobn: u64) -> Result<&Slot, Stop> {
        match self.hinted(vcpu, liobn) {
            Some(slot) => Ok(slot),
            None => self.search(vcpu, liobn),
        }
    }

    /// The same, if it is where the last call found it.
    #[inline(always)]
    fn hinted(&self, vcpu: &Vcpu, liobn: u64) -> Option<&Slot> {
        let key = key(vcpu.vm(), Liobn(u32::try_from(liobn).ok()?));
        self.slots.get(vcpu.window_hint as usize).filter(|slot| slot.is_opened(key))
    }

    #[cold]
    #[inline(never)]
    fn search(&self, vcpu: &mut Vcpu, liobn: u64) -> Result<&Slot, Stop> {
        let liobn = Liobn(u32::try_from(liobn).map_err(|_| Stop::PARAMETER)?);
        let key = key(vcpu.vm(), liobn);
        let found = (0..).zip(&self.slots).find(|(_, slot)| slot.is_opened(key));
        let (number, slot) = found.ok_or(Stop::PARAMETER)?;
        vcpu.window_hint = number;
        Ok(slot)
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.control.lock()
    }
}
