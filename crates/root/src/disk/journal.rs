//! Writes to image files, whole or not at all: the changes are on the disk in a log of root's own before the first of
//! them is put into the image, and a log that is there is finished before anybody uses that image.
//!
//! A log is made of what the worker proposed (`wire::worker::log`) and of the request's bytes; the helper's seal says for
//! which file it is, and whether all of it is there. It counts from the moment on when it is sealed, until its seal is
//! written over. It is put into no other file than that one, and it is the owner's rights that open it: whatever is in a
//! log, nothing changes but an image that he could have written himself.
//!
//! Much that goes to where nothing counts is put there before, and not into the log.

mod kept;
mod log;
mod proposal;
mod recover;
mod seal;

use super::holders;
use crate::fail::Fail;
use crate::host::Host;
use crate::places::{Purpose, Unopened};
use crate::steps::Steps;
use kept::{Kept, Shelf};
pub(super) use log::Log;
use proposal::Proposal;
use rustix::fs::{FallocateFlags, OFlags};
use seal::{Body, Seal};
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use sys::dir::{CallError, Dir, Facts};
use sys::handle::Handle;
use wire::image::NewFile;
use wire::path::HostPath;
use wire::worker::log::Change;

/// The logs in root's own directory.
pub(super) struct Journal {
    shelf: Shelf,
    /// Logs that count and are not struck, by the keys of their images.
    pending: Mutex<HashMap<String, Pending>>,
}

#[derive(Clone)]
struct Pending {
    kept: Arc<Kept>,
    /// Whether its write was cut off, or goes on.
    is_cut_off: bool,
}

/// An image file that changes can be put into.
pub(super) struct Image {
    /// Open for reading and writing, with the owner's rights.
    pub(super) file: File,
    pub(super) facts: Facts,
    path: String,
    handle: Handle,
}

impl Image {
    /// Opens an image file to change it.
    pub(super) fn open(host: &Host, path: &HostPath) -> Result<Image, Unopened> {
        let file = host.state.open_file(path, Purpose::ReadWrite, &host.owner)?;
        let told = |error| crate::places::unopened(path, &error);
        let (facts, handle) = (Facts::of(&file).map_err(told)?, sys::handle::of(&file).map_err(told)?);
        Ok(Image { file, facts, path: path.as_str().to_owned(), handle })
    }

    /// The key of its log: the same whatever the image is called.
    fn key(&self) -> String {
        seal::key(&self.handle)
    }
}

impl Journal {
    pub(super) fn new(dir: Dir) -> Journal {
        Journal { shelf: Shelf::new(dir), pending: Mutex::default() }
    }

    fn pending(&self) -> MutexGuard<'_, HashMap<String, Pending>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether one more write may begin.
    ///
    /// Logs that can't be finished take root's room, and the owner can see to it that they can't: they are counted.
    pub(super) fn has_room(&self, host: &Host) -> Result<(), Fail> {
        let most = host.settings.limits.image_logs;
        if self.cut_off() >= most {
            self.drop_those_of_no_image(host);
        }
        if self.cut_off() >= most {
            return Err(Fail::new(format!(
                "{most} writes of images were cut off and can't be finished (limits.image_logs): read those images, \
                 which says what is in the way, or delete them"
            )));
        }
        Ok(())
    }

    /// A file without a name, for what a worker proposes: it counts for nothing.
    pub(super) fn unnamed(&self) -> Result<Log, Fail> {
        let name = format!(".unnamed-{:?}", std::thread::current().id());
        let dir = &self.shelf.dir;
        // What an earlier helper, or an earlier attempt, left there.
        dir.unlink(&name).map_err(|error| no_log(&error))?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let file = dir.open_at(&name, flags, 0o600).map(File::from).map_err(|error| no_log(&error))?;
        dir.unlink(&name).map_err(|error| no_log(&error))?;
        Ok(Log { file, begin: 0 })
    }

    /// Makes the changes certain, then puts them in their places.
    ///
    /// Behind the step `commit` they are made, by this helper or by a later one; before it nothing that counts has
    /// changed: what is put into the image by the step `data` goes to where nothing counts.
    pub(super) fn carry_out(
        &self,
        host: &Host,
        steps: &mut Steps<'_>,
        image: &Image,
        written: &Log,
        mut proposal: Proposal,
        files: &[NewFile],
    ) -> Result<(), Fail> {
        steps.act("room", || make_room(image, &proposal.changes))?;
        let early = proposal.take_early();
        let data = || {
            if !early.is_empty() {
                written.put_into(&image.file, &early, files).map_err(failed("pwrite"))?;
                image.file.sync_data().map_err(failed("fdatasync"))?;
            }
            Ok(())
        };
        steps.act("data", data)?;
        let (kept, changes, body) = steps.act("seal", || self.fill(image, written, proposal, files))?;
        let (kept, key) = (Arc::new(kept), image.key());
        let seal = Seal { path: image.path.clone(), handle: image.handle.clone(), body };
        self.pending().insert(key.clone(), Pending { kept: Arc::clone(&kept), is_cut_off: false });
        let cut_off = || {
            self.pending().insert(key.clone(), Pending { kept: Arc::clone(&kept), is_cut_off: true });
        };
        steps.act("commit", || kept.commit(&seal)).inspect_err(|_| {
            // It may count or not, so it must not; until that is certain it waits as one that is struck.
            match self.strike(&key, &kept) {
                Ok(()) => self.shelf.discard(&kept),
                Err(_) => cut_off(),
            }
        })?;
        let later = |fail: Fail| {
            cut_off();
            let message = format!("{}; the helper finishes it before the image is used next", fail.message);
            Fail { message, ..fail }
        };
        steps
            .act("apply", || kept.log.put_into(&image.file, &changes, &[]).map_err(failed("pwrite")))
            .map_err(later)?;
        steps.act("sync", || image.file.sync_data().map_err(failed("fdatasync"))).map_err(later)?;
        steps.act("strike", || self.strike(&key, &kept)).map_err(later)?;
        // One that was ever cut off is not kept: who drops it may still have it in hand.
        if let Some(kept) = Arc::into_inner(kept) {
            self.shelf.keep(kept, host.settings.limits.image_workers);
        }
        Ok(())
    }

    /// A log of the proposal, which has no seal.
    fn fill(
        &self,
        image: &Image,
        written: &Log,
        proposal: Proposal,
        files: &[NewFile],
    ) -> Result<(Kept, Vec<Change>, Body), Fail> {
        let kept = self.shelf.take()?;
        match kept.log.complete(written, proposal.changes, files, image.facts.size) {
            Ok((changes, body)) => Ok((kept, changes, body)),
            Err(fail) => {
                self.shelf.discard(&kept);
                Err(fail)
            }
        }
    }

    /// Strikes a log, which counts no more.
    fn strike(&self, key: &str, kept: &Kept) -> Result<(), Fail> {
        self.shelf.strike(kept)?;
        let mut pending = self.pending();
        if pending.get(key).is_some_and(|pending| std::ptr::eq(&*pending.kept, kept)) {
            pending.remove(key);
        }
        Ok(())
    }

    /// Whether a log of the file is to be finished. While no write of it goes on, it stays so.
    pub(super) fn has_log_of(&self, file: impl AsFd) -> Result<bool, CallError> {
        Ok(!self.pending().is_empty() && self.pending().contains_key(&seal::key(&sys::handle::of(file)?)))
    }

    fn cut_off(&self) -> usize {
        self.pending().values().filter(|pending| pending.is_cut_off).count()
    }

    /// Finishes what was committed for the image and is not in its place. To be called when no other request uses it;
    /// where a loop device or a VM has it, it is not changed under it.
    pub(super) fn finish(&self, host: &Host, image: &Image) -> Result<(), Fail> {
        let key = image.key();
        let Some(Pending { kept, .. }) = self.pending().get(&key).cloned() else { return Ok(()) };
        self.replay(host, &key, &kept, image).map(drop).map_err(|fail| {
            let message = format!("an earlier write of this image can't be finished: {}", fail.message);
            Fail { message, ..fail }
        })
    }

    /// Puts a log that counts into its image, and takes it away.
    fn replay(&self, host: &Host, key: &str, kept: &Kept, image: &Image) -> Result<Recovered, Fail> {
        let finished = || Recovered::Finished(image.path.clone());
        if kept.is_struck() {
            // All was in its place but that.
            return self.end(key, kept).map(|()| finished());
        }
        // Whoever may do that took it away: an administrator.
        if !kept.has_name() {
            return self.drop_log(key, kept, &image.path, "somebody removed its log");
        }
        let seal = Seal::read(&kept.log.file).ok_or_else(|| no_log(&"its seal is broken"))?;
        if seal.handle != image.handle {
            return Err(no_log(&"it is another file's"));
        }
        let holders = holders::of_file(host, (&image.facts).into())?;
        if !holders.is_empty() {
            return Err(Fail::new(format!("{} has it; end that first", holders::named(&holders))));
        }
        let (log, length) = (&kept.log, seal.body.length);
        let size = log.image_size(length)?;
        if image.facts.size < size {
            return self.drop_log(key, kept, &image.path, "the image was made smaller");
        }
        // One that grew has all the places that the changes go to.
        let changes = log.proposal(length, size, &[])?.changes;
        let failed = |error: std::io::Error| match error.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => {
                Fail::new("the host's disk has no room for it: make some, or delete the image").because(error)
            }
            _ => Fail::new("the changes can't be put into the image").because(error),
        };
        // Who sealed it may have ended before it was on the disk.
        kept.flush()?;
        log.put_into(&image.file, &changes, &[]).map_err(failed)?;
        image.file.sync_data().map_err(failed)?;
        self.end(key, kept).map(|()| finished())
    }

    fn drop_log(&self, key: &str, kept: &Kept, path: &str, why: &str) -> Result<Recovered, Fail> {
        self.end(key, kept)?;
        Ok(Recovered::Dropped(path.to_owned(), why.to_owned()))
    }

    /// Strikes a log that was cut off, and takes its file away.
    fn end(&self, key: &str, kept: &Kept) -> Result<(), Fail> {
        self.strike(key, kept)?;
        self.shelf.discard(kept);
        Ok(())
    }
}

/// What became of a log.
enum Recovered {
    Finished(String),
    Dropped(String, String),
    /// Its image is not where it was, and may be used elsewhere.
    Away(String, String),
}

fn no_log(cause: &dyn std::fmt::Display) -> Fail {
    Fail::new("the log of changes can't be kept; the helper's log says why").because(cause)
}

fn failed(call: &'static str) -> impl Fn(std::io::Error) -> Fail {
    move |error| Fail::new("the changes can't be put into the image").because(format!("{call}: {error}"))
}

/// Where the image has holes, the file system gives it room for the changes now: behind the commit it would be too late.
fn make_room(image: &Image, changes: &[Change]) -> Result<(), Fail> {
    let stat = rustix::fs::fstat(&image.file).map_err(|errno| no_room(&CallError::new("fstat", errno)))?;
    if stat.st_blocks.cast_unsigned().saturating_mul(512) >= image.facts.size {
        return Ok(());
    }
    let mut ranges: Vec<(u64, u64)> = changes.iter().map(|change| (change.offset, change.length)).collect();
    ranges.sort_unstable();
    ranges.dedup_by(|next, last| {
        let meets = last.0 + last.1 == next.0;
        last.1 += if meets { next.1 } else { 0 };
        meets
    });
    for (offset, length) in ranges {
        match rustix::fs::fallocate(&image.file, FallocateFlags::KEEP_SIZE, offset, length) {
            Ok(()) => {}
            // Then it can't be had beforehand.
            Err(rustix::io::Errno::OPNOTSUPP) => return Ok(()),
            Err(errno) => return Err(no_room(&CallError::new("fallocate(<image>)", errno))),
        }
    }
    Ok(())
}

fn no_room(cause: &CallError) -> Fail {
    Fail::new("the host's disk has no room for the changes of the image").because(cause)
}
