//! What hypercalls cost a guest on this machine, in ticks of the time base, beside the empty call and beside a loop of
//! plain exchanges in the hypervisor.

use core::sync::atomic::{AtomicU64, Ordering};

use heapless::Vec;
use portcullis_hal::{Clock, arch::powerpc64::TimeBaseClock};
use portcullis_hypervisor::power::{
    guest_call::done_in_real_mode,
    scenario::{ensure, need},
    script::{Op, call, calls},
};
use portcullis_suite::{
    Event, Failure,
    hcall::{
        Call, GuestPort, Window,
        call::{BOTH, LIST_ENTRIES, READ, SUCCESS, WRITE},
        port::BUDGET,
    },
};

use crate::port::{BoardPort, operation};

/// Samples of each kind of call. Their median is told: a busy machine delays some of them.
const SAMPLES: usize = 400;
/// Calls of the mix, in scripts of as many as fit.
const MIX: u64 = 3200;
const SCRIPT: u64 = 800;
/// Of the calls of the mix, in a hundred, that real mode has to finish.
const MOST: u64 = 95;
/// Sweeps over the words of the exchange loop.
const SWEEPS: u64 = 200;
/// 4 KiB page of the plain area with the list.
const LIST_PAGE: u64 = 30;

/// D40, and figures.
pub(super) fn cost(port: &mut BoardPort<'_, '_, '_>) -> Result<(), Failure> {
    port.reset()?;
    let (window, plain) = (port.layout().main(), port.layout().plain());
    (0..LIST_ENTRIES)
        .for_each(|number| port.write(plain.page(LIST_PAGE) + number * 8, plain.page(number % 16) | BOTH));
    port.emit(&Event::Step {
        text: "the guest maps and unmaps as an operating system does, from empty tables on",
    });
    mix(port, window, plain.guest)?;
    port.emit(&Event::Step {
        text: "single calls, from the guest and back, and what an entry of them costs: medians",
    });
    let empty = median(port, [call(calls::EMPTY, &[]); 2])?;
    told(port, "an empty call", empty, "ticks");
    for kind in kinds(window, plain.guest) {
        let ticks = median(port, kind.calls.map(operation))?;
        told(port, kind.what, ticks, "ticks");
        told(port, "… beside the empty call", ticks * 100 / empty.max(1), "%");
        if kind.entries > 1 {
            told(port, "… an entry", ticks * 100 / kind.entries, "hundredths of a tick");
        }
    }
    told(port, "an exchange in a plain loop of the hypervisor", exchange(), "hundredths of a tick");
    port.check()
}

fn told(port: &mut BoardPort<'_, '_, '_>, what: &'static str, value: u64, unit: &'static str) {
    port.emit(&Event::Measured { what, value, unit });
}

/// Most calls of an operating system end in real mode.
fn mix(port: &mut BoardPort<'_, '_, '_>, window: Window, plain: u64) -> Result<(), Failure> {
    let before = done_in_real_mode(0);
    for first in (0..MIX).step_by(SCRIPT as usize) {
        port.run((first..first + SCRIPT).map(|number| operation(usual_call(window, plain, number))))?;
        for index in 0..SCRIPT as usize {
            ensure(port.outcome(0, index)?.status as i64 == SUCCESS, "a call of the mix was refused")?;
        }
    }
    let real = done_in_real_mode(0) - before;
    told(port, "calls of the mix", MIX, "calls");
    told(port, "of them finished in real mode", real, "calls");
    told(port, "of them handed over", MIX - real, "calls");
    ensure(real * 100 >= MIX * MOST, "too many calls were handed over")?;
    port.check()
}

/// Call `number` of the mix: single pages and short lists come and go, and each time the next addresses of the window
/// are used, round and round.
const fn usual_call(window: Window, plain: u64, number: u64) -> Call {
    let (liobn, list) = (window.liobn, plain + (LIST_PAGE << 12));
    let first = number / 8 * 10 % (window.entries - 10);
    let (one, other, many) = (window.ioba(first), window.ioba(first + 1), window.ioba(first + 2));
    let page = plain + ((number % 24) << 12);
    match number % 8 {
        0 => Call::put(liobn, one, page | READ),
        1 => Call::put(liobn, other, page | WRITE),
        2 => Call::indirect(liobn, many, list, 8),
        3 => Call::get(liobn, one),
        4 => Call::put(liobn, one, 0),
        5 => Call::stuff(liobn, other, 0, 1),
        6 => Call::stuff(liobn, many, 0, 8),
        _ => Call::indirect(liobn, many, list, 4),
    }
}

/// A kind of call.
struct Kind {
    what: &'static str,
    entries: u64,
    /// What makes things as the call should find them, and the call.
    calls: [Call; 2],
}

fn kinds(window: Window, plain: u64) -> [Kind; 8] {
    let (liobn, ioba, list) = (window.liobn, window.start, plain + (LIST_PAGE << 12));
    let put = |tce| Call::put(liobn, ioba, tce);
    let (page, other) = (put(plain | BOTH), put((plain + 0x1000) | BOTH));
    let (lists, clears) = (|n| Call::indirect(liobn, ioba, list, n), |n| Call::stuff(liobn, ioba, 0, n));
    let (all, budget) = (LIST_ENTRIES, u64::from(BUDGET));
    let kind = |what, entries, calls| Kind { what, entries, calls };
    [
        kind("H_GET_TCE", 1, [page, Call::get(liobn, ioba)]),
        kind("H_PUT_TCE that maps", 1, [put(0), page]),
        kind("H_PUT_TCE that puts another page in its place", 1, [other, page]),
        kind("H_PUT_TCE that unmaps", 1, [page, put(0)]),
        kind("H_PUT_TCE_INDIRECT that maps 512", all, [clears(all), lists(all)]),
        kind("H_PUT_TCE_INDIRECT that replaces 512", all, [lists(all), lists(all)]),
        kind("H_STUFF_TCE of 128, one step", budget, [lists(all), clears(budget)]),
        kind("H_STUFF_TCE of 512, handed over after the first step", all, [lists(all), clears(all)]),
    ]
}

/// Median of the ticks that the second of two calls takes after the first.
fn median(port: &BoardPort<'_, '_, '_>, pair: [Op; 2]) -> Result<u64, Failure> {
    // Once for tables and translations.
    for _ in 0..2 {
        port.run((0..SAMPLES).flat_map(|_| pair))?;
    }
    let mut samples: Vec<u64, SAMPLES> = Vec::new();
    for index in 0..SAMPLES {
        let outcome = port.outcome(0, 2 * index + 1)?;
        ensure(outcome.status as i64 == SUCCESS, "a call that was measured was refused")?;
        ensure(samples.push(outcome.after - outcome.before).is_ok(), "more samples than there is room for")?;
    }
    samples.sort_unstable();
    need(samples.get(SAMPLES / 2).copied(), "nothing was measured")
}

/// Hundredths of a tick that an exchange takes in a loop over as many words as a list has.
fn exchange() -> u64 {
    static WORDS: [AtomicU64; LIST_ENTRIES as usize] = [const { AtomicU64::new(0) }; LIST_ENTRIES as usize];
    let begun = TimeBaseClock.now();
    for sweep in 0..SWEEPS {
        WORDS.iter().for_each(|word| {
            word.swap(sweep, Ordering::AcqRel);
        });
    }
    let nanoseconds = (TimeBaseClock.now() - begun).as_nanos() as u64;
    // 512 ticks are a microsecond.
    nanoseconds * 512 / 10 / (SWEEPS * LIST_ENTRIES)
}
