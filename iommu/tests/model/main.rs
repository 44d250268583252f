//! The ownership protocol, exhausted: the very code of `portcullis_iommu::ownership` against every order of
//! requests, every interleaving of the operations of two CPUs, and every answer of hardware.
//!
//! Each model has its own alphabet of requests and is searched to its end, not to a depth: what counts up
//! for ever (generations) is renumbered, what counts live things (claims, references, contexts) is bounded.
#![allow(missing_docs, reason = "tests document themselves by their names")]

mod machine;
mod model;

use std::time::Instant;

use model::{Flaw, Protocol, Requests};
use stateright::{Checker, Model};

fn exhaust(name: &str, requests: Requests) {
    let begun = Instant::now();
    let checker = Protocol { requests, flaw: None }.checker().threads(2).spawn_bfs().join();
    println!("{name}: {} states in {:.1} s", checker.unique_state_count(), begun.elapsed().as_secs_f64());
    checker.assert_properties();
    assert!(checker.is_done(), "not exhausted");
}

#[test]
fn a00_sizes() {
    let base = Requests { cpus: 2, vms: 3, holds: 1, contexts: 1, ..Requests::default() };
    let pick = std::env::var("PICK").unwrap_or_default();
    match pick.as_str() {
        "1" => exhaust("claims 2 cpu h2 c2 host", Requests { holds: 2, contexts: 2, host: true, ..base }),
        "2" => exhaust("claims 2 cpu h2 c2", Requests { holds: 2, contexts: 2, ..base }),
        "3" => exhaust("refs+revoke", Requests { users: 2, revoke: true, ..base }),
        "4" => exhaust("die refs", Requests { die: true, users: 2, ..base }),
        "5" => exhaust("die revoke hotplug", Requests { die: true, revoke: true, hot_plug: true, ..base }),
        "6" => exhaust("refs 1 cpu 2 contexts", Requests { cpus: 1, contexts: 2, users: 1, vms: 2, revoke: true, ..base }),
        "7" => exhaust("all, one cpu", Requests { cpus: 1, contexts: 1, users: 2, vms: 3, revoke: true, die: true, host: true, hot_plug: true, ..base }),
        _ => {}
    }
}
