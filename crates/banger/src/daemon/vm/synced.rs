//! `file_sync`: files of the owner's home that a VM gets each time it starts, before anybody's command runs in it.
//!
//! They go through its agent, as a copy's do, so it doesn't matter whether it was booted or went on from a template. What is
//! below the home is read through no link, whoever made it; what can't be taken is a warning, and the VM starts all the same.

use super::work::Work;
use crate::api::Fault;
use crate::config::SyncedFile;
use crate::daemon::guest::{self, Bounds};
use crate::daemon::store::vms::Vm;
use agent::host::CopyFailure;
use agent::tar::{self, Entry, Extra, Kind};
use rustix::fs::{CWD, Dir, MemfdFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::cell::RefCell;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What all of them may be together: bytes, and files and directories.
const MOST: (u64, usize) = (64 << 20, 4096);
/// How deep directories may be.
const DEPTH: usize = 32;
/// They are read within this time,
const WALK: Duration = Duration::from_secs(10);
/// and a guest takes them within this one.
const PUT: Duration = Duration::from_secs(30);
/// So many that are left out are told one by one.
const TOLD: usize = 20;

/// Gives the VM what is configured, as long as `go_on` has no reason against it; how many files it got.
pub(super) fn give(work: &mut Work<'_>, vm: &Vm, go_on: impl FnMut() -> Result<(), Fault>) -> Result<usize, Fault> {
    let (go_on, end) = (RefCell::new(go_on), RefCell::new(Ok(())));
    let is_enough = || {
        let mut end = end.borrow_mut();
        if end.is_ok() {
            *end = (go_on.borrow_mut())();
        }
        end.is_err()
    };
    let bounds = |limit| Bounds { end: Instant::now() + limit, is_enough: &is_enough };
    let (daemon, vsock) = (work.daemon, work.places(vm).vsock());
    let found = Found::of(&daemon.settings.synced, bounds(WALK)).map_err(CopyFailure::from);
    let given = found.and_then(|found| {
        work.warnings.extend(found.warnings());
        let files = found.files;
        if files > 0 && !is_enough() {
            guest::put_archive_within(&vsock, "/root", &found.archive()?, bounds(PUT))?;
        }
        Ok(files)
    });
    let files = given.unwrap_or_else(|failure| {
        work.warnings.push(format!("file_sync: {}'s agent did not take the files: {failure}", vm.name));
        0
    });
    end.into_inner().map(|()| files)
}

/// What is to be copied, and what is not.
struct Found<'a> {
    /// A tar of it, in memory; directories before what is in them.
    archive: File,
    /// The directories that it has.
    directories: HashSet<PathBuf>,
    entries: usize,
    files: usize,
    bytes: u64,
    /// The first, each with why.
    left_out: Vec<String>,
    /// And so many more.
    more: usize,
    bounds: Bounds<'a>,
    /// Nothing more is looked at.
    is_over: bool,
}

impl<'a> Found<'a> {
    fn of(all: &[SyncedFile], bounds: Bounds<'a>) -> io::Result<Found<'a>> {
        let archive = File::from(rustix::fs::memfd_create("files", MemfdFlags::CLOEXEC)?);
        let mut found = Found {
            archive,
            directories: HashSet::new(),
            entries: 0,
            files: 0,
            bytes: 0,
            left_out: Vec::new(),
            more: 0,
            bounds,
            is_over: false,
        };
        for synced in all {
            found.add(synced);
        }
        Ok(found)
    }

    fn add(&mut self, synced: &SyncedFile) {
        let path = synced.home.join(&synced.host);
        if let Err(error) = self.try_to_add(synced, &path) {
            self.leave_out(&path, &why(&error));
        }
    }

    fn try_to_add(&mut self, synced: &SyncedFile, path: &Path) -> io::Result<()> {
        let opened = open_below(&synced.home, &synced.host)?;
        let mut above = PathBuf::new();
        for part in synced.guest.parent().into_iter().flat_map(Path::components) {
            above.push(part);
            if !self.goes_on(path) {
                return Ok(());
            }
            self.directory(&above, 0o755)?;
        }
        if self.goes_on(path) { self.take(opened, path, &synced.guest, synced.mode, 0) } else { Ok(()) }
    }

    /// Whether `path` is looked at; where there is no room or no time for it, it is the last one that is told of.
    fn goes_on(&mut self, path: &Path) -> bool {
        let why = if self.is_over {
            return false;
        } else if self.entries >= MOST.1 {
            format!("more than {} files and directories together", MOST.1)
        } else if self.bounds.are_reached() {
            format!("reading them takes more than {} s", WALK.as_secs())
        } else {
            return true;
        };
        self.is_over = true;
        self.left_out.push(format!("file_sync: {} is left out, and what follows: {why}", path.display()));
        false
    }

    /// A file, or a directory with all that is in it.
    fn take(&mut self, fd: OwnedFd, path: &Path, to: &Path, mode: Option<u16>, depth: usize) -> io::Result<()> {
        let file = File::from(fd);
        let facts = file.metadata()?;
        let own = facts.mode() & 0o777;
        if facts.is_dir() {
            // Who may read a file may come to it.
            let searched = mode.map_or(own, |mode| u32::from(mode) | (u32::from(mode) & 0o444) >> 2);
            self.directory(to, searched)?;
            return self.content(file.as_fd(), path, to, mode, depth);
        }
        if !facts.is_file() {
            return Err(io::Error::other("it is no file and no directory"));
        }
        if facts.len() > MOST.0 - self.bytes {
            return Err(io::Error::other(format!("more than {} MiB together", MOST.0 >> 20)));
        }
        let mode = mode.map_or(own, u32::from);
        self.append(&entry(to, Kind::File(facts.len()), mode, facts.mtime()), &mut (&file).take(facts.len()))?;
        self.files += 1;
        self.bytes += facts.len();
        Ok(())
    }

    fn content(
        &mut self,
        dir: BorrowedFd<'_>,
        path: &Path,
        to: &Path,
        mode: Option<u16>,
        depth: usize,
    ) -> io::Result<()> {
        if depth >= DEPTH {
            return Err(io::Error::other(format!("deeper than {DEPTH} levels")));
        }
        // As they come: nobody knows how many there are.
        for entry in Dir::read_from(dir)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            let name = OsStr::from_bytes(name);
            let (path, to) = (path.join(name), to.join(name));
            if !self.goes_on(&path) {
                return Ok(());
            }
            let taken = open(dir, Path::new(name)).map_err(io::Error::from);
            if let Err(error) = taken.and_then(|fd| self.take(fd, &path, &to, mode, depth + 1)) {
                self.leave_out(&path, &why(&error));
            }
        }
        Ok(())
    }

    fn directory(&mut self, to: &Path, mode: u32) -> io::Result<()> {
        match self.directories.insert(to.to_owned()) {
            true => self.append(&entry(to, Kind::Directory, mode, 0), &mut io::empty()),
            false => Ok(()),
        }
    }

    /// Writes an entry whole or not at all.
    fn append(&mut self, entry: &Entry, content: &mut impl Read) -> io::Result<()> {
        let (begin, mut header) = (self.archive.stream_position()?, Vec::new());
        tar::header(entry, &mut header);
        let mut write = || {
            self.archive.write_all(&header)?;
            if io::copy(content, &mut self.archive)? != entry.stored() {
                return Err(io::Error::other("it became shorter while it was read"));
            }
            self.archive.write_all(&tar::padding(entry.stored()))
        };
        match write() {
            Ok(()) => self.entries += 1,
            Err(error) => {
                self.archive.set_len(begin)?;
                self.archive.seek(SeekFrom::Start(begin))?;
                return Err(error);
            }
        }
        Ok(())
    }

    fn leave_out(&mut self, path: &Path, why: &str) {
        match self.left_out.len() < TOLD {
            true => self.left_out.push(format!("file_sync: {} is left out: {why}", path.display())),
            false => self.more += 1,
        }
    }

    /// A line for each of the first that are left out, and one for all others.
    fn warnings(&self) -> Vec<String> {
        let more = (self.more > 0).then(|| format!("file_sync: {} more are left out", self.more));
        self.left_out.iter().cloned().chain(more).collect()
    }

    /// The archive, to be read.
    fn archive(mut self) -> io::Result<File> {
        self.archive.write_all(&tar::trailer())?;
        self.archive.rewind()?;
        Ok(self.archive)
    }
}

fn entry(to: &Path, kind: Kind, mode: u32, mtime: i64) -> Entry {
    let (name, mtime) = (to.as_os_str().as_bytes().to_vec(), u64::try_from(mtime).unwrap_or(0));
    Entry { name, kind, mode, mtime, extra: Extra::default() }
}

fn why(error: &io::Error) -> String {
    match Errno::from_io_error(error) {
        Some(Errno::LOOP) => "it is a link, or lies behind one".into(),
        _ => error.to_string(),
    }
}

/// What is below the home. Its own path may lead through links: it is the account's.
fn open_below(home: &Path, host: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    open(rustix::fs::openat(CWD, home, flags, Mode::empty())?.as_fd(), host)
}

/// Through no link, and without waiting for anybody: a FIFO is found to be one when it is looked at.
fn open(dir: BorrowedFd<'_>, path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(dir, path, flags, Mode::empty(), resolve)
}

#[cfg(test)]
mod tests {
    use super::*;
    use agent::tar::Item;
    use rustix::fs::FileType;
    use std::cell::Cell;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn synced(home: &Path, host: &str, guest: &str, mode: Option<u16>) -> SyncedFile {
        SyncedFile { home: home.into(), host: host.into(), guest: guest.into(), mode }
    }

    fn soon(is_enough: &dyn Fn() -> bool) -> Bounds<'_> {
        Bounds { end: Instant::now() + Duration::from_secs(60), is_enough }
    }

    /// What a guest reads of it.
    fn read(found: Found<'_>) -> Vec<(Entry, Vec<u8>)> {
        let mut bytes = Vec::new();
        found.archive().unwrap().read_to_end(&mut bytes).unwrap();
        let (mut reader, mut rest, mut all) =
            (tar::Reader::default(), bytes.as_slice(), Vec::<(Entry, Vec<u8>)>::new());
        while let Some(item) = reader.take(&mut rest).unwrap() {
            match item {
                Item::Entry(entry) => all.push((entry, Vec::new())),
                Item::Data(_, data) => all.last_mut().unwrap().1.extend(data),
                _ => {}
            }
        }
        all
    }

    #[test]
    fn files_are_found_and_links_are_left_out() {
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        fs::create_dir_all(at("conf/deep")).unwrap();
        fs::write(at("conf/a"), "1").unwrap();
        fs::write(at("conf/deep/b"), [0xff, 0]).unwrap();
        fs::set_permissions(at("conf/deep/b"), Permissions::from_mode(0o4755)).unwrap();
        symlink("/etc/passwd", at("conf/deep/link")).unwrap();
        symlink("conf", at("way")).unwrap();
        rustix::fs::mknodat(CWD, at("conf/fifo"), FileType::Fifo, Mode::from(0o600), 0).unwrap();
        let synced = |(host, guest, mode)| synced(home.path(), host, guest, mode);
        let good = [("conf", ".config/x", None), ("conf/a", ".config/once", Some(0o640)), ("conf", "m", Some(0o640))];
        let bad = ["way/a", "way", "none"].map(|bad| (bad, "y", None));
        let all: Vec<SyncedFile> = good.into_iter().chain(bad).map(synced).collect();
        let found = Found::of(&all, soon(&|| false)).unwrap();
        let left_out = found.warnings().join("\n");
        let entries = read(found);
        let told = |name: &str| {
            let (entry, data) = entries.iter().find(|(entry, _)| entry.name == name.as_bytes())?;
            Some((entry.mode, data.as_slice()))
        };
        assert_eq!(told(".config/x/a").unwrap().1, b"1");
        assert_eq!(told(".config/x/deep/b"), Some((0o755, [0xff, 0].as_slice())), "no set-id bit");
        assert_eq!((told(".config/once").unwrap().0, told("m").unwrap().0), (0o640, 0o750));
        assert_eq!(entries.iter().filter(|(entry, _)| entry.name == b".config").count(), 1);
        assert!(told("y").is_none() && told(".config/x/deep/link").is_none());
        for (name, why) in [
            ("conf/deep/link", "it is a link"),
            ("conf/fifo", "it is no file"),
            ("way/a", "behind one"),
            ("way", "a link"),
            ("none", "No such file"),
        ] {
            let line = format!("file_sync: {} is left out: ", at(name).display());
            let told = left_out.lines().find(|told| told.starts_with(&line)).unwrap_or_else(|| panic!("{left_out}"));
            assert!(told.contains(why), "{told}");
        }
    }

    #[test]
    fn no_more_than_fits() {
        let home = tempfile::tempdir().unwrap();
        File::create(home.path().join("big")).unwrap().set_len(MOST.0 + 1).unwrap();
        fs::write(home.path().join("small"), "x").unwrap();
        let all = ["big", "small"].map(|name| synced(home.path(), name, name, None));
        let found = Found::of(&all, soon(&|| false)).unwrap();
        let told = found.warnings();
        assert!(told.len() == 1 && told[0].contains("more than 64 MiB"), "{told:?}");
        assert_eq!(
            read(found).iter().map(|(entry, data)| (&*entry.name, &**data)).collect::<Vec<_>>(),
            [(b"small".as_slice(), b"x".as_slice())]
        );
    }

    #[test]
    fn the_walk_ends_where_there_is_no_room_and_no_time() {
        let home = tempfile::tempdir().unwrap();
        for n in 0..MOST.1 + 10 {
            fs::create_dir_all(home.path().join(format!("many/{n}"))).unwrap();
        }
        let all = ["many", "many/1"].map(|name| synced(home.path(), name, "x/y", None));
        // Directories count, those above them too.
        let found = Found::of(&all, soon(&|| false)).unwrap();
        let told = found.warnings();
        assert!(told.len() == 1 && told[0].contains("what follows: more than 4096 files and directories"), "{told:?}");
        assert_eq!(read(found).len(), MOST.1);
        // Who wants it no more is asked between any two.
        let asked = Cell::new(0);
        let is_enough = || {
            asked.set(asked.get() + 1);
            asked.get() > 3
        };
        let found = Found::of(&all, soon(&is_enough)).unwrap();
        assert_eq!((found.warnings().len(), asked.get()), (1, 4));
        assert_eq!(read(found).len(), 3);
        let found = Found::of(&all, Bounds { end: Instant::now(), is_enough: &|| false }).unwrap();
        assert_eq!((found.warnings().len(), read(found).len()), (1, 0));
    }

    #[test]
    fn the_first_of_many_links_are_told() {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join("many")).unwrap();
        for n in 0..TOLD + 5000 {
            symlink("/etc/passwd", home.path().join(format!("many/{n}"))).unwrap();
        }
        fs::write(home.path().join("rc"), "mine").unwrap();
        let all = ["many", "rc"].map(|name| synced(home.path(), name, name, None));
        let found = Found::of(&all, soon(&|| false)).unwrap();
        let told = found.warnings();
        assert_eq!((told.len(), told[TOLD].as_str()), (TOLD + 1, "file_sync: 5000 more are left out"));
        assert_eq!(read(found).len(), 2, "the directory, and the file behind them");
    }
}
