//! Loops of a function.

use std::collections::{BTreeMap, HashSet};

use petgraph::{
    algo::dominators,
    graph::NodeIndex,
    visit::{DfsEvent, depth_first_search},
};

use super::{
    body::{Body, Graph},
    lines::Lines,
};

/// A loop: all that comes back to one instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Loop {
    /// The function it is in.
    pub(super) symbol: String,
    /// Its first instruction.
    pub(super) address: u64,
    /// The source line that its last instruction, the jump back, was written at; without line tables the
    /// place in the function.
    pub(super) line: String,
    /// It is entered at its first instruction only. Another one cannot be told from its parts, and so not be
    /// reviewed.
    pub(super) one_entry: bool,
}

/// The loops of a function, by address. Whichever way a cycle is walked, one of its jumps leads to an instruction
/// that the walk has not left yet: so none escapes.
pub(super) fn find(body: &Body, lines: &Lines) -> Vec<Loop> {
    let mut back: BTreeMap<u64, (NodeIndex, Vec<NodeIndex>)> = BTreeMap::new();
    depth_first_search(&body.graph, Some(body.start), |event| {
        if let DfsEvent::BackEdge(from, to) = event {
            back.entry(address(&body.graph, to)).or_insert_with(|| (to, Vec::new())).1.push(from);
        }
    });
    let dominators = dominators::simple_fast(&body.graph, body.start);
    let described = back.into_iter().map(|(start, (head, ends))| Loop {
        symbol: body.function.name.clone(),
        address: start,
        line: line(body, lines, start, &ends),
        one_entry: ends.iter().all(|end| {
            dominators.dominators(*end).is_some_and(|all| all.collect::<HashSet<_>>().contains(&head))
        }),
    });
    described.collect()
}

fn address(graph: &Graph, node: NodeIndex) -> u64 {
    graph.node_weight(node).map_or(0, |instruction| instruction.address)
}

fn line(body: &Body, lines: &Lines, start: u64, ends: &[NodeIndex]) -> String {
    let last = ends.iter().map(|end| address(&body.graph, *end)).max().unwrap_or(start);
    let place = lines.written(last).or_else(|| lines.written(start));
    place.map_or_else(|| format!("+{:#x}", start - body.function.address), |place| place.to_string())
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

    /// Offset and number of entries (one or not) of each loop.
    fn loops(words: &[u32]) -> Vec<(u64, bool)> {
        let image = made(&[("f", words)], &[]);
        let function = image.entered_at(START).unwrap();
        let body = Body::follow(&image, &Disassembler::new().unwrap(), function).unwrap();
        find(&body, &Lines::none()).iter().map(|found| (found.address - START, found.one_entry)).collect()
    }

    #[test]
    fn every_way_back_is_a_loop() {
        assert_eq!(loops(&[0x6000_0000, 0x4200_fffc, BLR]), [(0, true)], "nop; bdnz .-4");
        assert_eq!(loops(&[0x6000_0000, 0x4800_0000]), [(4, true)], "nop; b .");
        // nop; nop; bdnz .-4; bne .-12; blr: one in the other.
        assert_eq!(loops(&[0x6000_0000, 0x6000_0000, 0x4200_fffc, 0x4082_fff4, BLR]), [(0, true), (4, true)]);
        // nop; bne .+8; bdnz .-8; bne .-12; blr: two ways back to one beginning are one loop.
        assert_eq!(loops(&[0x6000_0000, 0x4082_0008, 0x4200_fff8, 0x4082_fff4, BLR]), [(0, true)]);
    }

    #[test]
    fn ways_forward_are_none() {
        // bne .+8; nop; bne .+8; nop; blr
        assert_eq!(loops(&[0x4082_0008, 0x6000_0000, 0x4082_0008, 0x6000_0000, BLR]), []);
        // b .+12; nop; blr; b .-8: back in memory, not in the flow.
        assert_eq!(loops(&[0x4800_000c, 0x6000_0000, BLR, 0x4bff_fff8]), []);
    }

    #[test]
    fn a_loop_with_two_entries_is_told() {
        // bne .+12; nop; nop; nop; bdnz .-8; … the second way in is in the middle.
        let found = loops(&[0x4082_000c, 0x6000_0000, 0x6000_0000, 0x6000_0000, 0x4200_fff4, BLR]);
        assert_eq!(found.len(), 1);
        assert!(!found[0].1, "{found:?}");
    }
}
