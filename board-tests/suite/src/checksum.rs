//! The checksum by which target and host compare what a disk holds.

use crc::{CRC_32_ISO_HDLC, Crc, Digest, Table};

use crate::board::SharedBytes;

static CRC: Crc<u32, Table<1>> = Crc::<u32, Table<1>>::new(&CRC_32_ISO_HDLC);
/// Bytes that are copied at a time, since a device may change memory under the sum.
const CHUNK: usize = 64;

/// A CRC-32 (ISO-HDLC, as of Ethernet and zip) that grows piece by piece.
#[derive(Clone)]
pub struct Checksum {
    digest: Digest<'static, u32, Table<1>>,
    bytes: u64,
}

impl Checksum {
    /// Of nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self { digest: CRC.digest(), bytes: 0 }
    }

    /// Of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let mut sum = Self::new();
        sum.update(bytes);
        sum
    }

    /// Goes on with these bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.digest.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    /// Goes on with the first `bytes` bytes of `memory`.
    pub fn update_from(&mut self, memory: &dyn SharedBytes, bytes: usize) {
        for start in (0..bytes).step_by(CHUNK) {
            let chunk: [u8; CHUNK] = core::array::from_fn(|offset| memory.read(start + offset));
            self.update(chunk.get(..CHUNK.min(bytes - start)).unwrap_or_default());
        }
    }

    /// The sum so far.
    #[must_use]
    pub fn value(&self) -> u32 {
        self.digest.clone().finalize()
    }

    /// How many bytes it is of.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Default for Checksum {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Digits;

    impl SharedBytes for Digits {
        fn read(&self, offset: usize) -> u8 {
            b"123456789".get(offset % 9).copied().unwrap_or(0)
        }
        fn write(&self, _: usize, _: u8) {}
    }

    #[test]
    fn the_sum_is_the_usual_one_in_any_pieces() {
        // The check value that the catalogue of CRCs gives for this one.
        assert_eq!(
            (Checksum::of(b"123456789").value(), Checksum::of(b"123456789").bytes()),
            (0xcbf4_3926, 9)
        );
        let mut pieces = Checksum::new();
        pieces.update_from(&Digits, 9);
        assert_eq!((pieces.value(), pieces.bytes()), (0xcbf4_3926, 9));
        let (mut long, expected) = (Checksum::new(), [b"123456789".as_slice(); 100].concat());
        long.update_from(&Digits, 900);
        assert_eq!(long.value(), Checksum::of(&expected).value());
    }
}
