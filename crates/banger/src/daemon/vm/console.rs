//! A console that its guest fills without an end takes no more than so much of the owner's disk: what is old is given
//! back as a hole, so that whoever reads on stays where he is.

use rustix::fs::{FallocateFlags, fallocate};
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Bytes that are kept.
const KEPT: u64 = 16 << 20;
/// How much more there may be before something is given back.
const SLACK: u64 = 4 << 20;
/// Holes begin and end with blocks; no file system here has larger ones.
const BLOCK: u64 = 64 << 10;

/// Gives back what is more than is kept.
///
/// # Errors
/// What the file system says: one without holes keeps all of it.
pub(super) fn bound(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    let facts = file.metadata()?;
    let old = facts.len().saturating_sub(KEPT) / BLOCK * BLOCK;
    if old == 0 || facts.blocks() * 512 <= KEPT + SLACK {
        return Ok(());
    }
    Ok(fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, old)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::io::Write;

    #[test]
    fn what_is_old_is_given_back_and_what_is_new_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut file = File::create(&path).unwrap();
        file.write_all(&vec![b'x'; usize::try_from(KEPT + SLACK).unwrap() / 2]).unwrap();
        bound(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap().first(), Some(&b'x'), "it is not too long yet");
        file.write_all(&vec![b'y'; usize::try_from(2 * KEPT).unwrap()]).unwrap();
        file.write_all(b"last words\n").unwrap();
        file.sync_all().unwrap();
        bound(&path).unwrap();
        let facts = fs::metadata(&path).unwrap();
        assert!(facts.blocks() * 512 <= KEPT + 2 * BLOCK, "{} bytes", facts.blocks() * 512);
        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes.first(), Some(&0));
        assert!(bytes.ends_with(b"ylast words\n") && bytes.len() as u64 > 2 * KEPT);
    }
}
