//! All that is reachable from an entry point, and what is wrong with it.

use std::collections::{BTreeSet, HashMap, VecDeque};

use petgraph::{
    algo::{tarjan_scc, toposort},
    graph::{DiGraph, NodeIndex},
    visit::EdgeRef as _,
};

use super::{
    body::Body,
    elf::{Function, Image},
    finding::{Finding, Kind, Objection},
    lines::Lines,
    loops::{self, Loop},
    registers::Disassembler,
    review::{Review, suggestion},
    rules,
    stack::Stack,
};

/// What an audit looks at.
pub(super) struct Subject<'a> {
    pub(super) image: &'a Image,
    pub(super) lines: &'a Lines,
    pub(super) disassembler: &'a Disassembler,
    pub(super) review: &'a Review,
}

/// A function that is reachable.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) function: Function,
    /// The stack that it needs itself, if that can be told.
    pub(super) frame: Option<u64>,
    /// Its loops, each with its place in the reviewed list.
    pub(super) loops: Vec<(Loop, Option<usize>)>,
    objections: Vec<Objection>,
    /// Who calls it first on the way from the entry point.
    caller: Option<NodeIndex>,
}

/// The functions reachable from an entry point; an edge is a call, with the caller's stack at that moment.
#[derive(Debug)]
pub(super) struct Reachable {
    pub(super) calls: DiGraph<Member, u64>,
    pub(super) entry: NodeIndex,
}

impl Reachable {
    /// Follows all calls from the function `entry`.
    pub(super) fn from(subject: &Subject<'_>, entry: &Function) -> Self {
        let mut calls = DiGraph::new();
        let mut known = HashMap::new();
        let mut todo = VecDeque::new();
        let (member, callees) = examine(subject, entry, None);
        let first = calls.add_node(member);
        known.insert(entry.address, first);
        todo.push_back((first, callees));
        while let Some((caller, callees)) = todo.pop_front() {
            for (callee, depth) in callees {
                let node = *known.entry(callee.address).or_insert_with(|| {
                    let (member, more) = examine(subject, &callee, Some(caller));
                    let node = calls.add_node(member);
                    todo.push_back((node, more));
                    node
                });
                calls.add_edge(caller, node, depth);
            }
        }
        Self { calls, entry: first }
    }

    /// All that is wrong, but for entries of the list that match nothing.
    pub(super) fn findings(&self, review: &Review) -> Vec<Finding> {
        let mut findings = Vec::new();
        for node in self.calls.node_indices() {
            let Some(member) = self.calls.node_weight(node) else { continue };
            let path = self.path(node);
            findings.extend(member.objections.iter().map(|objection| Finding {
                kind: objection.kind,
                what: objection.what.clone(),
                path: path.clone(),
                entry: Vec::new(),
            }));
            let unknown = member.loops.iter().filter(|(_, reviewed)| reviewed.is_none());
            findings.extend(unknown.map(|(found, _)| unreviewed(found, path.clone())));
        }
        findings.extend(self.recursions());
        if let Some((depth, chain)) = self.deepest().filter(|(depth, _)| *depth > review.stack_bytes) {
            let what = format!("{depth} bytes of stack, {} are allowed", review.stack_bytes);
            findings.push(Finding { kind: Kind::Stack, what, path: chain, entry: Vec::new() });
        }
        // An inlined loop is in several functions.
        let mut known = BTreeSet::new();
        findings.retain(|finding| known.insert((finding.kind, finding.what.clone())));
        findings
    }

    /// The reviewed loops that were met.
    pub(super) fn reviewed(&self) -> BTreeSet<usize> {
        self.calls.node_weights().flat_map(|member| &member.loops).filter_map(|(_, place)| *place).collect()
    }

    /// The most stack that any path needs, and that path; `None` if functions call themselves, or change the
    /// stack by nobody knows how much.
    pub(super) fn deepest(&self) -> Option<(u64, Vec<String>)> {
        let order = toposort(&self.calls, None).ok()?;
        let mut below: HashMap<NodeIndex, (u64, Option<NodeIndex>)> = HashMap::new();
        for node in order.into_iter().rev() {
            let own = self.calls.node_weight(node)?.frame?;
            let through = self.calls.edges(node).map(|call| {
                let callee = below.get(&call.target()).map_or(0, |(depth, _)| *depth);
                (call.weight().saturating_add(callee), Some(call.target()))
            });
            let most = through.max_by_key(|(depth, _)| *depth).filter(|(depth, _)| *depth > own);
            below.insert(node, most.unwrap_or((own, None)));
        }
        let mut chain = Vec::new();
        let mut node = Some(self.entry);
        while let Some(here) = node {
            chain.extend(self.name(here));
            node = below.get(&here).and_then(|(_, next)| *next);
        }
        Some((below.get(&self.entry)?.0, chain))
    }

    fn name(&self, node: NodeIndex) -> Option<String> {
        self.calls.node_weight(node).map(|member| member.function.name.clone())
    }

    /// The calls that lead to a function.
    fn path(&self, node: NodeIndex) -> Vec<String> {
        let mut path = Vec::new();
        let mut here = Some(node);
        while let Some(member) = here.and_then(|node| self.calls.node_weight(node)) {
            path.push(member.function.name.clone());
            here = member.caller;
        }
        path.reverse();
        path
    }

    fn recursions(&self) -> Vec<Finding> {
        let cycles = tarjan_scc(&self.calls).into_iter().filter_map(|mut cycle| {
            let first = *cycle.first()?;
            if cycle.len() == 1 && !self.calls.contains_edge(first, first) {
                return None;
            }
            cycle.sort();
            let names: Vec<_> = cycle.iter().filter_map(|node| self.name(*node)).collect();
            let what = format!("{} can call itself", names.join(", "));
            let path = self.path(*cycle.first()?);
            Some(Finding { kind: Kind::Recursion, what, path, entry: Vec::new() })
        });
        cycles.collect()
    }
}

fn unreviewed(found: &Loop, path: Vec<String>) -> Finding {
    let what = format!("a loop of `{}` at {}", found.symbol, found.line);
    Finding { kind: Kind::Loop, what, path, entry: suggestion(found) }
}

/// A function, and whom it calls with how much stack.
fn examine(
    subject: &Subject<'_>,
    function: &Function,
    caller: Option<NodeIndex>,
) -> (Member, Vec<(Function, u64)>) {
    let Some(body) = Body::follow(subject.image, subject.disassembler, function) else {
        let what = "its first bytes are no known instruction".to_owned();
        let objections = vec![Objection { kind: Kind::Undecodable, address: function.address, what }];
        let (function, loops) = (function.clone(), Vec::new());
        return (Member { function, frame: None, loops, objections, caller }, Vec::new());
    };
    let stack = Stack::measure(&body);
    let mut objections = inlined(subject.lines, &body);
    let callees = callees(subject.image, &body, &stack, &mut objections);
    objections.extend(body.objections.iter().chain(&stack.objections).cloned());
    let loops = loops::find(&body, subject.lines).into_iter().map(|found| {
        let place = subject.review.position(&found);
        (found, place)
    });
    let member = Member {
        function: function.clone(),
        frame: stack.objections.is_empty().then_some(stack.frame),
        loops: loops.collect(),
        objections: told(subject.lines, objections),
        caller,
    };
    (member, callees)
}

/// Whom the function calls; a call of what is forbidden is objected to, and not followed.
fn callees(
    image: &Image,
    body: &Body,
    stack: &Stack,
    objections: &mut Vec<Objection>,
) -> Vec<(Function, u64)> {
    let mut callees = Vec::new();
    for call in &body.calls {
        let Some(callee) = image.entered_at(call.to) else { continue };
        match rules::forbidden_function(&callee.name) {
            None => callees.push((callee.clone(), stack.depth_at(call.from))),
            Some(kind) => {
                let address = body.graph.node_weight(call.from).map_or(0, |instruction| instruction.address);
                objections.push(Objection { kind, address, what: format!("a call of {}", callee.name) });
            }
        }
    }
    callees
}

/// Instructions that were inlined from where none may come from.
fn inlined(lines: &Lines, body: &Body) -> Vec<Objection> {
    let forbidden = |address: u64| {
        let place = lines.places(address).into_iter().find_map(|place| {
            let kind = rules::forbidden_file(&place)?;
            Some((kind, place))
        });
        place.map(|(kind, place)| Objection { kind, address, what: format!("code of {}", place.file) })
    };
    body.graph.node_weights().filter_map(|instruction| forbidden(instruction.address)).collect()
}

/// The objections with their source lines; what stands at one line is told once.
fn told(lines: &Lines, mut objections: Vec<Objection>) -> Vec<Objection> {
    objections.sort_by_key(|objection| (objection.kind, objection.address));
    for objection in &mut objections {
        let place = lines.written(objection.address).map_or_else(String::new, |place| format!("{place}, "));
        objection.what = format!("{} ({place}at {:#x})", objection.what, objection.address);
    }
    let mut known = BTreeSet::new();
    objections.retain(|objection| {
        let place = lines.written(objection.address);
        known.insert((objection.kind, place.map_or(objection.address.to_string(), |place| place.to_string())))
    });
    objections
}
