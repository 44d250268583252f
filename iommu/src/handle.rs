//! Numbers that a guest may hold: the proof that it owns something.

use core::mem::ManuallyDrop;

use bitflags::bitflags;
use const_fn::const_fn;
use portcullis_hal::{
    array_of,
    sync::{AtomicU64, Ordering},
};

use crate::{
    claim::Claim,
    context::ContextHandle,
    driver::Driver,
    error::Error,
    group::{GroupId, VmId},
    ownership::{Hold, Owner},
    policy::Iommu,
};

bitflags! {
    /// What a handle lets its holder do.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Rights: u8 {
        /// Attach, switch and detach the group; map and unmap in the context.
        const CHANGE = 1;
        /// Let external users refer to the group.
        const REFER = 1 << 1;
        /// Give it up.
        const RELEASE = 1 << 2;
    }
}

/// What a guest was given: slot, generation and rights in one number, good in the table of its VM only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Handle(u64);

impl Handle {
    /// Whatever a guest passes: it is checked when it is used.
    #[must_use]
    pub const fn from_raw(number: u64) -> Self {
        Self(number)
    }

    /// The number for the guest.
    #[must_use]
    pub const fn as_raw(self) -> u64 {
        self.0
    }

    const fn new(generation: u32, slot: usize, rights: Rights) -> Self {
        Self((generation as u64) << 32 | (slot as u64 & 0x00ff_ffff) << 8 | rights.bits() as u64)
    }

    const fn slot(self) -> usize {
        (self.0 >> 8 & 0x00ff_ffff) as usize
    }

    const fn rights(self) -> Rights {
        Rights::from_bits_retain(self.0 as u8)
    }
}

/// What a handle stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Object {
    /// A claim on a group.
    Claim {
        /// The group.
        group: GroupId,
    },
    /// A context.
    Context(ContextHandle),
}

/// What a slot holds; 0 stands for nothing.
const CLAIM: u8 = 1;
const CONTEXT: u8 = 2;
/// Somebody is just filling the slot.
const FILLING: u8 = 3;

/// One slot: a key of counter (bits 63:32), kind (15:8) and rights (7:0), and the object.
#[derive(Debug)]
struct Entry {
    key: AtomicU64,
    object: AtomicU64,
}

impl Entry {
    #[const_fn(cfg(not(loom)))]
    const fn new() -> Self {
        Self { key: AtomicU64::new(0), object: AtomicU64::new(0) }
    }
}

const fn kind(key: u64) -> u8 {
    (key >> 8) as u8
}

const fn counter(key: u64) -> u32 {
    (key >> 32) as u32
}

const fn key(counter: u32, kind: u8, rights: Rights) -> u64 {
    (counter as u64) << 32 | (kind as u64) << 8 | rights.bits() as u64
}

const fn pair(high: u32, low: u32) -> u64 {
    (high as u64) << 32 | low as u64
}

/// The handles of one VM, in the hypervisor's own storage beside the VM. A look-up takes one compare for the
/// owner and three loads, waits for nobody, and may be made from any CPU in any mode.
///
/// A number means nothing in another VM's table. Numbers of one slot follow no order that a guest could
/// guess, as long as `seed` is secret; and a guess that hits finds but what its own VM has.
#[derive(Debug)]
pub struct HandleTable<const HANDLES: usize> {
    vm: VmId,
    seed: u32,
    entries: [Entry; HANDLES],
}

impl<const HANDLES: usize> HandleTable<HANDLES> {
    /// An empty table; `seed` should be random, and another one for each VM.
    #[must_use]
    #[const_fn(cfg(not(loom)))]
    pub const fn new(vm: VmId, seed: u32) -> Self {
        Self { vm, seed, entries: array_of![Entry::new(); HANDLES] }
    }

    /// Gives a number to a context of the table's VM. Any CPU; takes no lock, and looks through the table for
    /// a free slot.
    ///
    /// # Errors
    /// [`Error::Full`].
    pub fn insert_context(&self, context: ContextHandle, rights: Rights) -> Result<Handle, Error> {
        self.insert(CONTEXT, pair(context.slot, context.generation), rights)
    }

    /// What `handle` stands for, if `vm` may do with it what it `needs`. Any CPU; waits for nobody, and takes
    /// as long in a full table as in an empty one.
    ///
    /// # Errors
    /// [`Error::OwnedBy`] when the table is another VM's, [`Error::Stale`] for a number that is forged or
    /// no longer good, [`Error::NoRight`].
    #[inline]
    pub fn look_up(&self, vm: VmId, handle: Handle, needs: Rights) -> Result<Object, Error> {
        let (kind, object) = self.find(vm, handle, needs)?;
        let (high, low) = ((object >> 32) as u32, object as u32);
        Ok(match kind {
            CLAIM => Object::Claim { group: GroupId(high) },
            _ => Object::Context(ContextHandle { slot: high, generation: low }),
        })
    }

    /// Takes a number back: it is stale from now on. A claim that it stood for is released by
    /// [`Iommu::take_claim`] instead. Any CPU, no lock: of several callers one gets it.
    ///
    /// # Errors
    /// As [`look_up`](Self::look_up) with [`Rights::RELEASE`].
    pub fn remove(&self, vm: VmId, handle: Handle) -> Result<Object, Error> {
        let object = self.look_up(vm, handle, Rights::RELEASE)?;
        self.clear(handle)?;
        Ok(object)
    }

    #[inline]
    fn find(&self, vm: VmId, handle: Handle, needs: Rights) -> Result<(u8, u64), Error> {
        if vm != self.vm {
            return Err(Error::OwnedBy { owner: self.vm });
        }
        let stale = Error::Stale { slot: handle.slot() as u32 };
        let entry = self.entries.get(handle.slot()).ok_or(stale)?;
        let before = entry.key.load(Ordering::Acquire);
        let object = entry.object.load(Ordering::Acquire);
        // A slot that was given to something else in between has another counter.
        let same = entry.key.load(Ordering::Relaxed) == before;
        let held = matches!(kind(before), CLAIM | CONTEXT);
        let rights = Rights::from_bits_retain(before as u8);
        let number = Handle::new(self.generation(handle.slot(), counter(before)), handle.slot(), rights);
        if !same || !held || number != handle {
            return Err(stale);
        }
        if !handle.rights().contains(needs) {
            return Err(Error::NoRight { needed: needs.bits() });
        }
        Ok((kind(before), object))
    }

    /// Odd steps: a counter meets each number once before the first comes again.
    const fn generation(&self, slot: usize, counter: u32) -> u32 {
        let first = self.seed ^ (slot as u32).wrapping_mul(0x85eb_ca6b);
        first.wrapping_add(counter.wrapping_mul(0x9e37_79b1))
    }

    fn insert(&self, what: u8, object: u64, rights: Rights) -> Result<Handle, Error> {
        for (slot, entry) in self.entries.iter().enumerate() {
            let free = entry.key.load(Ordering::Relaxed);
            let next = counter(free).wrapping_add(1);
            let taken = key(next, FILLING, Rights::empty());
            let exchange = |entry: &Entry| {
                entry.key.compare_exchange(free, taken, Ordering::AcqRel, Ordering::Relaxed).is_ok()
            };
            if kind(free) == 0 && exchange(entry) {
                entry.object.store(object, Ordering::Release);
                entry.key.store(key(next, what, rights), Ordering::Release);
                return Ok(Handle::new(self.generation(slot, next), slot, rights));
            }
        }
        Err(Error::Full { capacity: HANDLES })
    }

    /// Empties a slot; whoever comes second finds it stale.
    fn clear(&self, handle: Handle) -> Result<(), Error> {
        let stale = Error::Stale { slot: handle.slot() as u32 };
        let entry = self.entries.get(handle.slot()).ok_or(stale)?;
        let held = entry.key.load(Ordering::Relaxed);
        let number = self.generation(handle.slot(), counter(held));
        if number != (handle.as_raw() >> 32) as u32 || !matches!(kind(held), CLAIM | CONTEXT) {
            return Err(stale);
        }
        let free = key(counter(held), 0, Rights::empty());
        entry
            .key
            .compare_exchange(held, free, Ordering::AcqRel, Ordering::Relaxed)
            .map_or(Err(stale), |_| Ok(()))
    }
}

impl<D: Driver, const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize>
    Claim<'_, D, GROUPS, CONTEXTS, CPUS>
{
    /// Puts the claim into the table of its VM, which gets a number for it. It stays claimed until it is
    /// [taken out](Iommu::take_claim) and released, or revoked: then the number is stale. Any CPU; takes no
    /// lock.
    ///
    /// # Errors
    /// The claim itself, with [`Error::Full`], or [`Error::OwnedBy`] for another VM's table.
    pub fn store<const HANDLES: usize>(
        self,
        table: &HandleTable<HANDLES>,
        rights: Rights,
    ) -> Result<Handle, (Error, Self)> {
        let hold = self.hold();
        if hold.owner != Owner::Guest(table.vm) {
            return Err((Error::OwnedBy { owner: table.vm }, self));
        }
        match table.insert(CLAIM, pair(hold.group.0, hold.tenure), rights) {
            Ok(handle) => {
                // The table holds it from now on.
                core::mem::forget(self);
                Ok(handle)
            }
            Err(error) => Err((error, self)),
        }
    }
}

impl<D: Driver, const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize>
    Iommu<D, GROUPS, CONTEXTS, CPUS>
{
    /// Lets `act` use the claim that `handle` stands for, which stays in the table. Any CPU; takes the lock to
    /// see that the claim still holds, and has given it up when `act` runs.
    ///
    /// # Errors
    /// As [`HandleTable::look_up`]; [`Error::Stale`] also when the claim was revoked.
    pub fn with_claim<const HANDLES: usize, T>(
        &self,
        table: &HandleTable<HANDLES>,
        vm: VmId,
        handle: Handle,
        needs: Rights,
        act: impl FnOnce(&mut Claim<'_, D, GROUPS, CONTEXTS, CPUS>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut claim = ManuallyDrop::new(Claim::of(self, stored(table, vm, handle, needs)?));
        claim.check()?;
        act(&mut claim)
    }

    /// Takes the claim out of the table: `handle` is stale from now on. Any CPU, no lock: of several callers
    /// one gets it.
    ///
    /// # Errors
    /// As [`HandleTable::look_up`] with [`Rights::RELEASE`].
    pub fn take_claim<const HANDLES: usize>(
        &self,
        table: &HandleTable<HANDLES>,
        vm: VmId,
        handle: Handle,
    ) -> Result<Claim<'_, D, GROUPS, CONTEXTS, CPUS>, Error> {
        let hold = stored(table, vm, handle, Rights::RELEASE)?;
        table.clear(handle)?;
        Ok(Claim::of(self, hold))
    }
}

fn stored<const HANDLES: usize>(
    table: &HandleTable<HANDLES>,
    vm: VmId,
    handle: Handle,
    needs: Rights,
) -> Result<Hold, Error> {
    match table.find(vm, handle, needs)? {
        (CLAIM, object) => {
            let group = GroupId((object >> 32) as u32);
            Ok(Hold { group, owner: Owner::Guest(vm), tenure: object as u32 })
        }
        _ => Err(Error::Stale { slot: handle.slot() as u32 }),
    }
}
