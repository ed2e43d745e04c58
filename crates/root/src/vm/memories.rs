//! The memory of saved VMs, held once for all that begin with it: a copy in the kernel that nobody can change, which each
//! VMM maps for itself. Made at the first restore, and gone when nobody has used it for a while, or its file has changed.

use crate::fail::Fail;
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags, SeekFrom};
use rustix::io::Errno;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What is copied at once.
const PIECE: usize = 1 << 20;
/// Bytes of a page of memory.
const PAGE: u64 = 4096;

/// How much is held, and for how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Memories.
    pub(super) count: usize,
    /// Bytes of all.
    pub(super) bytes: u64,
    /// Without a VM that uses it.
    pub(super) idle: Duration,
}

/// The memories.
#[derive(Clone, Default)]
pub(crate) struct Memories(Arc<Shared>);

#[derive(Default)]
struct Shared {
    table: Mutex<Table>,
    changed: Condvar,
}

#[derive(Default)]
struct Table {
    kept: Vec<Kept>,
    /// Whether a thread looks after what nobody uses.
    watched: bool,
}

struct Kept {
    of: Version,
    file: File,
    /// Open to be read alone, and each taker's is opened anew: the kernel then tells whether anybody has it still, a VM or
    /// whoever got it from one. `None` while somebody makes it.
    memory: Option<OwnedFd>,
    bytes: u64,
    used: Instant,
}

/// A file as it was at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version {
    dev: u64,
    ino: u64,
    size: u64,
    modified: (i64, u64),
    changed: (i64, u64),
}

impl Version {
    /// The version, and how many bytes of the file are there as its file system has them; `None` where it has no name any more.
    fn of(file: &File) -> Result<Option<(Version, u64)>, Fail> {
        let seen = rustix::fs::fstat(file)
            .map_err(|errno| Fail::new("snapshot.mem_path: can't be looked at").because(format!("fstat: {errno}")))?;
        let number = |number: i64| u64::try_from(number).unwrap_or(0);
        let version = Version {
            dev: seen.st_dev,
            ino: seen.st_ino,
            size: number(seen.st_size),
            modified: (seen.st_mtime, seen.st_mtime_nsec),
            changed: (seen.st_ctime, seen.st_ctime_nsec),
        };
        Ok((seen.st_nlink > 0).then(|| (version, (number(seen.st_blocks) * 512).min(version.size))))
    }
}

impl Kept {
    fn is_current(&self) -> bool {
        matches!(Version::of(&self.file), Ok(Some((now, _))) if now == self.of)
    }

    /// By a VM, or by whoever got it from one: a VMM is its owner's process, and what it was passed can outlive it. Where
    /// the kernel doesn't say, it is.
    fn is_used(&self) -> bool {
        self.memory.as_ref().is_none_or(|memory| sys::opened::is_elsewhere(memory).unwrap_or(true))
    }
}

impl Memories {
    /// The memory that `file` holds, sealed, opened to be read. Who is made to wait waits until `until`.
    pub(super) fn take(&self, file: &File, bounds: Bounds, until: Instant) -> Result<OwnedFd, Fail> {
        let gone = || Fail::new("snapshot.mem_path: it was removed meanwhile");
        let (of, there) = Version::of(file)?.ok_or_else(gone)?;
        let mut bytes = None;
        let mut table = self.0.lock();
        let bytes = loop {
            match table.kept.iter_mut().find(|kept| kept.of == of) {
                None => match bytes {
                    Some(bytes) => break bytes,
                    // Many small parts take their time, and nobody is to wait for that. What was allocated and never written may
                    // turn from a hole into zeros while it is read.
                    None => {
                        drop(table);
                        bytes = Some(size_of_copy(file, of, until)?.max(there));
                        table = self.0.lock();
                    }
                },
                Some(Kept { memory: Some(memory), used, .. }) => {
                    *used = Instant::now();
                    return reopened(memory);
                }
                Some(_) if Instant::now() < until => {
                    let left = until.saturating_duration_since(Instant::now());
                    table = self.0.changed.wait_timeout(table, left).unwrap_or_else(PoisonError::into_inner).0;
                }
                Some(_) => {
                    return Err(Fail::new(
                        "snapshot.mem_path: another restore copies it still, after limits.launch_seconds",
                    ));
                }
            }
        };
        table.make_room(bytes, bounds)?;
        let again = file.try_clone().map_err(|error| Fail::new("snapshot.mem_path: a descriptor").because(error))?;
        table.kept.push(Kept { of, file: again, memory: None, bytes, used: Instant::now() });
        drop(table);

        let made = copy(file, of, bytes, until);
        let mut table = self.0.lock();
        let made = made.and_then(|memory| Ok((reopened(&memory)?, memory)));
        let made = match made {
            Ok((taken, memory)) => {
                if let Some(kept) = table.kept.iter_mut().find(|kept| kept.of == of) {
                    kept.memory = Some(memory);
                }
                Ok(taken)
            }
            Err(fail) => {
                table.kept.retain(|kept| kept.of != of);
                Err(fail)
            }
        };
        self.0.changed.notify_all();
        self.watch(&mut table, bounds.idle);
        made
    }

    /// Sees to it that what nobody uses goes.
    fn watch(&self, table: &mut Table, idle: Duration) {
        if table.watched || table.kept.is_empty() {
            return;
        }
        let shared = Arc::clone(&self.0);
        let started = std::thread::Builder::new().name("memories".into()).stack_size(128 << 10).spawn(move || {
            while !shared.sweep(idle) {
                // Nobody wakes it: it looks again.
                std::thread::park_timeout(idle / 4);
            }
        });
        // Where there is no thread, the next restore tries again.
        table.watched = started.is_ok();
    }
}

impl Shared {
    /// The table is whole whenever nobody holds it, whatever became of the one who did.
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets go of what nobody has used for `idle`, and of what nobody uses and has changed. True, and no longer watching, where nothing
    /// is left.
    fn sweep(&self, idle: Duration) -> bool {
        let mut table = self.lock();
        let now = Instant::now();
        table.kept.retain_mut(|kept| {
            if kept.is_used() {
                kept.used = now;
            }
            kept.used == now || (kept.is_current() && now - kept.used < idle)
        });
        table.watched = !table.kept.is_empty();
        !table.watched
    }
}

impl Table {
    fn make_room(&mut self, bytes: u64, bounds: Bounds) -> Result<(), Fail> {
        // One that has changed counts as long as somebody has it.
        self.kept.retain(|kept| kept.is_current() || kept.is_used());
        let is_room = |kept: &[Kept]| {
            kept.len() < bounds.count && kept.iter().map(|kept| kept.bytes).sum::<u64>() + bytes <= bounds.bytes
        };
        while !is_room(&self.kept) {
            let unused = |kept: &&Kept| !kept.is_used();
            let Some(oldest) = self.kept.iter().filter(unused).min_by_key(|kept| kept.used).map(|kept| kept.of) else {
                return Err(Fail::new(format!(
                    "snapshot.mem_path: {} memories of {} MiB together are the most that limits.memories and \
                     limits.memory_mebibytes allow: end a VM that uses another one, or what \
                     got one from a VM",
                    bounds.count,
                    bounds.bytes >> 20
                )));
            };
            self.kept.retain(|kept| kept.of != oldest);
        }
        Ok(())
    }
}

/// The same memory, opened once more.
fn reopened(memory: &OwnedFd) -> Result<OwnedFd, Fail> {
    let path = format!("/proc/self/fd/{}", memory.as_raw_fd());
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| Fail::new("snapshot.mem_path: its copy can't be opened").because(format!("open: {errno}")))
}

/// Gives begin and end of each part of the file that is no hole, in whole pages: so many a copy takes, however small the parts
/// are, and however the file system packs them.
fn each_part(
    file: &File,
    size: u64,
    until: Instant,
    mut act: impl FnMut(u64, u64) -> Result<(), Fail>,
) -> Result<(), Fail> {
    let mut at = 0;
    while at < size {
        if Instant::now() > until {
            return Err(late());
        }
        let begin = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(begin) => begin,
            // Nothing but a hole is left.
            Err(Errno::NXIO) => break,
            Err(errno) => return Err(failed("lseek(SEEK_DATA)")(errno)),
        };
        let end = rustix::fs::seek(file, SeekFrom::Hole(begin)).map_err(failed("lseek(SEEK_HOLE)"))?.min(size);
        let end = end.next_multiple_of(PAGE).min(size);
        act(begin - begin % PAGE, end)?;
        at = end;
    }
    Ok(())
}

fn size_of_copy(file: &File, of: Version, until: Instant) -> Result<u64, Fail> {
    let mut bytes = 0;
    each_part(file, of.size, until, |begin, end| {
        bytes += end - begin;
        Ok(())
    })?;
    Ok(bytes)
}

/// Copies what is there of `file`, at most `bytes` bytes, into memory that nobody can change.
fn copy(file: &File, of: Version, bytes: u64, until: Instant) -> Result<OwnedFd, Fail> {
    let changed = || Fail::new("snapshot.mem_path: it changed while it was copied");
    let memory = rustix::fs::memfd_create("vm-memory", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        .map_err(failed("memfd_create"))?;
    let memory = File::from(memory);
    rustix::fs::ftruncate(&memory, of.size).map_err(failed("ftruncate"))?;
    let mut piece = vec![0; PIECE];
    let mut left = bytes;
    each_part(file, of.size, until, |mut at, end| {
        left = left.checked_sub(end - at).ok_or_else(changed)?;
        while at < end {
            if Instant::now() > until {
                return Err(late());
            }
            let room = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
            let whole = file.read_exact_at(&mut piece[..room], at);
            let whole = whole.and_then(|()| memory.write_all_at(&piece[..room], at));
            whole.map_err(|error| Fail::new("snapshot.mem_path: can't be copied").because(error))?;
            at += room as u64;
        }
        Ok(())
    })?;
    if !matches!(Version::of(file)?, Some((now, _)) if now == of) {
        return Err(changed());
    }
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&memory, seals).map_err(failed("fcntl(F_ADD_SEALS)"))?;
    reopened(&memory.into())
}

fn failed(call: &'static str) -> impl Fn(Errno) -> Fail {
    move |errno| Fail::new("snapshot.mem_path: can't be copied").because(format!("{call}: {errno}"))
}

fn late() -> Fail {
    Fail::new("snapshot.mem_path: its copy took longer than limits.launch_seconds")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(file: &File) -> (Version, u64) {
        let (of, _) = Version::of(file).unwrap().unwrap();
        (of, size_of_copy(file, of, Instant::now() + Duration::from_secs(10)).unwrap())
    }

    #[test]
    fn a_copy_is_the_same_has_the_holes_and_can_not_be_written() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (name, file) = (file.path().to_owned(), file.as_file());
        file.set_len(8 << 20).unwrap();
        file.write_all_at(b"begin", 0).unwrap();
        file.write_all_at(b"end", (8 << 20) - 3).unwrap();
        let (of, bytes) = version(file);
        assert_eq!(bytes, 2 * PAGE);
        let until = Instant::now() + Duration::from_secs(10);
        let memory = File::from(copy(file, of, bytes, until).unwrap());
        let mut all = vec![0; 8 << 20];
        memory.read_exact_at(&mut all, 0).unwrap();
        assert_eq!(all, std::fs::read(name).unwrap());
        assert!(rustix::fs::fstat(&memory).unwrap().st_blocks < 100);
        assert!(memory.write_all_at(b"x", 0).is_err() && memory.set_len(0).is_err());
        assert!(rustix::fs::fcntl_add_seals(&memory, SealFlags::empty()).is_err());
        let other = Version { changed: (0, 0), ..of };
        assert!(copy(file, other, bytes, until).unwrap_err().message.contains("changed"));
        // More of it than was counted.
        file.write_all_at(b"other", 1 << 20).unwrap();
        assert!(copy(file, of, bytes, until).unwrap_err().message.contains("changed"));
    }
}
