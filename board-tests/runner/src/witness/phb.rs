//! QEMU's log of the POWER host bridges (`-d guest_errors`): it names each access that was refused, and is
//! silent about those that were not.
//!
//! A refused access gives either a line with its address and direction, or, when the device reaches no
//! valid table at all, one without. No line names the device.

use portcullis_suite::event::{Direction, Effect, Event};

use super::{Findings, Transfer, number_after};
use crate::record::Record;

/// What a line of the log says about a device's access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    /// The entry for this address forbids it.
    At { iova: u64, direction: Direction },
    /// The device reaches no valid table.
    Anywhere,
}

/// Parts of lines about devices without a valid table.
const WITHOUT_TABLE: &[&str] = &["invalid TVE", "translated TVE", "non-translate TVE", "RTE for RID"];
/// … and of those that the bridge could not attribute or translate.
const WITHOUT_PATH: &[&str] =
    &["Failed to resolve PE#", "xlate on unsupported address", "RTT BAR disabled", "Invalid #levels"];

fn parse(line: &str) -> Option<Refusal> {
    if !line.starts_with("phb") {
        return None;
    }
    if let Some((_, rest)) = line.split_once("]:  xlate ") {
        let iova = number_after(line, "]:  xlate ", 16)?;
        let direction = if rest.contains(":W ") { Direction::Write } else { Direction::Read };
        return Some(Refusal::At { iova, direction });
    }
    let without = WITHOUT_TABLE.iter().chain(WITHOUT_PATH).any(|part| line.contains(part));
    without.then_some(Refusal::Anywhere)
}

/// Compares the events of `record` with the text of a log.
pub(super) fn examine(record: &Record, text: &str) -> Findings {
    let mut refusals: Vec<_> = text.lines().filter_map(parse).collect();
    let mut findings = Findings::default();
    let (mut landed, mut refused) = (Vec::new(), Vec::new());
    for event in record.events() {
        let Event::Dma { requester, iova, direction, effect, .. } = event else { continue };
        let transfer = Transfer { requester, iova, direction };
        match effect {
            Effect::Landed => landed.push(transfer),
            Effect::Blocked => {
                refused.push(transfer.refusal());
                blocked(&mut findings, &mut refusals, transfer);
            }
            Effect::Garbled => findings.mismatches.push(transfer.mismatch("garbled", "must not happen")),
        }
    }
    // A device may try a blocked address again and again: only where nothing was blocked does a refusal
    // speak against a landing.
    refusals.retain(|refusal| !refused.contains(refusal));
    for transfer in landed {
        if refusals.contains(&transfer.refusal()) {
            findings.mismatches.push(transfer.mismatch("it landed", "that it was refused"));
        } else {
            findings.landed += 1;
        }
    }
    findings
}

impl Transfer {
    /// The line that a bridge writes when it refuses this transfer.
    const fn refusal(self) -> Refusal {
        Refusal::At { iova: self.iova, direction: self.direction }
    }
}

fn blocked(findings: &mut Findings, refusals: &mut Vec<Refusal>, transfer: Transfer) {
    let found = [transfer.refusal(), Refusal::Anywhere]
        .into_iter()
        .find_map(|wanted| refusals.iter().position(|refusal| *refusal == wanted));
    match found {
        Some(at) => {
            refusals.remove(at);
            findings.faulted += 1;
        }
        None => findings.mismatches.push(transfer.mismatch("it was blocked", "has no refusal of it")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::record_of;

    const FAULT: &str = "phb4[0:0]: TCE access fault at 0x24000100\nphb4[0:0]:  xlate 20000:W TVE=24000205\nphb4[0:0]:  tta=24000000 lev=0 tts=5 tps=1\n";

    fn dma(direction: Direction, effect: Effect) -> Event<'static> {
        Event::Dma { requester: 0x100, iova: 0x20000, bytes: 256, direction, effect }
    }

    fn findings(events: &[Event<'_>], log: &str) -> Findings {
        examine(&record_of(events), log)
    }

    #[test]
    fn each_block_needs_a_refusal_of_its_own() {
        let blocked = dma(Direction::Write, Effect::Blocked);
        assert_eq!(findings(&[blocked], FAULT).faulted, 1);
        assert_eq!(findings(&[blocked, blocked], FAULT).mismatches.len(), 1);
        assert_eq!(findings(&[dma(Direction::Read, Effect::Blocked)], FAULT).mismatches.len(), 1);
        assert_eq!(findings(&[blocked], "phb4[0:0]: Access to invalid TVE\n").faulted, 1);
    }

    #[test]
    fn a_landing_must_not_have_been_refused() {
        let landed = dma(Direction::Write, Effect::Landed);
        assert_eq!(findings(&[landed], "").landed, 1);
        assert_eq!(findings(&[landed], FAULT).mismatches.len(), 1);
        let both = findings(&[landed, dma(Direction::Write, Effect::Blocked)], FAULT);
        assert_eq!((both.landed, both.faulted, both.mismatches.len()), (1, 1, 0));
        let again = findings(&[landed, dma(Direction::Write, Effect::Blocked)], &[FAULT, FAULT].concat());
        assert_eq!(again.mismatches, Vec::<String>::new(), "a device may try again");
    }
}
