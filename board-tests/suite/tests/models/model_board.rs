//! Boards made of models: what each is and offers, and the second judge beside the suite.

use std::panic::{AssertUnwindSafe, catch_unwind};

use portcullis_fake::{
    phb::{Hang, PhbKind, Timing},
    vtd::VtdConfig,
};
use portcullis_suite::{
    Board, Event, Requires, Scenario,
    checksum::Checksum,
    event::{DISK, Effect, decode},
    run,
};

use crate::{
    device::{Transfer, Transfers},
    machine::{Machine, Trace},
    queue_device::content,
    tce_board::{BridgeUse, TceBoard},
    vtd_board::{VtdBoard, VtdHabits},
};

/// Table pages for the first tables of the stage's own pages, and little more.
const STARVED: Option<u32> = Some(8);

/// A board that also tells what only a model can know.
pub trait ModelBoard: Board {
    fn machine(&self) -> &Machine;
    /// What software did against the manual.
    fn violations(&self) -> Vec<String>;
}

/// How to build a board.
#[derive(Clone, Copy)]
enum Build {
    Vtd { config: VtdConfig, habits: VtdHabits },
    Tce(BridgeUse),
}

/// A board by name, and what it offers to scenarios.
#[derive(Clone, Copy)]
pub struct Description {
    pub name: &'static str,
    pub offers: Requires,
    build: Build,
}

/// All model boards.
pub fn boards() -> Vec<Description> {
    let mut boards = vtd_boards();
    boards.extend(tce_boards());
    boards
}

fn vtd_boards() -> Vec<Description> {
    let common = Requires::VTD
        | Requires::FAULT_LOG
        | Requires::CONFIRMATION
        | Requires::QUEUE_DEVICE
        | Requires::DISK;
    let wide = common | Requires::WIDTH_48;
    let usual = VtdConfig::default();
    let vtd =
        |name, offers, config, habits| Description { name, offers, build: Build::Vtd { config, habits } };
    let calm = VtdHabits { slow: 0, restless: false, starved: STARVED };
    let restless = VtdHabits { restless: true, ..calm };
    let slow = VtdHabits { slow: 7, ..restless };
    let small = VtdHabits { starved: None, ..restless };
    let narrow = VtdConfig { guest_bits: 39, widths: 0b0010, ..usual };
    let plain = VtdConfig { snoop_control: false, ..usual };
    let caching = VtdConfig { caching_mode: true, ..usual };
    let early = VtdConfig {
        coherent: false,
        page_selective: None,
        snoop_control: false,
        protected_memory: true,
        ..usual
    };
    let buffering = VtdConfig { write_buffer: true, ..usual };
    vec![
        vtd("q35-snoop", wide | Requires::SNOOP_CONTROL, usual, calm),
        vtd("q35-no-snoop", wide | Requires::NO_SNOOP_CONTROL, plain, restless),
        vtd("q35-39-bit", common | Requires::WIDTH_39 | Requires::SNOOP_CONTROL, narrow, restless),
        vtd("vtd-caching-mode", wide | Requires::SNOOP_CONTROL, caching, small),
        vtd("vtd-write-buffer", wide | Requires::SNOOP_CONTROL, buffering, restless),
        vtd("vtd-early-and-slow", wide | Requires::NO_SNOOP_CONTROL, early, slow),
    ]
}

/// No queue device: a blocked transfer freezes its PE, so that it could not complete the command.
fn tce_boards() -> Vec<Description> {
    let offers = Requires::TCE | Requires::FAULT_LOG;
    let tce = |name, offers, how| Description { name, offers, build: Build::Tce(how) };
    let phb3 = BridgeUse {
        kind: PhbKind::Phb3,
        window_start: 0,
        window_bits: 31,
        levels: 2,
        timing: Timing::default(),
        starved: STARVED,
        hang: Hang::Kill,
    };
    let phb4 = BridgeUse { kind: PhbKind::Phb4, window_bits: 39, levels: 3, ..phb3 };
    let slow = Timing { slot: 20, kill: 30, sync: 50 };
    let phb5 = BridgeUse {
        kind: PhbKind::Phb5,
        window_start: 1 << 59,
        levels: 4,
        timing: slow,
        starved: None,
        hang: Hang::Sync,
        ..phb4
    };
    vec![
        tce("phb3", offers, phb3),
        tce("phb4", offers | Requires::CONFIRMATION, phb4),
        tce("phb5", offers | Requires::CONFIRMATION, phb5),
    ]
}

impl Description {
    /// Runs one scenario on a machine of its own.
    ///
    /// # Errors
    /// What was not as promised, with all that happened.
    pub fn run(&self, scenario: &Scenario) -> Result<(), String> {
        let trace = Trace::default();
        let transfers = Transfers::beside(&trace);
        let act = || match self.build {
            Build::Vtd { config, habits } => {
                act(&VtdBoard::new(config, habits, trace.clone(), &transfers), scenario)
            }
            Build::Tce(how) => act(&TceBoard::new(how, trace.clone(), &transfers), scenario),
        };
        let result = catch_unwind(AssertUnwindSafe(act)).unwrap_or_else(|_| Err("panicked".to_owned()));
        result
            .and_then(|()| judge(scenario, &trace.borrow(), &transfers.log()))
            .map_err(|why| format!("{why}\n{}", render(&trace.borrow(), &transfers.log())))
    }
}

fn act(board: &impl ModelBoard, scenario: &Scenario) -> Result<(), String> {
    let outcome = run(board, scenario.name).ok_or("the board lacks devices or buffers")?;
    outcome.map_err(|failure| format!("{failure:?}"))?;
    let violations = board.violations();
    if !violations.is_empty() {
        return Err(format!("software broke the manual: {violations:?}"));
    }
    match board.machine().damaged_pages() {
        damaged if damaged.is_empty() => Ok(()),
        damaged => Err(format!("memory that belongs to no device changed: {damaged:x?}")),
    }
}

/// The second judge: it knows what the IOMMU let pass and does not believe the suite's own verdict.
fn judge(scenario: &Scenario, trace: &[Vec<u8>], transfers: &[(usize, Transfer)]) -> Result<(), String> {
    let events: Vec<_> = trace.iter().filter_map(|bytes| decode(bytes)).collect();
    if events.len() != trace.len() {
        return Err("an event could not be decoded".to_owned());
    }
    let name = scenario.name;
    let ends = (events.first(), events.last());
    if ends != (Some(&Event::Begin { scenario: name }), Some(&Event::Passed { scenario: name })) {
        return Err("the events do not begin and end with the scenario".to_owned());
    }
    only_while_attached(&events, transfers)?;
    checksums_are_right(scenario, &events)?;
    let tried = |transfer: &Transfer| transfers.iter().any(|(_, other)| other == transfer);
    let refused = events.iter().any(|event| matches!(event, Event::Refused { .. }));
    let told = events.iter().filter_map(|event| match *event {
        Event::Dma { requester, iova, direction, effect, .. } => Some((requester, iova, direction, effect)),
        _ => None,
    });
    let mut count = 0;
    for (requester, iova, direction, effect) in told {
        let passed = Transfer { requester, iova, direction, passed: true };
        if effect == Effect::Landed && !tried(&passed) {
            return Err(format!("told as landed, but never let through: {passed:x?}"));
        }
        let blocked = Transfer { passed: false, ..passed };
        if !tried(&passed) && !tried(&blocked) {
            return Err(format!("told, but never tried: {passed:x?}"));
        }
        count += 1;
    }
    match (count, name) {
        (0, "dead_unit_times_out") if refused => Ok(()),
        (0, _) => Err("no DMA was tried: the scenario showed nothing".to_owned()),
        _ => Ok(()),
    }
}

/// What was read is what the disk holds, as often as the board says.
fn checksums_are_right(scenario: &Scenario, events: &[Event<'_>]) -> Result<(), String> {
    let content = Checksum::of(&content());
    let right = Event::Checksum { what: DISK, value: content.value(), bytes: content.bytes() };
    let mut sums = events.iter().filter(|event| matches!(event, Event::Checksum { .. })).peekable();
    if scenario.requires.contains(Requires::DISK) && sums.peek().is_none() {
        return Err("no checksum of the disk was told".to_owned());
    }
    match sums.find(|sum| **sum != right) {
        Some(wrong) => Err(format!("told {wrong:x?}, and right is {right:x?}")),
        None => Ok(()),
    }
}

/// Whatever passed, told or not, passed while its device was attached, as far as the events say.
fn only_while_attached(events: &[Event<'_>], transfers: &[(usize, Transfer)]) -> Result<(), String> {
    let mut passed = transfers.iter().filter(|(_, transfer)| transfer.passed);
    let astray = passed.find(|(told, transfer)| {
        let before = events.iter().take(*told).rev();
        !before.filter_map(|event| is_attached(event, transfer.requester)).next().unwrap_or(false)
    });
    match astray {
        Some((told, transfer)) => Err(format!("passed after {told} events, unattached: {transfer:x?}")),
        None => Ok(()),
    }
}

/// Whether an event attaches a device or ends that.
fn is_attached(event: &Event<'_>, device: u16) -> Option<bool> {
    match *event {
        Event::Attached { requester, .. } if requester == device => Some(true),
        Event::Detached { requester }
        | Event::Claimed { requester, .. }
        | Event::Released { requester, .. }
        | Event::Revoked { requester, .. }
            if requester == device =>
        {
            Some(false)
        }
        _ => None,
    }
}

fn render(trace: &[Vec<u8>], transfers: &[(usize, Transfer)]) -> String {
    let events = trace.iter().map(|bytes| format!("  {:x?}", decode(bytes)));
    let transfers = transfers.iter().map(|(told, transfer)| format!("  after {told} events: {transfer:x?}"));
    let lines = ["events:".to_owned()].into_iter().chain(events);
    lines
        .chain(["transfers as the IOMMU saw them:".to_owned()])
        .chain(transfers)
        .collect::<Vec<_>>()
        .join("\n")
}
