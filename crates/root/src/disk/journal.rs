//! Writes to image files, whole or not at all: the changes are on the disk in a log of root's own before the first of
//! them is put into the image, and a log that is there is finished before anybody uses that image.
//!
//! A log is what the worker wrote (`wire::worker::log`), and behind it the helper's seal, which says for which file it
//! is. It counts from the moment on when it has its name. It is put into no other file than that one, and it is the
//! owner's rights that open it: whatever is in a log, nothing changes but an image that he could have written himself.

use crate::fail::Fail;
use crate::host::Host;
use crate::log::{Level, Value};
use crate::places::{Purpose, Unopened};
use crate::steps::Steps;
use rustix::fs::{FallocateFlags, OFlags};
use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use sys::dir::{CallError, Dir, Facts};
use sys::handle::Handle;
use wire::code::Code;
use wire::path::{HostPath, Root};
use wire::worker::Malformed;
use wire::worker::log::{Change, TRAILER, Trailer, crc32c};

const MAGIC: [u8; 8] = *b"bngr-for";
/// Behind path and handle: their lengths, the handle's kind, the worker's log's length, a checksum, the magic.
const SEAL_END: usize = 2 + 2 + 4 + 8 + 4 + 8;
/// Bytes that are copied at once.
const PIECE: usize = 128 << 10;

/// The logs in root's own directory.
pub(super) struct Journal {
    dir: Dir,
    /// Logs that count and are not finished, by name. Hardly ever one.
    pending: Mutex<HashSet<String>>,
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
        let Handle { kind, bytes } = &self.handle;
        // A name has 255 bytes.
        let hex: String = bytes.iter().take(96).map(|byte| format!("{byte:02x}")).collect();
        format!("write-{kind:x}-{hex}.log")
    }
}

impl Log {
    /// What is to be changed in an image of `size` bytes. `log` is the length of the worker's part.
    pub(super) fn changes(&self, log: u64, size: u64) -> Result<Vec<Change>, Fail> {
        let read = |at: u64, length: usize| -> Result<Vec<u8>, String> {
            let mut bytes = vec![0; length];
            self.file.read_exact_at(&mut bytes, at).map_err(|error| error.to_string())?;
            Ok(bytes)
        };
        let bad = |malformed: Malformed| malformed.to_string();
        let changes = || -> Result<Vec<Change>, String> {
            let start = log.checked_sub(TRAILER as u64).ok_or("shorter than a trailer")?;
            let trailer: [u8; TRAILER] = read(start, TRAILER)?.try_into().map_err(|_| "short read")?;
            let trailer = Trailer::decode(&trailer, log, size).map_err(bad)?;
            trailer.changes(&read(trailer.index_at(), trailer.index_length())?).map_err(bad)
        };
        changes().map_err(|cause| Fail::new("the log of changes is none").because(cause))
    }

    /// Puts all changes into `image`.
    pub(super) fn put_into(&self, image: &File, changes: &[Change]) -> std::io::Result<()> {
        let mut piece = vec![0; PIECE];
        for change in changes {
            let mut done = 0;
            while done < change.length {
                let length = usize::try_from(change.length - done).unwrap_or(PIECE).min(PIECE);
                self.file.read_exact_at(&mut piece[..length], change.at + done)?;
                image.write_all_at(&piece[..length], change.offset + done)?;
                done += length as u64;
            }
        }
        Ok(())
    }

    fn seal(&self, log: u64, image: &Image) -> std::io::Result<()> {
        self.file.write_all_at(&seal(log, &image.path, &image.handle), log)?;
        self.file.sync_data()
    }
}

/// What stands behind the worker's part of a log.
fn seal(log: u64, path: &str, handle: &Handle) -> Vec<u8> {
    let mut bytes = path.as_bytes().to_vec();
    bytes.extend(&handle.bytes);
    let length = |length: usize| u16::try_from(length).unwrap_or(u16::MAX).to_le_bytes();
    bytes.extend(length(path.len()));
    bytes.extend(length(handle.bytes.len()));
    bytes.extend(handle.kind.to_le_bytes());
    bytes.extend(log.to_le_bytes());
    let sum = crc32c(!0, &bytes);
    bytes.extend(sum.to_le_bytes());
    bytes.extend(MAGIC);
    bytes
}

/// For which file a log is: its path, its handle, and the length of the worker's part.
type Sealed = (String, Handle, u64);

fn read_seal(file: &File) -> Option<Sealed> {
    let size = Facts::of(file).ok()?.size;
    let at = |length: usize| size.checked_sub(length as u64);
    let mut end = [0; SEAL_END];
    file.read_exact_at(&mut end, at(SEAL_END)?).ok()?;
    let (path, rest) = end.split_first_chunk::<2>()?;
    let (handle, _) = rest.split_first_chunk::<2>()?;
    let (path, handle) = (usize::from(u16::from_le_bytes(*path)), usize::from(u16::from_le_bytes(*handle)));
    let mut whole = vec![0; path + handle + SEAL_END];
    let log = at(whole.len())?;
    file.read_exact_at(&mut whole, log).ok()?;
    let text = std::str::from_utf8(whole.get(..path)?).ok()?.to_owned();
    let kind = i32::from_le_bytes(*whole.get(path + handle + 4..)?.first_chunk()?);
    let handle = Handle { kind, bytes: whole.get(path..path + handle)?.to_vec() };
    // Made again: so each of its bytes is as it must be.
    (seal(log, &text, &handle) == whole).then_some((text, handle, log))
}

impl Journal {
    pub(super) fn new(dir: Dir) -> Journal {
        Journal { dir, pending: Mutex::default() }
    }

    fn pending(&self) -> MutexGuard<'_, HashSet<String>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new log for an image, which counts for nothing yet.
    pub(super) fn begin(&self, image: &Image) -> Result<Log, Fail> {
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

    /// Makes the changes certain, then puts them in their places. `log` is the length of the worker's part.
    ///
    /// Behind the step `commit` they are made, by this helper or by a later one; before it nothing has changed.
    pub(super) fn carry_out(&self, steps: &mut Steps<'_>, image: &Image, written: &Log, log: u64) -> Result<(), Fail> {
        let changes = written.changes(log, image.facts.size)?;
        steps.act("room", || make_room(image, &changes))?;
        steps.act("seal", || written.seal(log, image).map_err(|error| no_log(&error)))?;
        steps.act("commit", || self.commit(&written.name))?;
        self.pending().insert(written.name.clone());
        let later = |fail: Fail| {
            let message = format!("{}; the helper finishes it before the image is used next", fail.message);
            Fail { message, ..fail }
        };
        let failed = |call: &'static str| {
            move |error: std::io::Error| {
                Fail::new("the changes can't be put into the image").because(format!("{call}: {error}"))
            }
        };
        steps.act("apply", || written.put_into(&image.file, &changes).map_err(failed("pwrite"))).map_err(later)?;
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

    /// Whether any log is to be finished.
    pub(super) fn has_pending(&self) -> bool {
        !self.pending().is_empty()
    }

    /// Finishes what was committed for the image at `path` and is not in its place. To be called when nobody else uses
    /// the image.
    pub(super) fn finish(&self, host: &Host, path: &HostPath) -> Result<(), Fail> {
        if self.pending().is_empty() {
            return Ok(());
        }
        let image = Image::open(host, path)?;
        let name = image.log_name();
        if !self.pending().contains(&name) {
            return Ok(());
        }
        self.replay(&name, &image).map_err(|fail| {
            let message = format!("an earlier write of this image can't be finished: {}", fail.message);
            Fail { message, ..fail }
        })
    }

    fn replay(&self, name: &str, image: &Image) -> Result<(), Fail> {
        let file = self.dir.open_at(name, OFlags::RDWR, 0).map(File::from).map_err(|error| no_log(&error))?;
        let (_, handle, log) = read_seal(&file).ok_or_else(|| no_log(&"its seal is broken"))?;
        if handle != image.handle {
            return Err(no_log(&"it is another file's"));
        }
        let written = Log { file, name: name.to_owned() };
        let changes = written.changes(log, image.facts.size)?;
        let failed = |error: std::io::Error| Fail::new("the changes can't be put into the image").because(error);
        written.put_into(&image.file, &changes).map_err(failed)?;
        image.file.sync_data().map_err(failed)?;
        self.strike(name)
    }

    /// What an earlier helper left: what was not committed is removed, the rest finished. To be called before there are
    /// requests.
    pub(super) fn recover(&self, host: &Host) {
        let tell = |level: Level, message: &str, name: &str, causes: &[String]| {
            let fields = [("name", Value::Text(name, 256)), ("cause", Value::List(causes, 1024))];
            host.log.own(level, message, &fields);
        };
        let names = match self.dir.names() {
            Ok(names) => names,
            Err(error) => return tell(Level::Error, "logs of writes can't be read", "", &[error.to_string()]),
        };
        for name in names {
            if name.starts_with(".write-") || name.starts_with(".unnamed-") {
                // Nothing of it counts, whether it can be removed or not.
                let _ = self.dir.unlink(&name);
            } else if name.starts_with("write-") {
                match self.recover_one(host, &name) {
                    Ok(Recovered::Finished(path)) => tell(Level::Info, "write of an image finished", &path, &[]),
                    Ok(Recovered::Dropped(path, why)) => {
                        tell(Level::Warn, "write of an image dropped, it is gone", &path, &[why]);
                    }
                    Err(fail) => {
                        self.pending().insert(name.clone());
                        tell(
                            Level::Error,
                            "write of an image can't be finished",
                            &name,
                            &[vec![fail.message], fail.causes].concat(),
                        );
                    }
                }
            }
        }
    }

    fn recover_one(&self, host: &Host, name: &str) -> Result<Recovered, Fail> {
        let file = self.dir.open_at(name, OFlags::RDONLY, 0).map(File::from).map_err(|error| no_log(&error))?;
        let dropped = |path: &str, why: &str| {
            self.strike(name)?;
            Ok(Recovered::Dropped(path.to_owned(), why.to_owned()))
        };
        let Some((path, handle, _)) = read_seal(&file) else {
            return dropped(name, "its seal is broken");
        };
        let at = HostPath::new(&path, &[Root::State], &host.settings.roots, Code::OperationFailed, "image_path");
        let Ok(at) = at else {
            return dropped(&path, "it is not below the state directory");
        };
        let image = match Image::open(host, &at) {
            Ok(image) => image,
            Err(unopened) if unopened.why != crate::places::Why::Failed => {
                return dropped(&path, &Fail::from(unopened).message);
            }
            Err(unopened) => return Err(unopened.into()),
        };
        if image.handle != handle {
            return dropped(&path, "another file has its name");
        }
        self.replay(name, &image)?;
        Ok(Recovered::Finished(path))
    }
}

enum Recovered {
    Finished(String),
    Dropped(String, String),
}

/// A log's name while it counts for nothing.
fn fresh(name: &str) -> String {
    format!(".{name}.new")
}

fn no_log(cause: &dyn std::fmt::Display) -> Fail {
    Fail::new("the log of changes can't be kept; the helper's log says why").because(cause)
}

/// Where the image has holes, the file system gives it room for the changes now: behind the commit it would be too late.
fn make_room(image: &Image, changes: &[Change]) -> Result<(), Fail> {
    let stat = rustix::fs::fstat(&image.file).map_err(|errno| no_room(&CallError::new("fstat", errno)))?;
    if stat.st_blocks.cast_unsigned().saturating_mul(512) >= image.facts.size {
        return Ok(());
    }
    for change in changes {
        match rustix::fs::fallocate(&image.file, FallocateFlags::KEEP_SIZE, change.offset, change.length) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seal_is_whole_or_none() {
        let dir = tempfile::tempdir().unwrap();
        let file =
            File::options().read(true).write(true).create(true).truncate(true).open(dir.path().join("log")).unwrap();
        let handle = Handle { kind: 1, bytes: vec![1, 2, 3, 4, 5, 6, 7, 8] };
        let sealed = seal(100, "/var/lib/banger/a.ext4", &handle);
        file.write_all_at(&sealed, 100).unwrap();
        assert_eq!(read_seal(&file), Some(("/var/lib/banger/a.ext4".to_owned(), handle, 100)));
        for at in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[at] ^= 1;
            file.write_all_at(&bad, 100).unwrap();
            assert_eq!(read_seal(&file), None, "byte {at}");
        }
        file.write_all_at(&sealed, 100).unwrap();
        file.set_len(100 + sealed.len() as u64 + 1).unwrap();
        assert_eq!(read_seal(&file), None);
        file.set_len(9).unwrap();
        assert_eq!(read_seal(&file), None);
    }
}
