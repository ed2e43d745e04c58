//! A tree as a tar, piece by piece.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::{CString, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, SeekFrom, Stat};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::{Copied, CopyError, MAX_DEPTH, MAX_ENTRIES, Why, hex};
use crate::protocol::Keep;
use crate::tar::{BLOCK, Entry, Extent, Extra, Kind, MAX_EXTENTS, MAX_NAME, TarError, fits, header, padding, trailer};

/// What is read of a file at once.
const PIECE: usize = 64 * 1024;
/// The most bytes of an attribute's value, and of all names of one file's (linux/limits.h: XATTR_SIZE_MAX, XATTR_LIST_MAX).
const MAX_XATTR: usize = 64 * 1024;
/// Of so many files with several names it is known which they are; of more, each name is a file of its own.
const MAX_LINKS: usize = 10_000;

/// What is to be packed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// A path of this machine.
    pub path: OsString,
    /// Its name in the archive, one part; empty: a directory's content without the directory.
    pub name: Vec<u8>,
}

/// A file that is being read.
#[derive(Debug)]
struct File {
    fd: OwnedFd,
    /// What of it is still to be read, the last first.
    extents: Vec<Extent>,
    /// How many bytes of it there are in the archive.
    stored: u64,
}

/// A directory that is being read.
#[derive(Debug)]
struct Level {
    dir: Dir,
    /// How much of the path is its name.
    path: usize,
}

/// A tree on its way into an archive.
#[derive(Debug)]
pub struct Pack {
    sources: VecDeque<Source>,
    follow: bool,
    keep: Keep,
    leave: HashSet<Vec<u8>>,
    levels: Vec<Level>,
    path: Vec<u8>,
    file: Option<File>,
    links: HashMap<(u64, u64), Vec<u8>>,
    copied: Copied,
    sum: Sha256,
    ended: bool,
}

impl Pack {
    /// Of these sources, one after another. `follow`: what a symbolic link leads to is packed in its place.
    pub fn new(sources: Vec<Source>, follow: bool) -> Self {
        Self {
            sources: sources.into(),
            follow,
            keep: Keep::Plain,
            leave: HashSet::new(),
            levels: Vec::new(),
            path: Vec::new(),
            file: None,
            links: HashMap::new(),
            copied: Copied::default(),
            sum: Sha256::new(),
            ended: false,
        }
    }

    /// Has it keep more than content, permissions and times.
    pub fn keep(&mut self, keep: Keep) {
        self.keep = keep;
    }

    /// Has it leave out directories with all that is in them: `/a/b` is the one of that path in the archive, `b` each of that name.
    pub fn leave(&mut self, names: impl IntoIterator<Item = Vec<u8>>) {
        self.leave = names.into_iter().collect();
    }

    /// Appends the archive's next bytes: about so many at most, and none where it has ended.
    ///
    /// # Errors
    /// [`CopyError`], which ends it.
    pub fn fill(&mut self, out: &mut Vec<u8>, most: usize) -> Result<(), CopyError> {
        let begin = out.len();
        while out.len() - begin < most && !self.ended {
            let before = out.len();
            self.step(out, most)?;
            self.sum.update(&out[before..]);
        }
        Ok(())
    }

    /// What was packed, once the archive has ended.
    pub fn copied(&self) -> Option<Copied> {
        self.ended.then(|| Copied { sha256: hex(&self.sum.clone().finalize()), ..self.copied.clone() })
    }

    fn step(&mut self, out: &mut Vec<u8>, most: usize) -> Result<(), CopyError> {
        if self.file.is_some() {
            return self.content(out, most);
        }
        let Some(level) = self.levels.last_mut() else {
            match self.sources.pop_front() {
                Some(source) => return self.source(&source, out),
                None => {
                    out.extend(trailer());
                    self.ended = true;
                    return Ok(());
                }
            }
        };
        self.path.truncate(level.path);
        match level.dir.read().transpose() {
            Ok(Some(entry)) if matches!(entry.file_name().to_bytes(), b"." | b"..") => Ok(()),
            Ok(Some(entry)) => {
                let name = entry.file_name().to_owned();
                if !self.path.is_empty() {
                    self.path.push(b'/');
                }
                self.path.extend_from_slice(name.as_bytes());
                self.entry(None, &name, out)
            }
            Ok(None) => {
                self.levels.pop();
                Ok(())
            }
            Err(errno) => Err(self.failed("read directory", errno)),
        }
    }

    fn is_left(&self, name: &[u8]) -> bool {
        !self.leave.is_empty()
            && (self.leave.contains(name) || self.leave.contains([b"/", self.path.as_slice()].concat().as_slice()))
    }

    fn source(&mut self, source: &Source, out: &mut Vec<u8>) -> Result<(), CopyError> {
        self.path.clone_from(&source.name);
        let path = CString::new(source.path.as_bytes()).map_err(|_| self.failed("open", Errno::INVAL))?;
        self.entry(Some(CWD), &path, out)
    }

    /// One name in the directory that is read now, or at `at`.
    fn entry(&mut self, at: Option<BorrowedFd<'_>>, name: &CString, out: &mut Vec<u8>) -> Result<(), CopyError> {
        let is_source = at.is_some();
        let at = match (at, self.levels.last()) {
            (Some(at), _) => at,
            (None, Some(level)) => level.dir.fd().map_err(|errno| self.failed("open", errno))?,
            (None, None) => return Ok(()),
        };
        let follow = if self.follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
        let stat = match rustix::fs::statat(at, name, follow) {
            Ok(stat) => stat,
            // It has gone since the directory named it, or is a link that leads nowhere.
            Err(Errno::NOENT) if !is_source => return self.left_out(Why::Gone),
            Err(errno) => return Err(self.failed("look at", errno)),
        };
        if self.path.len() > MAX_NAME {
            return Err(CopyError::Tar(TarError::Name, self.path.clone()));
        }
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let flags = if self.follow { flags } else { flags | OFlags::NOFOLLOW };
        let open = |more| rustix::fs::openat(at, name, flags | more, Mode::empty());
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory if !is_source && self.is_left(name.as_bytes()) => Ok(()),
            FileType::Directory => {
                let dir = open(OFlags::DIRECTORY).and_then(Dir::new).map_err(|errno| self.failed("open", errno))?;
                self.directory(dir, &stat, out)
            }
            FileType::RegularFile => match open(OFlags::empty()) {
                Ok(file) => self.regular(file, out),
                Err(Errno::NOENT) if !is_source => self.left_out(Why::Gone),
                Err(errno) => Err(self.failed("open", errno)),
            },
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(at, name, Vec::new());
                let target = target.map_err(|errno| self.failed("read link", errno))?;
                self.head(Kind::Symlink(target.into_bytes()), &stat, Extra::default(), out)
            }
            _ => self.left_out(Why::NoFile),
        }
    }

    fn directory(&mut self, dir: Dir, stat: &Stat, out: &mut Vec<u8>) -> Result<(), CopyError> {
        if self.levels.len() >= MAX_DEPTH {
            return Err(CopyError::TooDeep(self.path.clone()));
        }
        if !self.path.is_empty() {
            let fd = dir.fd().map_err(|errno| self.failed("open", errno))?;
            let attributes = self.attributes(fd);
            self.head(Kind::Directory, stat, Extra { attributes, ..Extra::default() }, out)?;
        }
        self.levels.push(Level { dir, path: self.path.len() });
        Ok(())
    }

    fn regular(&mut self, file: OwnedFd, out: &mut Vec<u8>) -> Result<(), CopyError> {
        // What was looked at by its name may be another by now.
        let stat = rustix::fs::fstat(&file).map_err(|errno| self.failed("look at", errno))?;
        if !FileType::from_raw_mode(stat.st_mode).is_file() {
            return self.left_out(Why::NoFile);
        }
        if stat.st_nlink > 1 {
            let key = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.links.get(&key) {
                let kind = Kind::Hardlink(first.clone());
                return self.head(kind, &stat, Extra::default(), out);
            }
            if self.links.len() < MAX_LINKS {
                self.links.insert(key, self.path.clone());
            }
        }
        let size = stat.st_size.unsigned_abs();
        let may_have_holes = self.keep != Keep::Plain && stat.st_blocks.unsigned_abs().saturating_mul(512) < size;
        let extents = if may_have_holes { extents(file.as_fd(), size) } else { None };
        let mut left = extents.clone().unwrap_or_else(|| vec![Extent { at: 0, length: size }]);
        left.reverse();
        let stored = left.iter().map(|extent| extent.length).sum();
        let attributes = self.attributes(file.as_fd());
        self.head(Kind::File(size), &stat, Extra { attributes, extents, ..Extra::default() }, out)?;
        self.copied.bytes += stored;
        self.file = Some(File { fd: file, extents: left, stored });
        Ok(())
    }

    /// The extended attributes that are kept. One that can't be, or has gone since it was named, is left out.
    fn attributes(&mut self, fd: BorrowedFd<'_>) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut found = Vec::new();
        if self.keep == Keep::Plain {
            return found;
        }
        for name in names(fd) {
            if self.keep == Keep::User && !name.as_bytes().starts_with(b"user.") {
                continue;
            }
            match value(fd, &name) {
                Ok(value) if fits(&found, name.as_bytes(), &value) => found.push((name.into_bytes(), value)),
                Err(Errno::NODATA) => {}
                _ => self.copied.leave_out(&self.path, Why::Attribute),
            }
        }
        found
    }

    fn head(&mut self, kind: Kind, stat: &Stat, extra: Extra, out: &mut Vec<u8>) -> Result<(), CopyError> {
        self.copied.entries += 1;
        self.copied.files += u64::from(kind != Kind::Directory);
        if self.copied.entries > MAX_ENTRIES {
            return Err(CopyError::TooMany);
        }
        let mtime = u64::try_from(stat.st_mtime).unwrap_or(0);
        let owner = if self.keep == Keep::All { (stat.st_uid, stat.st_gid) } else { (0, 0) };
        let (name, mode) = (self.path.clone(), stat.st_mode & 0o7777);
        header(&Entry { name, kind, mode, mtime, extra: Extra { owner, ..extra } }, out);
        Ok(())
    }

    /// The next piece of the file. One that has become shorter is filled up: its size was said already.
    fn content(&mut self, out: &mut Vec<u8>, most: usize) -> Result<(), CopyError> {
        let Some(File { fd, extents, stored }) = &mut self.file else { return Ok(()) };
        let Some(extent) = extents.last_mut() else {
            out.extend(padding(*stored));
            self.file = None;
            return Ok(());
        };
        let piece = PIECE.min(most.max(BLOCK)).min(usize::try_from(extent.length).unwrap_or(PIECE));
        if piece == 0 {
            extents.pop();
            return Ok(());
        }
        let begin = out.len();
        out.resize(begin + piece, 0);
        let read = match rustix::io::pread(&*fd, &mut out[begin..], extent.at) {
            Ok(0) => piece,
            Ok(n) => n,
            Err(Errno::INTR) => 0,
            Err(errno) => return Err(self.failed("read", errno)),
        };
        out.truncate(begin + read);
        *extent = Extent { at: extent.at + read as u64, length: extent.length - read as u64 };
        Ok(())
    }

    fn left_out(&mut self, why: Why) -> Result<(), CopyError> {
        self.copied.leave_out(&self.path, why);
        Ok(())
    }

    fn failed(&self, step: &'static str, errno: Errno) -> CopyError {
        let name = if self.path.is_empty() { b"." } else { self.path.as_slice() };
        CopyError::File(step, name.to_vec(), errno)
    }
}

/// Where a file has data, with an empty one at its end where that is a hole; `None`: everywhere, or nobody knows.
fn extents(fd: BorrowedFd<'_>, size: u64) -> Option<Vec<Extent>> {
    let mut found: Vec<Extent> = Vec::new();
    let mut from = 0;
    loop {
        let at = match rustix::fs::seek(fd, SeekFrom::Data(from)) {
            Ok(at) => at.min(size),
            // There is none from here on (lseek(2)).
            Err(Errno::NXIO) => size,
            Err(_) => return None,
        };
        // Of one with more than a reader takes the rest counts as data.
        let is_last = found.len() + 2 >= MAX_EXTENTS;
        let end = if is_last || at >= size { size } else { rustix::fs::seek(fd, SeekFrom::Hole(at)).ok()? };
        // In whole blocks, as every reader understands them.
        let at = if at < size { (at - at % BLOCK as u64).max(from) } else { at };
        let end = end.next_multiple_of(BLOCK as u64).min(size);
        if at < end || end >= size {
            found.push(Extent { at, length: end.saturating_sub(at) });
        }
        if end >= size {
            let is_whole = matches!(found.as_slice(), [Extent { at: 0, length }] if *length == size);
            return (!is_whole).then_some(found);
        }
        if end <= from {
            return None;
        }
        from = end;
    }
}

/// The names of a file's extended attributes; none where its file system has no such thing.
fn names(fd: BorrowedFd<'_>) -> Vec<CString> {
    let mut list = vec![0; MAX_XATTR];
    let length = rustix::fs::flistxattr(fd, list.as_mut_slice()).unwrap_or(0);
    let names = list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names.filter_map(|name| CString::new(name).ok()).collect()
}

fn value(fd: BorrowedFd<'_>, name: &CString) -> rustix::io::Result<Vec<u8>> {
    let mut value = vec![0; MAX_XATTR];
    let length = rustix::fs::fgetxattr(fd, name, value.as_mut_slice())?;
    value.truncate(length);
    Ok(value)
}
