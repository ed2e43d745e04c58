//! The file that holds what a snapshot changed, in the kernel's persistent format (drivers/md/dm-snap-persistent.c): a
//! chunk with a header, then areas, each a chunk of 256 exceptions and the 256 chunks that they tell of.

use crate::fail::Fail;
use std::fs::File;
use std::os::unix::fs::FileExt;
use wire::code::shown;
use wire::worker::log::Change;

/// Sectors of 512 bytes a chunk.
pub(super) const CHUNK: u64 = 8;
const CHUNK_BYTES: u64 = CHUNK * 512;
/// Header, exceptions, one chunk of data, and the next exceptions' chunk, which the kernel may clear ahead.
const LEAST: u64 = 4 * CHUNK_BYTES;
/// `SNAP_MAGIC`, "SnAp".
const MAGIC: u32 = 0x7041_6e53;
const VERSION: u32 = 1;
/// How far a new file must be empty. The kernel looks at four bytes and takes what begins with zeros, an ext4 image
/// say, for a new store that it may write over.
const EMPTY: usize = 128 << 10;

/// Checks that a snapshot can keep its changes there: nothing is in it, or what an earlier one of that base kept.
///
/// The owner can write it again behind this look; the kernel then says no, or the data are what he made of them.
pub(super) fn check(file: &File, size: u64, path: &str) -> Result<(), Fail> {
    let bad = |what: String| Fail::new(format!("cow_path: {} {what}", shown(path)));
    if size < LEAST {
        return Err(bad(format!(
            "has {size} bytes; the format takes {LEAST} to hold anything, and 1/256 more than all that is changed"
        )));
    }
    let mut start = vec![0; EMPTY.min(usize::try_from(size).unwrap_or(EMPTY))];
    file.read_exact_at(&mut start, 0).map_err(|error| bad("can't be read".to_owned()).because(error))?;
    if start.iter().all(|&byte| byte == 0) {
        return Ok(());
    }
    // struct disk_header: magic, valid, version, chunk_size.
    let word = |at: usize| start.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes);
    match [0, 4, 8, 12].map(word) {
        [Some(MAGIC), Some(0), ..] => {
            Err(bad("was full, so that all that was changed is lost: make an empty file of more bytes in its place"
                .to_owned()))
        }
        [Some(MAGIC), Some(_), Some(VERSION), Some(chunk)] if u64::from(chunk) == CHUNK => Ok(()),
        [Some(MAGIC), ..] => Err(bad("holds a snapshot's changes in another version or chunk size".to_owned())),
        _ => Err(bad(
            "holds something that is no snapshot's changes: make an empty file in its place, `truncate -s SIZE`"
                .to_owned(),
        )),
    }
}

/// The chunk of a snapshot's table, in sectors: `7:0 7:13 P 8`.
pub(super) fn chunk(table: &str) -> Option<u64> {
    table.split_whitespace().nth(3)?.parse().ok()
}

/// The most bytes of a store that changes take: a chunk for each that they touch, and the areas' exceptions.
pub(super) fn most(changes: &[Change]) -> u64 {
    let touched = |change: &Change| (change.offset + change.length).div_ceil(CHUNK_BYTES) - change.offset / CHUNK_BYTES;
    let chunks: u64 = changes.iter().map(touched).sum();
    (chunks + chunks / 256 + 2) * CHUNK_BYTES
}

/// How a snapshot does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// So many sectors of so many are used.
    Fills(u64, u64),
    /// It was full, or could not be written: all its data are lost.
    Invalid,
}

impl State {
    /// Reads a target's status: `Invalid`, `Overflow`, or `used/all metadata`.
    pub(super) fn read(status: &str) -> Option<State> {
        match status.split_whitespace().next()? {
            "Invalid" | "Overflow" => Some(State::Invalid),
            word => {
                let (used, all) = word.split_once('/')?;
                Some(State::Fills(used.parse().ok()?, all.parse().ok()?))
            }
        }
    }

    /// How full it is, of a hundred.
    pub(super) fn percent(self) -> u64 {
        match self {
            State::Fills(used, all) if all > 0 => used.saturating_mul(100) / all,
            State::Fills(..) => 0,
            State::Invalid => 100,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use wire::worker::log::From;

    fn checked(bytes: &[u8], size: u64) -> Result<(), String> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.set_len(size).unwrap();
        check(&file, size, "/s/a.cow").map_err(|fail| fail.message)
    }

    fn header(words: [u32; 4]) -> Vec<u8> {
        words.into_iter().flat_map(u32::to_le_bytes).collect()
    }

    #[test]
    fn a_tables_chunk() {
        assert_eq!(chunk("7:0 7:13 P 8"), Some(CHUNK));
        assert_eq!(["7:0 7:13 P", "7:0 7:13 P x", ""].map(chunk), [None; 3]);
    }

    #[test]
    fn empty_files_and_snapshots_pass_and_nothing_else() {
        assert_eq!(checked(&[], 1 << 20), Ok(()));
        assert_eq!(checked(&[], LEAST), Ok(()));
        assert_eq!(checked(&header([MAGIC, 1, 1, 8]), 1 << 20), Ok(()));
        assert!(checked(&[], LEAST - 512).unwrap_err().contains("16384"));
        assert!(checked(&[], 0).is_err());
        assert!(checked(&header([MAGIC, 0, 1, 8]), 1 << 20).unwrap_err().contains("was full"));
        assert!(checked(&header([MAGIC, 1, 1, 1 << 20]), 1 << 20).unwrap_err().contains("chunk size"));
        assert!(checked(&header([MAGIC, 1, 2, 8]), 1 << 20).unwrap_err().contains("version"));
        assert!(checked(b"garbage", 1 << 20).unwrap_err().contains("no snapshot's"));
    }

    #[test]
    fn a_file_system_in_it_is_not_written_over() {
        let mut ext4 = vec![0; 1080];
        ext4.extend([0x53, 0xef]);
        assert!(checked(&ext4, 1 << 20).unwrap_err().contains("no snapshot's"));
        let mut btrfs = vec![0; 0x1_0040];
        btrfs.extend(b"_BHRfS_M");
        assert!(checked(&btrfs, 1 << 20).unwrap_err().contains("no snapshot's"));
    }

    #[test]
    fn what_changes_take_of_a_store() {
        let change = |offset, length| Change { offset, length, from: From::Log { at: 0 } };
        assert_eq!(most(&[]), 2 * 4096);
        assert_eq!(most(&[change(0, 4096)]), 3 * 4096);
        assert_eq!(most(&[change(512, 512), change(8192 - 512, 1024)]), 5 * 4096);
        assert_eq!(most(&[change(0, 256 * 4096)]), (256 + 1 + 2) * 4096);
    }

    #[test]
    fn statuses() {
        assert_eq!(State::read("16/16384 16"), Some(State::Fills(16, 16384)));
        assert_eq!(State::read("Invalid"), Some(State::Invalid));
        assert_eq!(State::read("Overflow"), Some(State::Invalid));
        assert_eq!((State::read(""), State::read("Unknown")), (None, None));
        assert_eq!((State::Fills(80, 100).percent(), State::Fills(1, 0).percent()), (80, 0));
    }
}
