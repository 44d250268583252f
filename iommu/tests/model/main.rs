//! The ownership protocol, exhausted: the very code of `portcullis_iommu::ownership` against every order of
//! requests, every interleaving of the operations of two CPUs, and every answer of hardware.
//!
//! Each model has its own alphabet of requests and is searched to its end, not to a depth: what counts up
//! for ever (generations) is renumbered, what counts live things (claims, references, contexts) is bounded.
//! The whole alphabet at once, on two CPUs, is too large; the models overlap instead. A third VM, which waits
//! while two have the groups, is in those of claims, of revocation and of death against revocation.
#![allow(missing_docs, reason = "tests document themselves by their names")]
#![cfg(not(miri))]

mod invariants;
mod machine;
mod model;
mod requests;

use std::time::Instant;

use model::{Flaw, Protocol};
use requests::Requests;
use stateright::{Checker, HasDiscoveries, Model};

/// Three VMs, two groups of two devices, two CPUs.
const BASE: Requests = Requests {
    host: false,
    revoke: false,
    die: false,
    hot_plug: false,
    bars: false,
    cpus: 2,
    vms: 3,
    holds: 1,
    contexts: 1,
    users: 0,
};

fn exhaust(name: &str, requests: Requests) {
    let begun = Instant::now();
    let checker = Protocol { requests, flaw: None }.checker().threads(2).spawn_bfs().join();
    println!("{name}: {} states in {:.1} s", checker.unique_state_count(), begun.elapsed().as_secs_f64());
    checker.assert_properties();
    assert!(checker.is_done(), "not exhausted");
}

fn finds(flaw: Flaw, property: &'static str, requests: Requests) {
    let model = || Protocol { requests, flaw: Some(flaw) }.checker();
    let wanted = HasDiscoveries::AnyOf([property].into());
    let checker = model().finish_when(wanted).spawn_bfs().join();
    assert!(checker.discovery(property).is_some(), "{flaw:?} went unnoticed");
}

#[test]
fn a20_claims_of_guests_and_hosts_on_two_cpus() {
    exhaust("claims", Requests { holds: 2, contexts: 2, host: true, ..BASE });
}

#[test]
fn a20_b20_two_external_users_and_revocation_on_two_cpus() {
    exhaust("revocation", Requests { users: 2, revoke: true, ..BASE });
}

#[test]
fn a20_b20_death_of_vms_with_an_external_user_on_two_cpus() {
    exhaust("death", Requests { die: true, users: 1, vms: 2, ..BASE });
}

#[test]
fn a20_b20_death_against_revocation_on_two_cpus() {
    exhaust("death against revocation", Requests { die: true, revoke: true, ..BASE });
}

#[test]
fn a20_hot_plug_against_claims_and_revocation_on_two_cpus() {
    exhaust("hot plug", Requests { hot_plug: true, revoke: true, vms: 2, ..BASE });
}

#[test]
fn a20_b20_switches_under_an_external_user() {
    exhaust("switches", Requests { cpus: 1, vms: 2, contexts: 2, users: 1, revoke: true, ..BASE });
}

#[test]
fn a19_a20_bars_against_release_and_revocation_on_two_cpus() {
    exhaust("BARs", Requests { bars: true, revoke: true, vms: 2, ..BASE });
}

#[test]
fn a19_b20_bars_in_two_contexts_against_death() {
    exhaust("BARs, death", Requests { bars: true, die: true, contexts: 2, cpus: 1, vms: 2, ..BASE });
}

#[test]
fn a20_b20_everything_one_at_a_time() {
    exhaust(
        "everything",
        Requests { cpus: 1, vms: 2, users: 1, revoke: true, die: true, host: true, hot_plug: true, ..BASE },
    );
}

#[test]
fn a20_the_model_notices_two_owners() {
    finds(Flaw::RefusalIgnored, "never two owners", BASE);
}

#[test]
fn a20_the_model_notices_reach_without_a_claim() {
    finds(Flaw::BlockSkipped, "no reach without a claim", BASE);
}

#[test]
fn a19_the_model_notices_a_bar_that_outlives_its_ownership() {
    finds(Flaw::BarLeft, "no BAR but for its owner", Requests { bars: true, vms: 1, ..BASE });
}

#[test]
fn a20_the_model_notices_a_release_of_reachable_memory() {
    finds(Flaw::DissolvedFirst, "no memory released while reachable", Requests { revoke: true, ..BASE });
}

#[test]
fn a20_the_model_notices_a_lost_reference() {
    finds(Flaw::ReleaseForgotten, "no reference lost", BASE);
}

#[test]
fn b20_the_model_notices_a_revocation_that_does_not_end() {
    finds(Flaw::DrainedForEver, "every operation ends", Requests { revoke: true, ..BASE });
}
