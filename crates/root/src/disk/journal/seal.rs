//! A log's seal, its head: for which file it is, and that all of it is there.
//!
//! Head and body reach the disk by one flush, in any order. So the seal has a checksum of the body: a log of which a
//! loss of power left a part is none. A file that is kept for the next log begins with zeros.

use std::fs::File;
use std::os::unix::fs::FileExt;
use sys::handle::Handle;
use wire::worker::log::{MAX_LOG, crc32c};

const MAGIC: [u8; 8] = *b"bngr-for";
/// Where a log's body begins: behind the longest path and handle.
pub(super) const HEAD: u64 = 8192;
/// Written over a seal's beginning, it is none: no disk writes less at once.
pub(super) const NONE: [u8; 512] = [0; 512];
/// Bytes that are summed at once.
const PIECE: u64 = 128 << 10;

/// The key of an image's log: the same whatever the image is called.
pub(super) fn key(Handle { kind, bytes }: &Handle) -> String {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{kind:x}-{hex}")
}

/// How long a log's body is, and its checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Body {
    pub(super) length: u64,
    pub(super) sum: u32,
}

/// What a seal says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seal {
    /// What the image was called.
    pub(super) path: String,
    pub(super) handle: Handle,
    pub(super) body: Body,
}

impl Seal {
    /// Magic, length and checksum of the body, the handle's kind, lengths of path and handle, both, a checksum of all
    /// that.
    pub(super) fn encode(&self) -> Vec<u8> {
        let Seal { path, handle, body } = self;
        let length = |length: usize| u16::try_from(length).unwrap_or(u16::MAX).to_le_bytes();
        let mut bytes = MAGIC.to_vec();
        bytes.extend(body.length.to_le_bytes());
        bytes.extend(body.sum.to_le_bytes());
        bytes.extend(handle.kind.to_le_bytes());
        bytes.extend(length(path.len()));
        bytes.extend(length(handle.bytes.len()));
        bytes.extend(path.as_bytes());
        bytes.extend(&handle.bytes);
        let sum = crc32c(!0, &bytes);
        bytes.extend(sum.to_le_bytes());
        bytes
    }

    fn decode(head: &[u8]) -> Option<Seal> {
        let (_, rest) = head.split_first_chunk::<8>()?;
        let (length, rest) = rest.split_first_chunk()?;
        let (sum, rest) = rest.split_first_chunk()?;
        let (kind, rest) = rest.split_first_chunk()?;
        let (path, rest) = rest.split_first_chunk()?;
        let (handle, rest) = rest.split_first_chunk()?;
        let (path, rest) = rest.split_at_checked(u16::from_le_bytes(*path).into())?;
        let handle = rest.get(..usize::from(u16::from_le_bytes(*handle)))?;
        let seal = Seal {
            path: std::str::from_utf8(path).ok()?.to_owned(),
            handle: Handle { kind: i32::from_le_bytes(*kind), bytes: handle.to_vec() },
            body: Body { length: u64::from_le_bytes(*length), sum: u32::from_le_bytes(*sum) },
        };
        // Made again: so each of its bytes is as it must be.
        head.starts_with(&seal.encode()).then_some(seal)
    }

    /// Reads the seal of a log; `None` where it has none, or not all of the log is there.
    pub(super) fn read(file: &File) -> Option<Seal> {
        let mut head = [0; HEAD as usize];
        let length = file.read_at(&mut head, 0).ok()?;
        let seal = Seal::decode(&head[..length])?;
        let Body { length, sum } = seal.body;
        if length > MAX_LOG {
            return None;
        }
        let (mut done, mut have, mut piece) = (0, !0, vec![0; length.min(PIECE) as usize]);
        while done < length {
            let piece = &mut piece[..(length - done).min(PIECE) as usize];
            file.read_exact_at(piece, HEAD + done).ok()?;
            have = crc32c(have, piece);
            done += piece.len() as u64;
        }
        (have == sum).then_some(seal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: usize = 140_000;

    fn sealed() -> (File, Seal, Vec<u8>) {
        let file = tempfile::tempfile().unwrap();
        let body: Vec<u8> = (0..LENGTH).map(|at| (at / 7) as u8).collect();
        let handle = Handle { kind: 1, bytes: vec![1, 2, 3, 4, 5, 6, 7, 8] };
        let body_of = Body { length: body.len() as u64, sum: crc32c(!0, &body) };
        let seal = Seal { path: "/var/lib/banger/a.ext4".to_owned(), handle, body: body_of };
        file.write_all_at(&body, HEAD).unwrap();
        file.write_all_at(&seal.encode(), 0).unwrap();
        (file, seal, body)
    }

    #[test]
    fn a_seal_is_whole_or_none() {
        let (file, seal, _) = sealed();
        assert_eq!(Seal::read(&file), Some(seal.clone()));
        let right = seal.encode();
        for at in 0..right.len() {
            let mut bad = right.clone();
            bad[at] ^= 1;
            file.write_all_at(&bad, 0).unwrap();
            assert_eq!(Seal::read(&file), None, "byte {at}");
        }
        file.write_all_at(&right, 0).unwrap();
        assert_eq!(Seal::read(&file), Some(seal));
        file.write_all_at(&NONE, 0).unwrap();
        assert_eq!(Seal::read(&file), None);
        file.set_len(9).unwrap();
        assert_eq!(Seal::read(&file), None);
    }

    #[test]
    fn a_body_of_which_a_sector_is_missing_is_none() {
        let (file, seal, body) = sealed();
        for at in (0..LENGTH).step_by(7 * 512) {
            let sector = &body[at..LENGTH.min(at + 512)];
            file.write_all_at(&vec![0; sector.len()], HEAD + at as u64).unwrap();
            assert_eq!(Seal::read(&file), None, "byte {at}");
            file.write_all_at(sector, HEAD + at as u64).unwrap();
        }
        assert_eq!(Seal::read(&file), Some(seal));
        file.set_len(HEAD + LENGTH as u64 - 1).unwrap();
        assert_eq!(Seal::read(&file), None);
    }

    #[test]
    fn the_longest_path_and_handle_have_their_room() {
        let handle = Handle { kind: -1, bytes: vec![0xff; sys::handle::LONGEST] };
        let seal = Seal { path: format!("/{}", "a".repeat(4094)), handle, body: Body { length: 0, sum: !0 } };
        let head = seal.encode();
        assert!(head.len() as u64 <= HEAD);
        assert_eq!(Seal::decode(&head), Some(seal));
    }
}
