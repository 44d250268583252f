//! defmt frames over the first serial port.

use core::cell::UnsafeCell;

use portcullis_hal::sync::{AtomicBool, Ordering};
use portcullis_suite::event::{self, Event, MAX_EVENT_BYTES};
use uart_16550::{Config, Uart16550, backend::PioBackend};

const COM1: u16 = 0x3f8;
/// What tells the host where firmware's words end and frames begin.
const MARKER: &[u8] = b"\n--- defmt ---\n\0";

struct Console {
    port: Uart16550<PioBackend>,
    encoder: defmt::Encoder,
}

/// The console, used by whoever holds `TAKEN`.
struct Shared(UnsafeCell<Option<Console>>);

// SAFETY: `with` lets one user in at a time.
unsafe impl Sync for Shared {}

static CONSOLE: Shared = Shared(UnsafeCell::new(None));
static TAKEN: AtomicBool = AtomicBool::new(false);

/// Prepares the port. Without one, frames go nowhere.
///
/// # Safety
/// To be called once, before any frame is sent; COM1 must belong to this image.
pub(crate) unsafe fn start() {
    // SAFETY: the caller says that the port is ours.
    let Ok(mut port) = (unsafe { Uart16550::new_port(COM1) }) else { return };
    if port.init(Config::default()).is_err() {
        return;
    }
    port.send_bytes_exact(MARKER);
    // SAFETY: called once and before any other use, says the caller.
    unsafe { *CONSOLE.0.get() = Some(Console { port, encoder: defmt::Encoder::new() }) };
}

/// Sends an event.
pub(crate) fn emit(event: &Event<'_>) {
    let mut buffer = [0; MAX_EVENT_BYTES];
    match event::encode(event, &mut buffer) {
        Some(bytes) => defmt::println!("event {=[u8]}", bytes),
        None => defmt::error!("an event is longer than its buffer"),
    }
}

/// Sends an event from a trap or a panic, which may have interrupted the sending of a frame.
pub(crate) fn emit_at_last(event: &Event<'_>) {
    if TAKEN.swap(false, Ordering::Relaxed) {
        with(|console| console.encoder.end_frame(|bytes| console.port.send_bytes_exact(bytes)));
    }
    emit(event);
}

fn with(act: impl FnOnce(&mut Console)) {
    // SAFETY: one CPU, no interrupts; a frame is written between `acquire` and `release` only, which do
    // not nest, and a trap ends the frame that it interrupted and never returns to it.
    if let Some(console) = unsafe { &mut *CONSOLE.0.get() } {
        act(console);
    }
}

#[defmt::global_logger]
struct Frames;

// SAFETY: `acquire` refuses a second user, by halting: it could only be a log call inside a log call.
unsafe impl defmt::Logger for Frames {
    fn acquire() {
        if TAKEN.swap(true, Ordering::Relaxed) {
            crate::exit::halt();
        }
        with(|console| console.encoder.start_frame(|bytes| console.port.send_bytes_exact(bytes)));
    }

    unsafe fn flush() {}

    unsafe fn release() {
        with(|console| console.encoder.end_frame(|bytes| console.port.send_bytes_exact(bytes)));
        TAKEN.store(false, Ordering::Relaxed);
    }

    unsafe fn write(bytes: &[u8]) {
        with(|console| console.encoder.write(bytes, |bytes| console.port.send_bytes_exact(bytes)));
    }
}
