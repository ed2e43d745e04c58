//! Files of VMs that are gone. To free a disk's blocks takes longer than all else of a removal, most of all where the file
//! system tells its device of them: so a directory is moved aside, and removed behind the answer.
//!
//! What is aside is nobody's. What a daemon that ended left there goes when the next one starts.

use super::log;
use super::vm::phases::remove_tree;
use crate::api::Fault;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Where directories go on their way out.
#[derive(Debug)]
pub struct Aside {
    dir: PathBuf,
    going: Arc<Going>,
}

/// How many are being removed.
#[derive(Debug, Default)]
struct Going {
    count: Mutex<usize>,
    done: Condvar,
}

/// One that is being removed.
struct One(Arc<Going>);

impl Going {
    fn count(&self) -> MutexGuard<'_, usize> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn one(self: &Arc<Going>) -> One {
        *self.count() += 1;
        One(Arc::clone(self))
    }
}

impl Drop for One {
    fn drop(&mut self) {
        *self.0.count() -= 1;
        self.0.done.notify_all();
    }
}

impl Aside {
    /// Makes the directory where it is missing, and begins to remove what was left in it.
    ///
    /// # Errors
    /// What the kernel says of the directory.
    pub(crate) fn open(dir: PathBuf) -> Result<Aside, Fault> {
        let failed = |error: io::Error| Fault::file("emptying", &dir, &error);
        match DirBuilder::new().mode(0o700).create(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
            _ => {}
        }
        let left: io::Result<Vec<PathBuf>> =
            fs::read_dir(&dir).and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
        let left = left.map_err(failed)?;
        let aside = Aside { dir, going: Arc::default() };
        left.into_iter().for_each(|path| aside.behind(path));
        Ok(aside)
    }

    /// Takes a directory away from its place; one that is not there is gone. Its room is free a moment later.
    ///
    /// # Errors
    /// What the kernel says of a removal.
    pub(crate) fn remove(&self, tree: &Path) -> Result<(), Fault> {
        let to = tree.file_name().map(|name| self.dir.join(name));
        match to.filter(|to| fs::rename(tree, to).is_ok()) {
            Some(to) => self.behind(to),
            // It is on another file system, or is not there.
            None => return remove_tree(tree),
        }
        Ok(())
    }

    /// Does what needs room, and once more where there was none but what was taken away gives it back.
    ///
    /// # Errors
    /// What `act` says.
    pub(crate) fn with_room<T>(&self, mut act: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        // Asked before: what is removed meanwhile gives its room back, too.
        let is_going = *self.going.count() > 0;
        match act() {
            Err(error) if error.kind() == io::ErrorKind::StorageFull && is_going => {
                self.settle();
                act()
            }
            other => other,
        }
    }

    /// Waits until all of it is removed.
    fn settle(&self) {
        let mut count = self.going.count();
        while *count > 0 {
            count = self.going.done.wait(count).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Removes what is aside, in a thread of its own.
    fn behind(&self, path: PathBuf) {
        let one = self.going.one();
        let work = {
            let path = path.clone();
            move || {
                let _one = one;
                report(remove_tree(&path));
            }
        };
        if std::thread::Builder::new().name("aside".into()).spawn(work).is_err() {
            report(remove_tree(&path));
        }
    }
}

/// It takes room, and that is all: the next start tries again.
fn report(removed: Result<(), Fault>) {
    if let Err(fault) = removed {
        log::fault("aside", "", &fault);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(path: &Path) {
        fs::create_dir_all(path.join("workspace")).unwrap();
        fs::write(path.join("root.ext4"), [7; 4096]).unwrap();
    }

    fn count(dir: &Path) -> usize {
        fs::read_dir(dir).unwrap().count()
    }

    #[test]
    fn what_is_taken_away_has_left_its_place_at_once_and_its_room_soon() {
        let dir = tempfile::tempdir().unwrap();
        let (gone, vm) = (dir.path().join("gone"), dir.path().join("vm-1"));
        let aside = Aside::open(gone.clone()).unwrap();
        for _ in 0..20 {
            tree(&vm);
            aside.remove(&vm).unwrap();
            assert!(!vm.exists());
            aside.settle();
            assert_eq!(count(&gone), 0);
        }
        aside.remove(&vm).unwrap();
    }

    #[test]
    fn what_an_ended_daemon_left_goes() {
        let dir = tempfile::tempdir().unwrap();
        let gone = dir.path().join("gone");
        tree(&gone.join("vm-1"));
        tree(&gone.join("vm-2"));
        Aside::open(gone.clone()).unwrap().settle();
        assert_eq!(count(&gone), 0);
    }

    #[test]
    fn where_nothing_can_be_moved_it_is_removed_where_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let (gone, vm) = (dir.path().join("gone"), dir.path().join("vm-1"));
        let aside = Aside::open(gone.clone()).unwrap();
        fs::remove_dir(&gone).unwrap();
        tree(&vm);
        aside.remove(&vm).unwrap();
        assert!(!vm.exists());
    }

    #[test]
    fn who_finds_no_room_waits_for_what_gives_it_back() {
        let dir = tempfile::tempdir().unwrap();
        let aside = Aside::open(dir.path().join("gone")).unwrap();
        let full = || Err::<(), _>(io::Error::from(io::ErrorKind::StorageFull));
        let mut tries = 0;
        let mut one = Some(aside.going.one());
        let done = aside.with_room(|| {
            tries += 1;
            let Some(going) = one.take() else { return Ok(()) };
            // It is removed meanwhile, or while he waits.
            std::thread::spawn(move || drop(going));
            full()
        });
        done.unwrap();
        assert_eq!(tries, 2);
        assert_eq!(aside.with_room(full).unwrap_err().kind(), io::ErrorKind::StorageFull);
    }
}
