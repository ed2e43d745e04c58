//! The file that a VMM's output goes to, its guest's console with it: a guest that prints without an end takes no more than so
//! much of the owner's disk. What the file had before the VM was launched stays.

use super::record::Output;
use crate::fail::Fail;
use rustix::fs::{FileType, OFlags};
use std::time::Duration;
use sys::creds::Identity;
use sys::dir::{Dir, Facts};
use sys::tail;

/// How often one is looked at. A console brings some megabytes a second at most.
pub(super) const EVERY: Duration = Duration::from_secs(5);

/// Gives back what is more than `kept` bytes, as [`tail::keep`]. It is opened by its name, with the owner's rights: another file
/// under that name stays as it is. The owner can make this wait: whoever calls it has nothing else to do.
///
/// # Errors
/// Where another file has its name, or none; what the kernel says.
pub(super) fn bound(state: &Dir, owner: &Identity, output: &Output, kept: u64) -> Result<(), Fail> {
    let failed = |cause: &dyn std::fmt::Display| Fail::new("the VMM's output has no bound").because(cause);
    let opened = owner.run_as(|| state.open_at(&output.below, OFlags::WRONLY | OFlags::NOCTTY, 0));
    let opened = opened.map_err(|error| Fail::new("the owner's rights can't be taken on").because(error))?;
    let file = opened.map_err(|error| failed(&error))?;
    let facts = Facts::of(&file).map_err(|error| failed(&error))?;
    if facts.kind != FileType::RegularFile || (facts.dev, facts.ino) != (output.dev, output.ino) {
        return Err(failed(&"its file has another name by now"));
    }
    tail::keep(&file, output.begin, kept)
        .map_err(|error| failed(&format!("fallocate(<{}>, a hole): {error}", output.below)))
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
        file.write_all(&[b'x'; 4 * KEPT as usize]).unwrap();
        file.sync_all().unwrap();
        let facts = Facts::of(&file).unwrap();
        let output = Output { below: "log".into(), dev: facts.dev, ino: facts.ino, begin: 0 };
        let bound = |output: &Output| bound(&dir, &who, output, KEPT);
        let blocks = || fs::metadata(&path).unwrap().blocks() * 512;
        let all = blocks();
        // A file of root's; another file under that name; a link.
        assert!(bound(&output).is_err());
        chown(&path, Some(5501), Some(5501)).unwrap();
        assert!(bound(&Output { ino: 1, ..output.clone() }).is_err());
        symlink("log", temp.path().join("link")).unwrap();
        assert!(bound(&Output { below: "link".into(), ..output.clone() }).is_err());
        assert_eq!(blocks(), all);

        bound(&output).unwrap();
        assert!(blocks() < 2 * KEPT, "{} bytes", blocks());
        fs::remove_file(&path).unwrap();
        assert!(bound(&output).is_err());
    }
}
