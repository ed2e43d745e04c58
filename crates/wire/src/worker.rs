//! What `bangerd-root` and `banger-image` say to each other: one request, one reply, and the log of changes.
//!
//! The worker is started anew for each request, with these descriptors and no others ([`fd`]). It never writes the
//! image: what it would change it puts into a log, and the helper applies that log, whole or not at all. So whoever
//! takes a worker over through a hostile image can propose other bytes for that same image, and nothing more.
//!
//! Both directions are bounded, and each side reads the other's bytes as a stranger's. All numbers are little-endian.

pub mod ask;
pub mod log;
pub mod reply;

use std::fmt;

/// The worker's descriptors, besides 0, 1 and 2, which are `/dev/null`. None other is open.
pub mod fd {
    /// The image, a file or a block device, opened for reading alone.
    pub const IMAGE: i32 = 3;
    /// The writing end of a pipe or a socket that takes one [`Reply`](super::reply::Reply), followed by its end.
    pub const REPLY: i32 = 4;
    /// The request ([`ask`](super::ask)): a file in memory, sealed.
    pub const REQUEST: i32 = 5;
    /// An empty file, opened for reading and writing. Of a read it takes the file's bytes, of a write the
    /// [`log`](super::log).
    pub const OUT: i32 = 6;
    /// How many there are behind the first three.
    pub const COUNT: u32 = 4;
}

/// The largest file that is read out of an image.
pub const MAX_READ: u64 = 64 << 20;
/// The most bytes that a journal's replay changes for a read: they are kept in memory.
pub const MAX_REPLAY: u64 = 128 << 20;

/// Bytes that are not what this protocol allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "malformed: {}", self.0)
    }
}

impl std::error::Error for Malformed {}

/// Takes numbers and texts off the front of bytes.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (first, rest) = self.0.split_at_checked(length).ok_or(Malformed("too short"))?;
        self.0 = rest;
        Ok(first)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (first, rest) = self.0.split_first_chunk().ok_or(Malformed("too short"))?;
        self.0 = rest;
        Ok(*first)
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    fn end(&self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed("too long")) }
    }
}
