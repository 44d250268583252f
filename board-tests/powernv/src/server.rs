//! The hypervisor's side of a guest's TCE hypercalls: what is handled in real mode, and the full context behind it.

use core::{
    cell::UnsafeCell,
    ptr,
    sync::atomic::{AtomicPtr, Ordering},
};

use portcullis_hal::{DonatedPages, arch::powerpc64::RealMemory};
use portcullis_hypervisor::power::{Frame, Verdict};
use portcullis_iommu::{Error, Iommu, Seat, VmId};
use portcullis_ppc_tce::hcall::{Hypercalls, Mode, RealMode, Reply, TOO_HARD, Vcpu, VirtualMode, Why};

use crate::board::Driver;

/// CPUs that run guests.
pub(crate) const CPUS: usize = 3;
/// Seats that an `Iommu` has.
pub(crate) const SEATS: usize = portcullis_iommu::session::CPUS;
/// Windows of all VMs.
pub(crate) const WINDOWS: usize = 8;
/// The seat of the control plane.
pub(crate) const CONTROL_SEAT: usize = CPUS;
/// Steps of one call, which never are that many: a window of the tests has far fewer entries.
const STEPS: u32 = 1 << 16;

/// Where views live.
pub(crate) type Views = DonatedPages<'static>;
/// How guests' memory is read.
pub(crate) type Memory = RealMemory;
/// The hypercalls of this image's guests.
pub(crate) type Calls<'b> = Hypercalls<'b, Driver, Views, Memory, 32, 32, SEATS, WINDOWS>;

/// Hypercalls, and what each CPU needs to handle them.
pub(crate) struct Server<'b> {
    pub(crate) calls: Calls<'b>,
    turns: [Turn<'b>; CPUS],
}

/// One CPU's part.
struct Turn<'b>(UnsafeCell<(Seat<'b, Driver>, Vcpu<'b>)>);

// SAFETY: a turn is used by its own CPU while its guest waits for a hypercall, and by nobody else.
unsafe impl Sync for Server<'_> {}

/// The one that handles the guests' calls; null while there is none.
static SERVER: AtomicPtr<Server<'static>> = AtomicPtr::new(ptr::null_mut());

impl<'b> Server<'b> {
    /// Handles calls of `vm`, once it is [at work](Self::at_work).
    ///
    /// # Errors
    /// Seats are taken.
    pub(crate) fn new(calls: Calls<'b>, iommu: &'b Iommu<Driver>, vm: VmId) -> Result<Self, Error> {
        let turn =
            |cpu| -> Result<Turn<'b>, Error> { Ok(Turn(UnsafeCell::new((iommu.seat(cpu)?, Vcpu::new(vm))))) };
        Ok(Self { calls, turns: [turn(0)?, turn(1)?, turn(2)?] })
    }

    /// Lets `act` run guests whose calls this server handles.
    pub(crate) fn at_work<R>(&self, act: impl FnOnce() -> R) -> R {
        SERVER.store(ptr::from_ref(self).cast_mut().cast(), Ordering::Release);
        let result = act();
        SERVER.store(ptr::null_mut(), Ordering::Release);
        result
    }

    /// Handles a call for vCPU `cpu`, whose guest waits for it.
    ///
    /// # Safety
    /// Nobody else handles a call of this vCPU meanwhile.
    pub(crate) unsafe fn call<N: Mode>(&self, cpu: usize, number: u64, arguments: [u64; 4]) -> Option<Reply> {
        // SAFETY: promised by the caller.
        let (seat, vcpu) = unsafe { &mut *self.turns.get(cpu)?.0.get() };
        Some(self.calls.call::<N>(seat, vcpu, number, arguments))
    }

    /// Makes a call in the place of vCPU `cpu`, to its end; status and value.
    ///
    /// # Safety
    /// As for [`call`](Self::call).
    pub(crate) unsafe fn finish(&self, cpu: usize, number: u64, arguments: [u64; 4]) -> Option<(i64, u64)> {
        for _ in 0..STEPS {
            // SAFETY: as for this function.
            let reply = unsafe { self.call::<VirtualMode>(cpu, number, arguments) };
            if let Reply::Done { status, value } = reply? {
                return Some((status.as_i64(), value));
            }
        }
        None
    }
}

/// The server, while guests run.
fn server() -> Option<&'static Server<'static>> {
    // SAFETY: `at_work` keeps the server in place as long as the pointer is here; guests run no longer than that.
    unsafe { SERVER.load(Ordering::Acquire).as_ref() }
}

/// Handles a call once, and answers if it is finished.
fn handle<N: Mode>(frame: &mut Frame) -> Option<Reply> {
    let [a, b, c, d, ..] = frame.arguments();
    // SAFETY: called on the CPU of this vCPU, whose guest waits.
    let reply = unsafe { server()?.call::<N>(frame.cpu as usize, frame.opcode(), [a, b, c, d]) }?;
    if let Reply::Done { status, value } = reply {
        frame.set_status(status.as_i64() as u64);
        frame.set_result(value);
    }
    Some(reply)
}

/// The real-mode handler of the guests' hypercalls.
///
/// # Safety
/// `frame` must be this CPU's, whose guest waits.
#[unsafe(no_mangle)]
unsafe extern "C" fn portcullis_real_mode_hcall(frame: *mut Frame) -> u64 {
    // SAFETY: promised by the caller.
    match handle::<RealMode>(unsafe { &mut *frame }) {
        Some(Reply::Done { .. }) => Verdict::Done as u64,
        _ => Verdict::TooHard as u64,
    }
}

/// Handles in the full context what was too hard for real mode.
pub(crate) fn full_context(frame: &mut Frame) {
    serve(frame, || {});
}

/// The same; does `between` after each step of a call that takes several.
pub(crate) fn serve(frame: &mut Frame, mut between: impl FnMut()) {
    for _ in 0..STEPS {
        match handle::<VirtualMode>(frame) {
            Some(Reply::TooHard(Why::Budget)) => between(),
            Some(Reply::TooHard(_)) => {}
            Some(Reply::Done { .. }) => return,
            None => break,
        }
    }
    frame.set_status(TOO_HARD as u64);
}
