//! Every promise that the documentation lists has a test that names it, and no test names another one.
#![allow(missing_docs, reason = "tests document themselves by their names")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use portcullis_suite::Scenario;
use portcullis_suite::hcall::{RULES, hostile};

/// The suite's scenarios, and those with guests.
fn scenarios() -> impl Iterator<Item = &'static Scenario> {
    portcullis_suite::SCENARIOS.iter().chain(portcullis_hypervisor::SCENARIOS)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Ids in the first column of the tables of `text`, in lower case.
fn listed(text: &str) -> BTreeSet<String> {
    text.lines()
        .filter_map(|line| line.strip_prefix("| ")?.split(" |").next())
        .filter(|cell| is_id(cell))
        .map(str::to_lowercase)
        .collect()
}

fn is_id(word: &str) -> bool {
    let mut characters = word.chars();
    characters.next().is_some_and(|c| c.is_ascii_uppercase())
        && word.len() >= 2
        && characters.all(|c| c.is_ascii_digit())
}

/// Ids that begin the names of the test functions of `source`.
fn tested(source: &str) -> BTreeSet<String> {
    let mut ids = BTreeSet::new();
    let mut lines = source.lines().map(str::trim);
    while let Some(line) = lines.next() {
        if !line.starts_with("#[test]") {
            continue;
        }
        let name = lines.find_map(|line| line.strip_prefix("fn ")).unwrap_or_default();
        let id = name.split('_').next().unwrap_or_default();
        if is_id(&id.to_uppercase()) {
            ids.insert(id.to_owned());
        }
    }
    ids
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
        let name = entry.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        if entry.is_dir() && name != "target" && !name.starts_with('.') {
            sources(&entry, found);
        } else if name.ends_with(".rs") {
            found.push(entry);
        }
    }
}

#[test]
fn each_promise_has_a_test_and_each_named_promise_is_listed() {
    let docs = ["contracts.md", "vtd.md", "ppc-tce.md"];
    let promised: BTreeSet<_> = docs
        .iter()
        .flat_map(|name| listed(&fs::read_to_string(root().join("docs").join(name)).expect("the document")))
        .collect();
    let mut files = Vec::new();
    sources(&root(), &mut files);
    let mut shown: BTreeSet<_> =
        files.iter().flat_map(|file| tested(&fs::read_to_string(file).expect("a source"))).collect();
    shown.extend(scenarios().flat_map(|scenario| scenario.promises).map(|id| id.to_lowercase()));
    // Each of these is a test of `tests/hcalls`, on every port that can show it.
    shown.extend(RULES.iter().map(|rule| rule.id).chain([hostile::PROMISE]).map(str::to_lowercase));
    let untested: Vec<_> = promised.difference(&shown).collect();
    let unlisted: Vec<_> = shown.difference(&promised).collect();
    assert!(promised.len() > 40, "only {} promises were found: are the documents read?", promised.len());
    assert!(untested.is_empty(), "promises without a test: {untested:?}");
    assert!(unlisted.is_empty(), "tests of promises that no document lists: {unlisted:?}");
}

#[test]
fn ids_are_found_where_they_stand() {
    assert_eq!(listed("| A01 | x |\n| id | y |\n|---|\n| F2 | z |"), ["a01", "f2"].map(String::from).into());
    let source = ["#[test]", "fn f07_waits() {", "#[test]", "#[should_panic]", "fn plain() {"].join("\n");
    assert_eq!(tested(&source), ["f07"].map(String::from).into());
}

#[test]
fn scenario_names_are_unique() {
    let names: BTreeSet<_> = scenarios().map(|scenario| scenario.name).collect();
    assert_eq!(names.len(), scenarios().count());
}
