//! `count_vtd OPERATION N`: N operations after a set-up that does not depend on N, so that the difference of
//! two runs under a tool that counts instructions is the price of the operations. Prints nothing.
//!
//! ```console
//! $ valgrind --tool=callgrind --callgrind-out-file=/dev/null target/release/examples/count_vtd map 200000
//! ```

#[path = "../benches/setup/mod.rs"]
mod setup;

use std::hint::black_box;

use portcullis_fake::{
    memory::{FakeCache, FakeClock, FakeMemory},
    vtd::{FakeVtd, VtdConfig},
};
use portcullis_hal::{Access, PhysAddr, Segment, page_pool::PagePool};
use portcullis_iommu::{Iommu, VmId};
use portcullis_vtd::{ContextSpec, UnitConfig, VtdIommu};
use setup::{LEAVES, Order, PAGES};

fn main() -> Result<(), &'static str> {
    const USAGE: &str = "count_vtd OPERATION N";
    let mut words = std::env::args().skip(1);
    let (name, count) = (words.next().ok_or(USAGE)?, words.next().ok_or(USAGE)?);
    let count = count.parse().map_err(|_| USAGE)?;
    match name.as_str() {
        "policy-map" => through_the_policy(count),
        name => on_tables(name, count)?,
    }
    Ok(())
}

/// The tables alone, as the driver uses them.
fn on_tables(name: &str, count: u64) -> Result<(), &'static str> {
    let pool = setup::pool();
    let mut tables = setup::warm(&pool);
    let access = setup::access(&pool);
    let mapped = ["unmap", "unmap-exclusive", "unmap-range", "lookup", "lookup-scattered"];
    if mapped.contains(&name) {
        setup::map(&tables, &access, 0, PAGES);
    }
    let scattered = |step| Order::Scattered.page(step);
    match name {
        "map" => (0..count).for_each(|step| setup::map(&tables, &access, step, 1)),
        "map-exclusive" => (0..count).for_each(|step| setup::map_exclusive(&mut tables, &access, step, 1)),
        "map-scattered" => (0..count).for_each(|step| setup::map(&tables, &access, scattered(step), 1)),
        "map-range" => (0..count).for_each(|step| setup::map(&tables, &access, step * LEAVES, LEAVES)),
        "unmap" => (0..count).for_each(|step| setup::unmap(&tables, &access, step, 1)),
        "unmap-exclusive" => {
            (0..count).for_each(|step| setup::unmap_exclusive(&mut tables, &access, step, 1));
        }
        "unmap-range" => (0..count).for_each(|step| setup::unmap(&tables, &access, step * LEAVES, LEAVES)),
        "lookup" => (0..count).for_each(|step| {
            black_box(tables.lookup(&access, setup::iova(step)));
        }),
        "lookup-scattered" => (0..count).for_each(|step| {
            black_box(tables.lookup(&access, setup::iova(scattered(step))));
        }),
        _ => return Err("no such operation"),
    }
    Ok(())
}

/// The whole way of a mapping: handle, gate, driver, tables.
fn through_the_policy(count: u64) {
    const VM: VmId = VmId(1);
    let memory = FakeMemory::coherent(PhysAddr::new(1 << 32), 4096);
    let registers = FakeVtd::new(memory.clone(), VtdConfig::default()).registers();
    let cache = FakeCache::new(&memory);
    let pool = PagePool::new(memory).expect("4096 pages");
    let config = UnitConfig::new(Segment(0));
    let driver = VtdIommu::bring_up(registers, pool, FakeClock::default(), cache, config).expect("a unit");
    let iommu: Iommu<_> = Iommu::new(driver);
    let spec = ContextSpec::new(48);
    let context = iommu.create_context(VM, &spec).expect("a context");
    let rights = Access::READ | Access::WRITE;
    iommu.map(context, setup::iova(0), setup::extent(0, PAGES), rights).expect("free");
    iommu.unmap(context, setup::range(0, PAGES)).expect("mapped");
    for step in 0..count {
        iommu.map(context, setup::iova(step), setup::extent(step, 1), rights).expect("free");
    }
}
