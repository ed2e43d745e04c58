//! The file that a VMM's output goes to, its guest's console with it: a guest that prints without an end takes no more than so
//! much of the owner's disk. What is old is given back as a hole, so that whoever reads on stays where he is. What the file
//! had before the VM was launched stays.

use super::record::Output;
use crate::fail::Fail;
use rustix::fs::{FallocateFlags, FileType, OFlags, fallocate};
use std::time::Duration;
use sys::creds::Identity;
use sys::dir::{CallError, Dir, Facts};

/// How often one is looked at. A console brings some megabytes a second at most.
pub(super) const EVERY: Duration = Duration::from_secs(5);
/// Holes begin and end with blocks; no file system here has larger ones.
const BLOCK: u64 = 64 << 10;

/// Gives back what is more than `kept` bytes, once it is a quarter more. It is opened by its name, with the owner's rights:
/// another file under that name stays as it is.
///
/// The kernel makes a hole under the file's lock, which its owner can hold as long as he likes: by a write whose bytes come
/// from a FUSE daemon of his. So whoever calls this has nothing else to do.
///
/// # Errors
/// Where another file has its name, or none; what the kernel says: a file system without holes keeps all of it.
pub(super) fn bound(state: &Dir, owner: &Identity, output: &Output, kept: u64) -> Result<(), Fail> {
    let failed = |error: CallError| Fail::new("the VMM's output has no bound").because(error);
    let opened = owner.run_as(|| state.open_at(&output.below, OFlags::WRONLY | OFlags::NOCTTY, 0));
    let opened = opened.map_err(|error| Fail::new("the owner's rights can't be taken on").because(error))?;
    let file = opened.map_err(failed)?;
    let facts = Facts::of(&file).map_err(failed)?;
    if facts.kind != FileType::RegularFile || (facts.dev, facts.ino) != (output.dev, output.ino) {
        return Err(Fail::new("the VMM's output has no bound").because("its file has another name by now"));
    }
    let (begin, end) = (output.begin.next_multiple_of(BLOCK), facts.size.saturating_sub(kept) / BLOCK * BLOCK);
    if begin >= end
        || facts.size - output.begin.min(facts.size) <= kept + kept / 4
        || facts.allocated <= kept + kept / 4
    {
        return Ok(());
    }
    fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, begin, end - begin)
        .map_err(|errno| failed(CallError::new(format!("fallocate(<{}>, a hole)", output.below), errno)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::io::Write;
    use std::os::unix::fs::{MetadataExt, chown, symlink};

    #[test]
    fn what_is_old_is_given_back_of_the_files_own_owner_alone() {
        const KEPT: u64 = 1 << 20;
        let temp = tempfile::tempdir().unwrap();
        fs::set_permissions(temp.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let who = Identity { uid: 5501, gid: 5501, groups: vec![5501], name: "somebody".into(), home: "/".into() };
        let (dir, path) = (Dir::open(temp.path().to_str().unwrap()).unwrap(), temp.path().join("log"));
        let mut file = File::create(&path).unwrap();
        chown(&path, Some(5501), Some(5501)).unwrap();
        let facts = Facts::of(&file).unwrap();
        // What was there before the VM.
        file.write_all(&[b'w'; BLOCK as usize]).unwrap();
        let output = Output { below: "log".into(), dev: facts.dev, ino: facts.ino, begin: BLOCK };
        let bound = |output: &Output| bound(&dir, &who, output, KEPT);
        let blocks = || fs::metadata(&path).unwrap().blocks() * 512;

        file.write_all(&[b'x'; KEPT as usize]).unwrap();
        bound(&output).unwrap();
        assert_eq!(fs::read(&path).unwrap()[BLOCK as usize], b'x', "it is not too long yet");
        file.write_all(&[b'y'; 3 * KEPT as usize]).unwrap();
        file.write_all(b"last words\n").unwrap();
        file.sync_all().unwrap();
        let all = blocks();
        // Another file under that name; a file of root's; a link.
        assert!(bound(&Output { ino: 1, ..output.clone() }).is_err());
        chown(&path, Some(0), Some(0)).unwrap();
        assert!(bound(&output).is_err());
        chown(&path, Some(5501), Some(5501)).unwrap();
        symlink("log", temp.path().join("link")).unwrap();
        assert!(bound(&Output { below: "link".into(), ..output.clone() }).is_err());
        assert_eq!(blocks(), all);

        bound(&output).unwrap();
        assert!(blocks() <= KEPT + 3 * BLOCK, "{} bytes", blocks());
        let bytes = fs::read(&path).unwrap();
        assert_eq!((bytes[0], bytes[BLOCK as usize - 1], bytes[BLOCK as usize]), (b'w', b'w', 0));
        assert!(bytes.ends_with(b"ylast words\n") && bytes.len() as u64 > 4 * KEPT);
        fs::remove_file(&path).unwrap();
        assert!(bound(&output).is_err());
    }
}
