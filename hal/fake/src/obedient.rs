//! Functions that do at once what they are told, for tests that are about something else.

use portcullis_hal::{ConfigSpace, DeviceId};

/// The configuration space of a machine on which an endpoint without capabilities answers everywhere; its
/// bus mastering is off, and nothing is pending.
#[derive(Clone, Copy, Debug)]
pub struct ObedientFunctions;

impl ConfigSpace for ObedientFunctions {
    fn read32(&self, _: DeviceId, offset: u16) -> u32 {
        if offset == 0 { 0x1111_1234 } else { 0 }
    }

    fn write32(&self, _: DeviceId, _: u16, _: u32) {}
}
