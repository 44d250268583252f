//! Entries that hypercalls replace in sessions.
#![allow(missing_docs, reason = "tests document themselves by their names")]

mod machine;

use machine::{Driver, GIB, KINDS, Machine, PAGE, QuiesceAndAttach, VM, extent, spec};
use portcullis_fake::phb::{Hang, PhbFault, PhbKind};
use portcullis_hal::{Access, GuestPhysAddr, GuestPhysRange, IoPageSize, Iova};
use portcullis_iommu::{ContextHandle, Error, RegionHandle, Seat, Session, VmId};
use portcullis_ppc_tce::ContextSpec;

const RID: u16 = 0x0100;
const BIG: u64 = 0x1_0000;
/// Host memory behind guest address 0, 4 pages of 64 KiB, and behind the next ones.
const HOST: u64 = 4 * BIG;
const REGION: u64 = 4 * BIG;
const OTHER: VmId = VmId(2);

type MachineSeat<'m> = Seat<'m, Driver, 16, 8>;
type Call<'s, 'm> = Session<'s, 'm, Driver, 16, 8>;

fn guest(start: u64, bytes: u64) -> GuestPhysRange {
    GuestPhysRange::new(GuestPhysAddr::new(start), bytes).expect("a range")
}

/// Two regions side by side in guest and in host memory.
fn regions(machine: &Machine) -> [RegionHandle; 2] {
    [0, REGION].map(|at| {
        machine.iommu.register_memory(VM, guest(at, REGION), extent(HOST + at, REGION)).expect("a region")
    })
}

fn counts(machine: &Machine, regions: [RegionHandle; 2]) -> [u64; 2] {
    regions.map(|region| machine.iommu.region(VM, region).expect("a region").mapped)
}

/// What a hypercall does: the tables were made before.
fn put(call: &Call<'_, '_>, at: ContextHandle, iova: u64, bytes: u64, to: Option<u64>) -> Result<(), Error> {
    let context = call.context(at)?;
    let part = to.map(|to| call.memory(0, guest(to, bytes))).transpose()?;
    let mut owed = call.owed();
    let new = part.as_ref().map(|part| (part, Access::all()));
    call.exchange(&context, Iova::new(iova), bytes, new, &mut owed)?;
    call.kill(&context)?;
    call.settle(owed);
    Ok(())
}

fn provide(seat: &mut MachineSeat<'_>, at: ContextHandle, iova: u64, bytes: u64) {
    let call = seat.enter(VM);
    let context = call.context(at).expect("a context");
    call.provide_tables(&context, Iova::new(iova), bytes).expect("pages");
}

fn once(seat: &mut MachineSeat<'_>, at: ContextHandle, iova: u64, bytes: u64, to: Option<u64>) {
    put(&seat.enter(VM), at, iova, bytes, to).expect("an exchange");
}

#[test]
fn e40_an_exchange_leads_devices_to_the_new_page_and_counts_out_the_old_one() {
    for kind in KINDS {
        let machine = Machine::new(kind);
        let regions = regions(&machine);
        let (context, _claim) = machine.attached(RID);
        let mut seat = machine.iommu.seat(0).expect("a seat");
        provide(&mut seat, context, 0, PAGE);
        assert_eq!(machine.read(RID, 0), Err(PhbFault::PageFault), "caches the empty entry");
        machine.store(HOST + PAGE, 1);
        machine.store(HOST + REGION, 2);
        once(&mut seat, context, 0, PAGE, Some(PAGE));
        assert_eq!((machine.read(RID, 0), counts(&machine, regions)), (Ok(1), [1, 0]), "{kind:?}");
        once(&mut seat, context, 0, PAGE, Some(REGION));
        assert_eq!((machine.read(RID, 0), counts(&machine, regions)), (Ok(2), [0, 1]), "{kind:?}");
        once(&mut seat, context, 0, PAGE, Some(REGION));
        assert_eq!(counts(&machine, regions), [0, 1], "the same once more");
        once(&mut seat, context, 0, PAGE, None);
        assert_eq!(machine.read(RID, 0), Err(PhbFault::PageFault), "{kind:?}");
        assert_eq!(counts(&machine, regions), [0, 0]);
        once(&mut seat, context, 0, PAGE, None);
        assert_eq!(counts(&machine, regions), [0, 0], "nothing was there");
        assert_eq!(machine.iommu.unregister_memory(VM, regions[0]), Ok(()));
        machine.assert_obedient();
    }
}

#[test]
fn e40_a_guest_page_of_several_iommu_pages_is_replaced_as_a_whole() {
    let machine = Machine::new(PhbKind::Phb4);
    let regions = regions(&machine);
    let context = machine.context(&spec(2, GIB));
    let mut seat = machine.iommu.seat(0).expect("a seat");
    // Across the end of a table.
    let at = 512 * PAGE - BIG / 2;
    provide(&mut seat, context, at, BIG);
    once(&mut seat, context, at, BIG, Some(BIG));
    let leads_to = |iova: u64| {
        let found = machine.iommu.iova_to_phys(context, Iova::new(iova)).expect("a context");
        found.map(|(phys, _)| phys.as_u64())
    };
    for page in 0..16 {
        assert_eq!(leads_to(at + page * PAGE), Some(HOST + BIG + page * PAGE));
    }
    assert_eq!((leads_to(at - PAGE), leads_to(at + BIG)), (None, None));
    assert_eq!(counts(&machine, regions), [16, 0]);
    once(&mut seat, context, at, BIG, Some(REGION + BIG));
    assert_eq!((leads_to(at), counts(&machine, regions)), (Some(HOST + REGION + BIG), [0, 16]));
    once(&mut seat, context, at + PAGE, PAGE, None);
    assert_eq!((leads_to(at), leads_to(at + PAGE)), (Some(HOST + REGION + BIG), None));
    assert_eq!(counts(&machine, regions), [0, 15]);
    once(&mut seat, context, at, BIG, None);
    assert_eq!((leads_to(at), counts(&machine, regions)), (None, [0, 0]));
}

#[test]
fn e40_entries_into_several_regions_are_counted_out_of_each() {
    let machine = Machine::new(PhbKind::Phb4);
    let regions = regions(&machine);
    let context = machine.context(&spec(2, GIB));
    let mut seat = machine.iommu.seat(0).expect("a seat");
    provide(&mut seat, context, 0, BIG);
    for page in 0..16 {
        once(&mut seat, context, page * PAGE, PAGE, Some(if page % 3 == 0 { REGION } else { page * PAGE }));
    }
    assert_eq!(counts(&machine, regions), [10, 6]);
    // Neighbours in host memory, of two regions.
    once(&mut seat, context, 0, PAGE, Some(REGION - PAGE));
    once(&mut seat, context, PAGE, PAGE, Some(REGION));
    assert_eq!(counts(&machine, regions), [10, 6]);
    once(&mut seat, context, 0, BIG, None);
    assert_eq!(counts(&machine, regions), [0, 0]);
}

#[test]
fn e41_what_another_cpu_counted_in_is_counted_out() {
    let machine = Machine::new(PhbKind::Phb4);
    let regions = regions(&machine);
    let context = machine.context(&spec(2, GIB));
    let mut seats = [0, 5].map(|cpu| machine.iommu.seat(cpu).expect("a seat"));
    assert_eq!(machine.iommu.seat(0).map(drop), Err(Error::InUse { users: 1 }));
    assert_eq!(machine.iommu.seat(8).map(drop), Err(Error::Full { capacity: 8 }));
    provide(&mut seats[0], context, 0, BIG);
    once(&mut seats[0], context, 0, BIG, Some(0));
    once(&mut seats[1], context, 0, PAGE, None);
    assert_eq!(counts(&machine, regions), [15, 0]);
    let refused = machine.iommu.unregister_memory(VM, regions[0]);
    assert_eq!(refused, Err(Error::StillMapped { pages: 15 }));
    once(&mut seats[1], context, 0, BIG, None);
    assert_eq!(machine.iommu.unregister_memory(VM, regions[0]), Ok(()));
    machine.iommu.register_memory(VM, guest(0, PAGE), extent(HOST, PAGE)).expect("in the same slot");
    assert_eq!(put(&seats[0].enter(VM), context, 0, PAGE, Some(0)), Ok(()));
}

#[test]
fn e41_a_missing_table_is_told_before_anything_changes_and_made_on_demand() {
    let machine = Machine::new(PhbKind::Phb4);
    let regions = regions(&machine);
    let context = machine.context(&ContextSpec { page_limit: Some(2), ..spec(2, GIB) });
    let mut seat = machine.iommu.seat(0).expect("a seat");
    let missing = Err(Error::NeedPages { count: 1 });
    let free = machine.free_pages();
    {
        let call = seat.enter(VM);
        let inside = call.context(context).expect("a context");
        let at = Iova::new(512 * PAGE - PAGE);
        assert_eq!(call.check_tables(&inside, at, PAGE), missing);
        assert_eq!(put(&call, context, at.as_u64(), 2 * PAGE, Some(0)), missing);
        call.provide_tables(&inside, at, PAGE).expect("a page");
        assert_eq!(call.check_tables(&inside, at, PAGE), Ok(()));
        assert_eq!(call.check_tables(&inside, at, 2 * PAGE), missing);
        assert_eq!(put(&call, context, at.as_u64(), 2 * PAGE, Some(0)), missing);
        assert!(!call.is_mapped(&inside, at), "a part of what was refused");
        assert_eq!(call.provide_tables(&inside, at, 2 * PAGE), missing, "beyond the limit");
        assert_eq!(put(&call, context, at.as_u64(), 2 * PAGE, None), Ok(()), "nothing there to take out");
        assert_eq!(put(&call, context, at.as_u64(), PAGE, Some(0)), Ok(()));
        assert!(call.is_mapped(&inside, at));
    }
    assert_eq!((machine.free_pages(), counts(&machine, regions)), (free - 1, [1, 0]));
}

#[test]
fn e41_what_no_entry_can_hold_is_refused_and_changes_nothing() {
    let machine = Machine::new(PhbKind::Phb3);
    let regions = regions(&machine);
    let far = machine.iommu.register_memory(VM, guest(GIB, PAGE), extent(1 << 50, PAGE)).expect("a region");
    let context = machine.context(&ContextSpec { page_size: IoPageSize::SIZE_64K, ..spec(3, GIB) });
    let mut seat = machine.iommu.seat(0).expect("a seat");
    provide(&mut seat, context, 0, BIG);
    let call = seat.enter(VM);
    assert_eq!(put(&call, context, 0, PAGE, Some(0)), Err(Error::Misaligned { value: PAGE }));
    assert_eq!(put(&call, context, 0, BIG, Some(PAGE)), Err(Error::Misaligned { value: HOST + PAGE }));
    let outside = Error::OutsideAperture { iova: Iova::new(GIB), bytes: BIG };
    assert_eq!(put(&call, context, GIB, BIG, Some(0)), Err(outside));
    let small = machine.context(&spec(1, BIG));
    let wide = Error::PhysicalTooWide { address: (1 << 50) + PAGE - 1 };
    assert_eq!(put(&call, small, 0, PAGE, Some(GIB)), Err(wide));
    let inside = call.context(context).expect("a context");
    let part = call.memory(9, guest(0, BIG)).expect("registered");
    assert!(part.fits_pages_of(BIG) && !part.fits_pages_of(1 << 30));
    let mut owed = call.owed();
    let none = call.exchange(&inside, Iova::new(0), BIG, Some((&part, Access::empty())), &mut owed);
    assert_eq!(none, Err(Error::NoAccess));
    let longer = call.exchange(&inside, Iova::new(0), 2 * BIG, Some((&part, Access::READ)), &mut owed);
    assert_eq!(longer, Err(Error::SizesDiffer { guest: 2 * BIG, host: BIG }));
    call.settle(owed);
    drop(call);
    assert_eq!(counts(&machine, regions), [0, 0]);
    assert_eq!(machine.iommu.unregister_memory(VM, far), Ok(()));
}

#[test]
fn e42_what_a_bridge_did_not_confirm_is_never_counted_out() {
    for hang in [Hang::Kill, Hang::Sync] {
        let machine = Machine::new(PhbKind::Phb4);
        let regions = regions(&machine);
        let (context, _claim) = machine.attached(RID);
        let mut seat = machine.iommu.seat(0).expect("a seat");
        provide(&mut seat, context, 0, BIG);
        once(&mut seat, context, 0, PAGE, Some(0));
        assert!(machine.read(RID, 0).is_ok(), "cached");
        machine.phb.set_hang(Some(hang));
        {
            let call = seat.enter(VM);
            assert!(matches!(put(&call, context, 0, PAGE, None), Err(Error::Timeout(_))), "{hang:?}");
            // Settled all the same: the session knows better.
            let inside = call.context(context).expect("a context");
            let mut owed = call.owed();
            let part = call.memory(0, guest(PAGE, PAGE)).expect("registered");
            let new = Some((&part, Access::all()));
            call.exchange(&inside, Iova::new(0), PAGE, new, &mut owed).expect("an exchange");
            call.exchange(&inside, Iova::new(0), PAGE, None, &mut owed).expect("an exchange");
            call.settle(owed);
        }
        assert_eq!(counts(&machine, regions), [2, 0], "{hang:?}");
        machine.phb.set_hang(None);
        assert_eq!(put(&seat.enter(VM), context, 0, PAGE, None), Err(Error::Quarantined));
        assert_eq!(counts(&machine, regions), [2, 0], "{hang:?}");
        assert_eq!(machine.iommu.unregister_memory(VM, regions[0]), Err(Error::StillMapped { pages: 2 }));
    }
}

#[test]
fn e42_a_device_that_joins_later_finds_what_was_stored_before_it_could_be_killed() {
    let machine = Machine::new(PhbKind::Phb4);
    regions(&machine);
    let context = machine.context(&spec(2, GIB));
    let mut claim = machine.claim(&[RID]);
    let mut seat = machine.iommu.seat(0).expect("a seat");
    provide(&mut seat, context, 0, PAGE);
    let _ = machine.events();
    machine.store(HOST, 7);
    once(&mut seat, context, 0, PAGE, Some(0));
    assert_eq!(machine.events(), [], "no bridge could have cached it");
    let call = seat.enter(VM);
    assert_eq!(claim.quiesce_and_attach(context), Err(Error::Busy), "past a session that may have stored");
    drop(call);
    claim.quiesce_and_attach(context).expect("an attach");
    assert_eq!(machine.read(RID, 0), Ok(7));
    once(&mut seat, context, 0, PAGE, Some(PAGE));
    assert_ne!(machine.read(RID, 0), Ok(7), "killed");
    assert_eq!(claim.context(), Ok(context));
    claim.detach().expect("a detach");
    assert_eq!(claim.context(), Err(Error::NotAttached { group: claim.group() }));
}

#[test]
fn e43_a_context_has_one_kind_of_entries() {
    let machine = Machine::new(PhbKind::Phb4);
    regions(&machine);
    let [mapped, counted, ours] = [(); 3].map(|()| machine.context(&spec(2, GIB)));
    machine.map(mapped, 0, GIB, PAGE).expect("a map");
    machine.iommu.map_guest(counted, Iova::new(0), guest(0, PAGE), Access::READ).expect("a map");
    let foreign = machine.iommu.create_context(OTHER, &spec(2, GIB)).expect("a context");
    let hosts = machine.iommu.create_host_context(&spec(2, GIB)).expect("a context");
    let mut seat = machine.iommu.seat(0).expect("a seat");
    let call = seat.enter(VM);
    let refused = |context| call.context(context).map(drop).expect_err("refused");
    assert_eq!([mapped, counted].map(refused), [Error::OtherBacking; 2]);
    assert_eq!(refused(foreign), Error::OwnedBy { owner: OTHER });
    assert_eq!(refused(hosts), Error::OwnedByHost { drivers: 0 });
    assert!(call.context(ours).is_ok());
    assert_eq!(machine.map(ours, 0, GIB, PAGE), Err(Error::OtherBacking));
    let by_guest = machine.iommu.map_guest(ours, Iova::new(0), guest(0, PAGE), Access::READ);
    assert_eq!(by_guest, Err(Error::OtherBacking));
    assert_eq!(machine.unmap(ours, 0, PAGE), Err(Error::OtherBacking));
    drop(call);
    assert_eq!(machine.iommu.destroy_context(ours), Ok(()));
    assert_eq!(seat.enter(VM).context(ours).map(drop), Err(Error::Stale { slot: ours.slot() }));
}

#[test]
fn e43_a_session_is_served_only_what_it_has_found_itself() {
    let machine = Machine::new(PhbKind::Phb4);
    let regions = regions(&machine);
    let context = machine.context(&spec(2, GIB));
    let theirs = machine.iommu.create_context(OTHER, &spec(2, GIB)).expect("a context");
    let mut seats = [0, 1].map(|cpu| machine.iommu.seat(cpu).expect("a seat"));
    provide(&mut seats[0], context, 0, PAGE);
    let [first, second] = &mut seats;
    let (call, other) = (first.enter(VM), second.enter(OTHER));
    let (inside, foreign) = (call.context(context).expect("own"), other.context(theirs).expect("own"));
    let part = call.memory(0, guest(0, PAGE)).expect("registered");
    let new = Some((&part, Access::all()));
    let stale = |context: ContextHandle| Err(Error::Stale { slot: context.slot() });
    let (mut owed, mut owed_there) = (call.owed(), other.owed());
    let at = Iova::new(0);
    assert_eq!(call.exchange(&foreign, at, PAGE, new, &mut owed), stale(theirs));
    assert_eq!(
        other.exchange(&foreign, at, PAGE, new, &mut owed_there),
        Err(Error::Stale { slot: part.slot() })
    );
    assert_eq!(call.exchange(&inside, at, PAGE, new, &mut owed_there), stale(context));
    assert_eq!(call.kill(&foreign), stale(theirs));
    assert_eq!(call.exchange(&inside, at, PAGE, new, &mut owed), Ok(()));
    assert_eq!(call.exchange(&inside, at, PAGE, None, &mut owed), Ok(()));
    assert_eq!(call.kill(&inside), Ok(()));
    other.settle(owed);
    assert_eq!(
        other.memory(0, guest(0, PAGE)).map(drop),
        Err(Error::NotRegistered { guest: guest(0, PAGE) })
    );
    drop(owed_there);
    drop((call, other));
    assert_eq!(counts(&machine, regions), [1, 0], "settled by another CPU");
}
