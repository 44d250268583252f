//! The rules of contract D, in parts that each fit a boot.

use portcullis_hypervisor::power::guest::Guest;
use portcullis_suite::{
    Event, Failure,
    hcall::{GuestPort, RULES, Rule, Topic, run_rule},
};

use super::{in_virtual_mode, with_port};
use crate::{board::PowerNv, port::BoardPort};

/// Every rule about `topic`, in real mode first.
pub(super) fn rules(board: &PowerNv<'_>, guest: Guest, topic: Topic) -> Result<(), Failure> {
    with_port(board, guest, true, |port| run(port, topic))
}

/// The same with the full context alone.
pub(super) fn rules_in_virtual_mode(board: &PowerNv<'_>, guest: Guest, topic: Topic) -> Result<(), Failure> {
    in_virtual_mode(board, guest, |board, guest| with_port(board, guest, false, |port| run(port, topic)))
}

/// Every rule about `topic` that the board can show.
fn run(port: &mut BoardPort<'_, '_, '_>, topic: Topic) -> Result<(), Failure> {
    let offers = port.offers();
    let is_shown = |rule: &&Rule| rule.topic() == topic && offers.contains(rule.needs);
    for rule in RULES.iter().filter(is_shown) {
        port.emit(&Event::Step { text: rule.name });
        run_rule(port, rule)?;
    }
    let finished = port.finished();
    port.emit(&Event::Measured {
        what: "calls that real mode finished",
        value: finished.real,
        unit: "calls",
    });
    port.emit(&Event::Measured {
        what: "calls that the full context finished",
        value: finished.handed_over,
        unit: "calls",
    });
    Ok(())
}
