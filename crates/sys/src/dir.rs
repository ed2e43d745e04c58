//! Directories as descriptors: what is opened below one can't lead out of it, by no name and by no race.

use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, RenameFlags, ResolveFlags};
use rustix::io::Errno;
use std::fmt;
use std::fs::File;

/// A failed system call, told as it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallError {
    call: String,
    errno: Errno,
}

impl CallError {
    /// `call` is the call with its arguments, whatever a client chose in it quoted.
    pub fn new(call: impl Into<String>, errno: Errno) -> CallError {
        CallError { call: call.into(), errno }
    }

    /// What the kernel said.
    pub fn errno(&self) -> Errno {
        self.errno
    }

    /// Nothing has that name.
    pub fn is_missing(&self) -> bool {
        self.errno == Errno::NOENT
    }

    /// A symlink stood in the path.
    pub fn is_symlink(&self) -> bool {
        self.errno == Errno::LOOP
    }

    /// The path led out of the directory, or over a mount.
    pub fn is_crossing(&self) -> bool {
        self.errno == Errno::XDEV
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // "No such file or directory (os error 2)": the name says more than the number.
        let text = std::io::Error::from(self.errno).to_string();
        let text = text.split(" (os error").next().unwrap_or_default();
        write!(f, "{}: {text} ({:?})", self.call, Name(self.errno))
    }
}

impl std::error::Error for CallError {}

impl From<CallError> for std::io::Error {
    fn from(error: CallError) -> std::io::Error {
        std::io::Error::new(std::io::Error::from(error.errno).kind(), error)
    }
}

/// An error number under its name in errno(3).
struct Name(Errno);

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.0 {
            Errno::ACCESS => "EACCES",
            Errno::AGAIN => "EAGAIN",
            Errno::BUSY => "EBUSY",
            Errno::CONNREFUSED => "ECONNREFUSED",
            Errno::DQUOT => "EDQUOT",
            Errno::EXIST => "EEXIST",
            Errno::INVAL => "EINVAL",
            Errno::IO => "EIO",
            Errno::ISDIR => "EISDIR",
            Errno::LOOP => "ELOOP",
            Errno::MFILE => "EMFILE",
            Errno::NAMETOOLONG => "ENAMETOOLONG",
            Errno::NFILE => "ENFILE",
            Errno::NOENT => "ENOENT",
            Errno::NOMEM => "ENOMEM",
            Errno::NOSPC => "ENOSPC",
            Errno::NOTDIR => "ENOTDIR",
            Errno::NOTEMPTY => "ENOTEMPTY",
            Errno::NXIO => "ENXIO",
            Errno::PERM => "EPERM",
            Errno::ROFS => "EROFS",
            Errno::SRCH => "ESRCH",
            Errno::XDEV => "EXDEV",
            other => return write!(f, "errno {}", other.raw_os_error()),
        };
        f.write_str(name)
    }
}

/// What the kernel says of something that is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// A regular file, a directory, a socket, …
    pub kind: FileType,
    /// Permission bits, set-id and sticky bits among them.
    pub mode: u32,
    /// The user that it belongs to.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// How many names it has.
    pub nlink: u64,
    /// The device that it is on.
    pub dev: u64,
    /// Its inode there.
    pub ino: u64,
    /// Its size in bytes.
    pub size: u64,
    /// Which device it is, where it is one.
    pub rdev: u64,
}

impl Facts {
    /// Asks a descriptor.
    ///
    /// # Errors
    /// What `fstat` says.
    pub fn of(fd: impl AsFd) -> Result<Facts, CallError> {
        fs::fstat(fd).map(Facts::from).map_err(|errno| CallError::new("fstat", errno))
    }

    /// Whether anyone but its user may write it: the group's or the others' bit.
    pub fn is_writable_by_others(&self) -> bool {
        self.mode & 0o022 != 0
    }

    /// Whether both are the same file.
    pub fn is_same_file(&self, other: &Facts) -> bool {
        (self.dev, self.ino) == (other.dev, other.ino)
    }
}

impl From<fs::Stat> for Facts {
    fn from(stat: fs::Stat) -> Facts {
        Facts {
            kind: FileType::from_raw_mode(stat.st_mode),
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            #[allow(clippy::useless_conversion, reason = "narrower on some architectures")]
            nlink: u64::from(stat.st_nlink),
            dev: stat.st_dev,
            ino: stat.st_ino,
            size: stat.st_size.cast_unsigned(),
            rdev: stat.st_rdev,
        }
    }
}

/// A directory that is open. Everything below is reached from its descriptor.
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
    path: String,
}

/// Below a directory: no way out of it, no symlink in any part, no mount crossed.
const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// How often an opening is tried again that a rename came in between of.
const RENAMES: u32 = 128;

impl Dir {
    /// Opens an absolute path, in which no part may be a symlink.
    ///
    /// # Errors
    /// The call as it was made; a symlink is `ELOOP`, something else than a directory `ENOTDIR`.
    pub fn open(path: &str) -> Result<Dir, CallError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        fs::openat2(fs::CWD, path, flags, Mode::empty(), resolve).map(|fd| Dir { fd, path: path.to_owned() }).map_err(
            |errno| CallError::new(format!("openat2(AT_FDCWD, {path:?}, O_PATH|O_DIRECTORY, no symlinks)"), errno),
        )
    }

    /// Where it was when it was opened; for messages alone.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Opens `below`, a path of one or more parts. Never waits: a FIFO or a device can't hold the caller.
    ///
    /// `O_CLOEXEC` and `O_NONBLOCK` are added. `O_NONBLOCK` changes nothing for a regular file.
    ///
    /// # Errors
    /// The call as it was made: `ELOOP` for a symlink, `EXDEV` for a `..` or a mount, `ENOENT`, `EAGAIN` for a file that
    /// somebody has a lease on (`F_SETLEASE`), whom `O_NONBLOCK` does not wait for.
    pub fn open_at(&self, below: &str, flags: OFlags, mode: u32) -> Result<OwnedFd, CallError> {
        let failed = |errno| {
            let call = format!("openat2(<{}>, {below:?}, {}, beneath)", self.path, flag_names(flags));
            CallError::new(call, errno)
        };
        let wait = if flags.contains(OFlags::PATH) { OFlags::empty() } else { OFlags::NONBLOCK };
        // The kernel refuses a mode without O_CREAT.
        let mode = if flags.contains(OFlags::CREATE) { Mode::from_raw_mode(mode) } else { Mode::empty() };
        let mut again = 0;
        loop {
            match fs::openat2(&self.fd, below, flags | OFlags::CLOEXEC | wait, mode, BENEATH) {
                Err(Errno::INTR) => {}
                // A rename elsewhere at the same moment, or a lease; the second may last as long as its holder likes.
                Err(Errno::AGAIN) if again < RENAMES => again += 1,
                answer => return answer.map_err(failed),
            }
        }
    }

    /// Opens the directory `below`.
    ///
    /// # Errors
    /// As [`Dir::open_at`]; something else than a directory is `ENOTDIR`.
    pub fn dir(&self, below: &str) -> Result<Dir, CallError> {
        let fd = self.open_at(below, OFlags::PATH | OFlags::DIRECTORY, 0)?;
        Ok(Dir { fd, path: format!("{}/{below}", self.path) })
    }

    /// What `below` is, without following or waiting for anything.
    ///
    /// # Errors
    /// As [`Dir::open_at`]; a symlink at the end too is `ELOOP`.
    pub fn facts(&self, below: &str) -> Result<Facts, CallError> {
        Facts::of(self.open_at(below, OFlags::PATH, 0)?)
    }

    /// What the entry `name` is; a symlink is told as one.
    ///
    /// # Errors
    /// The call as it was made.
    pub fn entry(&self, name: &str) -> Result<Facts, CallError> {
        fs::statat(&self.fd, self.one(name, "fstatat")?, AtFlags::SYMLINK_NOFOLLOW)
            .map(Facts::from)
            .map_err(|errno| self.failed("fstatat", name, errno))
    }

    /// Makes the directory `name`, with exactly that mode whatever the umask.
    ///
    /// # Errors
    /// The call as it was made; `EEXIST` where somebody else's has its name by then.
    pub fn make_dir(&self, name: &str, mode: u32) -> Result<Dir, CallError> {
        self.make(name, mode, |_| Ok(true))
    }

    /// The same among somebody's who may rename here: what he puts in its place keeps its mode, unless it is as new.
    ///
    /// # Errors
    /// As [`Dir::make_dir`]; `EEXIST` where there is something in it.
    pub fn make_dir_among_others(&self, name: &str, mode: u32) -> Result<Dir, CallError> {
        self.make(name, mode, |made| Ok(made.names()?.is_empty()))
    }

    fn make(
        &self,
        name: &str,
        mode: u32,
        is_new: impl FnOnce(&Dir) -> Result<bool, CallError>,
    ) -> Result<Dir, CallError> {
        let failed = |errno| self.failed("mkdirat", name, errno);
        fs::mkdirat(&self.fd, self.one(name, "mkdirat")?, Mode::from_raw_mode(mode)).map_err(failed)?;
        let made = self.dir(name)?;
        if Facts::of(&made.fd)?.uid != crate::creds::file_uid() || !is_new(&made)? {
            return Err(failed(Errno::EXIST));
        }
        made.set_mode(mode)?;
        Ok(made)
    }

    /// Opens the directory `name`, made with that mode where it is missing, whoever makes it in that moment.
    ///
    /// # Errors
    /// As [`Dir::dir`] and [`Dir::make_dir`].
    pub fn enter_or_make(&self, name: &str, mode: u32) -> Result<Dir, CallError> {
        self.enter_or(name, || self.make_dir(name, mode))
    }

    /// The same by [`Dir::make_dir_among_others`].
    ///
    /// # Errors
    /// As [`Dir::dir`] and [`Dir::make_dir_among_others`].
    pub fn enter_or_make_among_others(&self, name: &str, mode: u32) -> Result<Dir, CallError> {
        self.enter_or(name, || self.make_dir_among_others(name, mode))
    }

    fn enter_or(&self, name: &str, make: impl FnOnce() -> Result<Dir, CallError>) -> Result<Dir, CallError> {
        match self.dir(name) {
            Err(error) if error.is_missing() => {}
            other => return other,
        }
        match make() {
            Err(error) if error.errno() == Errno::EXIST => self.dir(name),
            other => other,
        }
    }

    /// Sets this directory's own mode.
    ///
    /// # Errors
    /// The call as it was made.
    pub fn set_mode(&self, mode: u32) -> Result<(), CallError> {
        // By `.` from the descriptor: fchmod does not take one that was opened with O_PATH.
        fs::chmodat(&self.fd, ".", Mode::from_raw_mode(mode), AtFlags::empty())
            .map_err(|errno| CallError::new(format!("fchmodat(<{}>, {mode:#o})", self.path), errno))
    }

    /// Gives this directory to a user and a group.
    ///
    /// # Errors
    /// The call as it was made.
    pub fn set_owner(&self, uid: u32, gid: u32) -> Result<(), CallError> {
        let (user, group) = (rustix::process::Uid::from_raw(uid), rustix::process::Gid::from_raw(gid));
        fs::chownat(&self.fd, "", Some(user), Some(group), AtFlags::EMPTY_PATH)
            .map_err(|errno| CallError::new(format!("fchownat(<{}>, {uid}, {gid})", self.path), errno))
    }

    /// Removes the entry `name`, which is no directory. True where it was there.
    ///
    /// # Errors
    /// The call as it was made.
    pub fn unlink(&self, name: &str) -> Result<bool, CallError> {
        self.remove(name, AtFlags::empty())
    }

    /// Removes the empty directory `name`. True where it was there.
    ///
    /// # Errors
    /// The call as it was made.
    pub fn remove_dir(&self, name: &str) -> Result<bool, CallError> {
        self.remove(name, AtFlags::REMOVEDIR)
    }

    fn remove(&self, name: &str, flags: AtFlags) -> Result<bool, CallError> {
        match fs::unlinkat(&self.fd, self.one(name, "unlinkat")?, flags) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(self.failed("unlinkat", name, errno)),
        }
    }

    /// Gives the entry `from` the name `to`, in this directory; what was there is replaced.
    ///
    /// # Errors
    /// The call as it was made.
    pub fn rename(&self, from: &str, to: &str) -> Result<(), CallError> {
        self.rename_with(from, to, RenameFlags::empty())
    }

    /// The same, but `EEXIST` where `to` is there.
    ///
    /// # Errors
    /// The call as it was made.
    pub fn rename_new(&self, from: &str, to: &str) -> Result<(), CallError> {
        self.rename_with(from, to, RenameFlags::NOREPLACE)
    }

    fn rename_with(&self, from: &str, to: &str, flags: RenameFlags) -> Result<(), CallError> {
        let (old, new) = (self.one(from, "renameat2")?, self.one(to, "renameat2")?);
        fs::renameat_with(&self.fd, old, &self.fd, new, flags)
            .map_err(|errno| self.failed("renameat2", &format!("{from} to {to}"), errno))
    }

    /// Makes the symlink `name`, which points to `target`.
    ///
    /// # Errors
    /// The call as it was made.
    pub fn symlink(&self, target: &str, name: &str) -> Result<(), CallError> {
        fs::symlinkat(target, &self.fd, self.one(name, "symlinkat")?)
            .map_err(|errno| self.failed("symlinkat", name, errno))
    }

    /// What the symlink `name` points to.
    ///
    /// # Errors
    /// The call as it was made; what is no symlink is `EINVAL`.
    pub fn read_link(&self, name: &str) -> Result<String, CallError> {
        fs::readlinkat(&self.fd, self.one(name, "readlinkat")?, Vec::new())
            .map(|target| target.to_string_lossy().into_owned())
            .map_err(|errno| self.failed("readlinkat", name, errno))
    }

    /// The names in it, `.` and `..` left out, sorted.
    ///
    /// # Errors
    /// The call as it was made.
    pub fn names(&self) -> Result<Vec<String>, CallError> {
        let failed = |errno| CallError::new(format!("getdents64(<{}>)", self.path), errno);
        let readable = self.open_at(".", OFlags::RDONLY | OFlags::DIRECTORY, 0)?;
        let mut names = Vec::new();
        for entry in fs::Dir::new(readable).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
            if name != "." && name != ".." {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Writes a file whole or not at all: under another name, to the disk, then renamed over `name`.
    ///
    /// # Errors
    /// The call as it was made; nothing new is left behind.
    pub fn write_whole(&self, name: &str, text: &[u8], mode: u32) -> Result<(), CallError> {
        use std::io::Write as _;
        let fresh = format!(".{name}.new");
        self.unlink(&fresh)?;
        let mut file = File::from(self.open_at(&fresh, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL, mode)?);
        let written = file.write_all(text).and_then(|()| file.sync_all());
        let written = written.map_err(|error| {
            let errno = error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error);
            self.failed("write", &fresh, errno)
        });
        let done = written.and_then(|()| self.rename(&fresh, name));
        if done.is_err() {
            self.unlink(&fresh)?;
        }
        done
    }

    /// `name` where it is one part and no way up: the calls with it look at nothing but this directory.
    fn one<'a>(&self, name: &'a str, call: &str) -> Result<&'a str, CallError> {
        if matches!(name, "" | "." | "..") || name.contains('/') {
            return Err(self.failed(call, name, Errno::INVAL));
        }
        Ok(name)
    }

    fn failed(&self, call: &str, name: &str, errno: Errno) -> CallError {
        CallError::new(format!("{call}(<{}>, {name:?})", self.path), errno)
    }
}

/// Gives what is open, with `O_PATH` too, to a user and a group, and sets its mode: in this order, for whoever it belonged to could
/// change the mode until then.
///
/// # Errors
/// The call as it was made.
pub fn take(open: impl AsFd, uid: u32, gid: u32, mode: u32) -> Result<(), CallError> {
    let (user, group) = (rustix::process::Uid::from_raw(uid), rustix::process::Gid::from_raw(gid));
    let open = open.as_fd();
    fs::chownat(open, "", Some(user), Some(group), AtFlags::EMPTY_PATH)
        .map_err(|errno| CallError::new(format!("fchownat(<it>, {uid}, {gid})"), errno))?;
    // fchmod does not take a descriptor of O_PATH.
    fs::chmod(format!("/proc/self/fd/{}", open.as_raw_fd()), Mode::from_raw_mode(mode))
        .map_err(|errno| CallError::new(format!("chmod(<it>, {mode:#o})"), errno))
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn flag_names(flags: OFlags) -> String {
    let access = match flags & OFlags::RWMODE {
        _ if flags.contains(OFlags::PATH) => "O_PATH",
        OFlags::WRONLY => "O_WRONLY",
        OFlags::RDWR => "O_RDWR",
        _ => "O_RDONLY",
    };
    let mut names = String::from(access);
    for (flag, name) in [
        (OFlags::DIRECTORY, "|O_DIRECTORY"),
        (OFlags::CREATE, "|O_CREAT"),
        (OFlags::EXCL, "|O_EXCL"),
        (OFlags::APPEND, "|O_APPEND"),
        (OFlags::TRUNC, "|O_TRUNC"),
    ] {
        if flags.contains(flag) {
            names.push_str(name);
        }
    }
    names
}

#[cfg(test)]
#[path = "dir_tests.rs"]
mod tests;
