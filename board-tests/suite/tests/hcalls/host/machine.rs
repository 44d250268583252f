//! A machine with one host bridge whose hypervisor serves hypercalls.

use std::num::NonZeroU32;

use portcullis_fake::{
    memory::{FakeCache, FakeClock, FakeMemory},
    phb::{FakePhb, PhbKind},
    watched::WatchedMemory,
};
use portcullis_hal::{GuestPhysAddr, GuestPhysRange, PagePool, PhysAddr};
use portcullis_iommu::{Iommu, RegionHandle, VmId};
use portcullis_ppc_tce::hcall::{Hypercalls, Liobn, WindowSpec};
use portcullis_suite::hcall::{
    Area, Layout, Window,
    port::{BUDGET, FOREIGN_LIOBN},
};

use super::cpu::{Calls, Driver, Policy};
use crate::machine::{OpalFirmware, VM, config, extent};

/// The VM that has a window which the guest has not.
pub const OTHER_VM: VmId = VmId(2);
/// Where the guest's memory begins in the host's.
pub const HOST: u64 = 0x10_0000;
/// 4 KiB pages of all memory, and those of them for hardware tables.
const PAGES: usize = 512;
const TABLES: (usize, usize) = (384, 64);
/// Pages for views: each of the five windows has a root of two and at most four more.
const VIEW_PAGES: usize = 48;
/// Where they lie: no device reaches them.
const VIEWS: u64 = 1 << 40;

/// What a machine is made of; lives for ever.
#[derive(Clone)]
pub struct Made {
    pub memory: FakeMemory,
    pub phb: FakePhb,
    pub clock: FakeClock,
    pub iommu: &'static Policy,
    pub calls: &'static Calls,
    /// The hardware tables' memory, and the guest's as hypercalls read it.
    pub tables: WatchedMemory,
    pub lists: WatchedMemory,
}

impl Made {
    pub fn new(kind: PhbKind) -> Self {
        let memory = FakeMemory::coherent(PhysAddr::new(0), PAGES);
        let phb = FakePhb::new(kind, &memory);
        let (tables, clock) = (WatchedMemory::new(memory.part(TABLES.0, TABLES.1)), FakeClock::default());
        let driver = Driver::bring_up(
            OpalFirmware { opal: phb.opal(), blind: Default::default() },
            phb.clone(),
            PagePool::new(tables.clone()).expect("a pool"),
            clock.clone(),
            FakeCache::new(&memory),
            config(kind),
        );
        let iommu: &'static Policy = Box::leak(Box::new(Iommu::new(driver.expect("the driver comes up"))));
        let views = WatchedMemory::new(FakeMemory::coherent(PhysAddr::new(VIEWS), VIEW_PAGES));
        let lists = WatchedMemory::new(memory.clone());
        let pool = PagePool::new(views).expect("a pool");
        let calls = Box::leak(Box::new(Hypercalls::new(iommu, pool, lists.clone())));
        Self { memory, phb, clock, iommu, calls, tables, lists }
    }

    pub fn add_window(&self, vm: VmId, window: Window) {
        let spec = WindowSpec {
            page_shift: window.page_shift,
            start: window.start,
            bytes: window.entries << window.page_shift,
            view_levels: 2,
            stuff_cap: window.stuff_cap.and_then(NonZeroU32::new),
            budget: NonZeroU32::new(BUDGET).expect("not 0"),
        };
        self.calls.register(vm, Liobn(window.liobn as u32), &spec).expect("a window");
    }

    /// All windows of the layout, and the other VM's.
    pub fn add_windows(&self, layout: Layout) {
        for window in layout.windows() {
            self.add_window(VM, window);
        }
        self.add_window(OTHER_VM, Window { liobn: FOREIGN_LIOBN, ..layout.main() });
    }

    pub fn register(&self, layout: Layout, area: Area) -> Option<RegionHandle> {
        let range = GuestPhysRange::new(GuestPhysAddr::new(area.guest), area.bytes).expect("a range");
        let host = extent(HOST + (area.guest - layout.memory), area.bytes);
        self.iommu.register_memory(VM, range, host).ok()
    }
}
