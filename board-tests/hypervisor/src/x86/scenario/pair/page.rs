//! A page of a guest's memory as the suite looks at buffers.

use portcullis_hal::{DmaExtent, PhysRange};
use portcullis_suite::{Buffer, Failure, board::SharedBytes};

use crate::x86::{guest::dma::TARGET, memory::GuestMemory, npt::SMALL, scenario::need};

/// The page that a guest's device writes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target(pub(super) GuestMemory);

impl Target {
    /// The page as a buffer.
    pub(super) fn buffer(&self) -> Result<Buffer<'_>, Failure> {
        let start = self.0.address().checked_add(TARGET);
        let range = start.and_then(|start| PhysRange::new(start, SMALL).ok());
        let range = need(range, "a guest's memory has no such page")?;
        // SAFETY: the page is a guest's, for volatile accesses and nothing else (promised to `GuestMemory::new`).
        Ok(Buffer { extent: unsafe { DmaExtent::new(range) }, bytes: self })
    }

    /// Makes it as it was when the guest was made.
    pub(super) fn renew(&self) {
        (0..SMALL).for_each(|offset| self.write(offset as usize, 0));
    }

    /// Whether nobody has written it since the guest was made.
    pub(super) fn is_new(&self) -> bool {
        (TARGET..TARGET + SMALL).step_by(8).all(|at| self.0.read(at) == Some(0))
    }
}

impl SharedBytes for Target {
    fn read(&self, offset: usize) -> u8 {
        let at = TARGET + offset as u64;
        self.0.read(at & !7).map_or(0, |word| (word >> (at % 8 * 8)) as u8)
    }

    fn write(&self, offset: usize, value: u8) {
        let at = TARGET + offset as u64;
        let shift = at % 8 * 8;
        let word = self.0.read(at & !7).unwrap_or(0);
        // Beyond the memory there is nothing to write.
        let _ = self.0.write(at & !7, word & !(0xff << shift) | u64::from(value) << shift);
    }
}
