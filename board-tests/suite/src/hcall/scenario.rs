//! What every port with such a guest shows, under the names that boards know.

use super::{
    call::{BOTH, Call, FUNCTION, OTHER, PARAMETER, describe, name},
    driver,
    guest::{Guest, ensure},
    hostile::{Plan, run_hostile},
    meanwhile,
    oracle::Oracle,
    port::{FOREIGN_LIOBN, GuestPort, Layout, Offers},
    rules::{RULES, Topic, run_rule},
    vcpus::{TwoVcpus, two_vcpus},
};
use crate::{Event, Failure};

/// The scenarios that [`run`] knows.
pub const NAMES: [&str; 8] = [
    "hcall_rules",
    "hcall_device_rules",
    "hcall_connection_rules",
    "hcall_driver",
    "hcall_hostile_guest",
    "hcall_two_vcpus",
    "hcall_revoked_while_calling",
    "hcall_connected_while_calling",
];

/// Hostile calls of one run: a board makes some thousands a second.
const PLAN: Plan = Plan { seed: 0x5eed, calls: 10_000, anew_every: 500, check_every: 250 };

/// Calls of a hundred that must have committed, so that hostile calls are no mere refusals.
const ENOUGH: u64 = 30;

/// Runs a scenario; `None` when there is none of this name. `oracle` is overwritten.
pub fn run<P: TwoVcpus>(port: &mut P, oracle: &mut Oracle, name: &str) -> Option<Result<(), Failure>> {
    Some(match name {
        "hcall_rules" => rules(port, Topic::Calls),
        "hcall_device_rules" => rules(port, Topic::Device),
        "hcall_connection_rules" => rules(port, Topic::Connections),
        "hcall_driver" => driver::driver(port),
        "hcall_hostile_guest" => hostile(port, oracle),
        "hcall_two_vcpus" => two_vcpus(port),
        "hcall_revoked_while_calling" => meanwhile::revoked(port),
        "hcall_connected_while_calling" => meanwhile::connected(port),
        _ => return None,
    })
}

/// Every rule about `topic` that the port can show, a step each.
fn rules<P: GuestPort>(port: &mut P, topic: Topic) -> Result<(), Failure> {
    let offers = port.offers();
    for rule in RULES.iter().filter(|rule| rule.topic() == topic && offers.contains(rule.needs)) {
        port.emit(&Event::Step { text: rule.name });
        run_rule(port, rule)?;
    }
    let finished = port.finished();
    port.tell("finished in real mode", finished.real);
    port.tell("handed over to virtual mode", finished.handed_over);
    Ok(())
}

/// Some calls that anybody would try first, each refused; then [`PLAN`], judged by `oracle`.
fn hostile<P: GuestPort>(port: &mut P, oracle: &mut Oracle) -> Result<(), Failure> {
    port.reset()?;
    port.emit(&Event::Step { text: "a guest that means harm maps one good page, and then tries others" });
    let mut guest = Guest::new(port);
    let status = guest.put(0, guest.plain(0, BOTH));
    guest.commits(status)?;
    for (what, call, status) in attempts(guest.layout()) {
        guest.refuses(what, call, status)?;
    }
    guest.counts(1)?;
    port.check()?;
    many(port, oracle)
}

/// What each attempt is, the call, and what it comes to.
fn attempts(layout: Layout) -> [(&'static str, Call, i64); 13] {
    let (window, topmost) = (layout.main(), layout.topmost());
    let (good, wild) = (layout.plain().guest | BOTH, layout.wild().guest);
    let (liobn, first, end) = (window.liobn, window.start, window.ioba(window.entries));
    // Where the image of a POWER board's hypervisor lies.
    let image = 0x2000_0000 | BOTH;
    let all = u64::MAX;
    [
        ("map memory of its own that is not registered", Call::put(liobn, first, wild | BOTH), PARAMETER),
        ("map the hypervisor's image", Call::put(liobn, first, image), PARAMETER),
        ("map the end of the address space", Call::put(liobn, first, all & !0xffc), PARAMETER),
        ("map half a page too far", Call::put(liobn, first, good | 0x800), PARAMETER),
        ("map behind the end of its window", Call::put(liobn, end, good), PARAMETER),
        ("map between two entries", Call::put(liobn, first + 8, good), PARAMETER),
        ("map for another VM", Call::put(FOREIGN_LIOBN, first, good), PARAMETER),
        ("map by a LIOBN of 33 bits", Call::put(liobn | 1 << 32, first, good), PARAMETER),
        ("a list of 513 entries", Call::indirect(liobn, first, layout.plain().guest, 513), PARAMETER),
        ("a list in memory that is not registered", Call::indirect(liobn, first, wild, 1), PARAMETER),
        ("clear entries until the count wraps", Call::stuff(topmost.liobn, topmost.start, 0, all), PARAMETER),
        ("clear with a permission", Call::stuff(liobn, first, good, 1), PARAMETER),
        ("a call that nobody knows", Call { opcode: OTHER, arguments: [liobn, first, good, 1] }, FUNCTION),
    ]
}

/// Thousands of calls near every boundary.
fn many<P: GuestPort>(port: &mut P, oracle: &mut Oracle) -> Result<(), Failure> {
    port.emit(&Event::Step { text: "hostile calls, each judged by an oracle" });
    let before = port.finished().handed_over;
    let tally = match run_hostile(port, oracle, PLAN) {
        Ok(tally) => tally,
        Err(mismatch) => {
            let (call, [_, ioba, _, count]) = (name(mismatch.call.opcode), mismatch.call.arguments);
            port.emit(&Event::Called { call, ioba, count, status: describe(mismatch.found) });
            port.emit(&Event::Step { text: describe(mismatch.expected) });
            return Err(mismatch.failure);
        }
    };
    let handed_over = port.finished().handed_over - before;
    port.tell("hostile", tally.calls);
    port.tell("of them committed", tally.committed);
    port.tell("refused with H_PARAMETER", tally.parameter);
    port.tell("refused with H_FUNCTION", tally.function);
    port.tell("unfinished because of hardware", tally.hardware);
    port.tell("handed over to virtual mode", handed_over);
    ensure(tally.reached_all(port.offers()), "a status that a call can come to was never seen")?;
    ensure(tally.percent_committed() >= ENOUGH, "too few of the calls committed")?;
    let mostly = handed_over < tally.calls / 2 || !port.offers().contains(Offers::HANDED_OVER);
    ensure(mostly, "most calls were handed over")
}
