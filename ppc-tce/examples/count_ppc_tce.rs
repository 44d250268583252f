//! `count_ppc_tce OPERATION N`: performs an operation N times after a set-up that does not depend on N.
//!
//! Prints nothing. Under `valgrind --tool=callgrind`, (instructions(N2) − instructions(N1)) / (N2 − N1) is
//! what one operation costs.

#[path = "../benches/ground/mod.rs"]
mod ground;

use std::hint::black_box;

use ground::{GIB, Ground, PAGE, PAGES, full_table, hcalls::Caller, index};
use portcullis_hal::{Access, PhysAddr};
use portcullis_ppc_tce::Tce;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let operation = arguments.next().unwrap_or_default();
    let count: u64 = arguments.next().and_then(|count| count.parse().ok()).unwrap_or_default();
    match operation.as_str() {
        "put" => put(count),
        "walk" => walk(count),
        "table-map" => table_map(count),
        "table-unmap" => table_unmap(count),
        "map" => on_empty(count, |ground, number| ground.map(number, 1)),
        "map-range" => on_empty(count, |ground, number| ground.map(number * (GIB / PAGE), GIB / PAGE)),
        "map-guest" => on_registered(count, |ground, number| ground.map_guest(number, 1)),
        "map-guest-range" => {
            on_registered(count, |ground, number| ground.map_guest(number * (GIB / PAGE), GIB / PAGE));
        }
        "unmap-guest" => on_registered_full(count, |ground, number| ground.unmap(number, 1)),
        "unmap-guest-range" => {
            on_registered_full(count, |ground, number| ground.unmap(number * (GIB / PAGE), GIB / PAGE));
        }
        "unmap" => on_full(count, |ground, number| ground.unmap(number, 1)),
        "unmap-range" => on_full(count, |ground, number| ground.unmap(number * (GIB / PAGE), GIB / PAGE)),
        "lookup" => on_full(count, |ground, number| {
            black_box(ground.lookup(number));
        }),
        "hcall-put" => calls(count, Caller::new(), |caller, number| caller.put(number, number)),
        "hcall-put-again" => calls(count, Caller::full(), |caller, number| caller.put(number, number ^ 1)),
        "hcall-clear" => calls(count, Caller::full(), Caller::clear),
        "hcall-get" => calls(count, Caller::full(), Caller::get),
        "hcall-stuff" => calls(count, Caller::full(), |caller, number| caller.stuff(number * 512)),
        "hcall-indirect" => indirect(count, |entry| entry),
        "hcall-indirect-scattered" => indirect(count, |entry| entry ^ 1),
        _ => std::process::exit(2),
    }
}

/// Hypercalls of a guest, in real mode.
fn calls(count: u64, mut caller: Caller, act: impl Fn(&mut Caller, u64)) {
    for number in 0..count {
        act(&mut caller, black_box(number));
    }
}

/// Hypercalls with a list of 512 pages.
fn indirect(count: u64, page: impl Fn(u64) -> u64) {
    let caller = Caller::new();
    caller.write_list(page);
    calls(count, caller, |caller, number| caller.indirect(number * 512));
}

/// One entry exchanged by a table's users, who share it.
fn put(count: u64) {
    let (pool, table) = full_table();
    for number in 0..count {
        let tce = Tce::leaf(PhysAddr::new(black_box(number * PAGE)), Access::all());
        let _ = black_box(table.exchange(&pool, index(black_box(number)), tce));
    }
}

/// One entry read, as by a hypercall.
fn walk(count: u64) {
    let (pool, table) = full_table();
    for number in 0..count {
        black_box(table.lookup(&pool, index(black_box(number))));
    }
}

/// One entry mapped, below the policy: what page-table crates do.
fn table_map(count: u64) {
    let (pool, table) = full_table();
    let all = table.entries(index(0), PAGES).expect("entries");
    table.unmap(&pool, all).expect("nobody else is here");
    for number in 0..count {
        let tce = Tce::leaf(PhysAddr::new(black_box(number * PAGE)), Access::all());
        let entry = table.entries(index(black_box(number)), 1).expect("an entry");
        table.map(&pool, entry, tce).expect("room");
    }
}

/// One entry unmapped, below the policy.
fn table_unmap(count: u64) {
    let (pool, table) = full_table();
    for number in 0..count {
        let entry = table.entries(index(black_box(number)), 1).expect("an entry");
        table.unmap(&pool, entry).expect("nobody else is here");
    }
}

/// Calls of the policy that begin with warm, empty tables; at most as many as there is room for.
fn on_empty(count: u64, act: impl Fn(&Ground, u64)) {
    let ground = Ground::new();
    for number in 0..count {
        act(&ground, black_box(number));
    }
}

/// Calls of the policy that begin with everything mapped.
fn on_full(count: u64, act: impl Fn(&Ground, u64)) {
    let ground = Ground::new();
    ground.map(0, PAGES);
    for number in 0..count {
        act(&ground, black_box(number));
    }
}

/// The same with registered memory, which is counted.
fn on_registered(count: u64, act: impl Fn(&Ground, u64)) {
    let ground = Ground::registered();
    for number in 0..count {
        act(&ground, black_box(number));
    }
}

/// Calls of the policy that begin with all of the registered memory mapped.
fn on_registered_full(count: u64, act: impl Fn(&Ground, u64)) {
    let ground = Ground::registered();
    ground.map_guest(0, PAGES);
    for number in 0..count {
        act(&ground, black_box(number));
    }
}
