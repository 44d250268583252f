//! A guest with registered memory and a window on that ground, and one hardware table behind it.

use core::{num::NonZeroU32, time::Duration};
use std::boxed::Box;

use portcullis_fake::{
    memory::{FakeClock, FakeMemory, donated_pages},
    obedient::ObedientFunctions,
};
use portcullis_hal::{DeviceId, PagePool, PhysAddr, RequesterId, Segment};
use portcullis_iommu::{Seat, VmId, pci::Method};
use portcullis_ppc_tce::hcall::{
    Hypercalls, Liobn, Patience, RealMode, Status, Vcpu, VirtualMode, WindowSpec, opcode,
};

use super::{Donated, Driver, Ground, PAGE, PAGES, START};

const VM: VmId = VmId(1);
const LIOBN: u64 = 1;
/// Entries of a list.
pub const LIST: u64 = 512;

type Calls = Hypercalls<'static, Driver, Donated, FakeMemory, 32, 32, 8>;

/// One virtual CPU. All tables exist; no device is attached any more, so that no kill is sent.
pub struct Caller {
    calls: Calls,
    seat: Seat<'static, Driver>,
    vcpu: Vcpu<'static>,
    memory: FakeMemory,
}

impl Caller {
    /// A guest whose window is empty.
    pub fn new() -> Self {
        // Lists lie in the first page of the guest's memory.
        let memory = FakeMemory::coherent(PhysAddr::new(0), 1);
        let ground: &'static Ground = Box::leak(Box::new(Ground::with_memory()));
        let views = PagePool::new(donated_pages(PhysAddr::new(1 << 40), 8192)).expect("a pool");
        let calls = Hypercalls::new(&ground.iommu, views, memory.clone());
        let spec = WindowSpec {
            page_shift: 12,
            start: START,
            bytes: PAGES * PAGE,
            view_levels: 2,
            stuff_cap: None,
            budget: NonZeroU32::new(512).expect("not 0"),
        };
        calls.register(VM, Liobn(LIOBN as u32), &spec).expect("a window");
        let mut seat = ground.iommu.seat(0).expect("a seat");
        connect(ground, &calls, &mut seat);
        let mut caller = Self { calls, seat, vcpu: Vcpu::new(VM), memory };
        for page in 0..PAGES {
            let call = [LIOBN, START + page * PAGE, (page * PAGE) | 3, 0];
            let _ =
                caller.calls.call::<VirtualMode>(&mut caller.seat, &mut caller.vcpu, opcode::PUT_TCE, call);
        }
        caller.empty();
        caller
    }

    /// As the guest that has mapped everything.
    pub fn full() -> Self {
        let mut caller = Self::new();
        (0..PAGES).for_each(|page| caller.put(page, page));
        caller
    }

    fn empty(&mut self) {
        (0..PAGES).step_by(LIST as usize).for_each(|page| self.stuff(page));
    }

    /// Lets an entry lead to a page.
    #[inline(always)]
    pub fn put(&mut self, entry: u64, page: u64) {
        self.call(opcode::PUT_TCE, [LIOBN, START + entry * PAGE, (page * PAGE) | 3, 0]);
    }

    /// Lets an entry lead nowhere.
    #[inline(always)]
    pub fn clear(&mut self, entry: u64) {
        self.call(opcode::PUT_TCE, [LIOBN, START + entry * PAGE, 0, 0]);
    }

    /// Lets 512 entries lead nowhere.
    #[inline(always)]
    pub fn stuff(&mut self, entry: u64) {
        self.call(opcode::STUFF_TCE, [LIOBN, START + entry * PAGE, 0, LIST]);
    }

    /// Writes a list of pages.
    pub fn write_list(&self, page: impl Fn(u64) -> u64) {
        for entry in 0..LIST {
            assert!(self.memory.write(entry * 8, &((page(entry) * PAGE) | 3).to_be_bytes()));
        }
    }

    /// Lets 512 entries lead where the list says.
    #[inline(always)]
    pub fn indirect(&mut self, entry: u64) {
        self.call(opcode::PUT_TCE_INDIRECT, [LIOBN, START + entry * PAGE, 0, LIST]);
    }

    /// What the guest wrote.
    #[inline(always)]
    pub fn get(&mut self, entry: u64) {
        self.call(opcode::GET_TCE, [LIOBN, START + entry * PAGE, 0, 0]);
    }

    #[inline(always)]
    fn call(&mut self, number: u64, arguments: [u64; 4]) {
        let reply = self.calls.call::<RealMode>(&mut self.seat, &mut self.vcpu, number, arguments);
        assert_eq!(reply.status(), Status::Success.as_i64());
    }
}

fn connect(ground: &'static Ground, calls: &Calls, seat: &mut Seat<'static, Driver>) {
    let device = DeviceId { segment: Segment(0), requester: RequesterId::new(0x100) };
    let group = ground.iommu.add_group(&[device]).expect("a group");
    ground.iommu.grant(VM, group).expect("a grant");
    let mut claim = ground.iommu.claim(VM, group).expect("a claim");
    let (clock, limit) = (FakeClock::default(), Duration::from_secs(1));
    let quiesced = claim.quiesce(&ObedientFunctions, &clock, Method::BusMasterOff, limit).expect("quiet");
    claim.attach(ground.context, quiesced).expect("an attach");
    calls
        .connect(seat, &claim, VM, Liobn(LIOBN as u32), Patience { clock: &clock, limit })
        .expect("a connection");
    claim.detach().expect("a detach");
    core::mem::forget(claim);
}
