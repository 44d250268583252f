//! Devices behind windows: contexts made, connected and ended.

use std::time::Duration;

use portcullis_hal::{IoPageSize, Iova};
use portcullis_iommu::{ContextHandle, GroupId};
use portcullis_ppc_tce::{
    ContextSpec,
    hcall::{Liobn, Patience},
};
use portcullis_suite::hcall::Window;

use super::{HostPort, cpu::HostClaim, machine::Made};
use crate::machine::{QuiesceAndAttach, VM, device};

/// Requester IDs of the two devices.
pub const REQUESTERS: [u16; 2] = [0x100, 0x200];
/// How long the control plane waits for calls.
pub const LIMIT: Duration = Duration::from_millis(5);

/// A device of the guest.
pub struct Device {
    pub group: GroupId,
    pub claim: Option<HostClaim>,
    /// The window that it is behind, and its context.
    pub behind: Option<(Window, ContextHandle)>,
}

impl Device {
    /// A device that nobody owns yet.
    pub fn new(made: &Made, number: usize) -> Self {
        let group = made.iommu.add_group(&[device(REQUESTERS[number])]).expect("a group");
        made.iommu.grant(VM, group).expect("a grant");
        Self { group, claim: None, behind: None }
    }
}

impl HostPort {
    /// Whether it was done; if not, the device is blocked as before.
    pub fn connect(&mut self, number: usize, liobn: u64, page_shift: u8) -> bool {
        let spec = ContextSpec {
            page_size: IoPageSize::from_shift(page_shift).expect("a page size"),
            window_start: Iova::new(self.layout.window),
            window_bytes: self.layout.main().entries << self.layout.main().page_shift,
            levels: 2,
            page_limit: None,
        };
        let iommu = self.made.iommu;
        let context = iommu.create_context(VM, &spec).expect("a context");
        let device = &mut self.devices[number];
        let mut claim =
            device.claim.take().unwrap_or_else(|| iommu.claim(VM, device.group).expect("a claim"));
        claim.quiesce_and_attach(context).expect("an attach");
        let patience = Patience { clock: &self.made.clock, limit: LIMIT };
        let seat = &mut self.first.seat;
        let connected = self.made.calls.connect(seat, &claim, VM, Liobn(liobn as u32), patience);
        if connected.is_err() {
            claim.detach().expect("the device is blocked");
            iommu.destroy_context(context).expect("nobody uses it");
        }
        device.claim = Some(claim);
        let window = self.layout.windows().into_iter().find(|window| window.liobn == liobn);
        device.behind = connected.ok().and(window).map(|window| (window, context));
        device.behind.is_some()
    }

    pub fn disconnect(&mut self, number: usize) -> bool {
        let device = &mut self.devices[number];
        let Some((window, context)) = device.behind.take() else { return false };
        let patience = Patience { clock: &self.made.clock, limit: LIMIT };
        let liobn = Liobn(window.liobn as u32);
        let left = self.made.calls.disconnect(&mut self.first.seat, VM, liobn, context, patience);
        let detached = device.claim.as_mut().map(HostClaim::detach);
        left.is_ok() && detached == Some(Ok(())) && self.made.iommu.destroy_context(context).is_ok()
    }

    pub fn revoke(&mut self, number: usize) -> bool {
        let device = &mut self.devices[number];
        device.behind = None;
        let revoked = self.made.iommu.revoke(VM, device.group, |_| {}, &self.made.clock, LIMIT);
        device.claim = None;
        revoked.is_ok()
    }
}
