//! Contract D on the host: each rule on each port, and each rule on a hypervisor that breaks it.
#![allow(
    missing_docs,
    unreachable_pub,
    reason = "tests document themselves by their names; this is no library"
)]

mod host;
#[path = "../../../../ppc-tce/tests/machine/mod.rs"]
mod machine;
mod model;
#[path = "../models/named.rs"]
mod named;

use host::HostPort;
use libtest_mimic::{Arguments, Failed, Trial};
use model::{BREAKAGES, Breakage, Model};
use portcullis_fake::phb::PhbKind;
use portcullis_suite::hcall::{
    GuestPort, Layout, Oracle, RULES, Rule,
    hostile::{Mismatch, Plan, run_hostile},
    run_rule, scenario,
};

/// Where windows begin: where nothing is below them, and where something is.
const LAYOUTS: [(&str, Layout); 2] = [
    ("low", Layout { window: 0, memory: 0x100_0000 }),
    ("high", Layout { window: 1 << 59, memory: 0x100_0000 }),
];

/// As many hostile calls as a board makes.
const SHORT: Plan = Plan { seed: 0x5eed, calls: 10_000, anew_every: 500, check_every: 64 };
/// As many as are made once.
const LONG: Plan = Plan { seed: 0xfeed, calls: 1_000_000, anew_every: 2000, check_every: 250 };

fn main() {
    let mut trials = vec![
        Trial::test("every_rule_fails_on_some_broken_model", every_rule_can_fail),
        Trial::test("a_broken_model_does_not_survive_hostile_calls", hostile_calls_find_defects),
    ];
    for (name, layout) in LAYOUTS {
        for rule in RULES {
            trials.push(Trial::test(format!("model-{name}::{}", rule.name), move || {
                show(&mut Model::new(layout, None), rule)
            }));
        }
        trials.push(Trial::test(format!("model-{name}::hostile_calls"), move || {
            hostile(&mut Model::new(layout, None), SHORT)
        }));
    }
    let port = ports().into_iter().find(|port| port.name == "phb4-high-real").expect("that port");
    trials.push(Trial::test("a_million_hostile_calls", move || hostile(&mut port.make(), LONG)));
    trials.extend(ports().into_iter().flat_map(|port| port.trials()));
    for &(breakage, red) in BREAKAGES {
        trials.push(Trial::test(format!("broken::{breakage:?}"), move || turns_red(breakage, red)));
    }
    let arguments = named::take_named(std::env::args().collect(), &mut trials);
    libtest_mimic::run(&Arguments::from_iter(arguments), trials).exit();
}

/// A hypervisor over the model of a host bridge.
#[derive(Clone)]
struct Port {
    name: String,
    kind: PhbKind,
    layout: Layout,
    real_mode: bool,
}

/// Each bridge, with windows in both places, with real mode and without.
fn ports() -> Vec<Port> {
    let kinds = [("phb3", PhbKind::Phb3), ("phb4", PhbKind::Phb4), ("phb5", PhbKind::Phb5)];
    let mut ports = Vec::new();
    for (bridge, kind) in kinds {
        for (place, layout) in LAYOUTS {
            for (mode, real_mode) in [("real", true), ("virtual", false)] {
                ports.push(Port { name: format!("{bridge}-{place}-{mode}"), kind, layout, real_mode });
            }
        }
    }
    ports
}

/// Scenarios in which threads hold each other up.
const WITH_THREADS: [&str; 3] =
    ["hcall_two_vcpus", "hcall_revoked_while_calling", "hcall_connected_while_calling"];

impl Port {
    fn make(&self) -> HostPort {
        HostPort::new(self.kind, self.layout, self.real_mode)
    }

    /// All rules that the port can show, and what a board shows, too.
    fn trials(self) -> Vec<Trial> {
        let offers = self.make().offers();
        let mut trials = Vec::new();
        for rule in RULES.iter().filter(|rule| offers.contains(rule.needs)) {
            let port = self.clone();
            let name = format!("{}::{}", self.name, rule.name);
            trials.push(Trial::test(name, move || show(&mut port.make(), rule)));
        }
        for name in scenario::NAMES {
            let port = self.clone();
            trials.push(Trial::test(format!("{}::{name}", self.name), move || {
                let with_threads = WITH_THREADS.contains(&name);
                let make = if with_threads { HostPort::patient } else { HostPort::new };
                let mut made = make(port.kind, port.layout, port.real_mode);
                let result = scenario::run(&mut made, &mut Oracle::new(port.layout), name);
                result.expect("that scenario").map_err(|failure| format!("{failure:?}").into())
            }));
        }
        trials
    }
}

/// A port keeps a rule.
fn show(port: &mut impl GuestPort, rule: &Rule) -> Result<(), Failed> {
    if !port.offers().contains(rule.needs) {
        return Err("the port does not offer what the rule needs".into());
    }
    run_rule(port, rule).map_err(|failure| format!("{failure:?}").into())
}

fn rule(name: &str) -> &'static Rule {
    RULES.iter().find(|rule| rule.name == name).unwrap_or_else(|| panic!("no rule is called {name}"))
}

/// The rules that are meant to notice a defect do, in both layouts.
fn turns_red(breakage: Breakage, red: &[&str]) -> Result<(), Failed> {
    for (place, layout) in LAYOUTS {
        for name in red {
            if run_rule(&mut Model::new(layout, Some(breakage)), rule(name)).is_ok() {
                return Err(format!("{name} does not notice {breakage:?} ({place})").into());
            }
        }
    }
    Ok(())
}

fn every_rule_can_fail() -> Result<(), Failed> {
    let noticed = |rule: &&Rule| BREAKAGES.iter().any(|(_, red)| red.contains(&rule.name));
    let blind: Vec<_> = RULES.iter().filter(|rule| !noticed(rule)).map(|rule| rule.name).collect();
    if blind.is_empty() { Ok(()) } else { Err(format!("no defect is known that turns {blind:?} red").into()) }
}

/// Hostile calls, of which every status came and enough committed.
fn hostile(port: &mut impl GuestPort, plan: Plan) -> Result<(), Failed> {
    let mut oracle = Oracle::new(port.layout());
    let tally = run_hostile(port, &mut oracle, plan)
        .map_err(|mismatch: Mismatch| Failed::from(format!("{mismatch:x?}")))?;
    if !tally.reached_all(port.offers()) || tally.percent_committed() < 30 {
        return Err(format!("{tally:?}").into());
    }
    Ok(())
}

/// Defects that a sequence of calls can show at all.
fn hostile_calls_find_defects() -> Result<(), Failed> {
    use Breakage as B;
    let found = [
        B::IobaRounded,
        B::IobaWrapsIntoWindow,
        B::CountUnchecked,
        B::CountInWrappingBytes,
        B::LiobnOf32Bits,
        B::ForeignLiobnServed,
        B::OpcodeOf32Bits,
        B::AddressRounded,
        B::Unregistered,
        B::HalfRegistered,
        B::NoPermissionCounted,
        B::NoPermissionNeedsMemory,
        B::AddressBitsLost,
        B::RegionPagesIgnored,
        B::ListCutTo512,
        B::ListAddressRounded,
        B::ListAnywhere,
        B::CountZeroRefused,
        B::UntilTheBadEntry,
        B::BadEntryForgiven,
        B::LastEntryForgotten,
        B::ValueStripped,
        B::ValueLost,
        B::OneEntryTooMany,
        B::CapIgnored,
        B::CapEverywhere,
        B::HalfDoneWithoutPages,
        B::TriesAgainWithoutPages,
        B::UnregistersMapped,
        B::LastWriterWins,
        B::ContendedAsParameter,
        B::KillTakenForDone,
    ];
    let survives = |breakage: &B| hostile(&mut Model::new(LAYOUTS[0].1, Some(*breakage)), SHORT).is_ok();
    let survivors: Vec<_> = found.into_iter().filter(survives).collect();
    if survivors.is_empty() { Ok(()) } else { Err(format!("{survivors:?} went unnoticed").into()) }
}
