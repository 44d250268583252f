//! The hypercalls, in both modes.

use core::{hint::black_box, num::NonZeroU32, time::Duration};

use portcullis_hal::{DmaExtent, GuestPhysAddr, GuestPhysRange, PhysAddr, PhysRange};
use portcullis_iommu::{EntryDriver, GroupId, Iommu, VmId};
use portcullis_ppc_tce::hcall::{
    HcallError, Hypercalls, Liobn, Patience, RealMode, Vcpu, VirtualMode, WindowSpec,
};

use crate::machine::{AnyClock, AnyMemory, pool, unknown};

/// Calls everything with numbers that could be any.
pub(crate) fn exercise<D: EntryDriver>(driver: D, spec: &D::Spec) {
    let iommu: Iommu<D> = Iommu::new(driver);
    let (vm, liobn) = (VmId(unknown()), Liobn(unknown()));
    let Some(views) = pool() else { return };
    let calls: Hypercalls<'_, D, _, _, 32, 32, 8> = Hypercalls::new(&iommu, views, AnyMemory);
    let Ok(()) = calls.register(vm, liobn, &window()) else { return };
    let Ok(context) = iommu.create_context(vm, spec) else { return };
    let Ok(mut claim) = iommu.claim(vm, GroupId(unknown())) else { return };
    let _ = black_box(claim.switch(context));
    let Ok(mut seat) = iommu.seat(unknown()) else { return };
    if let (Ok(phys), Ok(guest)) = (
        PhysRange::new(PhysAddr::new(unknown()), unknown()),
        GuestPhysRange::new(GuestPhysAddr::new(unknown()), unknown()),
    ) {
        // SAFETY: the image is never run.
        let _ = black_box(iommu.register_memory(vm, guest, unsafe { DmaExtent::new(phys) }));
    }
    let patience = Patience { clock: &AnyClock, limit: Duration::from_nanos(unknown()) };
    keep(calls.connect(&mut seat, &claim, vm, liobn, patience));
    let mut vcpu = Vcpu::new(vm);
    for _ in 0..unknown::<u64>() {
        let (number, arguments) = (unknown(), [unknown(), unknown(), unknown(), unknown()]);
        let _ = black_box(calls.call::<RealMode>(&mut seat, &mut vcpu, number, arguments));
        let _ = black_box(calls.call::<VirtualMode>(&mut seat, &mut vcpu, number, arguments));
    }
    vcpu.abandon();
    black_box((vcpu.is_unfinished(), calls.pool().free_pages()));
    keep(calls.disconnect(&mut seat, vm, liobn, context, patience));
    keep(calls.remove(&mut seat, vm, liobn, patience));
    keep(calls.vm_died(&mut seat, vm, patience));
}

fn keep(result: Result<(), HcallError>) {
    let _ = black_box(result);
}

fn window() -> WindowSpec {
    WindowSpec {
        page_shift: unknown(),
        start: unknown(),
        bytes: unknown(),
        view_levels: unknown(),
        stuff_cap: NonZeroU32::new(unknown()),
        budget: NonZeroU32::new(unknown()).unwrap_or(NonZeroU32::MIN),
    }
}
