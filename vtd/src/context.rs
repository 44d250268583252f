//! Contexts: what they shall be like, what they are, and how a group gets into one.

use heapless::Vec;
use portcullis_hal::{DeviceId, RequesterId, page_pool::PageRun};
use portcullis_iommu::{Because, Coherency as Verdict, driver::MAX_MEMBERS};

use crate::{placement::UnitSet, second_stage::SecondStage, snoop::Coherency, spec::entries::ContextEntry};

/// What a new context shall be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContextSpec {
    /// Bits of I/O virtual address; the shallowest table that all its units have and that covers them is
    /// used.
    pub address_bits: u8,
    /// Whose word counts on cache coherency.
    pub coherency: Coherency,
    /// Most table pages that the context may take, the root included; `None` for as many as there are.
    pub page_limit: Option<u32>,
    /// The units behind which its devices may be: tables are what all of these can do. A device behind
    /// another unit is refused as [`NotBehindUnit`](portcullis_iommu::Error::NotBehindUnit), behind one
    /// without snoop control where it is enforced as
    /// [`NoSnoopControl`](portcullis_iommu::Error::NoSnoopControl). Units that are quarantined, and with [`Coherency::Enforced`] those without snoop control, are left out.
    pub units: UnitSet,
}

impl ContextSpec {
    /// A context for devices behind any unit, coherent if all units can make it so, with as many table
    /// pages as there are.
    #[must_use]
    pub const fn new(address_bits: u8) -> Self {
        Self { address_bits, coherency: Coherency::IfPossible, page_limit: None, units: UnitSet::ALL }
    }
}

/// Tables of one context, and the domain ID that the units tag its translations with.
#[derive(Debug)]
pub struct VtdContext {
    pub(crate) tables: SecondStage,
    pub(crate) domain: u16,
    /// Where its devices may be.
    pub(crate) units: UnitSet,
    pub(crate) needs: Needs,
}

/// What a context needs because at least one of its units is so.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Needs {
    /// A unit does not snoop its walks (ECAP.C = 0).
    pub(crate) write_back: bool,
    /// A unit wants to hear of new mappings (CAP.CM, CAP.RWBF).
    pub(crate) news: bool,
    /// Why it is not coherent while nothing is enforced.
    pub(crate) because: Because,
}

impl VtdContext {
    /// The tables: to look at, not to change.
    pub const fn tables(&self) -> &SecondStage {
        &self.tables
    }

    pub(crate) fn verdict(&self) -> Verdict {
        if self.tables.is_coherent() {
            return Verdict::Coherent;
        }
        Verdict::NonCoherent { because: self.needs.because }
    }

    /// The entry that sends a device through the tables.
    pub(crate) const fn entry(&self) -> ContextEntry {
        ContextEntry::new(self.tables.root(), self.tables.format().levels, self.domain)
    }
}

/// A device and the place of its unit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Member {
    pub(crate) device: DeviceId,
    pub(crate) unit: usize,
}

/// The members of a group, or those of them that are behind a unit.
#[derive(Debug)]
pub(crate) struct Members(pub(crate) Vec<Member, MAX_MEMBERS>);

impl Members {
    /// Their units.
    pub(crate) fn units(&self) -> UnitSet {
        self.0.iter().fold(UnitSet::NONE, |units, member| units.with(member.unit))
    }

    /// Those behind the unit at a place.
    pub(crate) fn behind(&self, unit: usize) -> impl Iterator<Item = RequesterId> {
        self.0.iter().filter(move |member| member.unit == unit).map(|member| member.device.requester)
    }
}

/// A context table for a bus, behind the unit at a place.
#[derive(Debug)]
pub(crate) struct BusPage {
    pub(crate) unit: usize,
    pub(crate) bus: u8,
    pub(crate) page: PageRun,
}

/// A switch for which everything that could be missing was reserved.
///
/// Dropping one keeps its pages out of the pool, and its context on the units of its members.
#[derive(Debug)]
#[must_use = "commit it"]
pub struct VtdPrepared {
    pub(crate) members: Members,
    pub(crate) target: Option<ContextEntry>,
    pub(crate) context_tables: Vec<BusPage, MAX_MEMBERS>,
}
