//! Events in words that a hypervisor developer understands.

use portcullis_suite::event::{Direction, Effect, Event};

/// A requester ID as bus, device and function: `00:02.0`.
pub(crate) fn requester(id: u16) -> String {
    format!("{:02x}:{:02x}.{}", id >> 8, (id >> 3) & 0x1f, id & 7)
}

/// What a device does.
pub(crate) const fn verb(direction: Direction) -> &'static str {
    match direction {
        Direction::Read => "reads",
        Direction::Write => "writes",
    }
}

/// What came of it.
pub(crate) const fn effect(effect: Effect) -> &'static str {
    match effect {
        Effect::Landed => "it landed",
        Effect::Blocked => "it was blocked",
        Effect::Garbled => "part of it, or something else, arrived",
    }
}

/// How much attention a line asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    /// The frame of the story.
    Plain,
    /// What is set up.
    Setting,
    /// DMA that arrived.
    Landed,
    /// DMA or a call that was stopped.
    Stopped,
    /// Good.
    Good,
    /// Bad.
    Bad,
}

/// One line for an event.
pub(crate) fn line(event: &Event<'_>) -> (Tone, String) {
    match *event {
        Event::Dma { .. } | Event::Fault { .. } | Event::Refused { .. } => transfer(event),
        Event::Ready { .. } | Event::Device { .. } => machine(event),
        Event::Claimed { .. }
        | Event::Released { .. }
        | Event::Quiesced { .. }
        | Event::Silent { .. }
        | Event::Notified { .. }
        | Event::Revoked { .. }
        | Event::Died { .. }
        | Event::Blamed { .. }
        | Event::Coherency { .. } => ownership(event),
        Event::Called { call, ioba, count, status } => {
            let tone = if status == "H_SUCCESS" { Tone::Setting } else { Tone::Stopped };
            (tone, format!("{call} by the guest, from {ioba:#x} on, entries: {count}: {status}"))
        }
        Event::Begin { scenario } => (Tone::Plain, format!("scenario {scenario}")),
        Event::Step { text } => (Tone::Plain, text.to_owned()),
        Event::Checksum { what, value, bytes } => {
            (Tone::Landed, format!("checksum  {what}, {}: {value:#010x}", size(bytes)))
        }
        Event::Measured { what, value, unit } => (Tone::Setting, format!("measured  {what}: {value} {unit}")),
        Event::Attached { requester: id, context } => {
            (Tone::Setting, format!("attach    {} to context {context}", requester(id)))
        }
        Event::Detached { requester: id } => {
            (Tone::Setting, format!("detach    {}: blocked from here on", requester(id)))
        }
        Event::Mapped { context, iova, phys, bytes, access } => (
            Tone::Setting,
            format!(
                "map       context {context}: IOVA {iova:#x} → {phys:#x}, {}, {}",
                size(bytes),
                permission(access)
            ),
        ),
        Event::Unmapped { context, iova, bytes } => (
            Tone::Setting,
            format!("unmap     context {context}: IOVA {iova:#x}, {}; invalidation confirmed", size(bytes)),
        ),
        Event::Passed { scenario } => (Tone::Good, format!("passed    {scenario}")),
        Event::Failed { scenario, what, line } => {
            (Tone::Bad, format!("FAILED    {scenario}: {what} (suite, line {line})"))
        }
        Event::Crashed { what, at } => (Tone::Bad, format!("CRASHED   {what}, at {at:#x}")),
    }
}

fn ownership(event: &Event<'_>) -> (Tone, String) {
    let text = match *event {
        Event::Claimed { requester: id, vm } => {
            format!("claim     {} by VM {vm}: blocked until it is attached", requester(id))
        }
        Event::Released { requester: id, vm } => {
            format!("release   {} by VM {vm}: blocked from here on", requester(id))
        }
        Event::Quiesced { requester: id } => {
            format!("quiesce   {}: bus mastering off, nothing under way", requester(id))
        }
        Event::Silent { requester: id, iova } => {
            let text = format!("silent    {} masters no bus: nothing came to IOVA {iova:#x}", requester(id));
            return (Tone::Stopped, text);
        }
        Event::Notified { user } => format!("notify    external user {user}: the ownership ends"),
        Event::Revoked { requester: id, vm } => {
            format!("revoke    {} from VM {vm}: blocked from here on", requester(id))
        }
        Event::Blamed { requester: id, vm } => {
            format!("blamed    VM {vm}, which owns {}", requester(id))
        }
        Event::Died { vm } => format!("death     of VM {vm}: all that it had is ended"),
        Event::Coherency { vm, coherent, epoch } => {
            let duty = if coherent { "may do nothing" } else { "must flush the caches" };
            format!("notice    VM {vm}: its WBINVD {duty} (epoch {epoch})")
        }
        _ => String::new(),
    };
    (Tone::Setting, text)
}

fn machine(event: &Event<'_>) -> (Tone, String) {
    let text = match *event {
        Event::Ready { iommu, snoop_control, address_bits } => {
            format!("{iommu} is up: {address_bits}-bit IOVA, {}", coherency(snoop_control))
        }
        Event::Device { index, requester: id, name } => {
            format!("device    {index}: {name} at {}", requester(id))
        }
        _ => String::new(),
    };
    (Tone::Setting, text)
}

const fn coherency(snoop_control: Option<bool>) -> &'static str {
    match snoop_control {
        Some(true) => "snoop control: yes",
        Some(false) => "snoop control: no",
        None => "DMA is always coherent on this bus",
    }
}

fn transfer(event: &Event<'_>) -> (Tone, String) {
    match *event {
        Event::Dma { requester: id, iova, bytes, direction, effect: outcome } => {
            let (tone, word) = match outcome {
                Effect::Landed => (Tone::Landed, "landed "),
                Effect::Blocked => (Tone::Stopped, "blocked"),
                Effect::Garbled => (Tone::Bad, "GARBLED"),
            };
            let (device, verb) = (requester(id), verb(direction));
            (tone, format!("{word}   {device} {verb} {bytes} bytes at IOVA {iova:#x}"))
        }
        Event::Fault { requester: id, iova, direction, reason } => {
            let device = requester(id);
            let place = iova.map_or_else(|| "an unknown IOVA".to_owned(), |iova| format!("IOVA {iova:#x}"));
            let kind = if direction == Direction::Read { "read" } else { "write" };
            (Tone::Stopped, format!("  fault   {device}, {kind} of {place}: {reason}"))
        }
        Event::Refused { what, why } => (Tone::Stopped, format!("refused   {what}: {why}")),
        _ => (Tone::Plain, String::new()),
    }
}

const fn permission(access: u8) -> &'static str {
    match access & 3 {
        1 => "read only",
        2 => "write only",
        3 => "read and write",
        _ => "no access",
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        0 => "0 bytes".to_owned(),
        bytes if bytes.is_multiple_of(1 << 20) => format!("{} MiB", bytes >> 20),
        bytes if bytes.is_multiple_of(1 << 10) => format!("{} KiB", bytes >> 10),
        bytes => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blocked_write_names_requester_address_and_reason() {
        let dma = Event::Dma {
            requester: 0x0110,
            iova: 0x33000,
            bytes: 256,
            direction: Direction::Write,
            effect: Effect::Blocked,
        };
        assert_eq!(
            line(&dma),
            (Tone::Stopped, "blocked   01:02.0 writes 256 bytes at IOVA 0x33000".to_owned())
        );
        let fault = Event::Fault { requester: 0x11, iova: None, direction: Direction::Write, reason: "why" };
        assert!(line(&fault).1.contains("00:02.1, write of an unknown IOVA: why"));
    }

    #[test]
    fn mappings_and_units_are_described() {
        let mapped = Event::Mapped { context: 2, iova: 0x1000, phys: 0x20_0000, bytes: 1 << 21, access: 1 };
        assert!(line(&mapped).1.ends_with("IOVA 0x1000 → 0x200000, 2 MiB, read only"));
        let ready = Event::Ready { iommu: "VT-d", snoop_control: Some(false), address_bits: 48 };
        assert!(line(&ready).1.ends_with("48-bit IOVA, snoop control: no"));
        assert_eq!((size(4096), size(10)), ("4 KiB".to_owned(), "10 bytes".to_owned()));
    }
    #[test]
    fn hypercalls_are_told_with_what_came_of_them() {
        let called = Event::Called { call: "H_STUFF_TCE", ioba: 0x3000, count: 2, status: "H_PARAMETER" };
        let (tone, text) = line(&called);
        assert_eq!(
            (tone, text.as_str()),
            (Tone::Stopped, "H_STUFF_TCE by the guest, from 0x3000 on, entries: 2: H_PARAMETER")
        );
    }

    #[test]
    fn who_owns_what_is_told() {
        let told = |event: Event<'_>| line(&event).1;
        assert!(told(Event::Claimed { requester: 8, vm: 2 }).contains("00:01.0 by VM 2: blocked"));
        assert!(told(Event::Released { requester: 8, vm: 1 }).contains("00:01.0 by VM 1: blocked"));
        assert!(told(Event::Revoked { requester: 8, vm: 1 }).contains("00:01.0 from VM 1: blocked"));
        assert!(told(Event::Quiesced { requester: 8 }).contains("00:01.0: bus mastering off"));
        let silent = Event::Silent { requester: 8, iova: 0x9000 };
        assert_eq!(line(&silent).0, Tone::Stopped);
        assert!(told(silent).contains("nothing came to IOVA 0x9000"));
        assert!(told(Event::Notified { user: 7 }).contains("external user 7"));
        assert!(told(Event::Died { vm: 3 }).contains("VM 3"));
        let notice = |coherent| told(Event::Coherency { vm: 1, coherent, epoch: 4 });
        assert!(notice(true).contains("do nothing") && notice(false).contains("must flush"));
        assert!(notice(false).contains("epoch 4"));
    }
}
