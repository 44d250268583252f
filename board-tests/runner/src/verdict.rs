//! What a boot has to show to count as passed.

use portcullis_suite::{Event, Requires, Scenario};

use crate::{
    board::ExitStatuses,
    disk::Compared,
    record::{End, Record},
};

/// What is wrong with a boot that should have run `scenario`; empty when nothing is. What QEMU's trace says
/// comes on top of it.
pub(crate) fn complaints(
    scenario: &str,
    record: &Record,
    end: End,
    exit: Option<ExitStatuses>,
) -> Vec<String> {
    let mut complaints = target_complaints(scenario, record);
    match end {
        End::Deadline(limit) => complaints.push(format!(
            "the board hung: it was killed at its deadline of {} s; its last lines are below",
            limit.as_secs()
        )),
        End::Exited(status) => complaints.extend(exit_complaint(status.code(), complaints.is_empty(), exit)),
    }
    complaints
}

fn target_complaints(scenario: &str, record: &Record) -> Vec<String> {
    let (mut ready, mut begun, mut passed) = (false, false, false);
    let mut complaints = Vec::new();
    for event in record.events() {
        match event {
            Event::Ready { .. } => ready = true,
            Event::Begin { scenario: name } => begun = ready && name == scenario,
            Event::Passed { scenario: name } => passed = begun && name == scenario,
            Event::Failed { what, line, .. } => complaints.push(format!("{what} (suite, line {line})")),
            Event::Crashed { what, at } => complaints.push(format!("the image crashed: {what}, at {at:#x}")),
            _ => {}
        }
    }
    if record.garbled() > 0 {
        complaints.push(format!("{} frames could not be decoded", record.garbled()));
    }
    if complaints.is_empty() && !passed {
        complaints.push(missing(ready, begun).to_owned());
    }
    complaints
}

/// What is wrong with what a board read; nothing is, unless the scenario was to read a disk.
pub(crate) fn checksum_complaints(scenario: &Scenario, checksums: &[Compared]) -> Vec<String> {
    if checksums.is_empty() && scenario.requires.contains(Requires::DISK) {
        return vec!["the scenario reported no checksum of its disk".to_owned()];
    }
    checksums.iter().filter_map(Compared::complaint).collect()
}

const fn missing(ready: bool, begun: bool) -> &'static str {
    match (ready, begun) {
        (false, _) => "the image never reported that it runs",
        (true, false) => "the scenario never began",
        (true, true) => "the scenario never ended",
    }
}

/// Without exit statuses of its own a board ends with 0; otherwise the status must say the same as the events.
fn exit_complaint(code: Option<i32>, passed: bool, exit: Option<ExitStatuses>) -> Option<String> {
    let Some(code) = code else { return Some("QEMU was killed by a signal".to_owned()) };
    let Some(exit) = exit else {
        return (code != 0).then(|| format!("QEMU ended with status {code}"));
    };
    let said = match code {
        code if code == exit.pass => "the scenario passed",
        code if code == exit.fail => "the scenario failed",
        code if code == exit.crash => "the image crashed",
        _ => return Some(format!("QEMU ended with status {code}, which no image gives")),
    };
    (passed != (code == exit.pass)).then(|| format!("by its exit status, {said}"))
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt, process::ExitStatus, time::Duration};

    use super::*;
    use crate::record::tests::record_of;

    const EXIT: Option<ExitStatuses> = Some(ExitStatuses { pass: 0x21, fail: 0x23, crash: 0x25 });
    const READY: Event<'_> = Event::Ready { iommu: "VT-d", snoop_control: Some(true), address_bits: 48 };
    const BEGIN: Event<'_> = Event::Begin { scenario: "a" };
    const PASSED: Event<'_> = Event::Passed { scenario: "a" };

    fn status(code: i32) -> End {
        End::Exited(ExitStatus::from_raw(code << 8))
    }

    #[test]
    fn events_and_status_must_agree() {
        let good = record_of(&[READY, BEGIN, PASSED]);
        assert_eq!(complaints("a", &good, status(0x21), EXIT), Vec::<String>::new());
        assert_eq!(complaints("a", &good, status(0), None), Vec::<String>::new());
        assert_eq!(complaints("a", &good, status(0x23), EXIT), ["by its exit status, the scenario failed"]);
        assert_eq!(complaints("a", &good, status(1), None), ["QEMU ended with status 1"]);
        assert!(complaints("a", &good, status(1), EXIT)[0].contains("no image"));
    }

    #[test]
    fn nothing_less_than_the_whole_story_passes() {
        let only = |events: &[Event<'_>]| complaints("a", &record_of(events), status(0), None);
        assert_eq!(only(&[]), ["the image never reported that it runs"]);
        assert_eq!(only(&[READY]), ["the scenario never began"]);
        assert_eq!(only(&[READY, BEGIN]), ["the scenario never ended"]);
        assert_eq!(only(&[READY, PASSED]), ["the scenario never began"]);
        let another = Event::Passed { scenario: "b" };
        assert_eq!(only(&[READY, BEGIN, another]), ["the scenario never ended"]);
        let failed = Event::Failed { scenario: "a", what: "leak", line: 7 };
        assert_eq!(only(&[READY, BEGIN, failed, PASSED]), ["leak (suite, line 7)"]);
    }

    #[test]
    fn a_scenario_with_a_disk_must_have_read_it() {
        let scenario = |requires| Scenario { name: "a", promises: &[], requires };
        assert_eq!(checksum_complaints(&scenario(Requires::empty()), &[]), Vec::<String>::new());
        let complaints = checksum_complaints(&scenario(Requires::DISK | Requires::VTD), &[]);
        assert_eq!(complaints, ["the scenario reported no checksum of its disk"]);
        let wrong = Compared {
            what: "disk".to_owned(),
            value: 1,
            bytes: 512,
            expected: Some(2),
            expected_bytes: Some(512),
        };
        assert_eq!(checksum_complaints(&scenario(Requires::empty()), &[wrong]).len(), 1);
    }

    #[test]
    fn a_hang_is_called_one() {
        let record = record_of(&[READY, BEGIN]);
        let all = complaints("a", &record, End::Deadline(Duration::from_secs(30)), EXIT);
        assert!(all.last().unwrap().contains("30 s"));
    }
}
