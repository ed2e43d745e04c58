//! What a worker proposes to change in an image, and the request's bytes that are part of it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use wire::image::NewFile;
use wire::worker::log::{Change, From, MAX_BLOCK};

/// From so many bytes on, those that go to where nothing counts don't pass through the log. For less, the log's own
/// flush is cheaper than one more of the image.
const MUCH: u64 = 256 << 10;

/// What is to be changed in an image.
pub(in crate::disk) struct Proposal {
    pub(in crate::disk) changes: Vec<Change>,
    /// The bytes of the log that changes have.
    pub(super) data: u64,
}

impl Proposal {
    /// Takes out what goes to where nothing counts, where it is much.
    ///
    /// Whether that is so is the worker's word. Where it lies, bytes of the request are in an image that its owner
    /// could have put there, without the write being made; he could as well have had it made.
    pub(super) fn take_early(&mut self) -> Vec<Change> {
        let is_fresh = |change: &Change| matches!(change.from, From::File { fresh: true, .. });
        let much = self.changes.iter().filter(|change| is_fresh(change)).map(|change| change.length).sum::<u64>();
        if much < MUCH { Vec::new() } else { self.changes.extract_if(.., |change| is_fresh(change)).collect() }
    }
}

/// Puts `length` bytes of a file of the request's, from its byte `at` on, to a place; behind its end they are zeros.
pub(super) fn put_file(to: &File, offset: u64, length: u64, at: u64, file: Option<&NewFile>) -> std::io::Result<()> {
    const ZEROS: &[u8] = &[0; MAX_BLOCK as usize];
    // That there is such a file, and that it is so long, was seen with the proposal.
    let bytes = file.map_or(&[][..], |file| &file.data);
    let bytes = usize::try_from(at).ok().and_then(|at| bytes.get(at..)).unwrap_or_default();
    let length = usize::try_from(length).map_err(std::io::Error::other)?;
    let bytes = &bytes[..length.min(bytes.len())];
    to.write_all_at(bytes, offset)?;
    let zeros = ZEROS.get(..length - bytes.len()).ok_or(std::io::ErrorKind::InvalidInput)?;
    to.write_all_at(zeros, offset + bytes.len() as u64)
}
