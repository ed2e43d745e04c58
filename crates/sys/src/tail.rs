//! A file that somebody else fills without an end: its end is kept, and what is old given back as a hole, so that whoever reads
//! on stays where he is.

use rustix::fd::AsFd;
use rustix::fs::{FallocateFlags, fallocate, fstat};
use std::io;

/// Holes begin and end with blocks; no file system here has larger ones.
const BLOCK: u64 = 64 << 10;

/// Gives back what is more than the last `kept` bytes, and behind `begin`, once it is a quarter more.
///
/// The kernel makes a hole under the file's lock. Its owner can hold that as long as he likes, by a write whose bytes come from
/// a FUSE daemon of his.
///
/// # Errors
/// What the kernel says: a file system without holes keeps all of it.
pub fn keep(file: impl AsFd, begin: u64, kept: u64) -> io::Result<()> {
    let facts = fstat(&file)?;
    let (size, allocated) = (facts.st_size.cast_unsigned(), facts.st_blocks.cast_unsigned() * 512);
    let (from, to) = (begin.next_multiple_of(BLOCK), size.saturating_sub(kept) / BLOCK * BLOCK);
    if from >= to || size.saturating_sub(begin).min(allocated) <= kept + kept / 4 {
        return Ok(());
    }
    Ok(fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, from, to - from)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn what_is_old_is_given_back_and_what_is_older_and_newer_stays() {
        const KEPT: u64 = 1 << 20;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut file = File::create(&path).unwrap();
        file.write_all(&[b'w'; BLOCK as usize]).unwrap();
        file.write_all(&[b'x'; KEPT as usize]).unwrap();
        keep(&file, BLOCK, KEPT).unwrap();
        assert_eq!(fs::read(&path).unwrap()[BLOCK as usize], b'x', "it is not too long yet");
        file.write_all(&[b'y'; 3 * KEPT as usize]).unwrap();
        file.write_all(b"last words\n").unwrap();
        file.sync_all().unwrap();
        keep(&file, BLOCK, KEPT).unwrap();
        let facts = fs::metadata(&path).unwrap();
        assert!(facts.blocks() * 512 <= KEPT + 3 * BLOCK, "{} bytes", facts.blocks() * 512);
        let bytes = fs::read(&path).unwrap();
        assert_eq!((bytes[0], bytes[BLOCK as usize - 1], bytes[BLOCK as usize]), (b'w', b'w', 0));
        assert!(bytes.ends_with(b"ylast words\n") && bytes.len() as u64 > 4 * KEPT);
    }
}
