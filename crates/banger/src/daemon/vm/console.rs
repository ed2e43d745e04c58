//! A console that its guest fills without an end takes no more than so much of the owner's disk.

use std::fs::OpenOptions;
use std::io;
use std::path::Path;
use sys::tail;

/// Bytes that are kept.
const KEPT: u64 = 16 << 20;

/// Gives back what is more than is kept, as [`tail::keep`].
///
/// # Errors
/// What the file system says: one without holes keeps all of it.
pub(super) fn bound(path: &Path) -> io::Result<()> {
    tail::keep(OpenOptions::new().write(true).open(path)?, 0, KEPT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn what_is_old_is_given_back_and_what_is_new_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut file = File::create(&path).unwrap();
        file.write_all(&vec![b'x'; usize::try_from(KEPT).unwrap()]).unwrap();
        bound(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap().first(), Some(&b'x'), "it is not too long yet");
        file.write_all(&vec![b'y'; usize::try_from(2 * KEPT).unwrap()]).unwrap();
        file.write_all(b"last words\n").unwrap();
        file.sync_all().unwrap();
        bound(&path).unwrap();
        let facts = fs::metadata(&path).unwrap();
        assert!(facts.blocks() * 512 < KEPT + KEPT / 8, "{} bytes", facts.blocks() * 512);
        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes.first(), Some(&0));
        assert!(bytes.ends_with(b"ylast words\n") && bytes.len() as u64 > 2 * KEPT);
    }
}
