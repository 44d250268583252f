//! Devices that remember what they have looked up, until they are told to forget it.

use std::collections::HashMap;

use portcullis_suite::hcall::{
    Window,
    call::{READ, WRITE},
};

use super::{Breakage, Model};
use portcullis_suite::hcall::GuestPort;

/// A device, the table that it is behind, and what it remembers of that.
#[derive(Default)]
pub struct Device {
    pub window: Option<Window>,
    pub page_shift: u8,
    /// Entries that permit something.
    pub table: HashMap<u64, u64>,
    /// What it looked up: 4 KiB pages of I/O bus addresses.
    cached: HashMap<u64, (u64, u64)>,
}

impl Device {
    pub fn behind(window: Window) -> Self {
        Self { window: Some(window), page_shift: 12, ..Self::default() }
    }

    /// Units of 4 KiB that its table maps.
    pub fn units(&self) -> u64 {
        let shift = self.window.map_or(12, |window| window.page_shift);
        (self.table.len() as u64) << (shift - 12)
    }

    pub fn forget(&mut self) {
        self.cached.clear();
    }

    /// Guest address and permissions behind an I/O bus address.
    fn look_up(&mut self, ioba: u64, first_only: bool) -> Option<(u64, u64)> {
        let window = self.window?;
        let page = ioba & !0xfff;
        if let Some(&(guest, permissions)) = self.cached.get(&page) {
            return Some((guest + (ioba & 0xfff), permissions));
        }
        let offset = ioba & (window.page_bytes() - 1);
        if first_only && offset > 0xfff {
            return None;
        }
        let form = *self.table.get(&window.entry(ioba - offset, 1)?)?;
        self.cached.insert(page, ((form & !3) + (offset & !0xfff), form & 3));
        Some(((form & !3) + offset, form & 3))
    }
}

impl Model {
    /// Where a device gets to, if it may.
    fn reaches(&mut self, device: usize, ioba: u64, wanted: u64) -> Option<u64> {
        let first_only = self.breaks(Breakage::FirstIommuPageOnly);
        let widens = self.breaks(Breakage::PermissionsWidened);
        let (guest, permissions) = self.devices[device].look_up(ioba, first_only)?;
        (permissions & wanted != 0 || widens).then_some(guest)
    }

    pub fn device_copies(&mut self, device: usize, from: u64, to: u64) {
        let Some(source) = self.reaches(device, from, READ) else { return };
        let word = self.read(source);
        if let Some(target) = self.reaches(device, to, WRITE) {
            self.write(target, word);
        }
    }
}
