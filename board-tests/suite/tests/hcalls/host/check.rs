//! What holds after every call, seen from outside: counts, hardware, view and guest forms are one.

use portcullis_hal::{Access, Iova};
use portcullis_iommu::ContextHandle;
use portcullis_suite::{
    Failure,
    hcall::{Call, GuestPort, Window},
};

use super::{HostPort, devices::REQUESTERS};

fn failure(what: &'static str) -> Failure {
    Failure { what, error: None, line: line!() }
}

fn ensure(condition: bool, what: &'static str) -> Result<(), Failure> {
    if condition { Ok(()) } else { Err(failure(what)) }
}

impl HostPort {
    /// Checks everything; once a kill was not confirmed, counts say what devices may reach, and hardware is not asked.
    pub fn check_all(&mut self) -> Result<(), Failure> {
        if self.is_quarantined() {
            return Ok(());
        }
        let mut live = 0;
        for number in 0..self.devices.len() {
            if let Some((window, context)) = self.devices[number].behind {
                live += self.check_window(number, window, context)?;
            }
        }
        ensure(self.counted() == live, "counts are not the entries that hardware tables hold")
    }

    /// Checks each page of a window through its device, whose cache of entries is on; returns how many lead somewhere.
    fn check_window(
        &mut self,
        number: usize,
        window: Window,
        context: ContextHandle,
    ) -> Result<u64, Failure> {
        let mut live = 0;
        for entry in 0..window.entries {
            let ioba = window.ioba(entry);
            let form = self.second_calls(Call::get(window.liobn, ioba)).value;
            for offset in (0..window.page_bytes()).step_by(0x1000) {
                let wanted = (form & 3 != 0).then(|| (form & !3) + offset);
                self.check_page(number, context, ioba + offset, wanted, form & 3)?;
                live += u64::from(wanted.is_some());
            }
        }
        Ok(live)
    }

    fn check_page(
        &mut self,
        number: usize,
        context: ContextHandle,
        ioba: u64,
        wanted: Option<u64>,
        permissions: u64,
    ) -> Result<(), Failure> {
        let host =
            wanted.map(|guest| self.registered(guest).ok_or(failure("an entry leads to foreign memory")));
        let host = host.transpose()?;
        let wanted = host.map(|host| (host, Access::from_bits_truncate(permissions as u8)));
        let found = self.made.iommu.iova_to_phys(context, Iova::new(ioba))?;
        let found = found.map(|(phys, access)| (phys.as_u64(), access));
        ensure(found == wanted, "hardware tables hold something else than the guest wrote")?;
        self.check_device(number, ioba, wanted)
    }

    /// The device reaches what it may, and nothing else.
    fn check_device(
        &mut self,
        number: usize,
        ioba: u64,
        wanted: Option<(u64, Access)>,
    ) -> Result<(), Failure> {
        // A word that no rule writes: it is each page's own.
        const OWN: u64 = 0xff0;
        let (requester, mut found) = (REQUESTERS[number], [0; 8]);
        let read = self.made.phb.dma_read(requester, ioba + OWN, &mut found).is_ok();
        let may = |access| wanted.is_some_and(|(_, granted)| granted.contains(access));
        ensure(read == may(Access::READ), "a device's reads are not what the guest permits")?;
        let mut own = [0; 8];
        if let Some((host, _)) = wanted {
            ensure(self.made.memory.read(host + OWN, &mut own), "an entry leads to no memory")?;
            ensure(!read || own == found, "a device reads another page than the guest wrote")?;
        }
        if !read {
            self.thaw(number);
        }
        let written = self.made.phb.dma_write(requester, ioba + OWN, &own).is_ok();
        if !written {
            self.thaw(number);
        }
        ensure(written == may(Access::WRITE), "a device's writes are not what the guest permits")
    }
}
