//! Finding a function's capabilities. The lists are the device's word: each step is checked, and a list
//! that leads in circles ends.

use portcullis_hal::{ConfigSpace, DeviceId};

use super::quiesce::QuiesceError;

const STATUS: u16 = 0x04;
const STATUS_HAS_LIST: u32 = 1 << 20;
const LIST_POINTER: u16 = 0x34;
const FIRST_BYTE: u16 = 0x40;
const EXTENDED_LIST: u16 = 0x100;
const END: u16 = 0x1000;
const EXPRESS_ID: u32 = 0x10;
const ADVANCED_FEATURES_ID: u32 = 0x13;
const ACS_ID: u32 = 0x0d;
const EXPRESS_BYTES: u16 = 0x0c;
const EXPRESS_2_BYTES: u16 = 0x2c;
const ADVANCED_FEATURES_BYTES: u16 = 8;
const ACS_BYTES: u16 = 8;

/// Where the capabilities of a function are that have to do with its silence.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Capabilities {
    /// PCI Express Capability (7.5.3).
    pub(super) express: Option<u16>,
    /// The same, if it has the registers of version 2.
    pub(super) express_2: Option<u16>,
    /// Advanced Features of conventional PCI (ECN of 2006).
    pub(super) advanced_features: Option<u16>,
    /// Access Control Services (6.12).
    pub(super) acs: Option<u16>,
}

impl Capabilities {
    /// Walks both lists to their ends.
    ///
    /// # Errors
    /// [`QuiesceError::BadCapability`] if a pointer leads out of its list's space or back, if a capability
    /// does not fit into it, or if there is a second one where only one can be.
    pub(super) fn of(config: &impl ConfigSpace, device: DeviceId) -> Result<Self, QuiesceError> {
        let mut found = Self::default();
        if config.read32(device, STATUS) & STATUS_HAS_LIST == 0 {
            return Ok(found);
        }
        found.walk_first_list(config, device)?;
        if found.express.is_some() {
            found.walk_extended_list(config, device)?;
        }
        Ok(found)
    }

    /// The list of 7.5.1.1.11, in the first 256 bytes.
    fn walk_first_list(&mut self, config: &impl ConfigSpace, device: DeviceId) -> Result<(), QuiesceError> {
        let mut at = config.read32(device, LIST_POINTER) as u16 & 0xfc;
        let mut seen = 0u64;
        while at != 0 {
            let place = 1 << (at / 4);
            if at < FIRST_BYTE || seen & place != 0 {
                return Err(QuiesceError::BadCapability { offset: at });
            }
            seen |= place;
            let header = config.read32(device, at);
            match header & 0xff {
                EXPRESS_ID => self.add_express(at, header)?,
                ADVANCED_FEATURES_ID => {
                    note(&mut self.advanced_features, at, ADVANCED_FEATURES_BYTES, EXTENDED_LIST)?;
                }
                _ => {}
            }
            at = (header >> 8) as u16 & 0xfc;
        }
        Ok(())
    }

    fn add_express(&mut self, at: u16, header: u32) -> Result<(), QuiesceError> {
        note(&mut self.express, at, EXPRESS_BYTES, EXTENDED_LIST)?;
        let version = header >> 16 & 0xf;
        if version >= 2 {
            note(&mut self.express_2, at, EXPRESS_2_BYTES, EXTENDED_LIST)?;
        }
        Ok(())
    }

    /// The list of 7.6. A function, or a means of access, without extended space reads as all ones.
    fn walk_extended_list(
        &mut self,
        config: &impl ConfigSpace,
        device: DeviceId,
    ) -> Result<(), QuiesceError> {
        let mut at = EXTENDED_LIST;
        for _ in 0..(END - EXTENDED_LIST) / 4 {
            let header = config.read32(device, at);
            if at == EXTENDED_LIST && (header == 0 || header == u32::MAX) {
                return Ok(());
            }
            if header & 0xffff == ACS_ID {
                note(&mut self.acs, at, ACS_BYTES, END)?;
            }
            at = (header >> 20) as u16 & 0xffc;
            if at == 0 {
                return Ok(());
            }
            if at < EXTENDED_LIST {
                break;
            }
        }
        Err(QuiesceError::BadCapability { offset: at })
    }
}

/// Notes a capability that may be there once and must end before `end`.
fn note(place: &mut Option<u16>, at: u16, bytes: u16, end: u16) -> Result<(), QuiesceError> {
    if place.is_some() || at.saturating_add(bytes) > end {
        return Err(QuiesceError::BadCapability { offset: at });
    }
    *place = Some(at);
    Ok(())
}
