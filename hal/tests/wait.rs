//! The one wait.
#![allow(missing_docs, reason = "tests document themselves by their names")]

use std::{cell::Cell, time::Duration};

use portcullis_hal::{Clock, TimedOut, wait_until};

const MISSING: TimedOut = TimedOut { register: 0x1c, bits: 4 };

struct Steps {
    now: Cell<u64>,
    step: u64,
}

impl Clock for Steps {
    fn now(&self) -> Duration {
        self.now.set(self.now.get() + self.step);
        Duration::from_micros(self.now.get())
    }
}

#[test]
fn h04_a_wait_ends_at_its_deadline_and_names_what_is_missing() {
    let clock = Steps { now: Cell::new(0), step: 10 };
    let polls = Cell::new(0);
    let result = wait_until(&clock, Duration::from_micros(100), MISSING, || {
        polls.set(polls.get() + 1);
        None::<()>
    });
    assert_eq!(result, Err(MISSING));
    assert_eq!(polls.get(), 10);
}

#[test]
fn h04_a_cpu_that_was_held_up_asks_once_more() {
    let clock = Steps { now: Cell::new(0), step: 1_000_000 };
    let polls = Cell::new(0);
    let result = wait_until(&clock, Duration::from_micros(1), MISSING, || {
        polls.set(polls.get() + 1);
        (polls.get() == 1).then_some(5)
    });
    assert_eq!(result, Ok(5));
}

#[test]
#[cfg_attr(miri, ignore = "millions of polls, all alike")]
fn h04_a_clock_that_stands_still_ends_the_wait() {
    let clock = Steps { now: Cell::new(0), step: 0 };
    assert_eq!(wait_until(&clock, Duration::from_secs(1), MISSING, || None::<()>), Err(MISSING));
}
