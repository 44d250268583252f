//! `board-tests/audit.toml`: the entry points, the limit, and the loops that somebody has reviewed.

use std::{collections::BTreeSet, fs, path::PathBuf};

use serde::Deserialize;

use super::loops::Loop;
use crate::error::Error;

/// The list.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Review {
    /// The most stack that an entry point may need.
    pub(super) stack_bytes: u64,
    /// Where real-mode code is entered.
    pub(super) entry: Vec<Entry>,
    #[serde(default, rename = "loop")]
    pub(super) loops: Vec<ReviewedLoop>,
    /// The file that this came from.
    #[serde(skip)]
    pub(super) path: PathBuf,
}

/// An entry point.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    /// The image's package.
    pub(super) package: String,
    /// The function.
    pub(super) symbol: String,
    /// What enters there.
    pub(super) what: String,
}

/// A loop that ends, and why.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReviewedLoop {
    /// The function it was written in, as the audit names it.
    pub(super) symbol: String,
    /// `FILE:LINE`, as the audit names it.
    pub(super) line: String,
    /// What bounds it.
    pub(super) bound: String,
}

impl Review {
    /// Reads and checks the list.
    pub(super) fn load(path: PathBuf) -> Result<Self, Error> {
        let text = fs::read_to_string(&path).map_err(Error::file(&path))?;
        let mut review = Self::parse(&text).map_err(|why| Error::Content { path: path.clone(), why })?;
        review.path = path;
        Ok(review)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let review: Self = toml::from_str(text).map_err(|why| why.to_string())?;
        if review.entry.is_empty() {
            return Err("no [[entry]]: an audit of nothing proves nothing".to_owned());
        }
        if let Some(vague) = review.loops.iter().find(|reviewed| reviewed.bound.trim().is_empty()) {
            return Err(format!("the loop at {} has no bound", vague.line));
        }
        let mut known = BTreeSet::new();
        if let Some(twice) = review.loops.iter().find(|one| !known.insert((&one.symbol, &one.line))) {
            return Err(format!("the loop at {} is listed twice", twice.line));
        }
        Ok(review)
    }

    /// Which entry of the list is about this loop.
    pub(super) fn position(&self, found: &Loop) -> Option<usize> {
        let about = |reviewed: &ReviewedLoop| reviewed.symbol == found.symbol && reviewed.line == found.line;
        self.loops.iter().position(about)
    }
}

/// An entry that would put the loop on the list, up to what only a reviewer can say.
pub(super) fn suggestion(found: &Loop) -> Vec<String> {
    vec![
        "[[loop]]".to_owned(),
        format!("symbol = {:?}", found.symbol),
        format!("line = {:?}", found.line),
        "bound = \"…\"".to_owned(),
    ]
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const ENTRY: &str = "[[entry]]\npackage = 'p'\nsymbol = 'e'\nwhat = 'w'\n";

    /// A list with the loops `(symbol, line)`.
    pub(in crate::audit) fn review(loops: &[(&str, &str)]) -> Review {
        let listed = |(symbol, line): &(&str, &str)| {
            format!("[[loop]]\nsymbol = '{symbol}'\nline = '{line}'\nbound = 'b'\n")
        };
        Review::parse(&format!("stack_bytes = 2048\n{ENTRY}{}", loops.iter().map(listed).collect::<String>()))
            .unwrap()
    }

    #[test]
    fn a_list_that_proves_nothing_is_refused() {
        let refused = |text: &str| Review::parse(text).unwrap_err();
        assert!(refused("stack_bytes = 1\nentry = []").contains("proves nothing"));
        assert!(refused(&format!("stack_bytes = 1\nloops = []\n{ENTRY}")).contains("unknown field"));
        let reviewed = |bound: &str| format!("[[loop]]\nsymbol = 's'\nline = 'l:1'\nbound = '{bound}'\n");
        assert!(refused(&format!("stack_bytes = 1\n{ENTRY}{}", reviewed(" "))).contains("no bound"));
        let twice = reviewed("b").repeat(2);
        assert!(refused(&format!("stack_bytes = 1\n{ENTRY}{twice}")).contains("twice"));
    }

    #[test]
    fn a_loop_is_known_by_symbol_and_line() {
        let list = review(&[("f", "a.rs:1"), ("g", "a.rs:2")]);
        let found = |symbol: &str, line: &str| {
            let (symbol, line) = (symbol.to_owned(), line.to_owned());
            list.position(&Loop { symbol, line })
        };
        assert_eq!((found("g", "a.rs:2"), found("f", "a.rs:2"), found("f", "a.rs:9")), (Some(1), None, None));
    }

    #[test]
    fn what_is_suggested_can_be_read_back() {
        let symbol = "<a::B<'_> as c::D>::\"e\"".to_owned();
        let found = Loop { symbol, line: "a.rs:1".to_owned() };
        let text = format!("stack_bytes = 1\n{ENTRY}{}", suggestion(&found).join("\n"));
        assert_eq!(Review::parse(&text).unwrap().position(&found), Some(0));
    }
}
