//! A tree of files taken away by descriptor: through no link, over no mount, however deep and however wide it is.
//!
//! Its writers may be at work meanwhile, and are in nobody's way: what a directory holds is moved up into the tree's
//! first one before it goes, so no more than two are open at a time and no path is walked.

use rustix::fs::{AtFlags, OFlags, RenameFlags, renameat_with, unlinkat};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};
use sys::dir::{CallError, Dir};

/// How long it may take. Whoever fills a tree faster than it is emptied is told so; a million files take seconds.
const TIME: Duration = Duration::from_secs(120);

/// Removes the directory `name` in `parent` with all that is in it, and what is mounted there is unmounted first.
pub(super) fn remove(parent: &Dir, name: &str) -> Result<(), CallError> {
    let Some(top) = open(parent, name)? else { return Ok(()) };
    let mut moved = Moved { top: &top, next: 0, until: Instant::now() + TIME };
    let mut done = 0;
    loop {
        moved.empty(&top)?;
        while done < moved.next {
            let inner = Moved::name(done);
            done += 1;
            // One that the owner took out again meanwhile is his.
            if let Some(dir) = open(&top, &inner)? {
                moved.empty(&dir)?;
                match top.remove_dir(&inner) {
                    Err(error) if is_filled(&error) => moved.again(&inner)?,
                    other => other.map(|_| ())?,
                }
            }
        }
        match parent.remove_dir(name) {
            Err(error) if is_filled(&error) => moved.in_time()?,
            other => return other.map(|_| ()),
        }
    }
}

fn is_filled(error: &CallError) -> bool {
    matches!(error.errno(), Errno::NOTEMPTY | Errno::EXIST)
}

/// A directory, without what is mounted on it. `None` where it is gone.
fn open(parent: &Dir, name: &str) -> Result<Option<Dir>, CallError> {
    // Each round takes one mount off; root alone makes them.
    loop {
        match parent.dir(name) {
            Ok(dir) => return Ok(Some(dir)),
            Err(error) if error.is_missing() => return Ok(None),
            Err(error) if error.is_crossing() => take_mount_off(parent, name.as_bytes())?,
            Err(error) => return Err(error),
        }
    }
}

/// Takes away what lies over `name`: by the directory's descriptor and one name that is not followed.
fn take_mount_off(dir: &Dir, name: &[u8]) -> Result<(), CallError> {
    let mut path = format!("/proc/self/fd/{}/", dir.as_fd().as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        // Somebody was faster.
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => {
            let name = String::from_utf8_lossy(name);
            Err(CallError::new(format!("umount2(<{}>/{name:?}, MNT_DETACH)", dir.path()), errno))
        }
    }
}

/// Directories that were moved up into the first one, under names of ours, to be emptied in their turn.
struct Moved<'a> {
    top: &'a Dir,
    next: u64,
    until: Instant,
}

impl Moved<'_> {
    fn name(number: u64) -> String {
        format!(".gone-{number}")
    }

    fn in_time(&self) -> Result<(), CallError> {
        if Instant::now() < self.until {
            return Ok(());
        }
        Err(CallError::new(
            format!("unlinkat(<{}>): somebody fills it again and again", self.top.path()),
            Errno::NOTEMPTY,
        ))
    }

    /// Takes everything out of `dir`: files and empty directories go, others are moved up.
    fn empty(&mut self, dir: &Dir) -> Result<(), CallError> {
        let listing = dir.open_at(".", OFlags::RDONLY | OFlags::DIRECTORY, 0)?;
        let failed = |errno| CallError::new(format!("getdents64(<{}>)", dir.path()), errno);
        for entry in rustix::fs::Dir::new(listing).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                self.take(dir, entry.file_name())?;
                self.in_time()?;
            }
        }
        Ok(())
    }

    /// Takes one entry out of `dir`. Names are the owner's, and any bytes.
    fn take(&mut self, dir: &Dir, name: &CStr) -> Result<(), CallError> {
        let told = |call: &str, errno| Err(CallError::new(format!("{call}(<{}>, {name:?})", dir.path()), errno));
        // Twice: once more behind a mount that was in the way.
        for _ in 0..2 {
            let gone = match unlinkat(dir, name, AtFlags::empty()) {
                Err(Errno::ISDIR) => unlinkat(dir, name, AtFlags::REMOVEDIR),
                other => other,
            };
            match gone {
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                Err(Errno::BUSY) => take_mount_off(dir, name.to_bytes())?,
                Err(Errno::NOTEMPTY | Errno::EXIST) => return self.up(dir, name),
                Err(errno) => return told("unlinkat", errno),
            }
        }
        told("unlinkat", Errno::BUSY)
    }

    fn up(&mut self, dir: &Dir, name: &CStr) -> Result<(), CallError> {
        loop {
            let ours = Moved::name(self.next);
            self.next += 1;
            match renameat_with(dir, name, self.top, ours.as_str(), RenameFlags::NOREPLACE) {
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                // The owner knows our names, too: the next one. What has this one is emptied in its turn.
                Err(Errno::EXIST) => self.in_time()?,
                Err(Errno::BUSY | Errno::XDEV) => take_mount_off(dir, name.to_bytes())?,
                Err(errno) => {
                    return Err(CallError::new(format!("renameat2(<{}>, {name:?})", dir.path()), errno));
                }
            }
        }
    }

    /// One of ours that did not stay empty, once more at the end.
    fn again(&mut self, name: &str) -> Result<(), CallError> {
        self.in_time()?;
        let failed = |_| CallError::new(format!("rename of {name:?}"), Errno::INVAL);
        let name = std::ffi::CString::new(name).map_err(failed)?;
        self.up(self.top, &name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn ground() -> (tempfile::TempDir, Dir) {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open(temp.path().to_str().unwrap()).unwrap();
        (temp, dir)
    }

    #[test]
    fn deep_wide_and_full_of_links() {
        let (temp, dir) = ground();
        fs::write(temp.path().join("kept"), "words").unwrap();
        fs::create_dir(temp.path().join("kept-dir")).unwrap();
        fs::write(temp.path().join("kept-dir/f"), "").unwrap();
        let top = temp.path().join("top");
        fs::create_dir(&top).unwrap();
        let mut at = top.clone();
        for n in 0..200 {
            at = at.join(format!("d{n}"));
            fs::create_dir(&at).unwrap();
            symlink(temp.path(), at.join("out")).unwrap();
            symlink(temp.path().join("kept-dir"), at.join("dir")).unwrap();
            fs::hard_link(temp.path().join("kept"), at.join("second")).unwrap();
        }
        for n in 0..3000 {
            fs::write(top.join(format!("file {n}")), "").unwrap();
        }
        fs::create_dir(top.join(".gone-1")).unwrap();
        fs::write(top.join(".gone-1/x"), "").unwrap();
        remove(&dir, "top").unwrap();
        assert_eq!(dir.names().unwrap(), ["kept", "kept-dir"]);
        assert_eq!(fs::read_to_string(temp.path().join("kept")).unwrap(), "words");
        assert!(temp.path().join("kept-dir/f").exists());
        remove(&dir, "top").unwrap();
    }

    #[test]
    fn a_link_or_a_file_of_that_name_is_no_tree() {
        let (temp, dir) = ground();
        fs::create_dir(temp.path().join("kept")).unwrap();
        symlink("kept", temp.path().join("link")).unwrap();
        assert!(remove(&dir, "link").unwrap_err().is_symlink());
        fs::write(temp.path().join("file"), "").unwrap();
        assert_eq!(remove(&dir, "file").unwrap_err().errno(), Errno::NOTDIR);
        assert_eq!(dir.names().unwrap(), ["file", "kept", "link"]);
    }

    #[test]
    fn what_is_mounted_in_it_is_unmounted_and_stays() {
        std::thread::spawn(|| {
            let (temp, _) = ground();
            sys::mount::own_namespace().unwrap();
            // Opened behind the change: a descriptor belongs to its namespace's mounts.
            let dir = Dir::open(temp.path().to_str().unwrap()).unwrap();
            fs::create_dir(temp.path().join("kept")).unwrap();
            fs::write(temp.path().join("kept/f"), "").unwrap();
            fs::create_dir_all(temp.path().join("top/a/b")).unwrap();
            fs::write(temp.path().join("top/a/file"), "").unwrap();
            for on in ["top", "top/a/b", "top/a"] {
                fs::create_dir_all(temp.path().join(on)).unwrap();
                rustix::mount::mount_bind(temp.path().join("kept"), temp.path().join(on)).unwrap();
            }
            remove(&dir, "top").unwrap();
            assert_eq!(dir.names().unwrap(), ["kept"]);
            assert!(temp.path().join("kept/f").exists());
        })
        .join()
        .unwrap();
    }
}
