//! Writes to image files, whole or not at all: the changes are on the disk in a log of root's own before the first of
//! them is put into the image, and a log that is there is finished before anybody uses that image.
//!
//! A log is made of what the worker proposed (`wire::worker::log`) and of the request's bytes, and behind it is the
//! helper's seal, which says for which file it is. It counts from the moment on when it has its name. It is put into no
//! other file than that one, and it is the owner's rights that open it: whatever is in a log, nothing changes but an
//! image that he could have written himself.
//!
//! Much that goes to where nothing counts is put there before, and not into the log.

mod proposal;
mod recover;
mod seal;

use super::holders;
use crate::fail::Fail;
use crate::host::Host;
use crate::places::{Purpose, Unopened};
use crate::steps::Steps;
use proposal::{Proposal, put_file};
use rustix::fs::{FallocateFlags, OFlags};
use seal::{log_name, read_seal, seal};
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use sys::dir::{CallError, Dir, Facts};
use sys::handle::Handle;
use wire::image::NewFile;
use wire::path::HostPath;
use wire::worker::Malformed;
use wire::worker::log::{Change, From, TRAILER, Trailer, finish};

/// Bytes that are copied at once.
const PIECE: usize = 128 << 10;
/// The logs in root's own directory.
pub(super) struct Journal {
    dir: Dir,
    /// Logs that count and are not struck, by name.
    pending: Mutex<HashMap<String, Pending>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pending {
    /// The write goes on.
    Going,
    /// It was cut off.
    CutOff,
}

/// An image file that changes can be put into.
pub(super) struct Image {
    /// Open for reading and writing, with the owner's rights.
    pub(super) file: File,
    pub(super) facts: Facts,
    path: String,
    handle: Handle,
}

/// A log that is being written, or that counts already.
pub(super) struct Log {
    /// Open for reading and writing. The worker writes it.
    pub(super) file: File,
    pub(super) name: String,
}

impl Image {
    /// Opens an image file to change it.
    pub(super) fn open(host: &Host, path: &HostPath) -> Result<Image, Unopened> {
        let file = host.state.open_file(path, Purpose::ReadWrite, &host.owner)?;
        let told = |error| crate::places::unopened(path, &error);
        let (facts, handle) = (Facts::of(&file).map_err(told)?, sys::handle::of(&file).map_err(told)?);
        Ok(Image { file, facts, path: path.as_str().to_owned(), handle })
    }

    /// The name of its log: the same whatever the image is called.
    fn log_name(&self) -> String {
        log_name(&self.handle)
    }
}

impl Log {
    /// What a worker proposes to change in an image of `size` bytes; `log` is the length of what it wrote.
    pub(super) fn proposal(&self, log: u64, size: u64, files: &[NewFile]) -> Result<Proposal, Fail> {
        let read = |at: u64, length: usize| -> Result<Vec<u8>, String> {
            let mut bytes = vec![0; length];
            self.file.read_exact_at(&mut bytes, at).map_err(|error| error.to_string())?;
            Ok(bytes)
        };
        let bad = |malformed: Malformed| malformed.to_string();
        let proposal = || -> Result<Proposal, String> {
            let start = log.checked_sub(TRAILER as u64).ok_or("shorter than a trailer")?;
            let trailer: [u8; TRAILER] = read(start, TRAILER)?.try_into().map_err(|_| "short read")?;
            let trailer = Trailer::decode(&trailer, log, size).map_err(bad)?;
            let lengths: Vec<u64> = files.iter().map(|file| file.data.len() as u64).collect();
            let changes = trailer.changes(&read(trailer.index_at(), trailer.index_length())?, &lengths).map_err(bad)?;
            Ok(Proposal { changes, data: trailer.index_at() })
        };
        proposal().map_err(|cause| Fail::new("the log of changes is none").because(cause))
    }

    /// The size of the image that the changes are for, as the log says. `log` is the length of all before its seal.
    fn image_size(&self, log: u64) -> Result<u64, Fail> {
        let mut trailer = [0; TRAILER];
        let start = log.checked_sub(TRAILER as u64).ok_or_else(|| no_log(&"shorter than a trailer"))?;
        self.file.read_exact_at(&mut trailer, start).map_err(|error| no_log(&error))?;
        Ok(Trailer::image(&trailer))
    }

    /// Puts changes into `image`.
    pub(super) fn put_into(&self, image: &File, changes: &[Change], files: &[NewFile]) -> std::io::Result<()> {
        let logged = changes.iter().filter(|change| matches!(change.from, From::Log { .. }));
        let largest = logged.map(|change| change.length).max().unwrap_or(0);
        // Most writes change some blocks, and to make room for more takes longer than to copy them.
        let mut piece = vec![0; usize::try_from(largest).unwrap_or(PIECE).min(PIECE)];
        for change in changes {
            let at = match change.from {
                From::Log { at } => at,
                From::File { nth, at, .. } => {
                    put_file(image, change.offset, change.length, at, files.get(nth as usize))?;
                    continue;
                }
            };
            let mut done = 0;
            while done < change.length {
                let length = usize::try_from(change.length - done).unwrap_or(PIECE).min(PIECE);
                self.file.read_exact_at(&mut piece[..length], at + done)?;
                image.write_all_at(&piece[..length], change.offset + done)?;
                done += length as u64;
            }
        }
        Ok(())
    }

    /// Makes a proposal a log that needs the request no more, and seals it: its own bytes, those of files behind them,
    /// a new index. Returns its changes.
    fn complete(&self, proposal: Proposal, files: &[NewFile], image: &Image) -> Result<Vec<Change>, Fail> {
        let Proposal { mut changes, data: mut end } = proposal;
        let failed = |error: std::io::Error| match error.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => {
                Fail::new("the helper's own directory (lib_dir) has no room for the changes").because(error)
            }
            _ => no_log(&error),
        };
        // The worker's index goes; where nothing is written over it no byte of it may stay behind the seal.
        self.file.set_len(end).map_err(failed)?;
        for change in &mut changes {
            if let From::File { nth, at, .. } = change.from {
                put_file(&self.file, end, change.length, at, files.get(nth as usize)).map_err(failed)?;
                change.from = From::Log { at: end };
                end += change.length;
            }
        }
        // What stands together in the log and in the image is put there at once.
        changes.dedup_by(|next, last| {
            let (From::Log { at: next_at }, From::Log { at }) = (next.from, last.from) else { return false };
            let meets = (last.offset + last.length, at + last.length) == (next.offset, next_at);
            last.length += if meets { next.length } else { 0 };
            meets
        });
        let too_much = || Fail::new("the write changes more of the image than is taken at once");
        let mut tail = finish(&changes, end, image.facts.size).ok_or_else(too_much)?;
        tail.extend(seal(end + tail.len() as u64, &image.path, &image.handle));
        self.file.write_all_at(&tail, end).map_err(failed)?;
        self.file.sync_data().map_err(failed)?;
        Ok(changes)
    }
}

impl Journal {
    pub(super) fn new(dir: Dir) -> Journal {
        Journal { dir, pending: Mutex::default() }
    }

    fn pending(&self) -> MutexGuard<'_, HashMap<String, Pending>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new log for an image, which counts for nothing yet.
    ///
    /// Logs that can't be finished take root's room, and the owner can see to it that they can't: they are counted.
    pub(super) fn begin(&self, host: &Host, image: &Image) -> Result<Log, Fail> {
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
        let name = image.log_name();
        let file = self.new_file(&fresh(&name))?;
        Ok(Log { file, name })
    }

    /// Takes away a log that counts for nothing, where it is still there.
    pub(super) fn abandon(&self, name: &str) -> Result<(), Fail> {
        self.dir.unlink(&fresh(name)).map(drop).map_err(|error| no_log(&error))
    }

    /// A file without a name, for changes that are put in their places at once.
    pub(super) fn unnamed(&self) -> Result<Log, Fail> {
        let name = format!(".unnamed-{:?}", std::thread::current().id());
        let file = self.new_file(&name)?;
        self.dir.unlink(&name).map_err(|error| no_log(&error))?;
        Ok(Log { file, name })
    }

    fn new_file(&self, name: &str) -> Result<File, Fail> {
        // What an earlier helper, or an earlier attempt, left there.
        self.dir.unlink(name).map_err(|error| no_log(&error))?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        self.dir.open_at(name, flags, 0o600).map(File::from).map_err(|error| no_log(&error))
    }

    /// Makes the changes certain, then puts them in their places.
    ///
    /// Behind the step `commit` they are made, by this helper or by a later one; before it nothing that counts has
    /// changed: what is put into the image by the step `data` goes to where nothing counts.
    pub(super) fn carry_out(
        &self,
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
        let changes = steps.act("seal", || written.complete(proposal, files, image))?;
        steps.act("commit", || self.commit(&written.name))?;
        self.pending().insert(written.name.clone(), Pending::Going);
        let later = |fail: Fail| {
            self.pending().insert(written.name.clone(), Pending::CutOff);
            let message = format!("{}; the helper finishes it before the image is used next", fail.message);
            Fail { message, ..fail }
        };
        steps.act("apply", || written.put_into(&image.file, &changes, &[]).map_err(failed("pwrite"))).map_err(later)?;
        steps.act("sync", || image.file.sync_data().map_err(failed("fdatasync"))).map_err(later)?;
        steps.act("strike", || self.strike(&written.name)).map_err(later)
    }

    /// Gives the log its name. From then on it counts.
    fn commit(&self, name: &str) -> Result<(), Fail> {
        self.dir.rename(&fresh(name), name).map_err(|error| no_log(&error))?;
        self.sync().inspect_err(|_| {
            // It may count or not, so it must not: what fails here is found by the next start.
            let _ = self.dir.unlink(name);
        })
    }

    /// Takes a finished log away, for good: one that came back behind a loss of power would undo what came after it.
    fn strike(&self, name: &str) -> Result<(), Fail> {
        self.dir.unlink(name).map_err(|error| no_log(&error))?;
        self.sync()?;
        self.pending().remove(name);
        Ok(())
    }

    fn sync(&self) -> Result<(), Fail> {
        let synced = self.dir.open_at(".", OFlags::RDONLY | OFlags::DIRECTORY, 0).map(File::from);
        synced
            .map_err(|error| no_log(&error))?
            .sync_all()
            .map_err(|error| no_log(&format!("fsync(<lib_dir>): {error}")))
    }

    /// Whether a log of the file is to be finished. While no write of it goes on, it stays so.
    pub(super) fn has_log_of(&self, file: impl AsFd) -> Result<bool, CallError> {
        Ok(!self.pending().is_empty() && self.pending().contains_key(&log_name(&sys::handle::of(file)?)))
    }

    fn cut_off(&self) -> usize {
        self.pending().values().filter(|&&pending| pending == Pending::CutOff).count()
    }

    /// Finishes what was committed for the image and is not in its place. To be called when no other request uses it;
    /// where a loop device or a VM has it, it is not changed under it.
    pub(super) fn finish(&self, host: &Host, image: &Image) -> Result<(), Fail> {
        let name = image.log_name();
        if !self.pending().contains_key(&name) {
            return Ok(());
        }
        self.replay(host, &name, image).map(drop).map_err(|fail| {
            let message = format!("an earlier write of this image can't be finished: {}", fail.message);
            Fail { message, ..fail }
        })
    }

    /// Puts a log that counts into its image, and takes it away.
    fn replay(&self, host: &Host, name: &str, image: &Image) -> Result<Recovered, Fail> {
        let file = match self.dir.open_at(name, OFlags::RDWR, 0) {
            // Whoever may do that took it away: an administrator, or this helper, whose fsync(2) failed behind it.
            Err(error) if error.is_missing() => return self.drop_log(name, &image.path, "somebody removed its log"),
            opened => opened.map(File::from).map_err(|error| no_log(&error))?,
        };
        let (_, handle, log) = read_seal(&file).ok_or_else(|| no_log(&"its seal is broken"))?;
        if handle != image.handle {
            return Err(no_log(&"it is another file's"));
        }
        let holders = holders::of_file(host, (&image.facts).into())?;
        if !holders.is_empty() {
            return Err(Fail::new(format!("{} has it; end that first", holders::named(&holders))));
        }
        let written = Log { file, name: name.to_owned() };
        let size = written.image_size(log)?;
        if image.facts.size < size {
            return self.drop_log(name, &image.path, "the image was made smaller");
        }
        // One that grew has all the places that the changes go to.
        let changes = written.proposal(log, size, &[])?.changes;
        let failed = |error: std::io::Error| match error.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => {
                Fail::new("the host's disk has no room for it: make some, or delete the image").because(error)
            }
            _ => Fail::new("the changes can't be put into the image").because(error),
        };
        written.put_into(&image.file, &changes, &[]).map_err(failed)?;
        image.file.sync_data().map_err(failed)?;
        self.strike(name)?;
        Ok(Recovered::Finished(image.path.clone()))
    }

    fn drop_log(&self, name: &str, path: &str, why: &str) -> Result<Recovered, Fail> {
        self.strike(name)?;
        Ok(Recovered::Dropped(path.to_owned(), why.to_owned()))
    }
}

/// What became of a log.
enum Recovered {
    Finished(String),
    Dropped(String, String),
    /// Its image is not where it was, and may be used elsewhere.
    Away(String, String),
}

/// A log's name while it counts for nothing.
fn fresh(name: &str) -> String {
    format!(".{name}.new")
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
