//! The directories that paths may lie in, opened once at start; a checked path becomes a descriptor here.

use crate::fail::Fail;
use rustix::fd::OwnedFd;
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;
use std::fs::File;
use sys::creds::Identity;
use sys::dir::{CallError, Dir, Facts};
use wire::path::HostPath;

/// A directory, open.
#[derive(Debug)]
pub(crate) struct Place {
    dir: Dir,
}

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To be read.
    Read,
    /// To be read and written where it is.
    ReadWrite,
    /// To be written at its end; made (0600) where it is missing.
    Append,
}

/// Why a path could not be opened, and what to answer.
#[derive(Debug)]
pub(crate) struct Unopened {
    /// Which of the reasons that a caller may tell apart.
    pub(crate) why: Why,
    fail: Fail,
}

/// Reasons that a caller may tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// Nothing is there.
    Missing,
    /// It is not what was to be opened, or lies behind a symlink or a mount.
    Refused,
    /// The kernel could not, or the owner may not.
    Failed,
}

impl Unopened {
    /// Whether nothing is there.
    pub(crate) fn is_missing(&self) -> bool {
        self.why == Why::Missing
    }
}

impl From<Unopened> for Fail {
    fn from(unopened: Unopened) -> Fail {
        unopened.fail
    }
}

impl Place {
    /// A place on an open directory.
    pub(crate) fn new(dir: Dir) -> Place {
        Place { dir }
    }

    /// The directory. What is done from here is done with root's rights: for records and sockets of our own.
    pub(crate) fn dir(&self) -> &Dir {
        &self.dir
    }

    /// Opens a regular file with `who`'s rights.
    pub(crate) fn open_file(&self, path: &HostPath, purpose: Purpose, who: &Identity) -> Result<File, Unopened> {
        let flags = match purpose {
            Purpose::Read => OFlags::RDONLY,
            Purpose::ReadWrite => OFlags::RDWR,
            Purpose::Append => OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE,
        };
        let file = self.at(path, path.below(), flags | OFlags::NOCTTY, 0o600, who)?;
        let facts = Facts::of(&file).map_err(|error| unopened(path, &error))?;
        if facts.kind == FileType::RegularFile {
            Ok(File::from(file))
        } else {
            Err(refused(path, &format!("is {}, not a regular file", kind_name(facts.kind))))
        }
    }

    /// Looks at what has that name, whatever it is, without opening it for anything. A symlink is refused.
    pub(crate) fn look(&self, path: &HostPath, who: &Identity) -> Result<(OwnedFd, Facts), Unopened> {
        let found = self.at(path, path.below(), OFlags::PATH, 0, who)?;
        let facts = Facts::of(&found).map_err(|error| unopened(path, &error))?;
        Ok((found, facts))
    }

    /// Opens the directory that the path's last part lies in; that part itself is not looked at.
    pub(crate) fn open_parent(&self, path: &HostPath, who: &Identity) -> Result<Dir, Unopened> {
        let parent = path.below().rsplit_once('/').map_or(".", |(parent, _)| parent);
        self.sub(path, parent, who)
    }

    /// Opens the path as a directory.
    pub(crate) fn open_dir(&self, path: &HostPath, who: &Identity) -> Result<Dir, Unopened> {
        self.sub(path, path.below(), who)
    }

    fn sub(&self, path: &HostPath, below: &str, who: &Identity) -> Result<Dir, Unopened> {
        let opened = who.run_as(|| self.dir.dir(below)).map_err(|error| not_as(path, &error))?;
        opened.map_err(|error| unopened(path, &error))
    }

    fn at(&self, path: &HostPath, below: &str, flags: OFlags, mode: u32, who: &Identity) -> Result<OwnedFd, Unopened> {
        let opened = who.run_as(|| self.dir.open_at(below, flags, mode)).map_err(|error| not_as(path, &error))?;
        opened.map_err(|error| unopened(path, &error))
    }
}

/// What a failed opening of `path` is answered with. The client sent the path, so it may read it again.
pub(crate) fn unopened(path: &HostPath, error: &CallError) -> Unopened {
    let text = wire::code::shown(path.as_str());
    let failed = |why, message: String| Unopened { why, fail: Fail::new(message).because(error) };
    let refused =
        |message: String| Unopened { why: Why::Refused, fail: Fail::from(path.refuse(message)).because(error) };
    match error.errno() {
        Errno::NOENT => failed(Why::Missing, format!("{text} does not exist")),
        Errno::LOOP => refused(format!("path {text} has a symlink in it")),
        Errno::XDEV => refused(format!("path {text} crosses a mount or leaves its directory")),
        Errno::NOTDIR => refused(format!("a part of path {text} is not a directory")),
        Errno::NXIO => refused(format!("path {text} is not a regular file")),
        Errno::ISDIR => refused(format!("path {text} is a directory")),
        Errno::NAMETOOLONG => refused(format!("path {text} is too long")),
        Errno::AGAIN => failed(Why::Failed, format!("{text} is held by another process's lease: end that one")),
        Errno::ACCESS | Errno::PERM => failed(Why::Failed, format!("the owner may not open {text}")),
        _ => failed(Why::Failed, format!("{text} could not be opened; the helper's log says why")),
    }
}

fn refused(path: &HostPath, what: &str) -> Unopened {
    let message = format!("path {} {what}", wire::code::shown(path.as_str()));
    Unopened { why: Why::Refused, fail: path.refuse(message).into() }
}

fn not_as(path: &HostPath, error: &std::io::Error) -> Unopened {
    let message = format!("{} could not be opened as the owner", wire::code::shown(path.as_str()));
    Unopened { why: Why::Failed, fail: Fail::new(message).because(format!("taking the owner's credentials: {error}")) }
}

/// What a thing is, for a message.
pub(crate) fn kind_name(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "a regular file",
        FileType::Directory => "a directory",
        FileType::Symlink => "a symlink",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        _ => "of an unknown kind",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use wire::Code;
    use wire::path::{Root, Roots};

    fn somebody() -> Identity {
        Identity { uid: 5501, gid: 5501, groups: vec![5501], name: "somebody".into(), home: "/".into() }
    }

    fn place() -> (tempfile::TempDir, Place) {
        let temp = tempfile::tempdir().unwrap();
        std::fs::set_permissions(temp.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let state = temp.path().join("state");
        std::fs::create_dir(&state).unwrap();
        std::os::unix::fs::chown(&state, Some(5501), Some(5501)).unwrap();
        let dir = Dir::open(state.to_str().unwrap()).unwrap();
        (temp, Place::new(dir))
    }

    fn path(place: &Place, below: &str) -> HostPath {
        let roots = Roots { state: place.dir().path().into(), runtime: "/run/banger".into() };
        let text = format!("{}/{below}", roots.state);
        HostPath::new(&text, &[Root::State], &roots, Code::BadParams, "image_path").unwrap()
    }

    #[test]
    fn files_are_the_owners_by_his_rights() {
        let (temp, place) = place();
        let who = somebody();
        drop(place.open_file(&path(&place, "log"), Purpose::Append, &who).unwrap());
        let made = std::fs::metadata(temp.path().join("state/log")).unwrap();
        assert_eq!((made.uid(), made.mode() & 0o777), (5501, 0o600));

        let secret = temp.path().join("state/secret");
        std::fs::write(&secret, "root's").unwrap();
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
        let denied = place.open_file(&path(&place, "secret"), Purpose::Read, &who).unwrap_err();
        assert_eq!((denied.why, Fail::from(denied).code), (Why::Failed, Code::OperationFailed));
    }

    #[test]
    fn what_is_not_a_file_below_is_refused_with_the_fields_code() {
        let (temp, place) = place();
        let state = temp.path().join("state");
        symlink("/etc/passwd", state.join("link")).unwrap();
        std::fs::create_dir(state.join("sub")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            state.join("fifo"),
            FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o666),
            0,
        )
        .unwrap();
        let who = somebody();
        for below in ["link", "sub", "fifo", "link/x", "log/x"] {
            if below == "log/x" {
                place.open_file(&path(&place, "log"), Purpose::Append, &who).unwrap();
            }
            let refused = place.open_file(&path(&place, below), Purpose::Read, &who).unwrap_err();
            assert_eq!((refused.why, Fail::from(refused).code), (Why::Refused, Code::BadParams), "{below}");
        }
        assert!(place.open_file(&path(&place, "none"), Purpose::Read, &who).unwrap_err().is_missing());
        assert!(place.open_parent(&path(&place, "none/x"), &who).unwrap_err().is_missing());
        assert_eq!(place.open_parent(&path(&place, "none"), &who).unwrap().path(), format!("{}/.", place.dir().path()));
    }
}
