//! A driver that records what it is asked to do and can be made to fail, and a policy over it.
#![allow(dead_code, reason = "no test needs all of it")]

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    time::Duration,
};

use portcullis_fake::{
    memory::{self, FakeClock},
    obedient::ObedientFunctions,
};
use portcullis_hal::{
    Access, DeviceId, DmaExtent, Iova, IovaRange, PhysAddr, PhysRange, RequesterId, Segment, TimedOut,
};
use portcullis_iommu::{
    Aperture, Because, Claim, Coherency, ContextHandle, Debts, Driver, Error, Fault, GroupId, Iommu, Outcome,
    PageSizes, Permit, QuiescedGroup, Removals, Run, Target, VmId, driver::TablesChanged, pci::Method,
};

pub(crate) const DEAD: Error = Error::Timeout(TimedOut { register: 0x88, bits: 1 });
pub(crate) const VM: VmId = VmId(1);
pub(crate) const OTHER: VmId = VmId(2);
pub(crate) const PAGE: u64 = 4096;

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(crate) enum Did {
    Block,
    Attach(u32),
    Map,
    Unmap,
    Flush,
    Destroy(u32),
    FlushLines(Option<PhysRange>),
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) did: Vec<Did>,
    pub(crate) contexts: u32,
    pub(crate) refuse_prepare: bool,
    pub(crate) dead: bool,
    /// Invalidations are not confirmed, everything else is.
    pub(crate) deaf: bool,
    /// New contexts are cache-coherent.
    pub(crate) coherent: bool,
    /// Contexts can be made so later.
    pub(crate) snoop_control: bool,
    /// Faults that hardware has recorded, the oldest last.
    pub(crate) faults: Vec<Fault>,
}

#[derive(Default)]
pub(crate) struct Recorder(pub(crate) RefCell<State>);

pub(crate) struct Tables {
    number: u32,
    coherent: Cell<bool>,
    entries: RefCell<BTreeMap<u64, (u64, Access)>>,
}

impl Recorder {
    pub(crate) fn act(&self, did: Did) -> Outcome {
        let mut state = self.0.borrow_mut();
        state.did.push(did);
        if state.dead { Outcome::Quarantined { error: DEAD } } else { Outcome::Done }
    }

    pub(crate) fn took(&self) -> Vec<Did> {
        std::mem::take(&mut self.0.borrow_mut().did)
    }
}

impl Driver for Recorder {
    type Spec = ();
    type Context = Tables;
    type Prepared = u32;

    fn create(&self, _: &Permit, (): &()) -> Result<Tables, Error> {
        let mut state = self.0.borrow_mut();
        state.contexts += 1;
        let coherent = Cell::new(state.coherent);
        Ok(Tables { number: state.contexts, coherent, entries: RefCell::default() })
    }

    fn destroy<R: Removals>(&self, _: &Permit, context: Tables, removals: &mut R) -> Outcome {
        let outcome = self.act(Did::Destroy(context.number));
        if outcome == Outcome::Done {
            context
                .entries
                .take()
                .values()
                .for_each(|&(start, _)| removals.removed(PhysAddr::new(start), PAGE));
        }
        outcome
    }

    fn aperture(&self, _: &Tables) -> Aperture {
        let range = IovaRange::new(Iova::new(0), 1 << 39).expect("a range");
        Aperture { range, page_sizes: PageSizes::SIZE_4K }
    }

    fn prepare(&self, _: &Permit, members: &[DeviceId], target: Target<'_, Tables>) -> Result<u32, Error> {
        if self.0.borrow().refuse_prepare {
            return Err(Error::NotBehindUnit { device: members[0] });
        }
        match target {
            Target::Context(tables) => Ok(tables.number),
            Target::Blocked => Ok(0),
        }
    }

    fn commit(&self, _: &Permit, prepared: u32) -> Outcome {
        self.act(Did::Attach(prepared))
    }

    fn block(&self, _: &Permit, _: &[DeviceId]) -> Outcome {
        self.act(Did::Block)
    }

    fn map(
        &self,
        _: &Permit,
        context: &Tables,
        iova: Iova,
        to: DmaExtent,
        access: Access,
    ) -> Result<Outcome, Error> {
        self.0.borrow_mut().did.push(Did::Map);
        context.entries.borrow_mut().insert(iova.as_u64(), (to.start().as_u64(), access));
        Ok(Outcome::Done)
    }

    fn unmap<R: Removals>(
        &self,
        _: &Permit,
        context: &Tables,
        range: IovaRange,
        debts: &mut Debts,
        removals: &mut R,
    ) -> Result<u64, Error> {
        self.0.borrow_mut().did.push(Did::Unmap);
        let mut entries = context.entries.borrow_mut();
        for (_, (start, _)) in entries.extract_if(range.start().as_u64()..=range.last().as_u64(), |_, _| true)
        {
            removals.removed(PhysAddr::new(start), PAGE);
        }
        debts.owe(Run { range, tables_changed: TablesChanged::LeavesOnly });
        Ok(range.bytes())
    }

    fn flush(&self, permit: &Permit, _: &Tables, debts: &mut Debts) -> Outcome {
        assert!(!debts.is_empty(), "nothing was owed");
        let outcome = match (self.act(Did::Flush), self.0.borrow().deaf) {
            (Outcome::Done, true) => Outcome::Quarantined { error: DEAD },
            (outcome, _) => outcome,
        };
        if outcome == Outcome::Done {
            debts.settle(permit);
        }
        outcome
    }

    fn iova_to_phys(&self, context: &Tables, iova: Iova) -> Option<(PhysAddr, Access)> {
        context.entries.borrow().get(&iova.as_u64()).map(|&(phys, access)| (PhysAddr::new(phys), access))
    }

    fn enforce_cache_coherency(&self, _: &Permit, context: &Tables) -> Result<(), Error> {
        if !self.0.borrow().snoop_control {
            return Err(Error::NoSnoopControl);
        }
        context.coherent.set(true);
        Ok(())
    }

    fn flush_lines(&self, _: &Permit, memory: Option<PhysRange>) {
        self.0.borrow_mut().did.push(Did::FlushLines(memory));
    }

    fn coherency(&self, context: &Tables) -> Coherency {
        if context.coherent.get() {
            return Coherency::Coherent;
        }
        Coherency::NonCoherent { because: Because::NoSnoopControl }
    }

    fn take_fault(&self) -> Option<Fault> {
        self.0.borrow_mut().faults.pop()
    }
}

pub(crate) type Policy = Iommu<Recorder, 4, 2>;

pub(crate) trait QuiesceAndAttach {
    fn quiesce_and_attach(&mut self, context: ContextHandle) -> Result<(), Error>;
}

impl QuiesceAndAttach for Claim<'_, Recorder, 4, 2> {
    fn quiesce_and_attach(&mut self, context: ContextHandle) -> Result<(), Error> {
        match self.switch(context) {
            Err(Error::NotQuiesced { .. }) => {}
            switched => return switched,
        }
        let quiesced = quiesced(self)?;
        self.attach(context, quiesced)
    }
}

pub(crate) fn quiesced(claim: &Claim<'_, Recorder, 4, 2>) -> Result<QuiescedGroup, Error> {
    let limit = Duration::from_millis(1);
    claim.quiesce(&ObedientFunctions, &FakeClock::default(), Method::BusMasterOff, limit)
}

pub(crate) fn device(number: u16) -> DeviceId {
    DeviceId { segment: Segment(0), requester: RequesterId::new(number) }
}

pub(crate) fn extent() -> DmaExtent {
    memory::extent(0x7000, PAGE)
}

pub(crate) fn policy() -> Policy {
    Iommu::new(Recorder::default())
}

/// A group of these devices, granted to both VMs.
pub(crate) fn granted(iommu: &Policy, devices: &[u16]) -> GroupId {
    let devices: Vec<_> = devices.iter().map(|number| device(*number)).collect();
    let group = iommu.add_group(&devices).expect("a group");
    iommu.grant(VM, group).expect("a grant");
    iommu.grant(OTHER, group).expect("a grant");
    group
}

/// The group, owned by `VM` and attached to a new context.
pub(crate) fn attached(iommu: &Policy, group: GroupId) -> (MachineClaim<'_>, ContextHandle) {
    let context = iommu.create_context(VM, &()).expect("a context");
    let mut claim = iommu.claim(VM, group).expect("a claim");
    claim.quiesce_and_attach(context).expect("an attach");
    (claim, context)
}

pub(crate) type MachineClaim<'i> = Claim<'i, Recorder, 4, 2>;
