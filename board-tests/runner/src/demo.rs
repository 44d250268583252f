//! `cargo boards demo`: both machines, live, in words.

use std::path::PathBuf;

use clap::Args;
use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use portcullis_suite::event::{self, Effect, Event};

use crate::{
    board::{self, Variant, WitnessKind},
    case::{self, Case, Ended},
    console::Said,
    disk::Compared,
    error::Error,
    image::{self, ReadyBoard},
    install,
    mappings::Mappings,
    progress::{Screen, heading, seconds, toned},
    project::Project,
    promises::Promises,
    witness::Findings,
    words::{self, Tone},
};

/// What is shown.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// The boards to show; may be given several times
    #[arg(long, short, value_name = "NAME", default_values_t = ["q35".to_owned(), "powernv9".to_owned()])]
    board: Vec<String>,
    /// Also show the boards' log messages and the firmware's text
    #[arg(long, short)]
    verbose: bool,
    /// Folder with the qemu-system-* programs to use, instead of PATH
    #[arg(long, value_name = "DIR")]
    qemu: Option<PathBuf>,
}

/// The scenarios that tell the story; a machine shows those that it has everything for.
const STORY: &[&str] = &[
    "scattered_maps",
    "read_only_page",
    "unmapped_is_blocked",
    "hypervisor_image_is_blocked",
    "unmap_then_dma",
    "two_contexts_are_separate",
    "context_switch",
    "released_device_is_blocked",
    "hand_over",
    "revoked_device_is_blocked",
    "snoop_on_every_leaf",
    "snoop_refused_without_control",
    "lost_invalidation_quarantines",
    "svm_guest_reads_its_disk",
    "svm_guest_rogue_dma",
    "svm_wbinvd_by_notice",
    "svm_handover_under_dma",
    "svm_guest_dies_under_dma",
    "hcall_driver",
    "hcall_hostile_guest",
];

/// Those that are another story on a machine without snoop control.
const TOLD_OF_EACH_COHERENCY: &[&str] = &["svm_wbinvd_by_notice"];

/// What the lines of the story are about.
const LEGEND: &str = "
Each scenario boots a machine of its own. Its image plays the hypervisor: it maps buffers for test devices,
lets them copy, and judges by the bytes in memory what landed. `edu` is a device of QEMU that copies on
request, from and to a buffer inside it. That buffer is filled from IOVA 0x1000 and emptied to IOVA 0x2000,
so every context maps these two. `witness` compares what the image says with what QEMU itself wrote down.
The last scenarios are those of guests. On q35 one reads its disk by DMA, all of it, and one aims its device at the
hypervisor; what a guest's WBINVD does is decided by whose DMA can go past the caches; and a device changes hands, and
its guest dies, while it copies. On POWER a guest maps for itself, by hypercalls from HV = 0: one as a driver does, one that means harm.";

/// Installs what is missing, builds, boots, shows; `true` when all went as expected.
pub(crate) fn run(project: &Project, options: &Options) -> Result<bool, Error> {
    let boards = board::load_all(&project.boards())?;
    let ignored = board::load_ignored(&project.boards(), &boards)?;
    let boards = board::select(boards, &options.board)?;
    install::ensure(&boards, options.qemu.is_some())?;
    let mut ready = Vec::new();
    for board in &boards {
        println!("building {} for {}", board.package, board.target);
        ready.push(image::prepare(project, board.clone(), options.qemu.as_deref())?);
    }
    println!("{LEGEND}");
    let promises = Promises::load(project)?;
    let all = case::all(&boards, &ignored);
    let cases: Vec<_> = all.iter().filter(|case| case.ignored.is_none() && is_in_story(case)).collect();
    let mut rows = Vec::new();
    let screen = Screen::steps(cases.len());
    for ready in &ready {
        for variant in &ready.board.variants {
            let story: Vec<_> = cases.iter().filter(|case| is_on(case, ready, variant)).collect();
            if story.is_empty() {
                continue;
            }
            screen.line(&format!("\n{}", heading(&title(ready, variant))));
            for (number, case) in story.into_iter().enumerate() {
                screen.now(&case.name());
                let (introduce, verbose) = (number == 0, options.verbose);
                let teller = Teller { screen: &screen, promises: &promises, introduce, verbose };
                rows.push((case.name(), teller.show(case, ready)?));
                screen.step();
            }
        }
    }
    drop(screen);
    Ok(conclude(&rows))
}

fn title(ready: &ReadyBoard, variant: &Variant) -> String {
    format!("{}: {}, {}", ready.board.name, ready.board.about, variant.about)
}

/// Variants after the first show only what the first cannot, or what is another story there.
fn is_in_story(case: &Case<'_>) -> bool {
    let Some(first) = case.board.variants.first() else { return false };
    let name = case.scenario.name;
    let is_first = first.name == case.variant.name;
    let differs = TOLD_OF_EACH_COHERENCY.contains(&name) && case.variant.snoops() != first.snoops();
    STORY.contains(&name) && (is_first || differs || !first.runs(case.scenario))
}

fn is_on(case: &Case<'_>, ready: &ReadyBoard, variant: &Variant) -> bool {
    case.board.name == ready.board.name && case.variant.name == variant.name
}

/// Tells of one case as it runs.
struct Teller<'s> {
    screen: &'s Screen,
    promises: &'s Promises,
    /// Whether the machine is described: once is enough.
    introduce: bool,
    verbose: bool,
}

impl Teller<'_> {
    fn show(&self, case: &Case<'_>, ready: &ReadyBoard) -> Result<Ended, Error> {
        self.screen.line(&toned(Tone::Plain, &format!("  {}", case.scenario.name)));
        for promise in self.promises.of(case.scenario.promises) {
            self.screen.line(&format!("  {promise}"));
        }
        let mut mappings = Mappings::default();
        let ended = case::run(case, ready, |said| match said {
            Said::Event(bytes) => {
                if let Some(event) = event::decode(bytes) {
                    mappings.follow(&event);
                    self.event(&event, &mappings);
                }
            }
            Said::Log(text) | Said::Text(text) if self.verbose => self.screen.line(&format!("      {text}")),
            _ => {}
        })?;
        self.witness(case.board.witness, &ended);
        Ok(ended)
    }

    fn event(&self, event: &Event<'_>, mappings: &Mappings) {
        let is_known = !self.introduce && matches!(event, Event::Ready { .. } | Event::Device { .. });
        if is_known || matches!(event, Event::Begin { .. }) {
            return;
        }
        let (tone, text) = words::line(event);
        let why = match *event {
            Event::Dma { requester, iova, direction, effect: Effect::Blocked, .. } => mappings
                .obstacle(requester, iova, direction)
                .map(|why| format!(": {why}"))
                .unwrap_or_default(),
            _ => String::new(),
        };
        self.screen.line(&format!("    {}", toned(tone, &format!("{text}{why}"))));
    }

    fn witness(&self, witness: WitnessKind, ended: &Ended) {
        let findings = &ended.findings;
        if ended.passed() {
            let text = agreement(witness, findings);
            self.screen.line(&format!("    {}", toned(Tone::Good, &text)));
            for sum in &ended.checksums {
                self.screen.line(&format!("    {}", toned(Tone::Good, &same_sum(sum))));
            }
        }
        for line in ended.details() {
            self.screen.line(&format!("    {}", toned(Tone::Bad, &line)));
        }
    }
}

/// What QEMU's own account adds. The bridges' log is silent about what it lets through.
fn agreement(witness: WitnessKind, Findings { landed, faulted, .. }: &Findings) -> String {
    match witness {
        WitnessKind::VtdTrace => format!("witness   QEMU's trace agrees: {landed} landed, {faulted} refused"),
        WitnessKind::PhbErrors => {
            format!("witness   QEMU's log agrees: it refused {faulted}, and none of the {landed} that landed")
        }
    }
}

/// What the host adds to a checksum that a case passed with.
fn same_sum(Compared { what, value, .. }: &Compared) -> String {
    format!("witness   the file behind the {what} has the same checksum, {value:#010x}")
}

/// Prints the summary; `true` when all passed and there was something.
fn conclude(rows: &[(String, Ended)]) -> bool {
    println!("\n{}", summary(rows));
    let passed = rows.iter().filter(|(_, ended)| ended.passed()).count();
    println!("{passed} of {} scenarios as expected", rows.len());
    passed == rows.len() && !rows.is_empty()
}

fn summary(rows: &[(String, Ended)]) -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED);
    table.set_header(["scenario", "DMA landed", "DMA blocked", "confirmed by QEMU", "time", "verdict"]);
    for (name, ended) in rows {
        let (landed, blocked) = transfers(ended);
        table.add_row([
            name.clone(),
            landed.to_string(),
            blocked.to_string(),
            format!("{} of {}", ended.findings.confirmed(), landed + blocked),
            seconds(ended.time),
            if ended.passed() { "as expected" } else { "FAILED" }.to_owned(),
        ]);
    }
    table
}

/// How many transfers landed, and how many did not.
fn transfers(ended: &Ended) -> (usize, usize) {
    let effects = || {
        ended.record.events().filter_map(|event| match event {
            Event::Dma { effect, .. } => Some(effect),
            _ => None,
        })
    };
    let landed = effects().filter(|effect| *effect == Effect::Landed).count();
    (landed, effects().count() - landed)
}

#[cfg(test)]
mod tests {
    use crate::catalogue;

    use super::*;
    use crate::record::tests::record_of;

    #[test]
    fn the_story_is_made_of_scenarios() {
        for name in STORY.iter().chain(TOLD_OF_EACH_COHERENCY) {
            assert!(catalogue::scenarios().any(|scenario| scenario.name == *name), "{name}");
        }
    }

    #[test]
    fn the_summary_counts_transfers_and_an_empty_demo_is_no_success() {
        let dma = |effect| Event::Dma {
            requester: 8,
            iova: 0,
            bytes: 1,
            direction: event::Direction::Read,
            effect,
        };
        let ended = Ended {
            record: record_of(&[dma(Effect::Landed), dma(Effect::Blocked)]),
            findings: Findings { landed: 1, ..Findings::default() },
            checksums: Vec::new(),
            complaints: vec!["no".to_owned()],
            time: std::time::Duration::ZERO,
        };
        assert_eq!(transfers(&ended), (1, 1));
        let rows = [("q35/snoop/x".to_owned(), ended)];
        let text = summary(&rows).to_string();
        assert!(text.contains("1 of 2") && text.contains("FAILED"));
        assert!(!conclude(&rows) && !conclude(&[]));
    }
}
