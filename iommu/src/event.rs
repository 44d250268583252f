//! What happened, for the hypervisor's log.

use heapless::Deque;

use crate::{
    error::Error,
    fault::Fault,
    group::{GroupId, VmId},
    ownership::{Answer, Effect, Owner, Request},
};

/// Events that are kept until somebody takes them.
pub const MAX_EVENTS: usize = 64;

/// One event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum Event {
    /// Somebody got a hold on a group.
    Claimed {
        /// Who.
        owner: Owner,
        /// Which group.
        group: GroupId,
    },
    /// Somebody did not get a group; the error names who has it, or what is missing.
    Refused {
        /// Who.
        owner: Owner,
        /// Which group.
        group: GroupId,
        /// Why.
        error: Error,
    },
    /// A group was switched to a context.
    Attached {
        /// The group.
        group: GroupId,
        /// Slot of the context.
        context: u32,
    },
    /// A group was blocked.
    Blocked {
        /// The group.
        group: GroupId,
    },
    /// Hardware did not answer for a group.
    Quarantined {
        /// The group.
        group: GroupId,
    },
    /// A group was blocked on request, whoever owns it.
    SetAside {
        /// The group.
        group: GroupId,
    },
    /// A group that was set aside may be used again.
    Readmitted {
        /// The group.
        group: GroupId,
    },
    /// A VM's ownership was ended for it.
    Revoked {
        /// The VM.
        vm: VmId,
        /// The group.
        group: GroupId,
    },
    /// A VM died, and what it had was ended as far as possible.
    Died {
        /// The VM.
        vm: VmId,
    },
    /// A device did what it may not.
    Fault {
        /// What.
        fault: Fault,
        /// Who owned the device when the fault was read.
        owner: Option<Owner>,
    },
}

/// A bounded log: the oldest events stay, the overflow is counted.
#[derive(Debug)]
pub(crate) struct Log {
    events: Deque<Event, MAX_EVENTS>,
    lost: u64,
}

impl Log {
    pub(crate) const fn new() -> Self {
        Self { events: Deque::new(), lost: 0 }
    }

    pub(crate) fn note(&mut self, event: Event) {
        if self.events.push_back(event).is_err() {
            self.lost = self.lost.saturating_add(1);
        }
    }

    pub(crate) fn take(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    pub(crate) const fn lost(&self) -> u64 {
        self.lost
    }

    pub(crate) fn refused(&mut self, request: Request, error: Error) {
        if let Request::Acquire { owner, group } = request {
            self.note(Event::Refused { owner, group, error });
        }
    }

    pub(crate) fn did(&mut self, effect: Effect, answer: Answer) {
        match (effect, answer) {
            (Effect::Block { group }, Answer::Done) => self.note(Event::Blocked { group }),
            (Effect::Switch { group, context }, Answer::Done) => {
                self.note(Event::Attached { group, context: context as u32 });
            }
            (
                Effect::Block { group } | Effect::Switch { group, .. } | Effect::UnmapBar { group, .. },
                Answer::Failed(_),
            ) => {
                self.note(Event::Quarantined { group });
            }
            _ => {}
        }
    }

    pub(crate) fn over<T>(&mut self, request: Request, result: &Result<T, Error>) {
        match (request, result) {
            (Request::Acquire { owner, group }, Ok(_)) => self.note(Event::Claimed { owner, group }),
            (Request::Acquire { owner, group }, Err(error)) => {
                self.note(Event::Refused { owner, group, error: *error });
            }
            (Request::SetAside { group }, Ok(_)) => self.note(Event::SetAside { group }),
            (Request::Revoke { vm, group }, _) => self.note(Event::Revoked { vm, group }),
            (Request::VmDied { vm }, _) => self.note(Event::Died { vm }),
            _ => {}
        }
    }
}
