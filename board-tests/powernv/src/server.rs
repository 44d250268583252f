//! The hypervisor's side of a guest's TCE hypercalls: what is handled in real mode, and the full context behind it.

use core::{
    cell::UnsafeCell,
    ptr,
    sync::atomic::{AtomicPtr, AtomicU64, Ordering},
};

use portcullis_hal::{DonatedPages, arch::powerpc64::RealMemory};
use portcullis_hypervisor::power::{Frame, Verdict};
use portcullis_iommu::{Error, Iommu, Seat, VmId};
use portcullis_ppc_tce::hcall::{Hypercalls, Mode, RealMode, Reply, Vcpu, VirtualMode, spec::TOO_HARD};

use crate::board::Driver;

/// CPUs that run guests.
pub(crate) const CPUS: usize = 2;
/// Seats that an `Iommu` has.
const SEATS: usize = portcullis_iommu::session::CPUS;
/// The seat of the control plane.
pub(crate) const CONTROL_SEAT: usize = CPUS;
/// Steps of one call, which never are that many: a window of the tests has far fewer entries.
const STEPS: u32 = 1 << 16;

/// The hypercalls of this image's guests.
pub(crate) type Calls<'b> = Hypercalls<'b, Driver<'b>, DonatedPages<'static>, RealMemory, 32, 32, SEATS>;

/// Hypercalls, and what each CPU needs to handle them.
pub(crate) struct Server<'b> {
    pub(crate) calls: Calls<'b>,
    turns: [Turn<'b>; CPUS],
}

/// One CPU's part.
struct Turn<'b> {
    at_work: UnsafeCell<(Seat<'b, Driver<'b>>, Vcpu)>,
    handed_over: AtomicU64,
}

// SAFETY: a turn is used by its own CPU while its guest waits for a hypercall, and by nobody else.
unsafe impl Sync for Server<'_> {}

/// The one that handles the guests' calls; null while there is none.
static SERVER: AtomicPtr<Server<'static>> = AtomicPtr::new(ptr::null_mut());

impl<'b> Server<'b> {
    /// Handles calls of `vm`, once it is [at work](Self::at_work).
    ///
    /// # Errors
    /// Seats are taken.
    pub(crate) fn new(calls: Calls<'b>, iommu: &'b Iommu<Driver<'b>>, vm: VmId) -> Result<Self, Error> {
        let turn = |cpu| -> Result<Turn<'b>, Error> {
            let at_work = UnsafeCell::new((iommu.seat(cpu)?, Vcpu::new(vm)));
            Ok(Turn { at_work, handed_over: AtomicU64::new(0) })
        };
        Ok(Self { calls, turns: [turn(0)?, turn(1)?] })
    }

    /// Lets `act` run guests whose calls this server handles.
    pub(crate) fn at_work<R>(&self, act: impl FnOnce() -> R) -> R {
        SERVER.store(ptr::from_ref(self).cast_mut().cast(), Ordering::Release);
        let result = act();
        SERVER.store(ptr::null_mut(), Ordering::Release);
        result
    }

    /// Calls of the guest on `cpu` that real mode handed over.
    pub(crate) fn handed_over(&self, cpu: usize) -> u64 {
        self.turns.get(cpu).map_or(0, |turn| turn.handed_over.load(Ordering::Relaxed))
    }

    /// Handles a call for vCPU `cpu`, whose guest waits for it.
    ///
    /// # Safety
    /// Nobody else handles a call of this vCPU meanwhile.
    pub(crate) unsafe fn call<N: Mode>(&self, cpu: usize, number: u64, arguments: [u64; 4]) -> Option<Reply> {
        // SAFETY: promised by the caller.
        let (seat, vcpu) = unsafe { &mut *self.turns.get(cpu)?.at_work.get() };
        Some(self.calls.call::<N>(seat, vcpu, number, arguments))
    }
}

/// The server, while guests run.
fn server() -> Option<&'static Server<'static>> {
    // SAFETY: `at_work` keeps the server in place as long as the pointer is here; guests run no longer than that.
    unsafe { SERVER.load(Ordering::Acquire).as_ref() }
}

/// Handles a call once; whether it is finished.
fn handle<N: Mode>(frame: &mut Frame) -> Verdict {
    let [a, b, c, d, ..] = frame.arguments();
    // SAFETY: called on the CPU of this vCPU, whose guest waits.
    let reply = server()
        .and_then(|server| unsafe { server.call::<N>(frame.cpu as usize, frame.opcode(), [a, b, c, d]) });
    let Some(Reply::Done { status, value }) = reply else { return Verdict::TooHard };
    frame.set_status(status.as_i64() as u64);
    frame.set_result(value);
    Verdict::Done
}

/// The real-mode handler of the guests' hypercalls.
///
/// # Safety
/// `frame` must be this CPU's, whose guest waits.
#[unsafe(no_mangle)]
unsafe extern "C" fn portcullis_real_mode_hcall(frame: *mut Frame) -> u64 {
    // SAFETY: promised by the caller.
    handle::<RealMode>(unsafe { &mut *frame }) as u64
}

/// Handles in the full context what was too hard for real mode.
pub(crate) fn full_context(frame: &mut Frame) {
    if let Some(turn) = server().and_then(|server| server.turns.get(frame.cpu as usize)) {
        turn.handed_over.fetch_add(1, Ordering::Relaxed);
    }
    for _ in 0..STEPS {
        if handle::<VirtualMode>(frame) == Verdict::Done {
            return;
        }
    }
    frame.set_status(TOO_HARD as u64);
}
