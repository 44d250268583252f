//! What is mapped where, as the target's own events say.

use portcullis_suite::event::{Direction, Event};

/// Devices' contexts and contexts' mappings at one moment.
#[derive(Default)]
pub(crate) struct Mappings {
    attached: Vec<(u16, u32)>,
    mapped: Vec<Mapping>,
}

#[derive(Clone, Copy)]
struct Mapping {
    context: u32,
    iova: u64,
    phys: u64,
    bytes: u64,
    access: u8,
}

impl Mappings {
    /// Takes an event into account.
    pub(crate) fn follow(&mut self, event: &Event<'_>) {
        match *event {
            Event::Attached { requester, context } => {
                self.attached.retain(|(device, _)| *device != requester);
                self.attached.push((requester, context));
            }
            Event::Detached { requester }
            | Event::Claimed { requester, .. }
            | Event::Released { requester, .. }
            | Event::Revoked { requester, .. } => self.attached.retain(|(device, _)| *device != requester),
            Event::Mapped { context, iova, phys, bytes, access } => {
                self.mapped.push(Mapping { context, iova, phys, bytes, access });
            }
            Event::Unmapped { context, iova, bytes } => self.mapped.retain(|mapping| {
                mapping.context != context || !(iova..iova.saturating_add(bytes)).contains(&mapping.iova)
            }),
            _ => {}
        }
    }

    /// Context of a device.
    fn context(&self, requester: u16) -> Option<u32> {
        self.attached.iter().find(|(device, _)| *device == requester).map(|(_, context)| *context)
    }

    fn find(&self, context: u32, iova: u64) -> Option<&Mapping> {
        let inside = |mapping: &&Mapping| {
            mapping.context == context
                && iova.checked_sub(mapping.iova).is_some_and(|offset| offset < mapping.bytes)
        };
        self.mapped.iter().rev().find(inside)
    }

    /// Physical address behind an I/O virtual address of a device.
    pub(crate) fn phys(&self, requester: u16, iova: u64) -> Option<u64> {
        let mapping = self.find(self.context(requester)?, iova)?;
        Some(mapping.phys + (iova - mapping.iova))
    }

    /// Why a transfer must be blocked; `None` when a mapping allows it.
    pub(crate) fn obstacle(&self, requester: u16, iova: u64, direction: Direction) -> Option<String> {
        let Some(context) = self.context(requester) else {
            return Some("the device is in no context".to_owned());
        };
        let Some(mapping) = self.find(context, iova) else {
            return Some(format!("context {context} maps nothing there"));
        };
        match (direction, mapping.access & 3) {
            (Direction::Write, 1) => Some(format!("context {context} maps it read only")),
            (Direction::Read, 2) => Some(format!("context {context} maps it write only")),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_follow_the_events() {
        let mut mappings = Mappings::default();
        let why = |mappings: &Mappings, direction| mappings.obstacle(8, 0x2010, direction);
        assert_eq!(why(&mappings, Direction::Read).unwrap(), "the device is in no context");
        mappings.follow(&Event::Attached { requester: 8, context: 1 });
        mappings.follow(&Event::Mapped { context: 1, iova: 0x1000, phys: 0x9000, bytes: 0x2000, access: 1 });
        assert_eq!(mappings.phys(8, 0x2010), Some(0xa010));
        assert_eq!(mappings.phys(9, 0x2010), None);
        assert_eq!(why(&mappings, Direction::Read), None);
        assert_eq!(why(&mappings, Direction::Write).unwrap(), "context 1 maps it read only");
        mappings.follow(&Event::Unmapped { context: 1, iova: 0x1000, bytes: 0x2000 });
        assert_eq!(mappings.phys(8, 0x2010), None);
        assert_eq!(why(&mappings, Direction::Read).unwrap(), "context 1 maps nothing there");
        let ends = [
            Event::Detached { requester: 8 },
            Event::Released { requester: 8, vm: 1 },
            Event::Revoked { requester: 8, vm: 1 },
            Event::Claimed { requester: 8, vm: 2 },
        ];
        for end in ends {
            mappings.follow(&Event::Attached { requester: 8, context: 1 });
            mappings.follow(&end);
            assert_eq!(why(&mappings, Direction::Write).unwrap(), "the device is in no context");
        }
    }
}
