//! defmt frames over OPAL's console.

use core::{
    cell::UnsafeCell,
    sync::atomic::{AtomicBool, Ordering},
};

use defmt::Encoder;
use portcullis_suite::event::{Event, MAX_EVENT_BYTES, encode};

use crate::opal;

/// The host looks for this line: what precedes it is firmware's own text.
const MARKER: &[u8] = b"\n--- defmt ---\n\0";

struct Frame {
    encoder: Encoder,
    bytes: heapless::Vec<u8, 1024>,
}

impl Frame {
    const fn new() -> Self {
        Self { encoder: Encoder::new(), bytes: heapless::Vec::new() }
    }

    fn flush(&mut self) {
        opal::console_write(&self.bytes);
        self.bytes.clear();
    }
}

/// Takes encoded bytes; a full buffer goes out first.
fn push(bytes: &mut heapless::Vec<u8, 1024>, encoded: &[u8]) {
    if bytes.extend_from_slice(encoded).is_err() {
        opal::console_write(bytes);
        bytes.clear();
        opal::console_write(encoded);
    }
}

struct Console {
    taken: AtomicBool,
    frame: UnsafeCell<Frame>,
}

// SAFETY: the image runs on one CPU with interrupts off, and `acquire` refuses to be nested.
unsafe impl Sync for Console {}

static CONSOLE: Console = Console { taken: AtomicBool::new(false), frame: UnsafeCell::new(Frame::new()) };

#[defmt::global_logger]
struct Logger;

// SAFETY: `acquire` stops the image when nested, so the frame has one user between acquire and release.
unsafe impl defmt::Logger for Logger {
    fn acquire() {
        if CONSOLE.taken.swap(true, Ordering::Acquire) {
            opal::power_off();
        }
        // SAFETY: acquired just now.
        let Frame { encoder, bytes } = unsafe { &mut *CONSOLE.frame.get() };
        encoder.start_frame(|encoded| push(bytes, encoded));
    }

    unsafe fn flush() {
        // SAFETY: the caller has acquired the logger.
        unsafe { &mut *CONSOLE.frame.get() }.flush();
    }

    unsafe fn release() {
        // SAFETY: the caller has acquired the logger.
        let frame = unsafe { &mut *CONSOLE.frame.get() };
        let Frame { encoder, bytes } = frame;
        encoder.end_frame(|encoded| push(bytes, encoded));
        frame.flush();
        CONSOLE.taken.store(false, Ordering::Release);
    }

    unsafe fn write(data: &[u8]) {
        // SAFETY: the caller has acquired the logger.
        let Frame { encoder, bytes } = unsafe { &mut *CONSOLE.frame.get() };
        encoder.write(data, |encoded| push(bytes, encoded));
    }
}

/// Ends firmware's text on the console.
pub(crate) fn begin() {
    opal::console_write(MARKER);
}

/// Sends one event; one that is too long says so instead.
pub(crate) fn emit(event: &Event<'_>) {
    let mut buffer = [0; MAX_EVENT_BYTES];
    match encode(event, &mut buffer) {
        Some(bytes) => defmt::info!("event {=[u8]}", bytes),
        None => defmt::info!("an event was too long"),
    }
}

/// Reports that the image cannot go on, and powers off. An unfinished frame is closed, not continued.
pub(crate) fn crash(what: &str, at: u64) -> ! {
    if CONSOLE.taken.load(Ordering::Acquire) {
        // SAFETY: whoever had acquired it never runs again.
        let frame = unsafe { &mut *CONSOLE.frame.get() };
        frame.bytes.clear();
        frame.encoder = Encoder::new();
        opal::console_write(&[0]);
        CONSOLE.taken.store(false, Ordering::Release);
    }
    emit(&Event::Crashed { what, at });
    opal::power_off()
}

defmt::timestamp!("{=u64:us}", portcullis_hal::arch::powerpc64::TimeBaseClock::ticks() / 512);
