//! A machine with one host bridge whose hypervisor serves hypercalls.

use std::time::Duration;

use portcullis_fake::{
    memory::{FakeCache, FakeClock, FakeMemory},
    phb::{FakePhb, PhbKind},
    watched::WatchedMemory,
};
use portcullis_hal::{PagePool, PhysAddr};
use portcullis_iommu::Iommu;
use portcullis_ppc_tce::{Config, hcall::Hypercalls};

use super::cpu::{Calls, Driver, Policy};
use crate::machine::{OpalFirmware, config};

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
    /// `kill_limit` is how long a kill may take on the fake clock.
    pub fn new(kind: PhbKind, kill_limit: Duration) -> Self {
        let memory = FakeMemory::coherent(PhysAddr::new(0), PAGES);
        let phb = FakePhb::new(kind, &memory);
        let (tables, clock) = (WatchedMemory::new(memory.part(TABLES.0, TABLES.1)), FakeClock::default());
        let driver = Driver::bring_up(
            OpalFirmware { opal: phb.opal(), blind: Default::default() },
            phb.clone(),
            PagePool::new(tables.clone()).expect("a pool"),
            clock.clone(),
            FakeCache::new(&memory),
            Config { kill_limit, ..config(kind) },
        );
        let iommu: &'static Policy = Box::leak(Box::new(Iommu::new(driver.expect("the driver comes up"))));
        let views = WatchedMemory::new(FakeMemory::coherent(PhysAddr::new(VIEWS), VIEW_PAGES));
        let lists = WatchedMemory::new(memory.clone());
        let pool = PagePool::new(views).expect("a pool");
        let calls = Box::leak(Box::new(Hypercalls::new(iommu, pool, lists.clone())));
        Self { memory, phb, clock, iommu, calls, tables, lists }
    }
}
