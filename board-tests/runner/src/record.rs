//! What happened in one boot.

use std::{
    collections::VecDeque,
    process::ExitStatus,
    time::{Duration, Instant},
};

use portcullis_suite::event::{self, Event};

use crate::{console::Said, words};

/// Lines that are kept to be shown when something goes wrong.
const KEPT_LINES: usize = 25;

/// How a boot ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// QEMU ended by itself.
    Exited(ExitStatus),
    /// It was killed at the deadline.
    Deadline(Duration),
}

/// Everything that a board said in one boot.
#[derive(Debug)]
pub(crate) struct Record {
    started: Instant,
    events: Vec<Vec<u8>>,
    last_lines: VecDeque<String>,
    garbled: usize,
}

impl Record {
    /// An empty record that starts now.
    pub(crate) fn start() -> Self {
        Self { started: Instant::now(), events: Vec::new(), last_lines: VecDeque::new(), garbled: 0 }
    }

    /// Takes down what was said.
    pub(crate) fn note(&mut self, said: Said) {
        match said {
            Said::Text(line) | Said::Log(line) => self.note_line(line),
            Said::Garbled(bytes) => {
                self.garbled += 1;
                self.note_line(format!("({bytes} bytes that are no frame of this image)"));
            }
            Said::Event(bytes) => {
                if let Some(event) = event::decode(&bytes) {
                    self.note_line(words::line(&event).1);
                }
                self.events.push(bytes);
            }
        }
    }

    /// Takes down a line for the case that something goes wrong.
    pub(crate) fn note_line(&mut self, line: String) {
        if self.last_lines.len() == KEPT_LINES {
            self.last_lines.pop_front();
        }
        self.last_lines.push_back(line);
    }

    /// The target's events in their order.
    pub(crate) fn events(&self) -> impl Iterator<Item = Event<'_>> {
        self.events.iter().filter_map(|bytes| event::decode(bytes))
    }

    /// The last lines of all kinds.
    pub(crate) fn last_lines(&self) -> impl Iterator<Item = &str> {
        self.last_lines.iter().map(String::as_str)
    }

    /// Frames that could not be decoded.
    pub(crate) fn garbled(&self) -> usize {
        self.garbled
    }

    /// Time since the start.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A record with these events.
    pub(crate) fn record_of(events: &[Event<'_>]) -> Record {
        let mut record = Record::start();
        for event in events {
            let mut buffer = [0; event::MAX_EVENT_BYTES];
            record.note(Said::Event(event::encode(event, &mut buffer).unwrap().to_vec()));
        }
        record
    }

    #[test]
    fn events_keep_their_order_and_lines_are_bounded() {
        let mut record = record_of(&[Event::Begin { scenario: "a" }, Event::Passed { scenario: "a" }]);
        let events: Vec<_> = record.events().collect();
        assert_eq!(events, [Event::Begin { scenario: "a" }, Event::Passed { scenario: "a" }]);
        for number in 0..40 {
            record.note(Said::Text(number.to_string()));
        }
        let lines: Vec<_> = record.last_lines().collect();
        assert_eq!((lines.len(), lines[0], lines[24]), (25, "15", "39"));
    }
}
