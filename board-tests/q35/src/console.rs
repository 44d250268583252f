//! defmt frames over the first serial port.

use core::cell::UnsafeCell;

use portcullis_hal::sync::{AtomicUsize, Ordering, spin_loop};
use portcullis_suite::event::{self, Event, MAX_EVENT_BYTES};
use uart_16550::{Config, Uart16550, backend::PioBackend};

use crate::cpus;

const COM1: u16 = 0x3f8;
/// What tells the host where firmware's words end and frames begin.
const MARKER: &[u8] = b"\n--- defmt ---\n\0";

struct Console {
    port: Uart16550<PioBackend>,
    encoder: defmt::Encoder,
}

/// Nobody sends a frame.
const NOBODY: usize = usize::MAX;
/// Polls after which the CPU that sends a frame counts as lost: a frame takes much less.
const MAX_POLLS: u32 = 1 << 28;

/// The console, used by the CPU that `SENDER` names.
struct Shared(UnsafeCell<Option<Console>>);

// SAFETY: `with` is used by one CPU at a time.
unsafe impl Sync for Shared {}

static CONSOLE: Shared = Shared(UnsafeCell::new(None));
/// Index of the CPU that sends a frame.
static SENDER: AtomicUsize = AtomicUsize::new(NOBODY);

/// Waits until this CPU may send; halts when it is sending already, or another one never ends.
fn take() {
    let this = this_cpu();
    for _ in 0..MAX_POLLS {
        match SENDER.compare_exchange(NOBODY, this, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => return,
            Err(sender) if sender == this => break,
            Err(_) => spin_loop(),
        }
    }
    crate::exit::halt();
}

/// One that has no index yet is taken for the boot CPU, which then waits for it to start.
fn this_cpu() -> usize {
    cpus::this_cpu().unwrap_or(0)
}

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
    if SENDER.load(Ordering::Relaxed) == this_cpu() {
        end_frame();
    }
    emit(event);
}

fn end_frame() {
    with(|console| console.encoder.end_frame(|bytes| console.port.send_bytes_exact(bytes)));
    SENDER.store(NOBODY, Ordering::Release);
}

fn with(act: impl FnOnce(&mut Console)) {
    // SAFETY: a frame is written by the CPU that `SENDER` names, between `acquire` and `release` only,
    // which do not nest; an interrupt's handler logs nothing, and a trap ends the frame that it
    // interrupted and never returns to it.
    if let Some(console) = unsafe { &mut *CONSOLE.0.get() } {
        act(console);
    }
}

#[defmt::global_logger]
struct Frames;

// SAFETY: `acquire` has other CPUs wait, and refuses a log call inside a log call, by halting.
unsafe impl defmt::Logger for Frames {
    fn acquire() {
        take();
        with(|console| console.encoder.start_frame(|bytes| console.port.send_bytes_exact(bytes)));
    }

    unsafe fn flush() {}

    unsafe fn release() {
        end_frame();
    }

    unsafe fn write(bytes: &[u8]) {
        with(|console| console.encoder.write(bytes, |bytes| console.port.send_bytes_exact(bytes)));
    }
}
