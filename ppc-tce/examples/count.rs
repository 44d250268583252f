//! `count OPERATION N`: performs an operation N times after a set-up that does not depend on N.
//!
//! Prints nothing. Under `valgrind --tool=callgrind`, (instructions(N2) − instructions(N1)) / (N2 − N1) is
//! what one operation costs.

#[path = "../benches/ground/mod.rs"]
mod ground;

use std::hint::black_box;

use ground::{GIB, Ground, PAGE, PAGES, full_table, index};
use portcullis_hal::{Access, PhysAddr};
use portcullis_ppc_tce::Tce;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let operation = arguments.next().unwrap_or_default();
    let count: u64 = arguments.next().and_then(|count| count.parse().ok()).unwrap_or_default();
    match operation.as_str() {
        "put" | "walk" => on_tables(&operation, count),
        "map" | "lookup" | "map-range" => on_empty(&operation, count),
        "unmap" | "unmap-range" => on_full(&operation, count),
        _ => std::process::exit(2),
    }
}

/// Hypercalls: one entry a call.
fn on_tables(operation: &str, count: u64) {
    let (pool, table) = full_table();
    for number in 0..count {
        let index = index(number % PAGES);
        if operation == "walk" {
            black_box(table.lookup(&pool, black_box(index)));
        } else {
            let tce = Tce::leaf(PhysAddr::new(black_box(number * PAGE)), Access::all());
            let _ = black_box(table.exchange(&pool, black_box(index), tce));
        }
    }
}

/// Calls of the policy that begin with warm, empty tables; at most as often as there is room.
fn on_empty(operation: &str, count: u64) {
    let ground = Ground::new();
    for number in 0..count {
        match operation {
            "map" => ground.map(black_box(number), 1),
            "map-range" => ground.map(black_box(number * (GIB / PAGE)), GIB / PAGE),
            _ => {
                black_box(ground.lookup(black_box(number)));
            }
        }
    }
}

/// Calls of the policy that begin with everything mapped.
fn on_full(operation: &str, count: u64) {
    let ground = Ground::new();
    ground.map(0, PAGES);
    for number in 0..count {
        match operation {
            "unmap" => ground.unmap(black_box(number), 1),
            _ => ground.unmap(black_box(number * (GIB / PAGE)), GIB / PAGE),
        }
    }
}
