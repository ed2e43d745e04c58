//! A tree out of a tar, piece by piece, below one directory.
//!
//! Whoever made the archive chooses names and links in it. So each name is taken apart first (no `..`, nothing absolute),
//! its directory is opened below the place without following any link, whoever made it, and a file has no name until all
//! of it is there. An archive that asks for anything else ends the copy.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use rustix::rand::GetRandomFlags;
use sha2::{Digest, Sha256};

use super::{Copied, CopyError, MAX_ENTRIES, Why, hex};
use crate::protocol::Keep;
use crate::tar::{Entry, Item, Kind, MAX_NAME, Reader, TarError, parts};

/// What the owner may always do with a directory of his, or he could not fill it.
const OWNERS: u32 = 0o700;
const PERMISSIONS: u32 = 0o777;
const SET_IDS: u32 = 0o7000;

/// What may come of an archive.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rules {
    /// Whose all of it becomes, user and group; `None`: whoever makes it, or, where all is kept, as it is in the archive.
    pub owner: Option<(u32, u32)>,
    /// What of the archive is kept, beside content, permissions and times.
    pub keep: Keep,
    /// Set-id and sticky bits are kept.
    pub set_ids: bool,
    /// What is there already is replaced; if not, it stays as it is.
    pub clobber: bool,
    /// The most bytes of all files.
    pub limit: Option<u64>,
    /// The name that the archive's first part gets.
    pub top: Option<Vec<u8>>,
}

#[derive(Debug)]
struct File {
    fd: OwnedFd,
    folder: OwnedFd,
    name: Vec<u8>,
    entry: Entry,
}

/// A tree on its way out of an archive.
#[derive(Debug)]
pub struct Unpack {
    place: OwnedFd,
    rules: Rules,
    reader: Reader,
    file: Option<File>,
    /// The last name, for errors.
    name: Vec<u8>,
    room: u64,
    copied: Copied,
    sum: Sha256,
}

impl Unpack {
    /// Below a directory, into the free space of its file system less a twentieth.
    ///
    /// # Errors
    /// Where the directory can't be looked at.
    pub fn new(place: OwnedFd, rules: Rules) -> Result<Self, CopyError> {
        let fs = rustix::fs::fstatvfs(&place).map_err(|errno| CopyError::File("look at", b".".to_vec(), errno))?;
        let free = (fs.f_bavail * fs.f_frsize) / 20 * 19;
        let room = rules.limit.map_or(free, |limit| limit.min(free));
        let (reader, copied) = (Reader::default(), Copied::default());
        Ok(Self { place, rules, reader, file: None, name: Vec::new(), room, copied, sum: Sha256::new() })
    }

    /// Takes the archive's next bytes.
    ///
    /// # Errors
    /// [`CopyError`], which ends the copy; the file that was under way leaves nothing.
    pub fn take(&mut self, mut bytes: &[u8]) -> Result<(), CopyError> {
        self.sum.update(bytes);
        while let Some(item) = self.reader.take(&mut bytes).map_err(|e| CopyError::Tar(e, self.name.clone()))? {
            match item {
                Item::Entry(entry) => self.entry(entry)?,
                Item::Data(at, piece) => self.write(at, piece)?,
                Item::Done => self.finish_file()?,
            }
        }
        Ok(())
    }

    /// What was made, once all of the archive has come.
    ///
    /// # Errors
    /// [`TarError::Cut`], where it has not.
    pub fn end(self) -> Result<Copied, CopyError> {
        if !self.reader.has_ended() {
            return Err(CopyError::Tar(TarError::Cut, self.name));
        }
        Ok(Copied { sha256: hex(&self.sum.finalize()), ..self.copied })
    }

    /// What was made so far.
    pub fn so_far(&self) -> &Copied {
        &self.copied
    }

    fn entry(&mut self, entry: Entry) -> Result<(), CopyError> {
        self.name.clone_from(&entry.name);
        self.copied.entries += 1;
        self.copied.files += u64::from(entry.kind != Kind::Directory);
        if self.copied.entries > MAX_ENTRIES {
            return Err(CopyError::TooMany);
        }
        let Some((folder, name)) = self.find(&entry.name)? else { return Ok(()) };
        let attributes: usize = entry.extra.attributes.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.room = self.room.checked_sub(attributes as u64).ok_or(CopyError::TooMuch)?;
        match &entry.kind {
            Kind::File(_) => {
                self.room = self.room.checked_sub(entry.stored()).ok_or(CopyError::TooMuch)?;
                let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
                let fd = rustix::fs::openat(&folder, c".", flags, Mode::from_raw_mode(0o600));
                let fd = fd.map_err(|errno| self.failed("make a file for", errno))?;
                self.file = Some(File { fd, folder, name, entry });
                Ok(())
            }
            Kind::Directory => self.directory(&folder, &name, &entry),
            Kind::Symlink(target) => {
                let made = self.make(&folder, &name, |folder, name| rustix::fs::symlinkat(target, folder, name));
                if made? && let Some((uid, gid)) = self.owner(&entry) {
                    let owned = rustix::fs::chownat(&folder, &name, uid, gid, AtFlags::SYMLINK_NOFOLLOW);
                    owned.map_err(|errno| self.failed("give away", errno))?;
                }
                Ok(())
            }
            Kind::Hardlink(first) => self.another_name(&folder, &name, first),
            Kind::Other => {
                self.copied.leave_out(&self.name, Why::NoFile);
                Ok(())
            }
        }
    }

    /// The directory of a name, opened below the place, and its last part. `None`: the name is the place itself.
    fn find(&self, name: &[u8]) -> Result<Option<(OwnedFd, Vec<u8>)>, CopyError> {
        let wrong = |error| CopyError::Tar(error, name.to_vec());
        let mut parts = parts(name).map_err(wrong)?;
        if let (Some(first), Some(top)) = (parts.first_mut(), &self.rules.top) {
            *first = top;
        }
        let Some((last, folder)) = parts.split_last() else { return Ok(None) };
        let folder = if folder.is_empty() { b".".to_vec() } else { folder.join(&b'/') };
        if folder.len() > MAX_NAME {
            return Err(wrong(TarError::Name));
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let folder = rustix::fs::openat2(&self.place, folder, flags, Mode::empty(), resolve);
        let folder = folder.map_err(|errno| CopyError::File("find the directory of", name.to_vec(), errno))?;
        Ok(Some((folder, last.to_vec())))
    }

    fn directory(&mut self, folder: &OwnedFd, name: &[u8], entry: &Entry) -> Result<(), CopyError> {
        let made = match rustix::fs::mkdirat(folder, name, Mode::from_raw_mode(OWNERS)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(errno) => return Err(self.failed("make directory", errno)),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(folder, name, flags, Mode::empty());
        let dir = dir.map_err(|errno| self.failed("open directory", errno))?;
        // One that was there keeps what it is.
        if made {
            self.dress(&dir, entry, entry.mode | OWNERS)?;
        }
        Ok(())
    }

    fn another_name(&mut self, folder: &OwnedFd, name: &[u8], first: &[u8]) -> Result<(), CopyError> {
        let Some((first_folder, first_name)) = self.find(first)? else {
            return Err(CopyError::Tar(TarError::Name, first.to_vec()));
        };
        let look = |folder: &OwnedFd, name: &[u8]| rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW);
        let stat = look(&first_folder, &first_name).map_err(|errno| self.failed("find the file of", errno))?;
        // A link to a link would be a way around what is refused above.
        if !FileType::from_raw_mode(stat.st_mode).is_file() {
            return Err(self.failed("find the file of", Errno::LOOP));
        }
        if look(folder, name).is_ok_and(|there| (there.st_dev, there.st_ino) == (stat.st_dev, stat.st_ino)) {
            return Ok(());
        }
        self.make(folder, name, |folder, name| {
            rustix::fs::linkat(&first_folder, &first_name, folder, name, AtFlags::empty())
        })?;
        Ok(())
    }

    fn write(&mut self, mut at: u64, mut piece: &[u8]) -> Result<(), CopyError> {
        while !piece.is_empty() {
            let Some(file) = &self.file else { return Ok(()) };
            match rustix::io::pwrite(&file.fd, piece, at) {
                Ok(n) => {
                    at += n as u64;
                    self.copied.bytes += n as u64;
                    piece = &piece[n..];
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(self.failed("write", errno)),
            }
        }
        Ok(())
    }

    /// Gives the file its name: all of it is there.
    fn finish_file(&mut self) -> Result<(), CopyError> {
        let Some(File { fd, folder, name, entry }) = self.file.take() else { return Ok(()) };
        if let (Kind::File(size), Some(_)) = (&entry.kind, &entry.extra.extents) {
            rustix::fs::ftruncate(&fd, *size).map_err(|errno| self.failed("give its size to", errno))?;
        }
        self.dress(&fd, &entry, entry.mode)?;
        let seconds = i64::try_from(entry.mtime).unwrap_or(0);
        let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::futimens(&fd, &times).map_err(|errno| self.failed("set the time of", errno))?;
        // Of an own descriptor: the one link that proc has to it.
        let own = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
        self.make(&folder, &name, |folder, name| rustix::fs::linkat(CWD, &own, folder, name, AtFlags::SYMLINK_FOLLOW))?;
        Ok(())
    }

    /// Makes a name, in the place of what has it where that may be. `false`: it stayed as it was.
    fn make(
        &mut self,
        folder: &OwnedFd,
        name: &[u8],
        make: impl Fn(&OwnedFd, &[u8]) -> rustix::io::Result<()>,
    ) -> Result<bool, CopyError> {
        match make(folder, name) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) if !self.rules.clobber => {
                self.copied.leave_out(&self.name, Why::IsThere);
                Ok(false)
            }
            Err(Errno::EXIST) => {
                Self::replace(folder, name, make).map(|()| true).map_err(|errno| self.failed("replace", errno))
            }
            Err(errno) => Err(self.failed("make", errno)),
        }
    }

    /// The same by a name beside it, so that at each moment the name has the one or the other.
    fn replace(
        folder: &OwnedFd,
        name: &[u8],
        make: impl Fn(&OwnedFd, &[u8]) -> rustix::io::Result<()>,
    ) -> rustix::io::Result<()> {
        let mut random = [0; 8];
        rustix::rand::getrandom(&mut random, GetRandomFlags::empty())?;
        let draft = format!(".banger-{}", hex(&random));
        make(folder, draft.as_bytes())?;
        let renamed = rustix::fs::renameat(folder, draft.as_str(), folder, name);
        renamed.inspect_err(|_| {
            // What can't be taken away either stays for its owner, under a name that says whose it is.
            let _ = rustix::fs::unlinkat(folder, draft.as_str(), AtFlags::empty());
        })
    }

    /// Owner, then attributes, then permissions: a change of the owner takes some of both away, and permissions may
    /// forbid the attributes.
    fn dress(&mut self, fd: &OwnedFd, entry: &Entry, mode: u32) -> Result<(), CopyError> {
        if let Some((uid, gid)) = self.owner(entry) {
            rustix::fs::fchown(fd, uid, gid).map_err(|errno| self.failed("give away", errno))?;
        }
        for (name, value) in &entry.extra.attributes {
            let is_kept = match self.rules.keep {
                Keep::Plain => continue,
                Keep::User => name.starts_with(b"user."),
                Keep::All => true,
            };
            if !is_kept || rustix::fs::fsetxattr(fd, name.as_slice(), value, XattrFlags::empty()).is_err() {
                self.copied.leave_out(&self.name, Why::Attribute);
            }
        }
        let kept = if self.rules.set_ids { PERMISSIONS | SET_IDS } else { PERMISSIONS };
        self.copied.stripped += u64::from(mode & SET_IDS & !kept != 0);
        let mode = Mode::from_raw_mode(mode & kept);
        rustix::fs::fchmod(fd, mode).map_err(|errno| self.failed("set the mode of", errno))
    }

    fn owner(&self, entry: &Entry) -> Option<(Option<Uid>, Option<Gid>)> {
        let own = (self.rules.keep == Keep::All).then_some(entry.extra.owner);
        self.rules.owner.or(own).map(|(uid, gid)| (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))))
    }

    fn failed(&self, step: &'static str, errno: Errno) -> CopyError {
        CopyError::File(step, self.name.clone(), errno)
    }
}
