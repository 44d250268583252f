//! The public API of the TCE driver.

use core::{hint::black_box, time::Duration};

use portcullis_hal::{DonatedPages, IoPageSize, Iova, RequesterId, Segment};
use portcullis_ppc_tce::{
    ContextSpec, Firmware, FirmwareError, Generation, Geometry, PeNumber, PestEntry, Table, TableRoot, Tce,
    TceIommu, WindowNumber, driver::Config,
};

use crate::{
    hcall,
    machine::{AnyClock, NoCaches, Registers, pool, unknown},
    policy,
};

/// Firmware that answers anything.
struct AnyFirmware;

fn answer() -> Result<(), FirmwareError> {
    FirmwareError::check(unknown(), unknown())
}

impl Firmware for AnyFirmware {
    fn set_pe(&self, _: RequesterId, _: PeNumber) -> Result<(), FirmwareError> {
        answer()
    }
    fn map_pe_dma_window(&self, _: PeNumber, _: WindowNumber, table: TableRoot) -> Result<(), FirmwareError> {
        black_box(table);
        answer()
    }
    fn unmap_pe_dma_window(&self, _: PeNumber, _: WindowNumber) -> Result<(), FirmwareError> {
        answer()
    }
    fn frozen(&self, _: PeNumber) -> Result<Option<PestEntry>, FirmwareError> {
        answer().map(|()| (unknown::<u8>() == 1).then(|| PestEntry([unknown(), unknown()])))
    }
    fn clear_freeze(&self, _: PeNumber) -> Result<(), FirmwareError> {
        answer()
    }
}

pub(crate) fn exercise() {
    let generation = match unknown::<u8>() {
        0 => Generation::Phb3,
        1 => Generation::Phb4,
        _ => Generation::Phb5,
    };
    let Some(page_size) = IoPageSize::from_shift(unknown()) else { return };
    tables(page_size);
    let spec = ContextSpec {
        page_size,
        window_start: Iova::new(unknown()),
        window_bytes: unknown(),
        levels: unknown(),
        page_limit: (unknown::<u8>() == 1).then(unknown),
    };
    if let Some(driver) = bring_up(generation) {
        black_box((driver.is_quarantined(), driver.pool().free_pages()));
        policy::exercise(driver, &spec);
    }
    if let Some(driver) = bring_up(generation) {
        hcall::exercise(driver, &spec);
    }
}

fn bring_up(
    generation: Generation,
) -> Option<TceIommu<AnyFirmware, Registers, DonatedPages<'static>, AnyClock, NoCaches>> {
    let config = Config {
        generation,
        segment: Segment(unknown()),
        pe_count: unknown(),
        reserved_pe: PeNumber(unknown()),
        kill_limit: Duration::from_nanos(unknown()),
    };
    TceIommu::bring_up(AnyFirmware, Registers, pool()?, AnyClock, NoCaches, config).ok()
}

/// The tables alone, as a hypercall uses them.
fn tables(page_size: IoPageSize) {
    let Some(pool) = pool() else { return };
    let Ok(geometry) = Geometry::covering(page_size, unknown(), unknown()) else { return };
    let Ok(table) = Table::new(&pool, geometry, unknown()) else { return };
    let _ = black_box(table.exchange(&pool, unknown(), Tce::from_memory(unknown())));
    black_box((table.lookup(&pool, unknown()), table.root(&pool), table.pages()));
    if let Ok(entries) = table.entries(unknown(), unknown()) {
        let _ = black_box(table.map(&pool, entries, Tce::from_memory(unknown())));
        let _ = black_box(table.unmap(&pool, entries));
    }
    table.dissolve(&pool);
}
