//! The log of changes: what is to stand at other places of the image than what stands there.
//!
//! First bytes of changes; then the index, an entry a change; at the end of the file the trailer. A log without a right
//! trailer is no log. The checksum is over index and trailer: it tells a torn file from a whole one, and says nothing
//! about who wrote it. The bytes themselves are on the disk before a log counts, which is the helper's to see to.
//!
//! A change takes its bytes from the log, or, in a worker's proposal, from one of the request's files, which the worker
//! has not.

use super::{Bytes, Malformed};

const MAGIC: [u8; 8] = *b"bngr-log";
/// Every offset and length of a change is a multiple of this: no device has smaller blocks.
pub const SECTOR: u64 = 512;
/// An entry of the index: where in the image, how many bytes, where they are, of which file, whether it is fresh.
pub const ENTRY: usize = 32;
/// In the place of a file's number: the bytes are the log's.
const LOGGED: u32 = u32::MAX;
/// No image has larger blocks. So many bytes behind a file's end, at the most, belong to its last block.
pub const MAX_BLOCK: u64 = 64 << 10;
/// The trailer: magic, length of the image, bytes before the index, number of changes, checksum.
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
    /// Where they are.
    pub from: From,
}

/// Where the bytes of a change are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// In the log.
    Log {
        /// The first one's place.
        at: u64,
    },
    /// In a file of the request; behind its end they are zeros.
    File {
        /// Which file of the request's, from 0.
        nth: u32,
        /// The first one's place in it.
        at: u64,
        /// Whether nothing that counts stands at their place in the image now: so they may be put there at once.
        fresh: bool,
    },
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

    /// The changes of the index, in its order. No two touch the same byte of the image, all lie inside it, all have
    /// their bytes, and together they are at most [`MAX_DATA`]. `files` are the lengths of the request's files.
    ///
    /// # Errors
    /// Where that isn't so, or the checksum is another.
    pub fn changes(&self, index: &[u8], files: &[u64]) -> Result<Vec<Change>, Malformed> {
        if index.len() != self.index_length() {
            return Err(Malformed("the index's length"));
        }
        if checksum(index, self.image, self.data, self.count) != self.checksum {
            return Err(Malformed("the log's checksum"));
        }
        let (mut bytes, mut sum, mut changes) = (Bytes(index), 0_u64, Vec::with_capacity(self.count as usize));
        for _ in 0..self.count {
            let (offset, length, at) = (bytes.u64()?, bytes.u64()?, bytes.u64()?);
            let (nth, fresh) = (bytes.u32()?, bytes.u32()?);
            let within = |end: u64| offset.checked_add(length).is_some_and(|last| length > 0 && last <= end);
            if !within(self.image) {
                return Err(Malformed("a change outside of the image"));
            }
            if offset % SECTOR != 0 || length % SECTOR != 0 {
                return Err(Malformed("a change of part of a sector"));
            }
            // None of both is larger than the image, so no sum of them overflows.
            sum += length;
            if sum > MAX_DATA {
                return Err(Malformed("changes of more than is allowed"));
            }
            let from = self.source(nth, at, fresh, length, files)?;
            changes.push(Change { offset, length, from });
        }
        let mut sorted: Vec<(u64, u64)> = changes.iter().map(|change| (change.offset, change.length)).collect();
        sorted.sort_unstable();
        if sorted.windows(2).any(|pair| pair[0].0 + pair[0].1 > pair[1].0) {
            return Err(Malformed("two changes of one byte"));
        }
        Ok(changes)
    }

    fn source(&self, nth: u32, at: u64, fresh: u32, length: u64, files: &[u64]) -> Result<From, Malformed> {
        let ends_by = |end: u64| at.checked_add(length).is_some_and(|last| last <= end);
        match (nth, fresh) {
            (LOGGED, 0) if ends_by(self.data) => Ok(From::Log { at }),
            (LOGGED, _) => Err(Malformed("a change outside of the log")),
            (_, 0 | 1) => match files.get(nth as usize) {
                Some(&file) if at < file && ends_by(file.saturating_add(MAX_BLOCK - 1)) => {
                    Ok(From::File { nth, at, fresh: fresh == 1 })
                }
                _ => Err(Malformed("a change outside of the request's files")),
            },
            _ => Err(Malformed("a change's source")),
        }
    }
}

/// Index and trailer for these changes, behind `data` bytes; `None` where they are more than a log may hold.
pub fn finish(changes: &[Change], data: u64, image: u64) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(changes.len() * ENTRY + TRAILER);
    for Change { offset, length, from } in changes {
        let (at, nth, fresh) = match *from {
            From::Log { at } => (at, LOGGED, 0),
            From::File { nth, at, fresh } => (at, nth, u32::from(fresh)),
        };
        [*offset, *length, at].iter().for_each(|number| bytes.extend(number.to_le_bytes()));
        [nth, fresh].iter().for_each(|number| bytes.extend(number.to_le_bytes()));
    }
    let sum = changes.iter().try_fold(0_u64, |sum, change| sum.checked_add(change.length))?;
    let count = u32::try_from(changes.len()).ok()?;
    if count > MAX_CHANGES || data > MAX_DATA || sum > MAX_DATA {
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
    const FILES: [u64; 2] = [1000, 100_000];

    /// Reads what stands behind the bytes of `data` changes.
    fn read(end: &[u8], data: u64, image: u64) -> Result<Vec<Change>, Malformed> {
        let index = end.len() - TRAILER;
        Trailer::decode(end[index..].try_into().unwrap(), data + end.len() as u64, image)?
            .changes(&end[..index], &FILES)
    }

    /// Whether these changes pass, in a log of 4096 bytes.
    fn passes(changes: &[Change]) -> bool {
        read(&finish(changes, 4096, IMAGE).unwrap(), 4096, IMAGE).is_ok_and(|read| read == changes)
    }

    fn logged(offset: u64, length: u64, at: u64) -> Change {
        Change { offset, length, from: From::Log { at } }
    }

    fn of_file(offset: u64, length: u64, nth: u32, at: u64) -> Change {
        Change { offset, length, from: From::File { nth, at, fresh: nth == 1 } }
    }

    #[test]
    fn the_checksum_is_castagnolis() {
        assert_eq!(!crc32c(!0, b"123456789"), 0xe306_9283);
    }

    #[test]
    fn changes_come_back() {
        assert!(passes(&[]));
        assert!(passes(&[logged(4096, 1024, 512), of_file(512, 1024, 0, 0), logged(0, 512, 3584)]));
        assert!(passes(&[of_file(8192, 65_536, 0, 999), of_file(0, 512, 1, 99_999)]));
    }

    #[test]
    fn what_would_reach_beyond_the_image_or_change_a_byte_twice_is_refused() {
        for bad in [
            &[logged(IMAGE, 512, 0)][..],
            &[logged(IMAGE - 512, 1024, 0)],
            &[logged(u64::MAX - 511, 512, 0)],
            &[logged(0, 0, 0)],
            &[logged(1, 512, 0)],
            &[logged(512, 100, 0)],
            &[logged(0, 1024, 0), logged(512, 512, 1024)],
            &[logged(512, 512, 0), of_file(0, 4096, 1, 0)],
        ] {
            assert!(!passes(bad), "{bad:?}");
        }
        assert!(finish(&[logged(0, MAX_DATA, 0), logged(MAX_DATA, 512, 0)], 512, u64::MAX).is_none());
        assert!(finish(&[logged(0, 512, 0)], MAX_DATA + 1, u64::MAX).is_none());
        assert!(finish(&[logged(0, u64::MAX, 0), logged(0, u64::MAX, 0)], 0, u64::MAX).is_none());
    }

    #[test]
    fn what_has_no_bytes_is_refused() {
        for bad in [
            logged(0, 512, 3585),
            logged(0, 512, u64::MAX),
            of_file(0, 512, 2, 0),
            of_file(0, 512, 0, 1000),
            of_file(0, 512, 0, u64::MAX),
            // All behind the file's end must belong to its last block.
            of_file(0, 67_072, 0, 0),
        ] {
            assert!(!passes(&[bad]), "{bad:?}");
        }
        let mut end = finish(&[of_file(0, 512, 0, 0)], 0, IMAGE).unwrap();
        end[28] = 2;
        let sum = checksum(&end[..ENTRY], IMAGE, 0, 1);
        let last = end.len() - 4;
        end[last..].copy_from_slice(&sum.to_le_bytes());
        assert_eq!(read(&end, 0, IMAGE), Err(Malformed("a change's source")));
    }

    #[test]
    fn a_log_of_another_length_or_image_is_refused() {
        let end = finish(&[logged(0, 512, 0)], 512, IMAGE).unwrap();
        assert!(read(&end, 512, IMAGE).is_ok());
        assert!(read(&end, 1024, IMAGE).is_err());
        assert!(read(&end, 512, IMAGE + 512).is_err());
    }

    proptest! {
        #[test]
        fn a_changed_log_is_refused(at in 0..ENTRY * 2 + TRAILER, bit in 0..8) {
            let mut end = finish(&[logged(4096, 1024, 0), of_file(0, 512, 1, 0)], 1024, IMAGE).unwrap();
            end[at] ^= 1_u8 << bit;
            prop_assert!(read(&end, 1024, IMAGE).is_err());
        }

        #[test]
        fn any_changes_that_pass_are_sound(
            changes in proptest::collection::vec((0_u64..9, 0_u64..4, 0_u64..9, 0_u32..4), 0..5)
        ) {
            let change = |(offset, length, at, nth)| match nth {
                3 => logged(offset * SECTOR, length * SECTOR, at * SECTOR),
                nth => of_file(offset * SECTOR, length * SECTOR, nth, at * SECTOR),
            };
            let changes: Vec<_> = changes.into_iter().map(change).collect();
            let mut touched = std::collections::HashSet::new();
            let sound = changes.iter().all(|change| {
                let has_bytes = match change.from {
                    From::Log { at } => at + change.length <= 4096,
                    From::File { nth, at, .. } => FILES.get(nth as usize).is_some_and(|length| at < *length),
                };
                let end = change.offset + change.length;
                has_bytes && change.length > 0
                    && (change.offset..end).step_by(512).all(|s| s < 8 * SECTOR && touched.insert(s))
            });
            let end = finish(&changes, 4096, 8 * SECTOR).unwrap();
            prop_assert_eq!(read(&end, 4096, 8 * SECTOR).is_ok(), sound);
        }
    }
}
