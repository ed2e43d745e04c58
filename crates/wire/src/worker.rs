//! What `bangerd-root` and `banger-image` say to each other: one request, one reply, and the log of changes.
//!
//! A worker is started for one request, maybe before there is one: with a socket ([`SOCKET`]) and nothing else. Over it
//! comes the job, one byte and three descriptors ([`JOB`]), and goes the reply. It never writes the image: what it would
//! change it puts into a log, and the helper applies that log, whole or not at all. So whoever takes a worker over
//! through a hostile image can propose other bytes for that same image, and nothing more.
//!
//! Both directions are bounded, and each side reads the other's bytes as a stranger's. All numbers are little-endian.

pub mod ask;
pub mod log;
pub mod reply;

use std::fmt;

/// The worker's one descriptor, besides 0, 1 and 2, which are `/dev/null`: a Unix socket that keeps messages apart. It
/// gives one [`JOB`], and takes one [`Reply`](reply::Reply).
pub const SOCKET: i32 = 3;
/// A job's one byte. With it come three descriptors: the image, a file or a block device opened for reading alone; the
/// request ([`ask`]), a file in memory, sealed; and a file for what is to be given back, opened for reading and writing.
/// Of a read that takes the file's bytes, of a write, where it is empty, the [`log`].
pub const JOB: u8 = b'j';
/// How many descriptors come with a job.
pub const PASSED: usize = 3;

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
