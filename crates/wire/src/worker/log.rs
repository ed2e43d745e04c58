//! The log of changes: bytes that are to stand at other places of the image than those that stand there.
//!
//! First the bytes of all changes, one after the other; then the index, an entry a change (offset in the image and
//! length, in that order); at the end of the file the trailer. A log without a right trailer is no log. The checksum is
//! over index and trailer: it tells a torn file from a whole one, and says nothing about who wrote it. The bytes
//! themselves are on the disk before a log counts, which is the helper's to see to.

use super::{Bytes, Malformed};

const MAGIC: [u8; 8] = *b"bngr-log";
/// Every offset and length of a change is a multiple of this: no device has smaller blocks.
pub const SECTOR: u64 = 512;
/// An entry of the index.
pub const ENTRY: usize = 16;
/// The trailer: magic, length of the image, bytes of all changes, number of changes, checksum.
pub const TRAILER: usize = 32;
/// The most changes of a log.
pub const MAX_CHANGES: u32 = 1 << 18;
/// The most bytes of all changes of a log. A journal that is replayed counts.
pub const MAX_DATA: u64 = 512 << 20;
/// The longest log.
pub const MAX_LOG: u64 = MAX_DATA + MAX_CHANGES as u64 * ENTRY as u64 + TRAILER as u64;

/// Bytes that are to be put into the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Where they go in the image.
    pub offset: u64,
    /// How many they are; never 0.
    pub length: u64,
    /// Where they lie in the log.
    pub at: u64,
}

/// What the end of a log says about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trailer {
    image: u64,
    data: u64,
    count: u32,
    checksum: u32,
}

impl Trailer {
    /// Reads the last [`TRAILER`] bytes of a log of `log` bytes, for an image of `image` bytes.
    ///
    /// # Errors
    /// Where they are not the trailer of a log of just that length for an image of just that length.
    pub fn decode(trailer: &[u8; TRAILER], log: u64, image: u64) -> Result<Trailer, Malformed> {
        let mut bytes = Bytes(trailer);
        if bytes.array()? != MAGIC {
            return Err(Malformed("no log"));
        }
        let trailer = Trailer { image: bytes.u64()?, data: bytes.u64()?, count: bytes.u32()?, checksum: bytes.u32()? };
        bytes.end()?;
        if trailer.data > MAX_DATA || trailer.count > MAX_CHANGES {
            return Err(Malformed("a log of more than is allowed"));
        }
        if trailer.image != image || trailer.index_at() + trailer.index_length() as u64 + TRAILER as u64 != log {
            return Err(Malformed("the log's length"));
        }
        Ok(trailer)
    }

    /// The size of the image that the log with this trailer is for, not checked by anything.
    pub fn image(trailer: &[u8; TRAILER]) -> u64 {
        trailer[MAGIC.len()..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }

    /// Where the index begins.
    pub fn index_at(&self) -> u64 {
        self.data
    }

    /// The length of the index, in bytes.
    pub fn index_length(&self) -> usize {
        self.count as usize * ENTRY
    }

    /// The changes of the index, in the log's order. No two touch the same byte, and all lie inside the image.
    ///
    /// # Errors
    /// Where that isn't so, or the checksum is another.
    pub fn changes(&self, index: &[u8]) -> Result<Vec<Change>, Malformed> {
        if index.len() != self.index_length() {
            return Err(Malformed("the index's length"));
        }
        if checksum(index, self.image, self.data, self.count) != self.checksum {
            return Err(Malformed("the log's checksum"));
        }
        let (mut bytes, mut at, mut changes) = (Bytes(index), 0_u64, Vec::with_capacity(self.count as usize));
        for _ in 0..self.count {
            let (offset, length) = (bytes.u64()?, bytes.u64()?);
            let end = offset.checked_add(length).ok_or(Malformed("a change outside of the image"))?;
            if length == 0 || end > self.image || length > self.data - at {
                return Err(Malformed("a change outside of the image or the log"));
            }
            if offset % SECTOR != 0 || length % SECTOR != 0 {
                return Err(Malformed("a change of part of a sector"));
            }
            changes.push(Change { offset, length, at });
            at += length;
        }
        if at != self.data {
            return Err(Malformed("bytes that belong to no change"));
        }
        let mut sorted: Vec<(u64, u64)> = changes.iter().map(|change| (change.offset, change.length)).collect();
        sorted.sort_unstable();
        if sorted.windows(2).any(|pair| pair[0].0 + pair[0].1 > pair[1].0) {
            return Err(Malformed("two changes of one byte"));
        }
        Ok(changes)
    }
}

/// Index and trailer for changes `(offset, length)` whose bytes lie one after the other from the log's beginning;
/// `None` where they are more than a log may hold.
pub fn finish(changes: &[(u64, u64)], image: u64) -> Option<Vec<u8>> {
    let mut data = 0_u64;
    let mut bytes = Vec::with_capacity(changes.len() * ENTRY + TRAILER);
    for (offset, length) in changes {
        data = data.checked_add(*length)?;
        bytes.extend(offset.to_le_bytes());
        bytes.extend(length.to_le_bytes());
    }
    let count = u32::try_from(changes.len()).ok()?;
    if count > MAX_CHANGES || data > MAX_DATA {
        return None;
    }
    let checksum = checksum(&bytes, image, data, count);
    bytes.extend(MAGIC);
    bytes.extend(image.to_le_bytes());
    bytes.extend(data.to_le_bytes());
    bytes.extend(count.to_le_bytes());
    bytes.extend(checksum.to_le_bytes());
    Some(bytes)
}

fn checksum(index: &[u8], image: u64, data: u64, count: u32) -> u32 {
    let sum = crc32c(!0, index);
    let sum = crc32c(sum, &image.to_le_bytes());
    let sum = crc32c(sum, &data.to_le_bytes());
    crc32c(sum, &count.to_le_bytes())
}

/// CRC-32C (Castagnoli) as ext4 and its journal use it: `seed` is `!0` or a sum that goes on, and it isn't inverted
/// at the end.
pub fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(seed, |sum, byte| (sum >> 8) ^ TABLE[usize::from(sum.to_le_bytes()[0] ^ byte)])
}

static TABLE: [u32; 256] = table();

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let (mut sum, mut bit) = (i as u32, 0);
        while bit < 8 {
            sum = if sum & 1 == 1 { (sum >> 1) ^ 0x82f6_3b78 } else { sum >> 1 };
            bit += 1;
        }
        table[i] = sum;
        i += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const IMAGE: u64 = 1 << 20;

    /// Reads what stands behind the bytes of `data` changes.
    fn read(end: &[u8], data: u64, image: u64) -> Result<Vec<Change>, Malformed> {
        let index = end.len() - TRAILER;
        Trailer::decode(end[index..].try_into().unwrap(), data + end.len() as u64, image)?.changes(&end[..index])
    }

    #[test]
    fn the_checksum_is_castagnolis() {
        assert_eq!(!crc32c(!0, b"123456789"), 0xe306_9283);
    }

    #[test]
    fn changes_come_back_and_their_bytes_follow_each_other() {
        let end = finish(&[(4096, 1024), (0, 512)], IMAGE).unwrap();
        let changes = read(&end, 1536, IMAGE).unwrap();
        assert_eq!(
            changes,
            [Change { offset: 4096, length: 1024, at: 0 }, Change { offset: 0, length: 512, at: 1024 }]
        );
        assert_eq!(read(&finish(&[], IMAGE).unwrap(), 0, IMAGE), Ok(Vec::new()));
    }

    #[test]
    fn what_would_reach_beyond_the_image_or_change_a_byte_twice_is_refused() {
        for bad in [
            &[(IMAGE, 512)][..],
            &[(IMAGE - 512, 1024)],
            &[(u64::MAX - 511, 512)],
            &[(0, 0)],
            &[(1, 512)],
            &[(512, 100)],
            &[(0, 1024), (512, 512)],
            &[(512, 512), (0, 4096)],
        ] {
            let data = bad.iter().map(|(_, length)| length).sum();
            let end = finish(bad, IMAGE).unwrap();
            assert!(read(&end, data, IMAGE).is_err(), "{bad:?}");
        }
        assert!(finish(&[(0, MAX_DATA + 512)], u64::MAX).is_none());
        assert!(finish(&[(0, u64::MAX), (0, u64::MAX)], u64::MAX).is_none());
    }

    #[test]
    fn a_log_of_another_length_or_image_is_refused() {
        let end = finish(&[(0, 512)], IMAGE).unwrap();
        assert!(read(&end, 512, IMAGE).is_ok());
        assert!(read(&end, 1024, IMAGE).is_err());
        assert!(read(&end, 512, IMAGE + 512).is_err());
    }

    proptest! {
        #[test]
        fn a_changed_log_is_refused(at in 0..ENTRY * 2 + TRAILER, bit in 0..8) {
            let mut end = finish(&[(4096, 1024), (0, 512)], IMAGE).unwrap();
            end[at] ^= 1_u8 << bit;
            prop_assert!(read(&end, 1536, IMAGE).is_err());
        }

        #[test]
        fn any_changes_that_pass_are_sound(changes in proptest::collection::vec((0_u64..9, 0_u64..4), 0..5)) {
            let changes: Vec<_> = changes.into_iter().map(|(o, l)| (o * SECTOR, l * SECTOR)).collect();
            let data: u64 = changes.iter().map(|(_, length)| length).sum();
            let mut touched = std::collections::HashSet::new();
            let sound = changes.iter().all(|&(offset, length)| {
                length > 0 && (offset..offset + length).step_by(512).all(|s| s < 8 * SECTOR && touched.insert(s))
            });
            prop_assert_eq!(read(&finish(&changes, 8 * SECTOR).unwrap(), data, 8 * SECTOR).is_ok(), sound);
        }
    }
}
