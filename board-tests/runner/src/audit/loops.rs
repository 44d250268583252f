//! Loops of a function.

use std::collections::BTreeSet;

use petgraph::{
    graph::NodeIndex,
    visit::{DfsEvent, depth_first_search},
};

use super::{
    body::{Body, Instruction},
    lines::Lines,
};

/// A loop as it was written; compiled, there may be several of it in a function.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Loop {
    /// The function that it was written in; without line tables, the linked one.
    pub(super) symbol: String,
    /// The source line of its jump back; without line tables, its place in the linked function.
    pub(super) line: String,
}

/// The loops of a function. Whichever way a cycle is walked, one of its jumps leads to an instruction that the walk
/// has not left yet. Each such jump is a loop: so no cycle escapes, however it is entered, and of two loops that
/// begin together each is found.
pub(super) fn find(body: &Body, lines: &Lines) -> BTreeSet<Loop> {
    let mut back = Vec::new();
    depth_first_search(&body.graph, Some(body.start), |event| {
        if let DfsEvent::BackEdge(from, to) = event {
            back.push((from, to));
        }
    });
    back.into_iter().filter_map(|(from, to)| written(body, lines, from, to)).collect()
}

fn written(body: &Body, lines: &Lines, from: NodeIndex, to: NodeIndex) -> Option<Loop> {
    let address = |node| body.graph.node_weight(node).map(|Instruction { address, .. }| *address);
    let (end, start) = (address(from)?, address(to)?);
    Some(match lines.written(end).or_else(|| lines.written(start)) {
        Some(place) => Loop { line: place.to_string(), symbol: place.function },
        None => Loop {
            symbol: body.function.name.clone(),
            line: format!("+{:#x}", end.checked_sub(body.function.address)?),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            elf::tests::{START, made},
            registers::Disassembler,
        },
        *,
    };

    const BLR: u32 = 0x4e80_0020;

    /// Where the jumps back are.
    fn loops(words: &[u32]) -> Vec<String> {
        let image = made(&[("f", words)], &[]);
        let function = image.entered_at(START).unwrap();
        let body = Body::follow(&image, &Disassembler::new().unwrap(), function).unwrap();
        find(&body, &Lines::none()).into_iter().map(|found| found.line).collect()
    }

    #[test]
    fn every_way_back_is_a_loop() {
        assert_eq!(loops(&[0x6000_0000, 0x4200_fffc, BLR]), ["+0x4"], "nop; bdnz .-4");
        assert_eq!(loops(&[0x6000_0000, 0x4800_0000]), ["+0x4"], "nop; b .");
        // nop; nop; bdnz .-4; bne .-12; blr: one in the other.
        assert_eq!(loops(&[0x6000_0000, 0x6000_0000, 0x4200_fffc, 0x4082_fff4, BLR]), ["+0x8", "+0xc"]);
        // nop; nop; bdnz .-8; bne .-12; blr: one in the other, beginning together.
        assert_eq!(loops(&[0x6000_0000, 0x6000_0000, 0x4200_fff8, 0x4082_fff4, BLR]), ["+0x8", "+0xc"]);
    }

    #[test]
    fn ways_forward_are_none() {
        // bne .+8; nop; bne .+8; nop; blr
        assert!(loops(&[0x4082_0008, 0x6000_0000, 0x4082_0008, 0x6000_0000, BLR]).is_empty());
        // b .+12; nop; blr; b .-8: back in memory, not in the flow.
        assert!(loops(&[0x4800_000c, 0x6000_0000, BLR, 0x4bff_fff8]).is_empty());
    }

    #[test]
    fn a_loop_with_two_entries_is_one_too() {
        // bne .+12; nop; nop; nop; bdnz .-12; blr: the second way in is in the middle.
        assert_eq!(loops(&[0x4082_000c, 0x6000_0000, 0x6000_0000, 0x6000_0000, 0x4200_fff4, BLR]).len(), 1);
    }
}
