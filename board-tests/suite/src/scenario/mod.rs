//! The scenarios: what they need, which promises they show, and how to run one by name.

mod attach;
mod coherency;
mod disk;
mod handover;
mod hardware;
mod host;
mod isolation;
mod mapping;
mod notice;
mod registered;
mod revocation;
mod rogue;
pub mod stage;
mod transfer;
pub mod watch;
mod words;

use bitflags::bitflags;
use portcullis_iommu::Error;

use crate::{
    board::{Board, DmaError},
    event::Event,
};

bitflags! {
    /// What a scenario needs of the board; a board's description says what it offers.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Requires: u32 {
        /// VT-d.
        const VTD = 1;
        /// TCE tables.
        const TCE = 1 << 1;
        /// Units with snoop control.
        const SNOOP_CONTROL = 1 << 2;
        /// Units without snoop control, which check that SNP is clear.
        const NO_SNOOP_CONTROL = 1 << 3;
        /// The IOMMU reports blocked transactions to software.
        const FAULT_LOG = 1 << 4;
        /// Contexts of 48 bits.
        const WIDTH_48 = 1 << 5;
        /// Contexts of 39 bits, and devices that can put more on the bus.
        const WIDTH_39 = 1 << 6;
        /// A third device, which keeps its command queues in memory, as an NVMe controller.
        const QUEUE_DEVICE = 1 << 7;
        /// The IOMMU confirms invalidations, so that a lost one is noticed; PHB3 does not.
        const CONFIRMATION = 1 << 8;
        /// The image can run guests, on two CPUs.
        const GUEST = 1 << 9;
        /// The hypervisor can turn on address translation: POWER9 and later.
        const RADIX = 1 << 10;
        /// The third device is a disk, and the host knows what it holds.
        const DISK = 1 << 11;
        /// The image can have a second CPU work for it.
        const SECOND_CPU = 1 << 12;
        /// The image can run guests by AMD's SVM, with nested paging.
        const SVM = 1 << 13;
    }
}

/// What is known of a scenario without a board.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Its name: lower case, words joined by underscores.
    pub name: &'static str,
    /// Ids of the promises that it shows.
    pub promises: &'static [&'static str],
    /// What it needs.
    pub requires: Requires,
}

/// Why a scenario failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What was not as promised.
    pub what: &'static str,
    /// The error behind it, if a call failed.
    pub error: Option<Error>,
    /// Line in the suite.
    pub line: u32,
}

impl From<Error> for Failure {
    #[track_caller]
    fn from(error: Error) -> Self {
        let line = core::panic::Location::caller().line();
        Self { what: words::describe(error), error: Some(error), line }
    }
}

impl From<DmaError> for Failure {
    #[track_caller]
    fn from(_: DmaError) -> Self {
        let line = core::panic::Location::caller().line();
        Self { what: "the device did not end its transfer", error: None, line }
    }
}

macro_rules! catalogue {
    ($($module:ident :: $name:ident shows [$($promise:literal),+] needs $requires:expr;)+) => {
        /// All scenarios, whatever board they need.
        pub const SCENARIOS: &[Scenario] = &[$(
            Scenario { name: stringify!($name), promises: &[$($promise),+], requires: $requires },
        )+];

        fn act<B: Board>(board: &B, name: &str) -> Option<Result<(), Failure>> {
            match name {
                $(stringify!($name) => Some($module::$name(&stage::Stage::new(board)?)),)+
                _ => None,
            }
        }
    };
}

const ANY: Requires = Requires::empty();

catalogue! {
    mapping::scattered_maps shows ["S01"] needs ANY;
    mapping::read_only_page shows ["S02"] needs ANY;
    mapping::write_only_page shows ["S03"] needs ANY;
    mapping::large_page shows ["S04"] needs Requires::VTD;
    mapping::unmap_then_dma shows ["S05"] needs ANY;
    mapping::exhaustion_leaves_nothing_half_done shows ["S06"] needs ANY;
    mapping::width_39 shows ["S07"] needs Requires::VTD.union(Requires::WIDTH_39);
    mapping::width_48 shows ["S07"] needs Requires::VTD.union(Requires::WIDTH_48);
    isolation::unmapped_is_blocked shows ["S08"] needs ANY;
    isolation::hypervisor_image_is_blocked shows ["S09"] needs ANY;
    isolation::blocked_dma_is_reported shows ["S10"] needs Requires::FAULT_LOG;
    isolation::claim_needs_a_grant shows ["S11"] needs ANY;
    isolation::two_contexts_are_separate shows ["S12"] needs ANY;
    isolation::context_switch shows ["S13"] needs ANY;
    isolation::released_device_is_blocked shows ["S14"] needs ANY;
    coherency::snoop_on_every_leaf shows ["S15"] needs Requires::SNOOP_CONTROL;
    coherency::snoop_refused_after_mappings shows ["S16"] needs Requires::SNOOP_CONTROL;
    coherency::snoop_refused_without_control shows ["S17"] needs Requires::NO_SNOOP_CONTROL;
    isolation::queues_and_data_are_translated shows ["S20"] needs Requires::QUEUE_DEVICE;
    handover::hand_over shows ["S21"] needs ANY;
    handover::attach_needs_a_fresh_proof shows ["S22"] needs ANY;
    revocation::revoked_device_is_blocked shows ["S23"] needs ANY;
    revocation::death_of_a_vm shows ["S24"] needs ANY;
    registered::registered_memory shows ["S25"] needs ANY;
    host::host_drivers_and_guests_exclude_each_other shows ["S26"] needs ANY;
    notice::notice_without_snoop_control shows ["S27"] needs Requires::NO_SNOOP_CONTROL;
    notice::notice_with_snoop_control shows ["S27"] needs Requires::SNOOP_CONTROL;
    notice::notice_on_a_coherent_bus shows ["S27"] needs Requires::TCE;
    hardware::dead_unit_times_out shows ["S18"] needs Requires::CONFIRMATION;
    hardware::lost_invalidation_quarantines shows ["S19"] needs Requires::CONFIRMATION;
    rogue::rogue_is_blamed_and_quarantined shows ["A21", "A22", "S30"] needs Requires::FAULT_LOG;
    disk::disk_is_read_through_tables shows ["S28"] needs Requires::DISK.union(Requires::FAULT_LOG);
    disk::throughput shows ["S29"] needs Requires::DISK.union(Requires::VTD);
}

/// Runs the scenario with this name and emits how it went; `None` when there is none, or when the board
/// lacks devices or buffers.
pub fn run<B: Board>(board: &B, name: &str) -> Option<Result<(), Failure>> {
    let scenario = SCENARIOS.iter().find(|scenario| scenario.name == name)?.name;
    board.emit(&Event::Begin { scenario });
    let result = act(board, scenario)?;
    match result {
        Ok(()) => board.emit(&Event::Passed { scenario }),
        Err(Failure { what, line, .. }) => board.emit(&Event::Failed { scenario, what, line }),
    }
    Some(result)
}
