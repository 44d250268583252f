//! A function's reachable instructions, as a graph.

use std::collections::HashMap;

use petgraph::graph::{DiGraph, NodeIndex};

use super::{
    decode::{self, Flow},
    elf::{Function, Image},
    finding::{Kind, Objection},
    registers::Disassembler,
    rules, target,
};

/// An instruction.
#[derive(Clone, Debug)]
pub(super) struct Instruction {
    pub(super) address: u64,
    pub(super) word: u32,
    pub(super) text: String,
    pub(super) sets_stack: bool,
}

/// The flow of control within a function.
pub(super) type Graph = DiGraph<Instruction, ()>;

/// A call, or a jump to another function, which is a call that the other one returns from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) from: NodeIndex,
    /// The beginning of the function.
    pub(super) to: u64,
}

/// What a function does, instruction by instruction.
#[derive(Debug)]
pub(super) struct Body {
    pub(super) function: Function,
    pub(super) graph: Graph,
    pub(super) start: NodeIndex,
    pub(super) calls: Vec<Call>,
    pub(super) objections: Vec<Objection>,
}

impl Body {
    /// Follows `function` from its beginning; `None` if there is no instruction.
    pub(super) fn follow(image: &Image, disassembler: &Disassembler, function: &Function) -> Option<Self> {
        let mut walk = Walk {
            image,
            disassembler,
            function,
            graph: Graph::new(),
            nodes: HashMap::new(),
            todo: Vec::new(),
            calls: Vec::new(),
            indirect: Vec::new(),
            objections: Vec::new(),
        };
        let start = walk.node(function.address)?;
        while let Some(node) = walk.todo.pop() {
            walk.step(node);
        }
        walk.settle_indirect();
        let Walk { graph, mut calls, mut objections, .. } = walk;
        calls.sort_by_key(|call| graph.node_weight(call.from).map(|instruction| instruction.address));
        objections.sort_by_key(|objection| objection.address);
        Some(Self { function: function.clone(), graph, start, calls, objections })
    }
}

struct Walk<'a> {
    image: &'a Image,
    disassembler: &'a Disassembler,
    function: &'a Function,
    graph: Graph,
    nodes: HashMap<u64, NodeIndex>,
    /// Instructions whose successors are not known yet.
    todo: Vec<NodeIndex>,
    calls: Vec<Call>,
    /// Calls and jumps to where a register points.
    indirect: Vec<NodeIndex>,
    objections: Vec<Objection>,
}

impl Walk<'_> {
    fn object(&mut self, kind: Kind, address: u64, what: impl Into<String>) {
        self.objections.push(Objection { kind, address, what: what.into() });
    }

    /// The node of the instruction at `address`, which is looked at if it is new.
    fn node(&mut self, address: u64) -> Option<NodeIndex> {
        if let Some(node) = self.nodes.get(&address) {
            return Some(*node);
        }
        let word = self.image.word(address);
        let decoded = word.and_then(|word| Some((word, self.disassembler.decode(word, address)?)));
        let Some((word, decoded)) = decoded else {
            let bytes = word.map_or_else(|| "no code".to_owned(), |word| format!("{word:#010x}"));
            self.object(Kind::Undecodable, address, format!("{bytes} is no known instruction"));
            return None;
        };
        if decoded.vector {
            self.object(Kind::Vector, address, decoded.text.clone());
        }
        let sets_stack = decoded.sets_stack;
        let node = self.graph.add_node(Instruction { address, word, text: decoded.text, sets_stack });
        self.nodes.insert(address, node);
        self.todo.push(node);
        Some(node)
    }

    fn step(&mut self, node: NodeIndex) {
        let Some(instruction) = self.graph.node_weight(node) else { return };
        let (address, word, text) = (instruction.address, instruction.word, instruction.text.clone());
        match decode::flow(word, address) {
            Flow::Next => self.next(node, false),
            Flow::Jump(target) => self.jump(node, target),
            Flow::Branch(target) => {
                self.jump(node, target);
                self.next(node, false);
            }
            Flow::Call(target) => {
                self.call(node, target);
                self.next_if(!self.never_returns(target), node, true);
            }
            Flow::Return { conditional } => self.next_if(conditional, node, false),
            Flow::Indirect { call, conditional } => {
                self.indirect.push(node);
                self.next_if(call || conditional, node, call);
            }
            Flow::Trap { conditional } => {
                self.object(Kind::Panic, address, text);
                self.next_if(conditional, node, false);
            }
            Flow::Leave { returns } => {
                self.object(Kind::Firmware, address, text);
                self.next_if(returns, node, true);
            }
        }
    }

    /// A function that panics: behind a call of one there need be no code.
    fn never_returns(&self, target: u64) -> bool {
        let callee = self.image.entered_at(target);
        callee.and_then(|callee| rules::forbidden_function(&callee.name)) == Some(Kind::Panic)
    }

    fn next_if(&mut self, goes_on: bool, node: NodeIndex, may_end: bool) {
        if goes_on {
            self.next(node, may_end);
        }
    }

    /// Goes on behind an instruction; one that `may_end` the flow, such as a call of a function that never
    /// returns, may be a function's last.
    fn next(&mut self, node: NodeIndex, may_end: bool) {
        let Some(address) = self.graph.node_weight(node).map(|instruction| instruction.address + 4) else {
            return;
        };
        if self.function.holds(address) {
            self.edge(node, address);
        } else if !may_end {
            self.object(Kind::Undecodable, address, "the function runs past its end");
        }
    }

    fn edge(&mut self, from: NodeIndex, to: u64) {
        if let Some(to) = self.node(to) {
            self.graph.update_edge(from, to, ());
        }
    }

    fn jump(&mut self, from: NodeIndex, target: u64) {
        if self.function.holds(target) {
            self.edge(from, target);
        } else {
            self.call(from, target);
        }
    }

    fn call(&mut self, from: NodeIndex, target: u64) {
        if let Some(callee) = self.image.entered_at(target) {
            self.calls.push(Call { from, to: callee.address });
            return;
        }
        let address = self.graph.node_weight(from).map_or(target, |instruction| instruction.address);
        let what = format!("a branch to {target:#x}, where no function begins");
        self.object(Kind::Undecodable, address, what);
    }

    /// Only now all ways to an indirect jump are known, and so is whether its register is set on all of them.
    fn settle_indirect(&mut self) {
        for node in std::mem::take(&mut self.indirect) {
            match target::resolve(self.image, &self.graph, node) {
                Some(target) => self.call(node, target),
                None => {
                    let Some(instruction) = self.graph.node_weight(node) else { continue };
                    let (address, text) = (instruction.address, instruction.text.clone());
                    self.object(Kind::Indirect, address, text);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::elf::tests::{START, made},
        *,
    };

    fn body(functions: &[(&str, &[u32])]) -> Body {
        let image = made(functions, &[]);
        let function = image.entered_at(START).unwrap();
        Body::follow(&image, &Disassembler::new().unwrap(), function).unwrap()
    }

    fn kinds(functions: &[(&str, &[u32])]) -> Vec<Kind> {
        body(functions).objections.iter().map(|objection| objection.kind).collect()
    }

    #[test]
    fn only_what_is_reachable_counts() {
        // b .+8; 0 (no instruction); blr
        let body = body(&[("f", &[0x4800_0008, 0, 0x4e80_0020])]);
        assert_eq!((body.graph.node_count(), body.objections.len()), (2, 0));
        // bne .+8; blr; 0
        assert_eq!(kinds(&[("f", &[0x4082_0008, 0x4e80_0020, 0])]), [Kind::Undecodable]);
    }

    #[test]
    fn a_function_without_a_return_runs_past_its_end() {
        assert_eq!(kinds(&[("f", &[0x6000_0000]), ("g", &[0x4e80_0020])]), [Kind::Undecodable]);
        // A call may be the last instruction: nothing follows one that never returns.
        assert!(kinds(&[("f", &[0x4800_0009, 0x4e80_0020]), ("g", &[0x4e80_0020])]).is_empty());
        assert!(kinds(&[("f", &[0x4800_0009]), ("pad", &[0]), ("g", &[0x4e80_0020])]).is_empty());
    }

    #[test]
    fn a_jump_to_another_function_is_a_call() {
        // b g, past a function in between.
        let tail = body(&[("f", &[0x4800_0008]), ("h", &[0x4e80_0020]), ("g", &[0x4e80_0020])]);
        assert_eq!(tail.calls, [Call { from: tail.start, to: START + 8 }]);
        // A jump to the own beginning stays inside.
        let turn = body(&[("f", &[0x4082_0000, 0x4e80_0020])]);
        assert!(turn.calls.is_empty() && turn.graph.contains_edge(turn.start, turn.start));
        // bl to itself is a call.
        let again = body(&[("f", &[0x4800_0001, 0x4e80_0020])]);
        assert_eq!(again.calls, [Call { from: again.start, to: START }]);
    }

    #[test]
    fn jumps_into_the_middle_are_refused() {
        assert_eq!(kinds(&[("f", &[0x4800_0008]), ("g", &[0x6000_0000, 0x4e80_0020])]), [Kind::Undecodable]);
        assert_eq!(kinds(&[("f", &[0x4800_1000])]), [Kind::Undecodable]);
    }
}
