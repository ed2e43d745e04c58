//! `file_sync`: files of the owner's home that a VM gets each time it starts, before anybody's command runs in it.
//!
//! They go through its agent, as a copy's do, so it doesn't matter whether it was booted or went on from a template. What is
//! below the home is read through no link, whoever made it; what can't be taken is a warning, and the VM starts all the same.

use super::work::Work;
use crate::config::SyncedFile;
use crate::daemon::guest::{self, Bounds};
use crate::daemon::store::vms::Vm;
use agent::tar::{Entry, Extra, Kind};
use rustix::fs::{CWD, Dir, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What all of them may be together: bytes, and entries.
const MOST: (u64, usize) = (64 << 20, 4096);
/// How deep directories may be.
const DEPTH: usize = 32;
/// A guest takes them within this time.
const PUT: Duration = Duration::from_secs(30);

/// Gives the VM what is configured; how many files it got.
pub(super) fn give(work: &mut Work<'_>, vm: &Vm) -> usize {
    let mut found = Found::default();
    for synced in &work.daemon.settings.synced {
        found.add(synced);
    }
    let Found { entries, mut left_out, .. } = found;
    let count = entries.iter().filter(|(entry, _)| entry.kind != Kind::Directory).count();
    if count > 0 {
        let bounds = Bounds { end: Instant::now() + PUT, is_enough: &|| false };
        if let Err(failure) = guest::put_entries_within(&work.places(vm).vsock(), "/root", &entries, bounds) {
            left_out.push(format!("file_sync: {}'s agent did not take the files: {failure}", vm.name));
        }
    }
    work.warnings.extend(left_out);
    count
}

/// What is to be copied, and what is not.
#[derive(Default)]
struct Found {
    /// Each with its content; directories before what is in them.
    entries: Vec<(Entry, Vec<u8>)>,
    bytes: u64,
    left_out: Vec<String>,
}

impl Found {
    fn add(&mut self, synced: &SyncedFile) {
        let path = synced.home.join(&synced.host);
        let opened = open_below(&synced.home, &synced.host);
        let mut above = PathBuf::new();
        for part in synced.guest.parent().into_iter().flat_map(Path::components) {
            above.push(part);
            self.directory(&above, 0o755);
        }
        let taken = opened.map_err(io::Error::from).and_then(|fd| self.take(fd, &path, &synced.guest, synced.mode, 0));
        if let Err(error) = taken {
            self.leave_out(&path, &why(&error));
        }
    }

    /// A file, or a directory with all that is in it.
    fn take(&mut self, fd: OwnedFd, path: &Path, to: &Path, mode: Option<u16>, depth: usize) -> io::Result<()> {
        let file = File::from(fd);
        let facts = file.metadata()?;
        let own = facts.mode() & 0o777;
        if facts.is_dir() {
            // Who may read a file may come to it.
            let searched = mode.map_or(own, |mode| u32::from(mode) | (u32::from(mode) & 0o444) >> 2);
            self.directory(to, searched);
            return self.content(file.as_fd(), path, to, mode, depth);
        }
        if !facts.is_file() {
            return Err(io::Error::other("it is no file and no directory"));
        }
        let mut data = Vec::new();
        file.take(MOST.0 - self.bytes + 1).read_to_end(&mut data)?;
        self.bytes += data.len() as u64;
        if self.bytes > MOST.0 || self.entries.len() >= MOST.1 {
            self.bytes -= data.len() as u64;
            return Err(io::Error::other(format!("more than {} MiB or {} files together", MOST.0 >> 20, MOST.1)));
        }
        let mode = mode.map_or(own, u32::from);
        self.entries.push((entry(to, Kind::File(data.len() as u64), mode, facts.mtime()), data));
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
        let mut names: Vec<Vec<u8>> = Vec::new();
        for entry in Dir::read_from(dir)? {
            let name = entry?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(name);
            }
        }
        names.sort_unstable();
        for name in names {
            let name = OsStr::from_bytes(&name);
            let (path, to) = (path.join(name), to.join(name));
            let taken = open(dir, Path::new(name)).map_err(io::Error::from);
            if let Err(error) = taken.and_then(|fd| self.take(fd, &path, &to, mode, depth + 1)) {
                self.leave_out(&path, &why(&error));
            }
        }
        Ok(())
    }

    fn directory(&mut self, to: &Path, mode: u32) {
        let is_there = self.entries.iter().any(|(entry, _)| entry.name == to.as_os_str().as_bytes());
        if !is_there {
            self.entries.push((entry(to, Kind::Directory, mode, 0), Vec::new()));
        }
    }

    fn leave_out(&mut self, path: &Path, why: &str) {
        self.left_out.push(format!("file_sync: {} is left out: {why}", path.display()));
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
    use rustix::fs::FileType;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

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
        let synced = |host: &str, guest: &str, mode| SyncedFile {
            home: home.path().into(),
            host: host.into(),
            guest: guest.into(),
            mode,
        };
        let mut found = Found::default();
        found.add(&synced("conf", ".config/x", None));
        found.add(&synced("conf/a", ".config/once", Some(0o640)));
        found.add(&synced("conf", "m", Some(0o640)));
        for bad in ["way/a", "way", "none"] {
            found.add(&synced(bad, "y", None));
        }
        let told = |name: &str| {
            let (entry, data) = found.entries.iter().find(|(entry, _)| entry.name == name.as_bytes())?;
            Some((entry.mode, data.as_slice()))
        };
        assert_eq!(told(".config/x/a").unwrap().1, b"1");
        assert_eq!(told(".config/x/deep/b"), Some((0o755, [0xff, 0].as_slice())), "no set-id bit");
        assert_eq!((told(".config/once").unwrap().0, told("m").unwrap().0), (0o640, 0o750));
        assert_eq!(found.entries.iter().filter(|(entry, _)| entry.name == b".config").count(), 1);
        assert!(told("y").is_none() && told(".config/x/deep/link").is_none());
        let left_out = found.left_out.join("\n");
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
        let mut found = Found::default();
        for name in ["big", "small"] {
            found.add(&SyncedFile { home: home.path().into(), host: name.into(), guest: name.into(), mode: None });
        }
        assert_eq!((found.entries.len(), found.left_out.len()), (1, 1));
        assert!(found.left_out[0].contains("more than 64 MiB"), "{:?}", found.left_out);
    }
}
