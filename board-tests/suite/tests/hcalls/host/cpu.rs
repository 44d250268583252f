//! A virtual CPU on a CPU, and calls as a hypervisor makes them for it.

use std::sync::{Arc, Mutex};

use portcullis_fake::{
    memory::{FakeCache, FakeClock},
    phb::FakePhb,
    watched::WatchedMemory,
};
use portcullis_iommu::{Iommu, Seat};
use portcullis_ppc_tce::{
    TceIommu,
    hcall::{Hypercalls, RealMode, Reply, Vcpu, VirtualMode, Why},
};
use portcullis_suite::hcall::{
    Answer, Call,
    call::PUT_TCE,
    stand::{Stand, VM},
};

use super::devices::OnModel;
use crate::machine::{DEVICES, OpalFirmware};

pub type Driver = TceIommu<OpalFirmware, FakePhb, WatchedMemory, FakeClock, FakeCache, DEVICES>;
pub type Policy = Iommu<Driver, 16, 8>;
pub type Calls = Hypercalls<'static, Driver, WatchedMemory, WatchedMemory, 16, 8, 8, 8>;
pub type HostStand = Stand<'static, 'static, OnModel, Driver, WatchedMemory, WatchedMemory, 16, 8, 8, 8>;

/// Steps after which a call counts as one that never ends.
const MANY: usize = 10_000;

/// One virtual CPU and the seat that it runs on.
pub struct Cpu {
    pub calls: &'static Calls,
    pub seat: Seat<'static, Driver, 16, 8, 8>,
    pub vcpu: Vcpu<'static>,
}

impl Cpu {
    pub fn new(iommu: &'static Policy, calls: &'static Calls, number: usize) -> Self {
        Self { calls, seat: iommu.seat(number).expect("a seat"), vcpu: Vcpu::new(VM) }
    }

    pub fn real(&mut self, call: Call) -> Reply {
        self.calls.call::<RealMode>(&mut self.seat, &mut self.vcpu, call.opcode, call.arguments)
    }

    pub fn virt(&mut self, call: Call) -> Reply {
        self.calls.call::<VirtualMode>(&mut self.seat, &mut self.vcpu, call.opcode, call.arguments)
    }

    /// Makes a call from its beginning to its end.
    pub fn finish(&mut self, call: Call) -> Answer {
        let mut reply = self.real(call);
        for _ in 0..MANY {
            match answer(reply) {
                Some(answer) => return answer,
                None => reply = self.virt(call),
            }
        }
        panic!("{call:x?} is never finished: {reply:?}")
    }

    /// Whether another CPU has the entry at which a call begins: then nobody else can write there what stands there.
    fn is_taken(&mut self, call: Call) -> bool {
        let [liobn, ioba, ..] = call.arguments;
        let Some(Answer { status: 0, value }) = answer(self.real(Call::get(liobn, ioba))) else {
            return false;
        };
        let same = Call { opcode: PUT_TCE, arguments: [liobn, ioba, value, 0] };
        self.real(same) == Reply::TooHard(Why::Contended)
    }
}

/// The answer of a call that is finished.
pub fn answer(reply: Reply) -> Option<Answer> {
    match reply {
        Reply::Done { status, value } => Some(Answer { status: status.as_i64(), value }),
        Reply::TooHard(_) => None,
    }
}

/// The second virtual CPU, which waits for a moment in the middle of a call of the first.
pub struct Contender {
    pub cpu: Cpu,
    /// The call that it shall meet.
    pub met: Option<Call>,
    /// What it shall call then.
    pub wanted: Option<Call>,
    /// What that came to.
    pub answer: Option<Answer>,
}

pub type Shared = Arc<Mutex<Contender>>;

/// At each use of the hardware tables' memory: looks whether the first CPU has taken its entries, and then calls.
pub fn watch(tables: &WatchedMemory, contender: &Shared) {
    let (again, shared) = (tables.clone(), contender.clone());
    tables.after(1, move || {
        let mut contender = shared.lock().expect("no test thread died here");
        let (Some(met), Some(wanted)) = (contender.met, contender.wanted) else { return };
        if contender.cpu.is_taken(met) {
            contender.wanted = None;
            contender.answer = Some(contender.cpu.finish(wanted));
        } else {
            drop(contender);
            watch(&again, &shared);
        }
    });
}
