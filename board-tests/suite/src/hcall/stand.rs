//! What a hypervisor does for the guest of the rules: windows, registered memory, devices behind windows.

use core::{hint::spin_loop, num::NonZeroU32, time::Duration};

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
    hcall::{HcallError, Hypercalls, Liobn, Patience, Reply, Vcpu, VirtualMode, WindowSpec},
};

use super::{
    call::{BOTH, Call},
    guest::{ensure, failure},
    port::{Area, BUDGET, Control, FOREIGN_LIOBN, Layout, Window},
};
use crate::Failure;

/// The VM whose guest calls.
pub const VM: VmId = VmId(1);
/// The VM that has a window which the guest has not.
pub const OTHER_VM: VmId = VmId(2);
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
    /// How long the control plane waits for calls; an emulated CPU may stand still in the middle of one.
    fn limit(&self) -> Duration;
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
    /// Looks whether a device reaches, at an I/O bus address of a 4 KiB page, what it should: this page with these rights.
    ///
    /// # Errors
    /// It reaches something else.
    fn look(&self, device: usize, ioba: u64, page: Option<(PhysAddr, Access)>) -> Result<(), Failure>;
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
    /// Asks what the guest finds in its entries.
    vcpu: Vcpu<'b>,
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
        let vcpu = Vcpu::new(VM);
        Ok(Self { ground, iommu, calls, seat, vcpu, layout, devices, regions: Vec::new() })
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
        settled(self.connect(0, self.layout.main().liobn, 12))
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
        let patience = Patience { clock: &clock, limit: self.ground.limit() };
        settled(self.calls.remove(&mut self.seat, vm, Liobn(liobn as u32), patience))
    }

    /// Does what a rule asks for, if that is the control plane's; `false` when it was refused.
    pub fn control(&mut self, control: Control) -> bool {
        match control {
            Control::Connect { device, liobn, page_shift } => self.connect(device, liobn, page_shift).is_ok(),
            Control::Disconnect { device } => self.disconnect(device),
            Control::Revoke { device } => self.revoke(device),
            Control::Register(area) => self.register(area),
            Control::Unregister(area) => self.unregister(area),
            Control::Starve(_) | Control::Deafen(_) => false,
        }
    }

    fn register(&mut self, area: Area) -> bool {
        let range = GuestPhysRange::new(GuestPhysAddr::new(area.guest), area.bytes).ok();
        let Some((range, extent)) = range.zip(self.ground.extent(area)) else { return false };
        let region = self.iommu.register_memory(VM, range, extent);
        region.is_ok_and(|region| self.regions.push((area, region)).is_ok())
    }

    fn unregister(&mut self, area: Area) -> bool {
        let Some(place) = self.regions.iter().position(|(known, _)| *known == area) else { return false };
        let region = self.regions.get(place).map(|(_, region)| *region);
        let done = region.is_some_and(|region| self.iommu.unregister_memory(VM, region).is_ok());
        if done {
            self.regions.swap_remove(place);
        }
        done
    }

    /// If that is refused, the device is blocked as before.
    fn connect(&mut self, number: usize, liobn: u64, page_shift: u8) -> Result<(), HcallError> {
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
        let quiesced = self.ground.quiesce(&claim);
        let attached = quiesced.and_then(|quiesced| claim.attach(context, quiesced));
        let clock = self.ground.clock();
        let patience = Patience { clock: &clock, limit: self.ground.limit() };
        let connected = attached
            .map_err(HcallError::from)
            .and_then(|()| self.calls.connect(&mut self.seat, &claim, VM, Liobn(liobn as u32), patience));
        if connected.is_err() {
            claim.detach()?;
            self.destroy(context)?;
        }
        let device = self.devices.get_mut(number).ok_or(HcallError::NotConnected)?;
        device.claim = Some(claim);
        let window = self.layout.windows().into_iter().find(|window| window.liobn == liobn);
        device.behind = connected.ok().and(window).map(|window| (window, context));
        connected
    }

    fn disconnect(&mut self, number: usize) -> bool {
        let Some(device) = self.devices.get_mut(number) else { return false };
        let Some((window, context)) = device.behind.take() else { return false };
        let clock = self.ground.clock();
        let patience = Patience { clock: &clock, limit: self.ground.limit() };
        let liobn = Liobn(window.liobn as u32);
        let left = self.calls.disconnect(&mut self.seat, VM, liobn, context, patience);
        let detached = device.claim.as_mut().map(Claim::detach);
        left.is_ok() && detached == Some(Ok(())) && self.destroy(context).is_ok()
    }

    /// Ends a context, in which no call may be at that moment.
    fn destroy(&self, context: ContextHandle) -> Result<(), Error> {
        let clock = self.ground.clock();
        let begun = clock.now();
        loop {
            match self.iommu.destroy_context(context) {
                Err(Error::Busy) if clock.now().saturating_sub(begun) < self.ground.limit() => spin_loop(),
                ended => return ended,
            }
        }
    }

    fn revoke(&mut self, number: usize) -> bool {
        let Some(device) = self.devices.get_mut(number) else { return false };
        device.behind = None;
        let revoked = self.iommu.revoke(VM, device.group, |_| {}, &self.ground.clock(), self.ground.limit());
        device.claim = None;
        revoked.is_ok()
    }

    /// Units of 4 KiB that are counted as mapped, over all regions.
    ///
    /// # Errors
    /// A region ended by itself.
    pub fn counted(&self) -> Result<u64, Failure> {
        let mapped = |(_, region): &(Area, RegionHandle)| Ok(self.iommu.region(VM, *region)?.mapped);
        self.regions.iter().map(mapped).sum()
    }

    /// Checks every entry of every window that a device is behind, and that counts are what these entries hold.
    ///
    /// # Errors
    /// What differs.
    pub fn check(&mut self) -> Result<(), Failure> {
        let mut live = 0;
        for device in 0..DEVICES {
            if let Some((window, context)) = self.behind(device) {
                for entry in 0..window.entries {
                    live += self.check_pages(device, context, window, entry)?;
                }
            }
        }
        ensure(self.counted()? == live, "counts are not the entries that hardware tables hold")
    }

    /// Checks an entry of a window through each device that is behind it.
    ///
    /// # Errors
    /// What differs.
    pub fn check_entry(&mut self, window: Window, entry: u64) -> Result<(), Failure> {
        for device in 0..DEVICES {
            if let Some((_, context)) = self.behind(device).filter(|(behind, _)| *behind == window) {
                self.check_pages(device, context, window, entry)?;
            }
        }
        Ok(())
    }

    /// The window that a device is behind, and its context.
    fn behind(&self, device: usize) -> Option<(Window, ContextHandle)> {
        self.devices.get(device)?.behind
    }

    /// Checks that each 4 KiB page of an entry leads where the guest says; returns how many lead somewhere.
    fn check_pages(
        &mut self,
        device: usize,
        context: ContextHandle,
        window: Window,
        entry: u64,
    ) -> Result<u64, Failure> {
        let (ioba, mut live) = (window.ioba(entry), 0);
        let form = self.form(Call::get(window.liobn, ioba))?;
        for offset in (0..window.page_bytes()).step_by(0x1000) {
            let page = self.page(form, offset)?;
            let found = self.iommu.iova_to_phys(context, Iova::new(ioba + offset))?;
            ensure(found == page, "hardware tables hold something else than the guest wrote")?;
            self.ground.look(device, ioba + offset, page)?;
            live += u64::from(page.is_some());
        }
        Ok(live)
    }

    /// The guest form of an entry.
    fn form(&mut self, get: Call) -> Result<u64, Failure> {
        match self.calls.call::<VirtualMode>(&mut self.seat, &mut self.vcpu, get.opcode, get.arguments) {
            Reply::Done { value, .. } => Ok(value),
            Reply::TooHard(_) => Err(failure("H_GET_TCE is not finished in virtual mode")),
        }
    }

    /// Where the 4 KiB page that is `offset` bytes into the page of a guest form lies, and with which rights.
    fn page(&self, form: u64, offset: u64) -> Result<Option<(PhysAddr, Access)>, Failure> {
        let permissions = form & BOTH;
        if permissions == 0 {
            return Ok(None);
        }
        let host = self.registered((form & !BOTH) + offset);
        let host = host.ok_or(failure("an entry leads outside the guest's registered memory"))?;
        Ok(Some((host, Access::from_bits_truncate(permissions as u8))))
    }

    /// The host's address of registered memory.
    fn registered(&self, guest: u64) -> Option<PhysAddr> {
        let (area, _) = self.regions.iter().find(|(area, _)| area.holds(guest, 1))?;
        self.ground.extent(*area)?.start().checked_add(guest - area.guest)
    }
}

#[track_caller]
fn settled(result: Result<(), HcallError>) -> Result<(), Failure> {
    match result {
        Ok(()) => Ok(()),
        Err(HcallError::Iommu(error)) => Err(error.into()),
        Err(_) => Err(failure("the hypercalls' control plane refused")),
    }
}
