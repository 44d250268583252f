//! What a hypervisor does for the guest of the rules: windows, registered memory, devices behind windows.

use core::{num::NonZeroU32, time::Duration};

use heapless::Vec;
use portcullis_hal::{
    Access, Clock, DeviceId, DmaExtent, GuestMemory, GuestPhysAddr, GuestPhysRange, IoPageSize, Iova,
    PhysAddr, TableMemory,
};
use portcullis_iommu::{
    Claim, ContextHandle, EntryDriver, Error, GroupId, Iommu, QuiescedGroup, RegionHandle, Seat, VmId,
};
use portcullis_ppc_tce::{
    ContextSpec,
    hcall::{HcallError, Hypercalls, Liobn, Patience, WindowSpec},
};

use super::port::{Area, BUDGET, FOREIGN_LIOBN, Layout, Window};
use crate::Failure;

/// The VM whose guest calls.
pub const VM: VmId = VmId(1);
/// The VM that has a window which the guest has not.
pub const OTHER_VM: VmId = VmId(2);
/// How long the control plane waits for calls; an emulated CPU may stand still in the middle of one.
const LIMIT: Duration = Duration::from_secs(5);
/// Devices of the guest.
pub const DEVICES: usize = 2;
/// Regions of memory that may be registered.
const REGIONS: usize = 3;
/// Levels of hardware tables and of views: with one, no level could be absent.
const LEVELS: u8 = 2;

/// The machine below the hypervisor.
pub trait Ground {
    /// Time, for waits.
    fn clock(&self) -> impl Clock + '_;
    /// The host's memory behind an area of the layout.
    fn extent(&self, area: Area) -> Option<DmaExtent>;
    /// Makes the devices of a claimed group end their DMA.
    ///
    /// # Errors
    /// Why they did not.
    fn quiesce<D: EntryDriver, const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize>(
        &self,
        claim: &Claim<'_, D, GROUPS, CONTEXTS, CPUS>,
    ) -> Result<QuiescedGroup, Error>;
}

/// A device of the guest.
struct Device<'b, D: EntryDriver, const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize> {
    group: GroupId,
    claim: Option<Claim<'b, D, GROUPS, CONTEXTS, CPUS>>,
    /// The window that it is behind, and its context.
    behind: Option<(Window, ContextHandle)>,
}

/// The hypervisor's control plane for one guest.
pub struct Stand<
    's,
    'b,
    G,
    D: EntryDriver<Spec = ContextSpec>,
    V,
    M,
    const GROUPS: usize,
    const CONTEXTS: usize,
    const CPUS: usize,
    const WINDOWS: usize,
> {
    ground: G,
    iommu: &'b Iommu<D, GROUPS, CONTEXTS, CPUS>,
    calls: &'s Hypercalls<'b, D, V, M, GROUPS, CONTEXTS, CPUS, WINDOWS>,
    seat: Seat<'b, D, GROUPS, CONTEXTS, CPUS>,
    layout: Layout,
    devices: [Device<'b, D, GROUPS, CONTEXTS, CPUS>; DEVICES],
    regions: Vec<(Area, RegionHandle), REGIONS>,
}

impl<
    's,
    'b,
    G: Ground,
    D: EntryDriver<Spec = ContextSpec>,
    V: TableMemory,
    M: GuestMemory,
    const GROUPS: usize,
    const CONTEXTS: usize,
    const CPUS: usize,
    const WINDOWS: usize,
> Stand<'s, 'b, G, D, V, M, GROUPS, CONTEXTS, CPUS, WINDOWS>
{
    /// A guest that has nothing yet, and may own two devices; the control plane sits on `seat`.
    ///
    /// # Errors
    /// What the policy refused.
    pub fn new(
        ground: G,
        iommu: &'b Iommu<D, GROUPS, CONTEXTS, CPUS>,
        calls: &'s Hypercalls<'b, D, V, M, GROUPS, CONTEXTS, CPUS, WINDOWS>,
        seat: Seat<'b, D, GROUPS, CONTEXTS, CPUS>,
        layout: Layout,
        devices: [DeviceId; DEVICES],
    ) -> Result<Self, Error> {
        let device = |id: DeviceId| -> Result<_, Error> {
            let group = iommu.add_group(&[id])?;
            iommu.grant(VM, group)?;
            Ok(Device { group, claim: None, behind: None })
        };
        let [first, second] = devices;
        let devices = [device(first)?, device(second)?];
        Ok(Self { ground, iommu, calls, seat, layout, devices, regions: Vec::new() })
    }

    /// The machine below.
    pub const fn ground(&self) -> &G {
        &self.ground
    }

    /// Where windows and memory are.
    pub const fn layout(&self) -> Layout {
        self.layout
    }

    /// Gives the guest all windows and the memory of the layout, and puts device 0 behind the main window.
    ///
    /// # Errors
    /// What was refused.
    pub fn begin(&mut self) -> Result<(), Failure> {
        for window in self.layout.windows() {
            self.add_window(VM, window)?;
        }
        self.add_window(OTHER_VM, Window { liobn: FOREIGN_LIOBN, ..self.layout.main() })?;
        for area in [self.layout.plain(), self.layout.small()] {
            ensure(self.register(area), "memory could not be registered")?;
        }
        ensure(self.connect(0, self.layout.main().liobn, 12), "a device could not be put behind its window")
    }

    /// Takes down what [`begin`](Self::begin) and the rules built.
    ///
    /// # Errors
    /// What did not end.
    pub fn end(&mut self) -> Result<(), Failure> {
        for number in 0..DEVICES {
            self.disconnect(number);
        }
        for window in self.layout.windows() {
            self.remove_window(VM, window.liobn)?;
        }
        self.remove_window(OTHER_VM, FOREIGN_LIOBN)?;
        while let Some((_, region)) = self.regions.pop() {
            self.iommu.unregister_memory(VM, region)?;
        }
        Ok(())
    }

    fn add_window(&self, vm: VmId, window: Window) -> Result<(), Failure> {
        let spec = WindowSpec {
            page_shift: window.page_shift,
            start: window.start,
            bytes: window.entries << window.page_shift,
            view_levels: LEVELS,
            stuff_cap: window.stuff_cap.and_then(NonZeroU32::new),
            budget: NonZeroU32::new(BUDGET).unwrap_or(NonZeroU32::MIN),
        };
        settled(self.calls.register(vm, Liobn(window.liobn as u32), &spec))
    }

    fn remove_window(&mut self, vm: VmId, liobn: u64) -> Result<(), Failure> {
        let clock = self.ground.clock();
        let patience = Patience { clock: &clock, limit: LIMIT };
        settled(self.calls.remove(&mut self.seat, vm, Liobn(liobn as u32), patience))
    }

    /// Registers an area; `false` when that was refused.
    pub fn register(&mut self, area: Area) -> bool {
        let range = GuestPhysRange::new(GuestPhysAddr::new(area.guest), area.bytes).ok();
        let Some((range, extent)) = range.zip(self.ground.extent(area)) else { return false };
        let region = self.iommu.register_memory(VM, range, extent);
        region.is_ok_and(|region| self.regions.push((area, region)).is_ok())
    }

    /// Ends an area's registration; `false` when that was refused.
    pub fn unregister(&mut self, area: Area) -> bool {
        let Some(place) = self.regions.iter().position(|(known, _)| *known == area) else { return false };
        let region = self.regions.get(place).map(|(_, region)| *region);
        let done = region.is_some_and(|region| self.iommu.unregister_memory(VM, region).is_ok());
        if done {
            self.regions.swap_remove(place);
        }
        done
    }

    /// Puts a device behind a window, through new tables; if that is refused, the device is blocked as before.
    pub fn connect(&mut self, number: usize, liobn: u64, page_shift: u8) -> bool {
        self.try_connect(number, liobn, page_shift).is_ok()
    }

    fn try_connect(&mut self, number: usize, liobn: u64, page_shift: u8) -> Result<(), HcallError> {
        let page_size =
            IoPageSize::from_shift(page_shift).ok_or(HcallError::BadPageShift { shift: page_shift })?;
        let main = self.layout.main();
        let spec = ContextSpec {
            page_size,
            window_start: Iova::new(self.layout.window),
            window_bytes: main.entries << main.page_shift,
            levels: LEVELS,
            page_limit: None,
        };
        let device = self.devices.get_mut(number).ok_or(HcallError::NotConnected)?;
        let mut claim = match device.claim.take() {
            Some(claim) => claim,
            None => self.iommu.claim(VM, device.group)?,
        };
        let context = self.iommu.create_context(VM, &spec)?;
        let quiesced = self.ground.quiesce(&claim)?;
        claim.attach(context, quiesced)?;
        let clock = self.ground.clock();
        let patience = Patience { clock: &clock, limit: LIMIT };
        let connected = self.calls.connect(&mut self.seat, &claim, VM, Liobn(liobn as u32), patience);
        if connected.is_err() {
            claim.detach()?;
            self.iommu.destroy_context(context)?;
        }
        device.claim = Some(claim);
        let window = self.layout.windows().into_iter().find(|window| window.liobn == liobn);
        device.behind = connected.ok().and(window).map(|window| (window, context));
        connected
    }

    /// Takes a device from behind its window: it reaches nothing.
    pub fn disconnect(&mut self, number: usize) -> bool {
        let Some(device) = self.devices.get_mut(number) else { return false };
        let Some((window, context)) = device.behind.take() else { return false };
        let clock = self.ground.clock();
        let patience = Patience { clock: &clock, limit: LIMIT };
        let liobn = Liobn(window.liobn as u32);
        let left = self.calls.disconnect(&mut self.seat, VM, liobn, context, patience);
        let detached = device.claim.as_mut().map(Claim::detach);
        left.is_ok() && detached == Some(Ok(())) && self.iommu.destroy_context(context).is_ok()
    }

    /// Revokes the guest's ownership of a device.
    pub fn revoke(&mut self, number: usize) -> bool {
        let Some(device) = self.devices.get_mut(number) else { return false };
        device.behind = None;
        let revoked = self.iommu.revoke(VM, device.group, |_| {}, &self.ground.clock(), LIMIT);
        device.claim = None;
        revoked.is_ok()
    }

    /// The window that a device is behind, and its context.
    pub fn behind(&self, number: usize) -> Option<(Window, ContextHandle)> {
        self.devices.get(number)?.behind
    }

    /// Units of 4 KiB that are counted as mapped, over all regions.
    ///
    /// # Errors
    /// A region ended by itself.
    pub fn counted(&self) -> Result<u64, Failure> {
        let mapped = |(_, region): &(Area, RegionHandle)| Ok(self.iommu.region(VM, *region)?.mapped);
        self.regions.iter().map(mapped).sum()
    }

    /// Checks that the 4 KiB page at `ioba` leads, through a device's tables, where the guest form `form` of its entry
    /// says, `offset` bytes into the guest's page; returns where, and with which rights.
    ///
    /// # Errors
    /// What differs.
    pub fn check_page(
        &self,
        context: ContextHandle,
        ioba: u64,
        form: u64,
        offset: u64,
    ) -> Result<Option<(PhysAddr, Access)>, Failure> {
        let wanted = match form & 3 {
            0 => None,
            permissions => {
                let host = self.registered((form & !3) + offset);
                let host = host.ok_or(failure("an entry leads outside the guest's registered memory"))?;
                Some((host, Access::from_bits_truncate(permissions as u8)))
            }
        };
        let found = self.iommu.iova_to_phys(context, Iova::new(ioba))?;
        ensure(found == wanted, "hardware tables hold something else than the guest wrote")?;
        Ok(wanted)
    }

    /// The host's address of registered memory.
    fn registered(&self, guest: u64) -> Option<PhysAddr> {
        let (area, _) = self.regions.iter().find(|(area, _)| area.holds(guest, 1))?;
        self.ground.extent(*area)?.start().checked_add(guest - area.guest)
    }
}

#[track_caller]
const fn failure(what: &'static str) -> Failure {
    Failure { what, error: None, line: core::panic::Location::caller().line() }
}

#[track_caller]
fn ensure(condition: bool, what: &'static str) -> Result<(), Failure> {
    if condition { Ok(()) } else { Err(failure(what)) }
}

#[track_caller]
fn settled(result: Result<(), HcallError>) -> Result<(), Failure> {
    match result {
        Ok(()) => Ok(()),
        Err(HcallError::Iommu(error)) => Err(error.into()),
        Err(_) => Err(failure("the hypercalls' control plane refused")),
    }
}
