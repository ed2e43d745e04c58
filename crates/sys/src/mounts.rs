//! The kernel's table of mounts, as this process sees it: read once, and again only where it has changed since.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::File;
use std::io::{self, Read as _};
use std::sync::{Arc, Mutex, PoisonError};

/// More than most machines' tables have: each read of a small piece takes a call.
const USUAL: usize = 16 << 10;

/// That of the first thread's mount namespace, whichever thread asks.
static TABLE: Table = Table::new("/proc/self/mountinfo");

/// The table as it is at this moment, in the form of proc_pid_mountinfo(5). Mount points are bytes of anybody's choice:
/// what is no UTF-8 in them is replaced.
///
/// Reading it takes the longer the more mounts there are, so what was read is kept, with one descriptor.
///
/// # Errors
/// Where it can't be read.
pub fn table() -> io::Result<Arc<str>> {
    TABLE.now()
}

/// A table that is kept.
struct Table {
    path: &'static str,
    known: Mutex<Option<Known>>,
}

/// What was read, and the file that tells of changes since.
struct Known {
    file: File,
    text: Arc<str>,
}

impl Table {
    const fn new(path: &'static str) -> Table {
        Table { path, known: Mutex::new(None) }
    }

    fn now(&self) -> io::Result<Arc<str>> {
        // Whole at each moment, whatever became of another thread.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.as_ref().filter(|known| !has_changed(&known.file)) {
            return Ok(Arc::clone(&known.text));
        }
        // The change is told once: where the reading fails the next who asks reads too.
        *known = None;
        // Changes are told from the opening on: one in the middle of the reading is one for the next who asks.
        let mut file = File::open(self.path)?;
        let mut bytes = Vec::with_capacity(USUAL);
        file.read_to_end(&mut bytes)?;
        let text: Arc<str> = String::from_utf8_lossy(&bytes).into();
        *known = Some(Known { file, text: Arc::clone(&text) });
        Ok(text)
    }
}

/// Whether the table is another one than at the file's opening, or than when this was last asked; proc_pid_mounts(5).
fn has_changed(table: &File) -> bool {
    let mut fds = [PollFd::new(table, PollFlags::PRI)];
    let asked = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    asked.is_err() || fds[0].revents().intersects(PollFlags::PRI | PollFlags::ERR)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, mount_remount, unmount};

    /// The options of the mount at `at`, by the table that is kept, which has to be the one that the kernel tells now.
    fn options(table: &Table, at: &str) -> Option<String> {
        let text = table.now().unwrap();
        assert_eq!(&*text, String::from_utf8_lossy(&std::fs::read(table.path).unwrap()));
        let line = text.lines().rev().find(|line| line.split(' ').nth(4) == Some(at))?;
        line.split(' ').nth(5).map(str::to_owned)
    }

    #[test]
    fn what_changes_is_seen_at_once() {
        assert!(rustix::process::geteuid().is_root(), "this test needs root");
        let temp = tempfile::tempdir().unwrap();
        let at = temp.path().canonicalize().unwrap();
        let at = at.to_str().unwrap();
        // A thread of its own, because it keeps its mount namespace.
        let body = || {
            crate::mount::own_namespace().unwrap();
            // Nothing of the machine's is to come in between.
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
            let table = Table::new("/proc/thread-self/mountinfo");
            for _ in 0..50 {
                assert_eq!(options(&table, at), None);
                mount("mounts", at, "tmpfs", MountFlags::empty(), None::<&std::ffi::CStr>).unwrap();
                assert!(!options(&table, at).unwrap().contains("nosuid"));
                assert!(Arc::ptr_eq(&table.now().unwrap(), &table.now().unwrap()));
                mount_remount(at, MountFlags::BIND | MountFlags::NOSUID, "").unwrap();
                assert!(options(&table, at).unwrap().contains("nosuid"));
                unmount(at, UnmountFlags::empty()).unwrap();
            }
        };
        std::thread::scope(|scope| scope.spawn(body).join().unwrap());
    }
}
