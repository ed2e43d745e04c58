//! The files that logs are in. One whose log is done with is kept for the next: its name and its room are on the disk
//! already, so that a log costs one flush to be made, and one to be struck.

use super::log::Log;
use super::no_log;
use super::seal::{HEAD, NONE, Seal};
use crate::fail::Fail;
use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use sys::dir::{CallError, Dir, Facts};

/// So much room a file keeps; most logs need a tenth of it.
const ROOM: u64 = 1 << 20;

/// A file that a log is in. It is locked for as long as it is open: it is one helper's.
pub(super) struct Kept {
    pub(super) log: Log,
    pub(super) name: String,
    /// Whether its log counts no more, be that on the disk already or not.
    struck: AtomicBool,
}

/// Root's own directory, and the files there that have no log.
pub(super) struct Shelf {
    pub(super) dir: Dir,
    idle: Mutex<Vec<Kept>>,
}

impl Kept {
    /// A file, if no other helper has it. The lock is the process's: a child that has the descriptor for a moment has
    /// none.
    fn lock(file: File, name: &str) -> Result<Option<Kept>, Fail> {
        // A helper that was killed a moment ago may still be going.
        for _ in 0..20 {
            match rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {
                    let log = Log { file, begin: HEAD };
                    return Ok(Some(Kept { log, name: name.to_owned(), struck: AtomicBool::new(false) }));
                }
                Err(Errno::ACCESS | Errno::AGAIN) => std::thread::sleep(Duration::from_millis(25)),
                Err(errno) => return Err(no_log(&CallError::new(format!("fcntl({name}, F_SETLK)"), errno))),
            }
        }
        Ok(None)
    }

    /// Whether it has a name still. What has none is found by no other helper.
    pub(super) fn has_name(&self) -> bool {
        Facts::of(&self.log.file).is_ok_and(|facts| facts.nlink > 0)
    }

    /// Whether its log counts no more.
    pub(super) fn is_struck(&self) -> bool {
        self.struck.load(Ordering::Acquire)
    }

    /// Seals its log, which all is there of, and puts it on the disk. From then on it counts.
    pub(super) fn commit(&self, seal: &Seal) -> Result<(), Fail> {
        self.log.file.write_all_at(&seal.encode(), 0).map_err(|error| no_log(&error))?;
        self.flush()
    }

    pub(super) fn flush(&self) -> Result<(), Fail> {
        self.log.file.sync_data().map_err(|error| no_log(&format!("fdatasync({}): {error}", self.name)))
    }

    fn clear(&self) -> Result<(), Fail> {
        self.log.file.write_all_at(&NONE, 0).map_err(|error| no_log(&error))?;
        if Facts::of(&self.log.file).map_err(|error| no_log(&error))?.size > ROOM {
            self.log.file.set_len(ROOM).map_err(|error| no_log(&error))?;
        }
        self.flush()
    }
}

impl Shelf {
    pub(super) fn new(dir: Dir) -> Shelf {
        Shelf { dir, idle: Mutex::default() }
    }

    /// A file without a log, on the disk under its name.
    pub(super) fn take(&self) -> Result<Kept, Fail> {
        loop {
            let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            match idle {
                // Somebody who may do that took it away.
                Some(kept) if !kept.has_name() => {}
                Some(kept) => {
                    kept.struck.store(false, Ordering::Release);
                    return Ok(kept);
                }
                None => return self.make(),
            }
        }
    }

    fn make(&self) -> Result<Kept, Fail> {
        for nth in 0_u64.. {
            let name = format!("write-{nth}.log");
            let file = match self.dir.open_at(&name, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL, 0o600) {
                Err(error) if error.errno() == Errno::EXIST => continue,
                opened => opened.map(File::from).map_err(|error| no_log(&error))?,
            };
            // Another helper that starts in this moment may have had it first, and taken it away.
            if let Some(kept) = Kept::lock(file, &name)?.filter(Kept::has_name) {
                return self.flush().map(|()| kept).inspect_err(|_| drop(self.dir.unlink(&name)));
            }
        }
        Err(no_log(&"no name is free"))
    }

    /// Opens a file that is there, if no other helper has it.
    pub(super) fn open(&self, name: &str) -> Result<Option<Kept>, Fail> {
        let file = self.dir.open_at(name, OFlags::RDWR, 0).map(File::from).map_err(|error| no_log(&error))?;
        Kept::lock(file, name)
    }

    /// Strikes a log, for good: one that came back behind a loss of power would undo what came after it.
    pub(super) fn strike(&self, kept: &Kept) -> Result<(), Fail> {
        kept.struck.store(true, Ordering::Release);
        // Where a file can't be written over (a disk that is full and never writes in place) it can go.
        kept.clear().or_else(|fail| {
            let gone = !kept.has_name() || self.dir.unlink(&kept.name).is_ok();
            if gone && self.flush().is_ok() { Ok(()) } else { Err(fail) }
        })
    }

    /// Keeps a file whose log is struck, where there are not `most` of them.
    pub(super) fn keep(&self, kept: Kept, most: usize) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < most {
            idle.push(kept);
        } else {
            drop(idle);
            self.discard(&kept);
        }
    }

    /// Takes a file away that has no log, or one that is struck.
    pub(super) fn discard(&self, kept: &Kept) {
        // What stays there counts for nothing, and is gone with the next start.
        if kept.has_name() {
            let _ = self.dir.unlink(&kept.name);
        }
    }

    fn flush(&self) -> Result<(), Fail> {
        let dir = self.dir.open_at(".", OFlags::RDONLY | OFlags::DIRECTORY, 0).map(File::from);
        dir.map_err(|error| no_log(&error))?.sync_all().map_err(|error| no_log(&format!("fsync(<lib_dir>): {error}")))
    }
}
