//! QEMU's `vtd_*` trace: each leaf entry that the unit used and each fault, in order.
//!
//! A transfer appears as lines for the address at which it starts and, when it is blocked, for each bus
//! access after that. Lines and events have the same order, so each event is looked for behind the one before.

use portcullis_suite::event::{Direction, Effect, Event};

use super::{Findings, Transfer, number_after};
use crate::{mappings::Mappings, record::Record, words};

/// What a line of the trace says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// The unit used a leaf entry.
    Leaf { entry: u64 },
    /// It refused the access.
    Fault { write: bool },
}

/// A line of the trace about a device's access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Access {
    requester: u16,
    iova: u64,
    seen: Seen,
}

/// In a leaf entry: read and write permission.
const LEAF_READ: u64 = 1;
const LEAF_WRITE: u64 = 1 << 1;
/// In a leaf entry: the page's address, up to 52 bits.
const LEAF_ADDRESS: u64 = 0x000f_ffff_ffff_f000;

fn parse(line: &str) -> Option<Access> {
    let requester = u16::try_from(number_after(line, " sid ", 16)?).ok()?;
    if line.contains("vtd_dmar_fault ") {
        let write = number_after(line, " write ", 10)? != 0;
        return Some(Access {
            requester,
            iova: number_after(line, " addr ", 16)?,
            seen: Seen::Fault { write },
        });
    }
    if line.contains("vtd_iotlb_page_hit ") || line.contains("vtd_iotlb_page_update ") {
        // Newer versions write `pte` for `slpte`.
        let entry = number_after(line, "pte ", 16)?;
        return Some(Access {
            requester,
            iova: number_after(line, " iova ", 16)?,
            seen: Seen::Leaf { entry },
        });
    }
    None
}

/// Compares the events of `record` with the text of a trace.
pub(super) fn examine(record: &Record, text: &str) -> Findings {
    let accesses: Vec<_> = text.lines().filter_map(parse).collect();
    let mut rest = accesses.as_slice();
    let mut findings = Findings::default();
    let mut mappings = Mappings::default();
    for event in record.events() {
        mappings.follow(&event);
        match event {
            Event::Dma { requester, iova, direction, effect, .. } => {
                let transfer = Transfer { requester, iova, direction };
                let seen = take(&mut rest, transfer);
                check(&mut findings, &mappings, transfer, effect, seen);
            }
            Event::Fault { requester, iova: Some(page), .. } => {
                let same = |access: &Access| access.requester == requester && access.iova & !0xfff == page;
                if !accesses.iter().any(|access| same(access) && matches!(access.seen, Seen::Fault { .. })) {
                    let device = words::requester(requester);
                    findings.mismatches.push(format!(
                        "{device} {page:#x}: the target reports a fault that QEMU's trace does not have"
                    ));
                }
            }
            _ => {}
        }
    }
    findings
}

/// The next line about the start of this transfer, which is taken together with all before it.
fn take(rest: &mut &[Access], transfer: Transfer) -> Option<Seen> {
    let start = |access: &Access| {
        let other_way = access.seen == Seen::Fault { write: transfer.direction == Direction::Read };
        access.requester == transfer.requester && access.iova == transfer.iova && !other_way
    };
    let at = rest.iter().position(start)?;
    let (taken, behind) = rest.split_at(at + 1);
    *rest = behind;
    taken.last().map(|access| access.seen)
}

fn check(
    findings: &mut Findings,
    mappings: &Mappings,
    transfer: Transfer,
    effect: Effect,
    seen: Option<Seen>,
) {
    let needed = if transfer.direction == Direction::Read { LEAF_READ } else { LEAF_WRITE };
    let allowed = |entry: u64| entry & needed != 0;
    match (effect, seen) {
        (Effect::Landed, Some(Seen::Leaf { entry })) if allowed(entry) => {
            let (used, mapped) = (entry & LEAF_ADDRESS, mappings.phys(transfer.requester, transfer.iova));
            if mapped.is_some_and(|phys| lies_in(phys, used)) {
                findings.landed += 1;
            } else {
                let mapped = mapped.map_or("no mapping".to_owned(), |phys| format!("a mapping to {phys:#x}"));
                findings.mismatches.push(transfer.mismatch(&mapped, &format!("a page at {used:#x}")));
            }
        }
        (Effect::Blocked, Some(Seen::Fault { .. })) => findings.faulted += 1,
        (Effect::Blocked, Some(Seen::Leaf { entry })) if !allowed(entry) => findings.faulted += 1,
        (Effect::Blocked, None) => findings.absent += 1,
        (effect, seen) => {
            let seen = match seen {
                Some(Seen::Leaf { entry }) => format!("that entry {entry:#x} was used"),
                Some(Seen::Fault { .. }) => "that it was refused".to_owned(),
                None => "has no translation of it".to_owned(),
            };
            findings.mismatches.push(transfer.mismatch(words::effect(effect), &seen));
        }
    }
}

/// Whether `phys` lies in the page of a leaf; large pages have their address bits below 2 MiB clear.
fn lies_in(phys: u64, page: u64) -> bool {
    phys & LEAF_ADDRESS == page || (page & 0x1f_ffff == 0 && phys & !0x1f_ffff == page)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::record_of;

    const ATTACHED: Event<'_> = Event::Attached { requester: 8, context: 1 };
    const MAPPED: Event<'_> =
        Event::Mapped { context: 1, iova: 0x40000, phys: 0x603000, bytes: 4096, access: 1 };
    const LOADED: &str =
        "vtd_iotlb_page_update IOTLB page update sid 0x8 iova 0x1000 slpte 0x60f001 domain 0x1\n";
    const READ: &str =
        "vtd_iotlb_page_update IOTLB page update sid 0x8 iova 0x40000 slpte 0x603001 domain 0x1\n";
    const HIT: &str = "vtd_iotlb_page_hit IOTLB page hit sid 0x8 iova 0x40000 pte 0x603001 domain 0x1\n";
    const FAULT: &str = "vtd_dmar_fault sid 0x8 fault 5 addr 0x40000 write 1\nvtd_dmar_fault sid 0x8 fault 5 addr 0x40004 write 1\n";

    fn dma(direction: Direction, effect: Effect) -> Event<'static> {
        Event::Dma { requester: 8, iova: 0x40000, bytes: 256, direction, effect }
    }

    fn findings(dmas: &[Event<'_>], trace: &[&str]) -> Findings {
        let events: Vec<_> = [ATTACHED, MAPPED].iter().chain(dmas).copied().collect();
        examine(&record_of(&events), &trace.concat())
    }

    #[test]
    fn agreement_is_counted() {
        let landed = dma(Direction::Read, Effect::Landed);
        let blocked = dma(Direction::Write, Effect::Blocked);
        let seen = findings(&[landed, blocked, blocked], &[LOADED, READ, LOADED, FAULT, HIT]);
        let agreed = Findings { landed: 1, faulted: 2, ..Findings::default() };
        assert_eq!(seen, agreed, "a read-only entry that was cached refuses writing too");
        let absent = findings(&[blocked], &[LOADED]);
        assert_eq!((absent.absent, absent.mismatches.len()), (1, 0));
    }

    #[test]
    fn a_claimed_landing_needs_a_translation_to_that_page() {
        let landed = dma(Direction::Read, Effect::Landed);
        assert!(findings(&[landed], &[LOADED]).mismatches[0].contains("no translation"));
        assert!(
            findings(&[dma(Direction::Write, Effect::Landed)], &[FAULT]).mismatches[0].contains("refused")
        );
        let elsewhere = READ.replace("603001", "604001");
        assert!(findings(&[landed], &[&elsewhere]).mismatches[0].contains("0x604000"));
        assert_eq!(findings(&[landed, landed], &[READ]).mismatches.len(), 1, "one line shows one transfer");
    }

    #[test]
    fn a_claimed_block_needs_no_permission_in_the_entry_used() {
        let blocked = dma(Direction::Read, Effect::Blocked);
        assert!(findings(&[blocked], &[READ]).mismatches[0].contains("was used"));
        let garbled = dma(Direction::Read, Effect::Garbled);
        assert_eq!(findings(&[garbled], &[READ]).mismatches.len(), 1);
    }

    #[test]
    fn an_invented_fault_is_noticed() {
        let fault =
            Event::Fault { requester: 8, iova: Some(0x50000), direction: Direction::Read, reason: "x" };
        assert_eq!(findings(&[fault], &[FAULT]).mismatches.len(), 1);
    }

    #[test]
    fn large_pages_reach_further() {
        assert!(lies_in(0x0a0_3456, 0x0a0_0000) && lies_in(0xb000, 0xb000));
        assert!(!lies_in(0xc000, 0xb000) && !lies_in(0x0c0_0000, 0x0a0_0000));
    }
}
