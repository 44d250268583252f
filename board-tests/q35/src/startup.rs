//! How other CPUs are started: INIT, then start-up interrupts (Intel SDM volume 3, 10.4.4), one CPU at a time.

use core::{
    arch::global_asm,
    cell::UnsafeCell,
    ptr::{self, NonNull},
    slice,
    time::Duration,
};

use portcullis_hal::{
    TimedOut,
    sync::{AtomicU64, Ordering},
    wait_until,
};

use crate::{
    alarm,
    boot::AcpiRoot,
    cpus::{self, Lost, MAX_CPUS},
    firmware,
    lapic::Lapic,
    timer, traps,
};

global_asm!(include_str!("trampoline.s"), options(raw));

/// The page that start-up interrupts name: conventional memory on every PC.
const PAGE: u8 = 8;
const PAGE_BYTES: usize = 4096;
const PAGE_ADDRESS: usize = PAGE as usize * PAGE_BYTES;
/// As the boot CPU has: the larger policy fits.
const STACK_BYTES: usize = 0x8_0000;
/// Between INIT and the first start-up interrupt.
const RESET_TIME: Duration = Duration::from_millis(10);
/// After which a start-up interrupt is sent once more: the first may be lost.
const REPEAT: Duration = Duration::from_millis(10);
/// How long a CPU may take to come to its desk.
const LIMIT: Duration = Duration::from_secs(2);

unsafe extern "C" {
    static trampoline_start: u8;
    static trampoline_end: u8;
}

#[repr(C, align(4096))]
struct Stack(UnsafeCell<[u64; STACK_BYTES / 8]>);

// SAFETY: written by `lend` before its CPU is started, and then that CPU's.
unsafe impl Sync for Stack {}

/// The boot CPU has its own.
static STACKS: [Stack; MAX_CPUS - 1] = [const { Stack(UnsafeCell::new([0; STACK_BYTES / 8])) }; MAX_CPUS - 1];

/// The stack for the CPU that starts next; it takes the address away. 0 while none is to start.
#[unsafe(export_name = "secondary_stack")]
static STACK: AtomicU64 = AtomicU64::new(0);

/// Makes the boot CPU number 0, and starts the others that firmware tells of, as many as there are desks.
/// To be called once, on the boot CPU.
///
/// # Errors
/// [`Lost`]: a CPU that did not come is an error.
pub(crate) fn start_all(root: AcpiRoot) -> Result<usize, Lost> {
    let lapic = cpus::take_first()?;
    alarm::install();
    let mut started = Ok(());
    // SAFETY: what the loader handed over.
    let listed = unsafe {
        firmware::each_cpu(root, |apic| {
            if started.is_ok() && !cpus::has_apic(apic) && cpus::count() < MAX_CPUS {
                started = start(lapic, apic).map(|_| ());
            }
        })
    };
    if listed.is_err() {
        defmt::error!("firmware has no table of CPUs: there is one");
    }
    started.map(|()| cpus::count())
}

/// Starts the CPU with this local APIC; its index.
///
/// # Errors
/// [`Lost::NoAnswer`] when it does not come; it has been reset then, and no longer can.
pub(crate) fn start(lapic: Lapic, apic: u32) -> Result<usize, Lost> {
    let cpu = cpus::reserve(apic)?;
    let come = with_trampoline(|| wake(lapic, apic, cpu)).unwrap_or(Err(Lost::NoStartPage));
    if come.is_err() {
        cpus::forget(cpu);
    }
    come.map(|()| cpu)
}

fn wake(lapic: Lapic, apic: u32, cpu: usize) -> Result<(), Lost> {
    let clock = timer::clock();
    lend(cpu).ok_or(Lost::NoSuchCpu { cpu })?;
    lapic.init(apic, &clock).map_err(Lost::Apic)?;
    pause(RESET_TIME);
    lapic.start_up(apic, PAGE, &clock).map_err(Lost::Apic)?;
    let come = cpus::has_come(cpu, REPEAT).or_else(|_| {
        lapic.start_up(apic, PAGE, &clock).map_err(Lost::Apic)?;
        cpus::has_come(cpu, LIMIT)
    });
    if come.is_err() {
        STACK.store(0, Ordering::Release);
        lapic.init(apic, &clock).map_err(Lost::Apic)?;
        pause(RESET_TIME);
    }
    come
}

fn pause(time: Duration) {
    let passing = TimedOut { register: 0, bits: 0 };
    let _ = wait_until(&timer::clock(), time, passing, || None::<()>);
}

/// Puts the index on the stack of CPU `cpu`, and the stack where the CPU takes it.
fn lend(cpu: usize) -> Option<()> {
    let stack = STACKS.get(cpu.checked_sub(1)?)?;
    // The index lies at an address that is aligned as a call wants.
    let top = STACK_BYTES / 8 - 2;
    // SAFETY: no CPU has this stack: its own is not started, and none comes to it after a failed start.
    let words = unsafe { &mut *stack.0.get() };
    *words.get_mut(top)? = cpu as u64;
    STACK.store(ptr::from_ref(words.get(top)?).expose_provenance() as u64, Ordering::Release);
    Some(())
}

/// Runs `act` while the trampoline lies in its page; what firmware or the loader has left there comes back.
/// `None` when the page is no memory.
fn with_trampoline<T>(act: impl FnOnce() -> T) -> Option<T> {
    let page = NonNull::new(ptr::with_exposed_provenance_mut::<u8>(PAGE_ADDRESS))?;
    // SAFETY: two symbols around code in read-only data.
    let code = unsafe {
        let start = &raw const trampoline_start;
        slice::from_raw_parts(start, (&raw const trampoline_end).addr() - start.addr())
    };
    let mut kept = [0u8; PAGE_BYTES];
    let kept = kept.get_mut(..code.len())?;
    // SAFETY: the page is mapped one to one, and no reference to it is alive in here: what the loader left
    // there is read by nobody until it is back.
    let is_there = unsafe {
        page.copy_to_nonoverlapping(NonNull::from(&mut *kept).cast(), code.len());
        page.copy_from_nonoverlapping(NonNull::from(code).cast(), code.len());
        code.iter().enumerate().all(|(index, byte)| page.add(index).read_volatile() == *byte)
    };
    let result = is_there.then(act);
    // SAFETY: as above; no CPU executes there: each has come to its desk, or was reset.
    unsafe { page.copy_from_nonoverlapping(NonNull::from(&mut *kept).cast(), kept.len()) };
    result
}

/// Called by the trampoline, on the stack that [`lend`] prepared.
#[unsafe(no_mangle)]
extern "C" fn secondary_entry(cpu: usize) {
    traps::load();
    if let Ok(lapic) = Lapic::of_this_cpu() {
        lapic.enable();
        cpus::work(cpu);
    }
}
