//! What an audit tells, for people and for programs.

use std::{collections::BTreeSet, fmt::Write as _, time::Duration};

use petgraph::{graph::NodeIndex, visit::EdgeRef as _};
use serde_json::{Value, json};

use super::{
    Audited,
    finding::Finding,
    graph::{Member, Reachable},
    review::Review,
};
use crate::{
    progress::{heading, seconds, toned},
    words::Tone,
};

/// Checks that held and that did not.
#[derive(Debug, Default)]
pub(super) struct Totals {
    passed: usize,
    pub(super) failed: usize,
}

impl Totals {
    pub(super) fn count(&mut self, good: bool) {
        *(if good { &mut self.passed } else { &mut self.failed }) += 1;
    }

    pub(super) fn text(&self, time: Duration) -> String {
        format!("{} passed, {} failed; the images took {}", self.passed, self.failed, seconds(time))
    }

    pub(super) fn json(&self) -> String {
        json!({ "totals": { "passed": self.passed, "failed": self.failed } }).to_string()
    }
}

/// The call tree with sizes, the totals, and what was found.
pub(super) fn text(audited: &Audited, review: &Review) -> String {
    let Audited { entry, reachable, findings } = audited;
    let mut text = heading(&format!("{}, {}: {}\n", entry.package, entry.symbol, entry.what));
    text += "    code   frame  function, and below it what it calls\n";
    let mut tree = Tree { reachable, review, shown: BTreeSet::new(), text };
    tree.show(reachable.entry, 0);
    let mut text = tree.text;
    text += &totals(reachable, review);
    findings.iter().for_each(|found| text += &finding(found));
    let (tone, verdict) = match findings.len() {
        0 => (Tone::Good, "proved: it may run in real mode".to_owned()),
        count => (Tone::Bad, format!("NOT PROVED: {count} findings")),
    };
    format!("{text}\n{}", toned(tone, &verdict))
}

struct Tree<'a> {
    reachable: &'a Reachable,
    review: &'a Review,
    shown: BTreeSet<NodeIndex>,
    text: String,
}

impl Tree<'_> {
    /// A function and what it calls; what was shown before is only named.
    fn show(&mut self, node: NodeIndex, level: usize) {
        let Some(member) = self.reachable.calls.node_weight(node) else { return };
        let first = self.shown.insert(node);
        let indent = "  ".repeat(level);
        let again = if first { "" } else { " (see above)" };
        let (name, code) = (&member.function.name, size(member));
        let frame = member.frame.map_or_else(|| "?".to_owned(), |bytes| bytes.to_string());
        let _ = writeln!(self.text, "{code:8}{frame:>8}  {indent}{name}{again}");
        if !first {
            return;
        }
        for (found, place) in &member.loops {
            let bound = place.and_then(|place| self.review.loops.get(place));
            let bound = bound.map_or("NOT REVIEWED", |reviewed| reviewed.bound.as_str());
            let _ =
                writeln!(self.text, "{:18}{indent}- loop of {} at {}: {bound}", "", found.symbol, found.line);
        }
        for callee in callees(self.reachable, node) {
            self.show(callee, level + 1);
        }
    }
}

/// Whom a function calls, each once, in the order of its code.
fn callees(reachable: &Reachable, node: NodeIndex) -> Vec<NodeIndex> {
    let mut callees: Vec<_> = reachable.calls.edges(node).map(|call| call.target()).collect();
    callees.reverse();
    let mut known = BTreeSet::new();
    callees.retain(|callee| known.insert(*callee));
    callees
}

const fn size(member: &Member) -> u64 {
    member.function.end - member.function.address
}

fn code(reachable: &Reachable) -> u64 {
    reachable.calls.node_weights().map(size).sum()
}

fn totals(reachable: &Reachable, review: &Review) -> String {
    let functions = reachable.calls.node_count();
    let loops: usize = reachable.calls.node_weights().map(|member| member.loops.len()).sum();
    let stack = match reachable.deepest() {
        None => "unknown, for the reason that is found below".to_owned(),
        Some((depth, chain)) => {
            format!("{depth} of {} bytes at the most: {}", review.stack_bytes, chain.join(" → "))
        }
    };
    let bytes = code(reachable);
    format!("functions: {functions}, code: {bytes} bytes, loops: {loops}\nstack: {stack}\n")
}

/// What was found, on the way there, and what to do.
pub(super) fn finding(found: &Finding) -> String {
    let heading = toned(Tone::Bad, &format!("found: {}", found.kind.words()));
    let mut text = format!("\n{heading}\n    {}\n    by {}\n", found.what, found.path.join(" → "));
    found.entry.iter().for_each(|line| {
        let _ = writeln!(text, "        {line}");
    });
    let _ = writeln!(text, "    {}", found.kind.advice());
    text
}

/// Entries of the list that match nothing.
pub(super) fn stale_text(stale: &[Finding]) -> String {
    stale.iter().map(finding).collect()
}

/// One line for an entry point.
pub(super) fn json(audited: &Audited, review: &Review) -> String {
    let Audited { entry, reachable, findings } = audited;
    let (stack, chain) = reachable.deepest().unzip();
    let functions: Vec<_> = reachable
        .calls
        .node_indices()
        .filter_map(|node| Some(function(reachable, review, node, reachable.calls.node_weight(node)?)))
        .collect();
    json!({
        "kind": "entry",
        "name": entry.symbol,
        "package": entry.package,
        "verdict": verdict(findings),
        "code_bytes": code(reachable),
        "stack_bytes": stack,
        "stack_limit": review.stack_bytes,
        "deepest": chain,
        "functions": functions,
        "findings": findings,
    })
    .to_string()
}

fn function(reachable: &Reachable, review: &Review, node: NodeIndex, member: &Member) -> Value {
    let name = |node: NodeIndex| Some(reachable.calls.node_weight(node)?.function.name.clone());
    let loops = member.loops.iter().map(|(found, place)| {
        let bound = place.and_then(|place| review.loops.get(place)).map(|reviewed| &reviewed.bound);
        json!({ "symbol": found.symbol, "line": found.line, "bound": bound })
    });
    json!({
        "name": member.function.name,
        "code_bytes": size(member),
        "frame_bytes": member.frame,
        "loops": loops.collect::<Vec<_>>(),
        "calls": callees(reachable, node).into_iter().filter_map(name).collect::<Vec<_>>(),
    })
}

/// One line for the list.
pub(super) fn stale_json(stale: &[Finding]) -> String {
    json!({ "kind": "list", "name": "audit.toml", "verdict": verdict(stale), "findings": stale }).to_string()
}

const fn verdict(findings: &[Finding]) -> &'static str {
    if findings.is_empty() { "passed" } else { "failed" }
}
