//! Calls of OPAL, the firmware's runtime services (skiboot's `doc/opal-api`).

use core::time::Duration;

use portcullis_hal::{Clock, arch::powerpc64::TimeBaseClock};

const CONSOLE_WRITE: u64 = 1;
const CEC_POWER_DOWN: u64 = 5;
const POLL_EVENTS: u64 = 10;
const CFG_READ_WORD: u64 = 15;
const CFG_WRITE_WORD: u64 = 18;
const START_CPU: u64 = 41;
const REINIT_CPUS: u64 = 70;
/// In REINIT_CPUS: exceptions enter in little-endian mode.
const HILE_LITTLE: u64 = 2;
/// How long the console may accept nothing.
const CONSOLE_LIMIT: Duration = Duration::from_secs(5);

unsafe extern "C" {
    fn opal_call(a: u64, b: u64, c: u64, d: u64, e: u64, f: u64, g: u64, token: u64) -> i64;
}

/// Calls OPAL: 0 is success, negative is an error.
///
/// # Safety
/// The call and its arguments must not let firmware write to memory other than what the caller owns.
pub(crate) unsafe fn call(token: u64, arguments: [u64; 7]) -> i64 {
    let [a, b, c, d, e, f, g] = arguments;
    // SAFETY: the entry code stored where OPAL is; the caller vouched for the arguments.
    unsafe { opal_call(a, b, c, d, e, f, g, token) }
}

fn poll_events() {
    // SAFETY: a null pointer makes OPAL report nothing.
    unsafe { call(POLL_EVENTS, [0; 7]) };
}

/// Writes to the console; gives up when it accepts nothing for a while.
pub(crate) fn console_write(mut text: &[u8]) {
    let clock = TimeBaseClock;
    let mut last = clock.now();
    while !text.is_empty() && clock.now().saturating_sub(last) < CONSOLE_LIMIT {
        let mut length = (text.len() as u64).to_be();
        let arguments = [0, (&raw mut length).addr() as u64, text.as_ptr().addr() as u64, 0, 0, 0, 0];
        // SAFETY: real mode, so addresses are physical; OPAL reads the text and writes `length`.
        let status = unsafe { call(CONSOLE_WRITE, arguments) };
        // SAFETY: `length` is initialised; volatile because firmware may have changed it.
        let written = u64::from_be(unsafe { (&raw const length).read_volatile() }) as usize;
        if status == 0 && written != 0 {
            text = text.get(written..).unwrap_or_default();
            last = clock.now();
        } else {
            poll_events();
        }
    }
}

/// Asks the platform to power off, and lets firmware work on it.
pub(crate) fn power_off() -> ! {
    // SAFETY: takes no memory.
    unsafe { call(CEC_POWER_DOWN, [0; 7]) };
    loop {
        poll_events();
    }
}

/// Makes exceptions enter in little-endian mode.
pub(crate) fn little_endian_exceptions() -> i64 {
    // SAFETY: takes no memory.
    unsafe { call(REINIT_CPUS, [HILE_LITTLE, 0, 0, 0, 0, 0, 0]) }
}

/// Reads a 32-bit word of PCI configuration space; all ones where nothing answers.
pub(crate) fn config_read(phb: u64, function: u16, offset: u64) -> u32 {
    let mut word = u32::MAX;
    let arguments = [phb, function.into(), offset, (&raw mut word).addr() as u64, 0, 0, 0];
    // SAFETY: OPAL writes `word` and nothing else.
    let status = unsafe { call(CFG_READ_WORD, arguments) };
    // SAFETY: `word` is initialised; volatile because firmware may have changed it.
    let read = u32::from_be(unsafe { (&raw const word).read_volatile() });
    if status == 0 { read } else { u32::MAX }
}

/// Writes a 32-bit word of PCI configuration space.
pub(crate) fn config_write(phb: u64, function: u16, offset: u64, word: u32) {
    let arguments = [phb, function.into(), offset, word.into(), 0, 0, 0];
    // SAFETY: takes no memory.
    unsafe { call(CFG_WRITE_WORD, arguments) };
}

unsafe extern "C" {
    /// Big-endian code that goes on in the hypervisor's entry for further CPUs.
    fn secondary_entry();
}

/// Lets the CPU with this number enter the hypervisor.
pub(crate) fn start_cpu(server: u64) -> i64 {
    let entry = secondary_entry as *const () as u64;
    // SAFETY: the entry uses no memory but what the hypervisor has set aside for that CPU.
    unsafe { call(START_CPU, [server, entry, 0, 0, 0, 0, 0]) }
}
