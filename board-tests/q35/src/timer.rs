//! How fast the time-stamp counter runs, by the PC's interval timer.

use portcullis_hal::{
    arch::x86_64::TimeStampClock,
    sync::{AtomicU32, Ordering},
};
use x86_64::instructions::port::Port;

/// Ticks a second of the 8254 timer.
const TIMER_HERTZ: u32 = 1_193_182;
const MEASURED_MICROSECONDS: u32 = 20_000;
const COUNTS: u16 = (TIMER_HERTZ as u64 * MEASURED_MICROSECONDS as u64 / 1_000_000) as u16;
/// Reads after which a timer that does not count is given up.
const MAX_POLLS: u32 = 1 << 24;
const SPEAKER_GATE: u8 = 1;
const SPEAKER_OUT: u8 = 1 << 1;
const CHANNEL_2_OUTPUT: u8 = 1 << 5;
/// Taken for the counter's speed when the timer does not answer.
const FALLBACK_MEGAHERTZ: u32 = 1000;

static MEGAHERTZ: AtomicU32 = AtomicU32::new(FALLBACK_MEGAHERTZ);

/// The clock over the time-stamp counter, as [`calibrated`] has measured it.
pub(crate) fn clock() -> TimeStampClock {
    TimeStampClock::new(MEGAHERTZ.load(Ordering::Relaxed))
}

/// A clock over the time-stamp counter, measured once by channel 2 of the interval timer.
pub(crate) fn calibrated() -> TimeStampClock {
    MEGAHERTZ.store(measured(), Ordering::Relaxed);
    clock()
}

/// Ticks of the counter in a microsecond.
fn measured() -> u32 {
    let start = start_channel_2();
    let mut control = Port::<u8>::new(0x61);
    for _ in 0..MAX_POLLS {
        // SAFETY: reading the speaker's control port changes nothing.
        if unsafe { control.read() } & CHANNEL_2_OUTPUT != 0 {
            let ticks = TimeStampClock::ticks().wrapping_sub(start);
            return (ticks / u64::from(MEASURED_MICROSECONDS)) as u32;
        }
    }
    FALLBACK_MEGAHERTZ
}

/// Lets channel 2 count down once, with the speaker off; returns the counter at its start.
fn start_channel_2() -> u64 {
    let (mut control, mut mode, mut data) =
        (Port::<u8>::new(0x61), Port::<u8>::new(0x43), Port::<u8>::new(0x42));
    let [low, high] = COUNTS.to_le_bytes();
    // SAFETY: channel 2 of the interval timer drives nothing but the speaker, which stays off.
    unsafe {
        let gate = control.read() & !SPEAKER_OUT | SPEAKER_GATE;
        control.write(gate);
        // Channel 2, low then high byte, mode 0: the output rises at the end.
        mode.write(0xb0);
        data.write(low);
        data.write(high);
    }
    TimeStampClock::ticks()
}
