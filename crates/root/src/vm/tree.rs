//! A tree of files taken away by descriptor: through no link, over no mount, however deep and however wide it is.
//!
//! Its writers may be at work meanwhile, and are in nobody's way: what a directory holds is moved up into the tree's
//! first one before it goes, so no more than two are open at a time and no path is walked. Whatever they put in the
//! place of what was looked at is looked at again, until the time is over.

use rustix::fs::{AtFlags, OFlags, renameat, unlinkat};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};
use sys::dir::{CallError, Dir, Facts};

/// How long it may take. Whoever fills a tree faster than it is emptied is told so; a million files take seconds.
const TIME: Duration = Duration::from_secs(120);
/// Mounts that are taken off one name: the owner can put some there by a set-user-ID program (FUSE).
const MOUNTS: u32 = 256;

/// Removes the directory `name` in `parent` with all that is in it, and what is mounted there is unmounted first. False,
/// and nothing is changed but its mounts, where it is not the directory that `is_it` knows.
pub(super) fn remove(parent: &Dir, name: &str, is_it: impl Fn(&Facts) -> bool) -> Result<bool, CallError> {
    let Some(top) = open(parent, name)? else { return Ok(true) };
    let facts = Facts::of(&top)?;
    if !is_it(&facts) {
        return Ok(false);
    }
    let mut moved = Moved { top: &top, next: 0, until: Instant::now() + TIME };
    let mut done = 0;
    loop {
        moved.empty(&top)?;
        while done < moved.next {
            moved.finish(&Moved::name(done))?;
            done += 1;
        }
        match parent.remove_dir(name) {
            // Filled again, or mounted on. Moved away by the owner, who can: it is empty, and what has its name now is
            // something else.
            Err(error) if is_taken_again(&error) => {
                if !parent.facts(name).is_ok_and(|now| now.is_same_file(&facts)) && error.errno() != Errno::BUSY {
                    return Ok(true);
                }
                moved.in_time()?;
                take_mount_off(parent, name.as_bytes())?;
            }
            other => return other.map(|_| true),
        }
    }
}

/// Whether a directory did not go because of what somebody did to it in this moment.
fn is_taken_again(error: &CallError) -> bool {
    matches!(error.errno(), Errno::NOTEMPTY | Errno::EXIST | Errno::BUSY | Errno::NOTDIR)
}

/// A directory, without what is mounted on it. `None` where it is gone.
fn open(parent: &Dir, name: &str) -> Result<Option<Dir>, CallError> {
    let mut mounts = 0;
    loop {
        match parent.dir(name) {
            Ok(dir) => return Ok(Some(dir)),
            Err(error) if error.is_missing() => return Ok(None),
            Err(error) if error.is_crossing() && mounts < MOUNTS => take_mount_off(parent, name.as_bytes())?,
            Err(error) => return Err(error),
        }
        mounts += 1;
    }
}

/// Takes away what lies over `name`, where something does: by the directory's descriptor and one name that is not
/// followed.
fn take_mount_off(dir: &Dir, name: &[u8]) -> Result<(), CallError> {
    let mut path = format!("/proc/self/fd/{}/", dir.as_fd().as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        // Somebody was faster, or nothing is mounted there.
        Ok(()) | Err(Errno::NOENT | Errno::INVAL) => Ok(()),
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

    /// Empties and removes one that was moved up. What the owner makes of it meanwhile is found in the first directory,
    /// the next time that one is emptied, or is out of the tree.
    fn finish(&mut self, name: &str) -> Result<(), CallError> {
        match open(self.top, name) {
            Ok(Some(dir)) => self.empty(&dir)?,
            Ok(None) => {}
            Err(error) if error.is_symlink() || error.errno() == Errno::NOTDIR => return Ok(()),
            Err(error) => return Err(error),
        }
        match self.top.remove_dir(name) {
            Err(error) if is_taken_again(&error) => Ok(()),
            other => other.map(|_| ()),
        }
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
        let mut last = Errno::BUSY;
        for _ in 0..MOUNTS {
            let gone = match unlinkat(dir, name, AtFlags::empty()) {
                Err(Errno::ISDIR) => unlinkat(dir, name, AtFlags::REMOVEDIR),
                other => other,
            };
            match gone {
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                Err(Errno::BUSY) => take_mount_off(dir, name.to_bytes())?,
                // Exchanged between the two calls.
                Err(Errno::NOTDIR) => last = Errno::NOTDIR,
                Err(Errno::NOTEMPTY | Errno::EXIST) => return self.up(dir, name),
                Err(errno) => return Err(told("unlinkat", dir, name, errno)),
            }
        }
        Err(told("unlinkat", dir, name, last))
    }

    /// Moves a directory that is not empty into the first one. What it takes the place of is an empty directory there,
    /// or nothing.
    fn up(&mut self, dir: &Dir, name: &CStr) -> Result<(), CallError> {
        loop {
            let ours = Moved::name(self.next);
            self.next += 1;
            self.in_time()?;
            match renameat(dir, name, self.top, ours.as_str()) {
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                // The owner knows our names, too: the next one. What has this one is emptied in its turn.
                Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR | Errno::ISDIR) => {}
                Err(Errno::BUSY | Errno::XDEV) => take_mount_off(dir, name.to_bytes())?,
                Err(errno) => return Err(told("renameat", dir, name, errno)),
            }
        }
    }
}

fn told(call: &str, dir: &Dir, name: &CStr, errno: Errno) -> CallError {
    CallError::new(format!("{call}(<{}>, {name:?})", dir.path()), errno)
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
        assert!(remove(&dir, "top", |_| true).unwrap());
        assert_eq!(dir.names().unwrap(), ["kept", "kept-dir"]);
        assert_eq!(fs::read_to_string(temp.path().join("kept")).unwrap(), "words");
        assert!(temp.path().join("kept-dir/f").exists());
        assert!(remove(&dir, "top", |_| true).unwrap());
    }

    #[test]
    fn a_link_or_a_file_of_that_name_is_no_tree() {
        let (temp, dir) = ground();
        fs::create_dir(temp.path().join("kept")).unwrap();
        symlink("kept", temp.path().join("link")).unwrap();
        assert!(remove(&dir, "link", |_| true).unwrap_err().is_symlink());
        fs::write(temp.path().join("file"), "").unwrap();
        assert_eq!(remove(&dir, "file", |_| true).unwrap_err().errno(), Errno::NOTDIR);
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
            // Some twice: a mount can lie on a mount.
            for on in ["top", "top", "top/a/b", "top/a/b", "top/a/b", "top/a", "top/a"] {
                fs::create_dir_all(temp.path().join(on)).unwrap();
                rustix::mount::mount_bind(temp.path().join("kept"), temp.path().join(on)).unwrap();
            }
            assert!(remove(&dir, "top", |_| true).unwrap());
            assert_eq!(dir.names().unwrap(), ["kept"]);
            assert!(temp.path().join("kept/f").exists());
        })
        .join()
        .unwrap();
    }

    #[test]
    fn another_directory_of_that_name_stays() {
        let (temp, dir) = ground();
        fs::create_dir_all(temp.path().join("top/a")).unwrap();
        assert!(!remove(&dir, "top", |facts| facts.uid == 12345).unwrap());
        assert!(temp.path().join("top/a").exists());
    }

    #[test]
    fn who_exchanges_everything_all_the_time_holds_it_up_but_does_not_lead_it_astray() {
        use std::sync::atomic::{AtomicBool, Ordering};
        let (temp, dir) = ground();
        fs::create_dir(temp.path().join("kept")).unwrap();
        fs::write(temp.path().join("kept/f"), "").unwrap();
        let top = temp.path().join("top");
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for kind in 0..2 {
                let (top, kept, is_over) = (&top, temp.path().join("kept"), &is_over);
                scope.spawn(move || {
                    while !is_over.load(Ordering::Relaxed) {
                        for n in 0..8 {
                            let (name, aside) = (top.join(format!(".gone-{n}")), top.join(format!("aside-{kind}-{n}")));
                            let _ = fs::rename(&name, &aside);
                            let _ = if kind == 0 { symlink(&kept, &name) } else { fs::write(&name, "") };
                        }
                        std::thread::yield_now();
                    }
                });
            }
            let mut removed = Ok(true);
            for _ in 0..100 {
                for n in 0..8 {
                    let _ = fs::create_dir_all(top.join(format!("d{n}/a/b")));
                }
                removed = removed.and(remove(&dir, "top", |_| true));
            }
            is_over.store(true, Ordering::Relaxed);
            removed.unwrap();
        });
        assert!(temp.path().join("kept/f").exists());
    }
}
