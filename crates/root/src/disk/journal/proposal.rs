//! What a worker proposes to change in an image, and the request's bytes that are part of it.

use wire::image::NewFile;
use wire::worker::log::{Change, From, MAX_BLOCK};

/// From so many bytes on, those that go to where nothing counts don't pass through the log. For less, the log's own
/// flush is cheaper than one more of the image.
const MUCH: u64 = 256 << 10;

/// What is to be changed in an image.
pub(in crate::disk) struct Proposal {
    pub(in crate::disk) changes: Vec<Change>,
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

/// `length` bytes of a file of the request's, from its byte `at` on: those that it has, and the zeros behind its end.
pub(super) fn bytes_of(file: Option<&NewFile>, at: u64, length: u64) -> std::io::Result<[&[u8]; 2]> {
    const ZEROS: &[u8] = &[0; MAX_BLOCK as usize];
    // That there is such a file, and that it is so long, was seen with the proposal.
    let bytes = file.map_or(&[][..], |file| &file.data);
    let bytes = usize::try_from(at).ok().and_then(|at| bytes.get(at..)).unwrap_or_default();
    let length = usize::try_from(length).map_err(std::io::Error::other)?;
    let bytes = &bytes[..length.min(bytes.len())];
    let zeros = ZEROS.get(..length - bytes.len()).ok_or(std::io::ErrorKind::InvalidInput)?;
    Ok([bytes, zeros])
}
