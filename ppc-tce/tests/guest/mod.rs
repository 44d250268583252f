//! A guest with a device on that machine: it maps its own DMA by hypercalls.
#![allow(dead_code, unreachable_pub, reason = "no test needs all of it")]

use std::{num::NonZeroU32, time::Duration};

use portcullis_fake::{
    memory::{FakeClock, FakeMemory},
    phb::PhbKind,
    watched::WatchedMemory,
};
use portcullis_hal::{GuestPhysAddr, GuestPhysRange, IoPageSize, Iova, PagePool, PhysAddr};
use portcullis_iommu::{ContextHandle, RegionHandle, Seat, VmId};
use portcullis_ppc_tce::{
    ContextSpec,
    hcall::{
        HcallError, Hypercalls, Liobn, Patience, RealMode, Reply, Vcpu, VirtualMode, WindowSpec, opcode,
    },
};

use crate::machine::{Driver, GIB, Machine, MachineClaim, PAGE, QuiesceAndAttach, VM, extent, spec};

pub type Calls<'m> = Hypercalls<'m, Driver, WatchedMemory, WatchedMemory, 16, 8, 8, 4>;
pub type MachineSeat<'m> = Seat<'m, Driver, 16, 8, 8>;

pub const LIOBN: Liobn = Liobn(0x8000_0001);
/// Registered with pages of 64 KiB: guest address, host address, bytes.
pub const BIG: (u64, u64, u64) = (GIB, 0, 0x8_0000);
/// Registered behind it in the guest, elsewhere in the host.
pub const NEXT: (u64, u64, u64) = (GIB + 0x8_0000, 0xa_0000, 0x1_0000);
/// Registered with pages of 4 KiB.
pub const SMALL: (u64, u64, u64) = (2 * GIB + PAGE, 0x9_0000, 0xf000);
/// Where the guest has its lists.
pub const LIST: u64 = BIG.0 + 0x7_0000;
/// Pages of the window.
pub const PAGES: u64 = GIB / PAGE;

pub const SUCCESS: i64 = 0;
pub const BUSY: i64 = 1;
pub const HARDWARE: i64 = -1;
pub const FUNCTION: i64 = -2;
pub const PARAMETER: i64 = -4;
pub const NO_RESOURCES: i64 = -44;

pub fn budget(entries: u32) -> NonZeroU32 {
    NonZeroU32::new(entries).expect("not 0")
}

/// 1 GiB of pages of 4 KiB from 0 on, steps of 512.
pub fn window() -> WindowSpec {
    WindowSpec { page_shift: 12, start: 0, bytes: GIB, view_levels: 2, stuff_cap: None, budget: budget(512) }
}

/// The hypercalls of a machine, no window yet.
pub fn calls(machine: &Machine) -> Calls<'_> {
    calls_with(machine, 64).0
}

/// The same with so many pages for views; and what a test may look on at: views, and the guest's memory.
pub fn calls_with(machine: &Machine, view_pages: usize) -> (Calls<'_>, WatchedMemory, WatchedMemory) {
    // One page is the pool's own.
    let views = WatchedMemory::new(FakeMemory::coherent(PhysAddr::new(16 * GIB), view_pages + 1));
    let memory = WatchedMemory::new(machine.memory.clone());
    let pool = PagePool::new(views.clone()).expect("a pool");
    (Hypercalls::new(&machine.iommu, pool, memory.clone()), views, memory)
}

/// A machine and its calls for ever, for what happens in the middle of a call.
pub fn for_ever(kind: PhbKind) -> (&'static Machine, &'static Calls<'static>, WatchedMemory, WatchedMemory) {
    let machine: &'static Machine = Box::leak(Box::new(Machine::new(kind)));
    let (calls, views, memory) = calls_with(machine, 64);
    (machine, Box::leak(Box::new(calls)), views, memory)
}

pub fn guest_range(start: u64, bytes: u64) -> GuestPhysRange {
    GuestPhysRange::new(GuestPhysAddr::new(start), bytes).expect("a range")
}

/// One virtual CPU of a guest on one CPU.
pub struct Guest<'c, 'm> {
    pub machine: &'m Machine,
    pub calls: &'c Calls<'m>,
    pub seat: MachineSeat<'m>,
    pub vcpu: Vcpu<'m>,
    pub clock: FakeClock,
    pub regions: [RegionHandle; 3],
}

impl<'c, 'm> Guest<'c, 'm> {
    /// The first virtual CPU; registers the guest's memory.
    pub fn new(machine: &'m Machine, calls: &'c Calls<'m>) -> Self {
        let regions = [BIG, NEXT, SMALL].map(|region| register(machine, VM, region));
        Self::on_cpu(machine, calls, 0, regions)
    }

    /// As the first one, with a window.
    pub fn with_window(machine: &'m Machine, calls: &'c Calls<'m>) -> Self {
        calls.register(VM, LIOBN, &window()).expect("a window");
        Self::new(machine, calls)
    }

    /// Another virtual CPU.
    pub fn on_cpu(
        machine: &'m Machine,
        calls: &'c Calls<'m>,
        cpu: usize,
        regions: [RegionHandle; 3],
    ) -> Self {
        let seat = machine.iommu.seat(cpu).expect("a seat");
        Self { machine, calls, seat, vcpu: Vcpu::new(VM), clock: FakeClock::default(), regions }
    }

    pub fn real(&mut self, number: u64, arguments: [u64; 4]) -> Reply {
        self.calls.call::<RealMode>(&mut self.seat, &mut self.vcpu, number, arguments)
    }

    pub fn virt(&mut self, number: u64, arguments: [u64; 4]) -> Reply {
        self.calls.call::<VirtualMode>(&mut self.seat, &mut self.vcpu, number, arguments)
    }

    /// The call as a hypervisor makes it: in real mode, then in virtual mode until it is finished.
    pub fn call(&mut self, number: u64, arguments: [u64; 4]) -> (i64, u64) {
        let mut reply = self.real(number, arguments);
        for _ in 0..100_000 {
            match reply {
                Reply::Done { status, value } => return (status.as_i64(), value),
                _ => reply = self.virt(number, arguments),
            }
        }
        panic!("the call is never finished: {reply:?}")
    }

    pub fn put(&mut self, ioba: u64, tce: u64) -> i64 {
        self.call(opcode::PUT_TCE, [LIOBN.0.into(), ioba, tce, 0]).0
    }

    pub fn stuff(&mut self, ioba: u64, value: u64, count: u64) -> i64 {
        self.call(opcode::STUFF_TCE, [LIOBN.0.into(), ioba, value, count]).0
    }

    /// Writes a list, and makes the call.
    pub fn indirect(&mut self, ioba: u64, tces: &[u64]) -> i64 {
        self.write_list(tces);
        self.call(opcode::PUT_TCE_INDIRECT, [LIOBN.0.into(), ioba, LIST, tces.len() as u64]).0
    }

    pub fn write_list(&self, tces: &[u64]) {
        for (number, tce) in (0..).zip(tces) {
            let place = LIST - BIG.0 + BIG.1 + number * 8;
            assert!(self.machine.memory.write(place, &tce.to_be_bytes()));
        }
    }

    pub fn get(&mut self, ioba: u64) -> u64 {
        let (status, value) = self.call(opcode::GET_TCE, [LIOBN.0.into(), ioba, 0, 0]);
        assert_eq!(status, SUCCESS);
        value
    }

    /// A device of the guest, in a context of pages of this size that stands behind the window.
    pub fn device(&mut self, rid: u16, page_size: IoPageSize) -> (ContextHandle, MachineClaim<'m>) {
        let (context, claim) = self.loose_device(rid, page_size);
        self.connect(&claim).expect("a connection");
        (context, claim)
    }

    /// A device in a context that stands behind no window.
    pub fn loose_device(&self, rid: u16, page_size: IoPageSize) -> (ContextHandle, MachineClaim<'m>) {
        let context = self.machine.context(&ContextSpec { page_size, ..spec(2, GIB) });
        let mut claim = self.machine.claim(&[rid]);
        claim.quiesce_and_attach(context).expect("an attach");
        (context, claim)
    }

    pub fn connect(&mut self, claim: &MachineClaim<'_>) -> Result<(), HcallError> {
        let patience = Patience { clock: &self.clock, limit: Duration::from_millis(5) };
        self.calls.connect(&mut self.seat, claim, VM, LIOBN, patience)
    }

    pub fn disconnect(&mut self, context: ContextHandle) -> Result<(), HcallError> {
        let patience = Patience { clock: &self.clock, limit: Duration::from_millis(5) };
        self.calls.disconnect(&mut self.seat, VM, LIOBN, context, patience)
    }

    pub fn remove(&mut self, vm: VmId, liobn: Liobn) -> Result<(), HcallError> {
        let patience = Patience { clock: &self.clock, limit: Duration::from_millis(5) };
        self.calls.remove(&mut self.seat, vm, liobn, patience)
    }

    pub fn vm_died(&mut self, vm: VmId) -> Result<(), HcallError> {
        let patience = Patience { clock: &self.clock, limit: Duration::from_millis(5) };
        self.calls.vm_died(&mut self.seat, vm, patience)
    }
}

pub fn register(machine: &Machine, vm: VmId, (start, host, bytes): (u64, u64, u64)) -> RegionHandle {
    machine.iommu.register_memory(vm, guest_range(start, bytes), extent(host, bytes)).expect("a region")
}

/// Units of 4 KiB that are counted of each region that [`Guest::new`] registered.
pub fn counted(guest: &Guest<'_, '_>) -> [u64; 3] {
    guest.regions.map(|region| guest.machine.iommu.region(VM, region).expect("registered").mapped)
}

/// Where the context leads at an address.
pub fn leads_to(machine: &Machine, context: ContextHandle, ioba: u64) -> Option<u64> {
    let found = machine.iommu.iova_to_phys(context, Iova::new(ioba)).expect("a live context");
    found.map(|(phys, _)| phys.as_u64())
}
