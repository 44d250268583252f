//! How much stack a function needs.

use std::collections::HashMap;

use petgraph::graph::NodeIndex;

use super::{
    body::Body,
    decode::{self, StackChange},
    finding::{Kind, Objection},
};

/// Bytes of stack below what r1 was when the function was entered.
#[derive(Debug, Default)]
pub(super) struct Stack {
    /// The most, with data below r1.
    pub(super) frame: u64,
    /// Before each instruction.
    depths: HashMap<NodeIndex, u64>,
    /// Why it cannot be told.
    pub(super) objections: Vec<Objection>,
}

impl Stack {
    /// Follows r1 through the function.
    pub(super) fn measure(body: &Body) -> Self {
        let mut stack = Self::default();
        stack.depths.insert(body.start, 0);
        let mut todo = vec![body.start];
        while let Some(node) = todo.pop() {
            let Some(after) = stack.step(body, node) else { continue };
            for next in body.graph.neighbors(node) {
                match stack.depths.get(&next) {
                    None => {
                        stack.depths.insert(next, after);
                        todo.push(next);
                    }
                    Some(known) if *known == after => {}
                    Some(known) => {
                        let what = format!("is reached with {known} and with {after} bytes of stack");
                        stack.object(body, next, &what);
                    }
                }
            }
        }
        stack.objections.sort_by_key(|objection| objection.address);
        stack.objections.dedup();
        stack
    }

    /// The depth before the instruction at `node`.
    pub(super) fn depth_at(&self, node: NodeIndex) -> u64 {
        self.depths.get(&node).copied().unwrap_or_default()
    }

    /// The depth after the instruction; `None` if it cannot be told.
    fn step(&mut self, body: &Body, node: NodeIndex) -> Option<u64> {
        let instruction = body.graph.node_weight(node)?;
        let before = self.depth_at(node);
        let after = match decode::stack_change(instruction.word) {
            StackChange::Push(bytes) => Some(before.saturating_add(bytes)),
            StackChange::Pop(bytes) => before.checked_sub(bytes),
            StackChange::None if instruction.sets_stack => None,
            StackChange::None => {
                let below = decode::below_stack(instruction.word);
                self.frame = self.frame.max(before.saturating_add(below));
                Some(before)
            }
        };
        match after {
            Some(after) => self.frame = self.frame.max(after),
            None => self.object(body, node, "sets r1 in a way that cannot be followed"),
        }
        after
    }

    fn object(&mut self, body: &Body, node: NodeIndex, what: &str) {
        let Some(instruction) = body.graph.node_weight(node) else { return };
        let what = format!("`{}` {what}", instruction.text);
        self.objections.push(Objection { kind: Kind::Stack, address: instruction.address, what });
    }
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
    const PUSH_112: u32 = 0xf821_ff91;
    const POP_112: u32 = 0x3821_0070;

    fn body(words: &[u32]) -> Body {
        let image = made(&[("f", words)], &[]);
        let function = image.entered_at(START).unwrap();
        Body::follow(&image, &Disassembler::new().unwrap(), function).unwrap()
    }

    fn measured(words: &[u32]) -> (u64, usize) {
        let stack = Stack::measure(&body(words));
        (stack.frame, stack.objections.len())
    }

    #[test]
    fn a_frame_counts_once_however_often_it_is_left() {
        // stdu; bne .+12; addi; blr; addi; blr
        assert_eq!(measured(&[PUSH_112, 0x4082_000c, POP_112, BLR, POP_112, BLR]), (112, 0));
        assert_eq!(measured(&[BLR]), (0, 0));
        // A leaf: std r30,-16(r1).
        assert_eq!(measured(&[0xfbc1_fff0, BLR]), (16, 0));
        // Within a frame: std r30,-16(r1) below it.
        assert_eq!(measured(&[PUSH_112, 0xfbc1_fff0, POP_112, BLR]), (128, 0));
    }

    #[test]
    fn an_unknown_amount_is_refused() {
        assert_eq!(measured(&[0x7c21_016a, BLR]).1, 1, "stdux r1,r1,r0");
        assert_eq!(measured(&[0x7fe1_fb78, BLR]).1, 1, "mr r1,r31");
        assert_eq!(measured(&[POP_112, BLR]).1, 1, "more given back than taken");
    }

    #[test]
    fn paths_that_differ_are_refused() {
        // bne .+8; stdu; addi r3,r3,1; blr
        assert_eq!(measured(&[0x4082_0008, PUSH_112, 0x3863_0001, BLR]).1, 1);
        // A loop that takes more each time: stdu; bne .-4; blr
        assert_eq!(measured(&[PUSH_112, 0x4082_fffc, BLR]).1, 1);
    }

    #[test]
    fn a_jump_out_after_the_frame_has_ended_adds_nothing() {
        let words = [PUSH_112, POP_112, 0x4800_0008];
        let image = made(&[("f", &words), ("h", &[BLR]), ("g", &[BLR])], &[]);
        let function = image.entered_at(START).unwrap();
        let body = Body::follow(&image, &Disassembler::new().unwrap(), function).unwrap();
        let stack = Stack::measure(&body);
        assert_eq!(stack.depth_at(body.calls[0].from), 0);
    }
}
