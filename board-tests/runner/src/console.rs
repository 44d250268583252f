//! What comes over a board's console: first the firmware's text, then, after a marker line, defmt frames.

use std::{fs, io, path::Path};

use defmt_decoder::{StreamDecoder, Table};
use portcullis_suite::event;
use thiserror::Error;

use crate::child::Lines;

/// Text before the bytes of an event in its message.
const EVENT_PREFIX: &str = "event ";

/// Something that a board said.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// A line of text, from firmware or between frames.
    Text(String),
    /// A log message.
    Log(String),
    /// A postcard-encoded event.
    Event(Vec<u8>),
    /// A frame that could not be decoded, with its length.
    Garbled(usize),
}

/// Turns the bytes of one frame, without its terminator, into its message.
pub(crate) trait Frames {
    /// The message; `None` when the bytes are no frame of this image.
    fn decode(&mut self, frame: &[u8]) -> Option<String>;
}

/// An image's own table of messages.
pub(crate) struct MessageTable(Table);

/// Why an image's messages cannot be read.
#[derive(Debug, Error)]
pub(crate) enum TableError {
    #[error("cannot read {image}: {source}")]
    Read { image: String, source: io::Error },
    #[error("{image} has no usable .defmt section: {why}")]
    NoTable { image: String, why: String },
}

impl MessageTable {
    /// Reads the table of the image at `path`.
    pub(crate) fn load(path: &Path) -> Result<Self, TableError> {
        let image = path.display().to_string();
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(source) => return Err(TableError::Read { image, source }),
        };
        match Table::parse(&bytes) {
            Ok(Some(table)) => Ok(Self(table)),
            Ok(None) => Err(TableError::NoTable { image, why: "it is missing".to_owned() }),
            Err(error) => Err(TableError::NoTable { image, why: error.to_string() }),
        }
    }

    /// A decoder for one boot.
    pub(crate) fn decoder(&self) -> impl Frames + '_ {
        Defmt(self.0.new_stream_decoder())
    }
}

struct Defmt<'t>(Box<dyn StreamDecoder + Send + Sync + 't>);

impl Frames for Defmt<'_> {
    fn decode(&mut self, frame: &[u8]) -> Option<String> {
        self.0.received(frame);
        self.0.received(&[0]);
        let frame = self.0.decode().ok()?;
        let level = frame.level().map(|level| format!("{} ", level.as_str())).unwrap_or_default();
        let message = frame.display_message().to_string();
        Some(if message.starts_with(EVENT_PREFIX) { message } else { format!("{level}{message}") })
    }
}

/// One boot's console.
pub(crate) struct Console<'m, F> {
    marker: &'m str,
    frames: F,
    state: State,
}

enum State {
    Firmware(Lines),
    AfterMarker,
    Frames(Vec<u8>),
}

impl<'m, F: Frames> Console<'m, F> {
    /// A console on which nothing was said yet.
    pub(crate) fn new(marker: &'m str, frames: F) -> Self {
        Self { marker, frames, state: State::Firmware(Lines::default()) }
    }

    /// Takes bytes as they come and hands over whatever they complete.
    pub(crate) fn feed(&mut self, bytes: &[u8], mut said: impl FnMut(Said)) {
        for byte in bytes {
            self.state = match std::mem::replace(&mut self.state, State::AfterMarker) {
                State::Firmware(lines) => firmware(lines, *byte, self.marker, &mut said),
                State::AfterMarker if *byte == 0 => State::Frames(Vec::new()),
                State::AfterMarker => State::AfterMarker,
                State::Frames(frame) if *byte == 0 => {
                    decode(&mut self.frames, &frame, &mut said);
                    State::Frames(Vec::new())
                }
                State::Frames(mut frame) => {
                    frame.push(*byte);
                    State::Frames(frame)
                }
            };
        }
    }

    /// Hands over what is left at the end: firmware says something when a board powers off.
    pub(crate) fn finish(self, mut said: impl FnMut(Said)) {
        match self.state {
            State::Firmware(lines) => lines.rest().into_iter().for_each(|rest| said(Said::Text(rest))),
            State::AfterMarker => {}
            State::Frames(rest) => noise(&rest, &mut said),
        }
    }
}

fn firmware(mut lines: Lines, byte: u8, marker: &str, said: &mut impl FnMut(Said)) -> State {
    let mut found = false;
    lines.feed(&[byte], |line| {
        found = line.trim() == marker;
        if !found && !line.trim().is_empty() {
            said(Said::Text(line.to_owned()));
        }
    });
    if found { State::AfterMarker } else { State::Firmware(lines) }
}

/// A frame; or firmware's text, which may end up in front of a frame when both share a console.
fn decode(frames: &mut impl Frames, bytes: &[u8], said: &mut impl FnMut(Said)) {
    if bytes.is_empty() {
        return;
    }
    if let Some(message) = frames.decode(bytes) {
        return said(interpret(message));
    }
    let lines = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
    for start in lines {
        let (text, frame) = bytes.split_at(start);
        if is_text(text)
            && let Some(message) = frames.decode(frame)
        {
            noise(text, said);
            return said(interpret(message));
        }
    }
    noise(bytes, said);
}

fn interpret(message: String) -> Said {
    match message.strip_prefix(EVENT_PREFIX).and_then(numbers) {
        Some(bytes) if event::decode(&bytes).is_some() => Said::Event(bytes),
        // Taken for a log, a transfer that went wrong could pass unseen.
        Some(bytes) => Said::Garbled(bytes.len()),
        None => Said::Log(message),
    }
}

/// Bytes from how defmt shows a slice: `[1, 2, 255]`.
fn numbers(text: &str) -> Option<Vec<u8>> {
    let inside = text.strip_prefix('[')?.strip_suffix(']')?;
    inside.split(',').map(|number| number.trim().parse().ok()).collect()
}

fn is_text(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| matches!(byte, b'\t' | b'\n' | b'\r' | 0x1b | b' '..=b'~'))
}

fn noise(bytes: &[u8], said: &mut impl FnMut(Said)) {
    if bytes.is_empty() {
        return;
    }
    if !is_text(bytes) {
        return said(Said::Garbled(bytes.len()));
    }
    let text = String::from_utf8_lossy(bytes);
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        said(Said::Text(line.trim_end().to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use portcullis_suite::event::{Event, encode};

    use super::*;

    /// Frames that are their own message after a byte 1.
    struct Plain;

    impl Frames for Plain {
        fn decode(&mut self, frame: &[u8]) -> Option<String> {
            String::from_utf8(frame.strip_prefix(&[1])?.to_vec()).ok()
        }
    }

    fn heard(pieces: &[&[u8]]) -> Vec<Said> {
        let mut console = Console::new("--- defmt ---", Plain);
        let mut all = Vec::new();
        for piece in pieces {
            console.feed(piece, |said| all.push(said));
        }
        console.finish(|said| all.push(said));
        all
    }

    fn text(line: &str) -> Said {
        Said::Text(line.to_owned())
    }

    #[test]
    fn firmware_talks_first_and_last() {
        let said = heard(&[b"[ 0.1] OPAL: hi\r\n--- def", b"mt ---\r\n\0\x01hello\0\0[ 2.0] bye\n"]);
        assert_eq!(said, [text("[ 0.1] OPAL: hi"), Said::Log("hello".to_owned()), text("[ 2.0] bye")]);
    }

    #[test]
    fn events_are_told_from_logs() {
        let mut buffer = [0; 64];
        let bytes = encode(&Event::Begin { scenario: "x" }, &mut buffer).unwrap();
        let frame = format!("--- defmt ---\n\0\x01event {bytes:?}\0\x01event of the year\0");
        let said = heard(&[frame.as_bytes()]);
        assert_eq!(said, [Said::Event(bytes.to_vec()), Said::Log("event of the year".to_owned())]);
    }

    #[test]
    fn an_event_of_another_suite_is_no_log() {
        let said = heard(&[b"--- defmt ---\n\0\x01event [250, 1]\0"]);
        assert_eq!(said, [Said::Garbled(2)]);
    }

    #[test]
    fn text_in_front_of_a_frame_does_not_hide_it() {
        let said = heard(&[b"--- defmt ---\n\0", b"[ 1.5] PHB#0: error\n\x01still here\0", b"\x02\x80\0"]);
        assert_eq!(said, [text("[ 1.5] PHB#0: error"), Said::Log("still here".to_owned()), Said::Garbled(2)]);
    }
}
