//! Files and directories made as root, below directories that only root can write.
//!
//! Every directory on the way is opened without following a link and must be root's alone, so that nobody can put
//! another in its place between the look and the act.

use super::account::Account;
use crate::cli::problem::Problem;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Component, Path};

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Metadata of a few hundred bytes; more is something else.
const MAX_METADATA: u64 = 64 << 10;

/// What is at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Missing,
    Directory { uid: u32, mode: u32, empty: bool },
    Else,
}

/// Refuses a path that is relative, is `/`, or has `.` or `..` in it.
pub(crate) fn check(path: &Path) -> Result<(), Problem> {
    let text = path.as_os_str().as_encoded_bytes();
    let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    let exact = !text.ends_with(b"/")
        && !text.windows(2).any(|two| two == b"//")
        && !text.windows(3).any(|three| three == b"/./");
    if plain && exact && path.is_absolute() && path.file_name().is_some() && !text.iter().any(u8::is_ascii_control) {
        return Ok(());
    }
    Err(Problem::usage(format!("{} must be an absolute path without . and ..", path.display())))
}

/// Looks at a path without following a link.
pub(crate) fn look(path: &Path) -> Result<Found, Problem> {
    let Some((parent, name)) = parent(path, Missing::Leave)? else { return Ok(Found::Missing) };
    match rustix::fs::openat(&parent, &name, DIRECTORY | OFlags::RDONLY, Mode::empty()) {
        Ok(directory) => {
            let stat = rustix::fs::fstat(&directory).map_err(|error| failed("look at", path, error))?;
            let entries = rustix::fs::Dir::read_from(&directory).map_err(|error| failed("read", path, error))?;
            let empty = !entries.flatten().any(|entry| !matches!(entry.file_name().to_bytes(), b"." | b".."));
            Ok(Found::Directory { uid: stat.st_uid, mode: stat.st_mode & 0o7777, empty })
        }
        Err(Errno::NOENT) => Ok(Found::Missing),
        Err(Errno::NOTDIR | Errno::LOOP) => Ok(Found::Else),
        // Somebody else's, seen without root's rights.
        Err(Errno::ACCESS) => match rustix::fs::statat(&parent, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                Ok(Found::Directory { uid: stat.st_uid, mode: stat.st_mode & 0o7777, empty: false })
            }
            Ok(_) => Ok(Found::Else),
            Err(error) => Err(failed("look at", path, error)),
        },
        Err(error) => Err(failed("open", path, error)),
    }
}

/// Makes a directory of the owner's, 0700.
pub(crate) fn make(path: &Path, owner: &Account) -> Result<(), Problem> {
    let (parent, name) = made_parent(path)?;
    rustix::fs::mkdirat(&parent, &name, Mode::RWXU).map_err(|error| failed("make", path, error))?;
    let made = open(&parent, &name, path)?;
    let given = chown(&made, path, owner).and_then(|()| chmod(&made, path, Mode::RWXU));
    if given.is_err() {
        // It is empty and ours still; where even this fails the cause says enough.
        let _ = rustix::fs::unlinkat(&parent, &name, AtFlags::REMOVEDIR);
    }
    given
}

/// Gives a directory to the owner, closed to the writes of others.
pub(crate) fn give(path: &Path, owner: &Account) -> Result<(), Problem> {
    let (parent, name) = made_parent(path)?;
    let directory = open(&parent, &name, path)?;
    chmod(&directory, path, Mode::RWXU)?;
    chown(&directory, path, owner)
}

/// Takes the writes of others away.
pub(crate) fn close(path: &Path) -> Result<(), Problem> {
    let (parent, name) = made_parent(path)?;
    let directory = open(&parent, &name, path)?;
    let stat = rustix::fs::fstat(&directory).map_err(|error| failed("look at", path, error))?;
    chmod(&directory, path, Mode::from_raw_mode(stat.st_mode & 0o755))
}

/// The text of a file; `None` where there is none.
pub(crate) fn read(path: &Path) -> Result<Option<String>, Problem> {
    let Some((parent, name)) = parent(path, Missing::Leave)? else { return Ok(None) };
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(&parent, &name, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(failed("open", path, error)),
    };
    let mut text = String::new();
    let read = file.take(MAX_METADATA + 1).read_to_string(&mut text);
    match read {
        Ok(n) if n as u64 <= MAX_METADATA => Ok(Some(text)),
        Ok(_) => Err(Problem::new("bad_metadata", format!("{} is longer than 64 KiB", path.display()))),
        Err(error) => Err(failed("read", path, error)),
    }
}

/// Writes a file of root's, 0644: whole, or not at all.
pub(crate) fn write(path: &Path, content: &[u8]) -> Result<(), Problem> {
    let (parent, name) = made_parent(path)?;
    // Opened for reading: the directory itself is written through to the disk at the end.
    let parent = open(&parent, OsStr::new("."), path)?;
    let mut draft = OsString::from(".");
    draft.push(&name);
    draft.push(format!(".{}", std::process::id()));
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&parent, &draft, flags, Mode::from_raw_mode(0o600));
    let mut file = File::from(file.map_err(|error| failed("write beside", path, error))?);
    let written = file
        .write_all(content)
        .and_then(|()| Ok(rustix::fs::fchmod(&file, Mode::from_raw_mode(0o644))?))
        .and_then(|()| file.sync_all())
        .and_then(|()| Ok(rustix::fs::renameat(&parent, &draft, &parent, &name)?))
        .and_then(|()| Ok(rustix::fs::fsync(&parent)?));
    written.map_err(|error| {
        // Gone where the rename was done; else the draft must not stay.
        let _ = rustix::fs::unlinkat(&parent, &draft, AtFlags::empty());
        failed("write", path, error)
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Make,
    Leave,
}

/// The directory above `path`, and the last part. `None` where a directory on the way is missing and to be left so.
fn parent(path: &Path, missing: Missing) -> Result<Option<(OwnedFd, OsString)>, Problem> {
    let open_root = rustix::fs::open("/", DIRECTORY | OFlags::RDONLY, Mode::empty());
    let mut at = open_root.map_err(|error| failed("open", Path::new("/"), error))?;
    let mut seen = std::path::PathBuf::from("/");
    let above = path.parent().unwrap_or(Path::new("/"));
    for part in above.components().filter(|part| *part != Component::RootDir) {
        seen.push(part);
        at = match step(&at, part.as_os_str(), missing) {
            Ok(next) => next,
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::NOTDIR | Errno::LOOP) => {
                return Err(Problem::new("not_a_directory", format!("{} is a link or no directory", seen.display()))
                    .fix("give the real path, without links"));
            }
            Err(error) => return Err(failed("open", &seen, error)),
        };
        only_root_writes(&at, &seen)?;
    }
    Ok(path.file_name().map(|name| (at, name.to_owned())))
}

fn step(at: &OwnedFd, part: &OsStr, missing: Missing) -> Result<OwnedFd, Errno> {
    let open = || rustix::fs::openat(at, part, DIRECTORY | OFlags::PATH, Mode::empty());
    match open() {
        Err(Errno::NOENT) if missing == Missing::Make => {
            rustix::fs::mkdirat(at, part, Mode::from_raw_mode(0o755))?;
            let made = rustix::fs::openat(at, part, DIRECTORY | OFlags::RDONLY, Mode::empty())?;
            // The caller's umask may have taken bits that others need to pass.
            rustix::fs::fchmod(&made, Mode::from_raw_mode(0o755))?;
            Ok(made)
        }
        other => other,
    }
}

fn made_parent(path: &Path) -> Result<(OwnedFd, OsString), Problem> {
    parent(path, Missing::Make)?.ok_or_else(|| failed("make", path, Errno::NOENT))
}

fn only_root_writes(directory: &OwnedFd, path: &Path) -> Result<(), Problem> {
    let stat = rustix::fs::fstat(directory).map_err(|error| failed("look at", path, error))?;
    if stat.st_uid == 0 && stat.st_mode & 0o022 == 0 {
        return Ok(());
    }
    Err(Problem::new("not_roots", format!("{} can be written by others than root", path.display()))
        .why("whoever writes a directory can put another in the place of what lies in it")
        .fix("name a place below directories of root's, such as /var/lib or /run"))
}

fn open(parent: &OwnedFd, name: &OsStr, path: &Path) -> Result<OwnedFd, Problem> {
    let opened = rustix::fs::openat(parent, name, DIRECTORY | OFlags::RDONLY, Mode::empty());
    opened.map_err(|error| failed("open", path, error))
}

fn chown(directory: &OwnedFd, path: &Path, owner: &Account) -> Result<(), Problem> {
    let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
    rustix::fs::fchown(directory, Some(uid), Some(gid)).map_err(|error| failed("give away", path, error))
}

fn chmod(directory: &OwnedFd, path: &Path, mode: Mode) -> Result<(), Problem> {
    rustix::fs::fchmod(directory, mode).map_err(|error| failed("change the mode of", path, error))
}

fn failed(what: &str, path: &Path, error: impl std::fmt::Display) -> Problem {
    Problem::new("io", format!("could not {what} {}", path.display())).why(error)
}
