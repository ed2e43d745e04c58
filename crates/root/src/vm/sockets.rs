//! Sockets in the runtime directory, where the owner writes: looked at, given to him, made room for and removed, each
//! by descriptor and, wherever the owner's own rights will do, with those.

use super::record;
use crate::fail::Fail;
use crate::host::Host;
use crate::places::{Why, kind_name};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use sys::creds::Identity;
use sys::dir::{CallError, Dir, Facts};
use wire::Code;
use wire::code::shown;
use wire::path::HostPath;
use wire::vm::SocketAccess;

/// The longest path that a Unix socket's address holds.
const MAX_SOCKET_PATH: usize = 107;
/// The owner's daemon listens there, below the runtime directory.
const DAEMON_SOCKET: &str = "bangerd.sock";

/// Gives a socket to the owner, mode 0600.
pub(crate) fn ensure_access(host: &Host, access: &SocketAccess) -> Result<(), Fail> {
    let path = &access.path;
    let (socket, facts) = host.runtime.look(path, &host.owner).map_err(|unopened| {
        let code = if unopened.why == Why::Failed { Code::OperationFailed } else { Code::InvalidPath };
        Fail::from(unopened).code(code)
    })?;
    let refuse = |why: &str| Fail::new(format!("{} {} {why}", access.label, shown(path.as_str())));
    if facts.kind != FileType::Socket {
        return Err(refuse(&format!("is {}, not a socket", kind_name(facts.kind))));
    }
    // One name, and it is this one: a second name elsewhere would be another service's, handed over here.
    if facts.nlink != 1 {
        return Err(refuse("has another name elsewhere"));
    }
    if facts.uid != 0 && facts.uid != host.owner.uid {
        return Err(refuse("belongs to another user"));
    }
    give(socket.as_fd(), &host.owner).map_err(|error| refuse("can't be given to the owner").because(error))
}

/// Sets mode and owner of a socket or a node by descriptor. The mode first: in no instant can others use it.
pub(super) fn give(socket: BorrowedFd<'_>, owner: &Identity) -> Result<(), CallError> {
    let path = format!("/proc/self/fd/{}", socket.as_raw_fd());
    rustix::fs::chmod(&path, Mode::from_raw_mode(0o600))
        .map_err(|errno| CallError::new("chmod(<socket>, 0600)", errno))?;
    let (uid, gid) = (rustix::process::Uid::from_raw(owner.uid), rustix::process::Gid::from_raw(owner.gid));
    rustix::fs::chownat(socket, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)
        .map_err(|errno| CallError::new(format!("fchownat(<socket>, {}, {})", owner.uid, owner.gid), errno))
}

/// Closes a VMM's new socket to all but the owner, and says which file it is.
pub(super) fn close_to_others(dir: &Dir, name: &str, host: &Host) -> Result<(u64, u64), Fail> {
    let failed = |why: &str| Fail::new(format!("the VMM's socket {} {why}", shown(name)));
    let done = host.owner.run_as(|| {
        let socket = dir.open_at(name, OFlags::PATH, 0)?;
        let facts = Facts::of(&socket)?;
        if facts.kind == FileType::Socket {
            give(socket.as_fd(), &host.owner)?;
        }
        Ok::<Facts, CallError>(facts)
    });
    let facts = done.map_err(|error| failed("can't be looked at").because(error))?;
    let facts = facts.map_err(|error| failed("is not there, or can't be closed to others").because(error))?;
    match facts.kind {
        FileType::Socket => Ok((facts.dev, facts.ino)),
        kind => Err(failed(&format!("is {}", kind_name(kind)))),
    }
}

/// The directory of a socket that a VMM is to make there, where its name is free or an ended VM's may be.
pub(super) fn directory(host: &Host, path: &HostPath, field: &str) -> Result<Dir, Fail> {
    let refuse = |why: String| Fail::new(format!("{field}: {} {why}", shown(path.as_str())));
    if path.below() == DAEMON_SOCKET || path.as_str() == host.settings.socket {
        return Err(refuse("is a socket of banger's own: choose another".into()));
    }
    if path.as_str().len() > MAX_SOCKET_PATH {
        return Err(refuse(format!("is longer than the {MAX_SOCKET_PATH} bytes that a socket's address holds")));
    }
    let dir = host.runtime.open_parent(path, &host.owner)?;
    look(&dir, path.file_name()).map_err(refuse)?;
    Ok(dir)
}

/// Whether the name is free or an ended VM's. Asked once no launch but this one can use it.
pub(super) fn is_free(dir: &Dir, path: &HostPath, owner: &Identity, field: &str) -> Result<(), Fail> {
    stale(dir, path.file_name(), owner).map(|_| ()).map_err(|why| taken(path, field, why))
}

/// Makes room: removes what an ended VM left there, with the owner's rights.
pub(super) fn make_room(dir: &Dir, path: &HostPath, owner: &Identity, field: &str) -> Result<(), Fail> {
    match stale(dir, path.file_name(), owner).map_err(|why| taken(path, field, why))? {
        Name::Free => Ok(()),
        Name::Socket | Name::Link => {
            let failed = |error: &dyn std::fmt::Display| taken(path, field, "can't be replaced".into()).because(error);
            let removed = owner.run_as(|| dir.unlink(path.file_name()));
            removed.map_err(|error| failed(&error))?.map_err(|error| failed(&error)).map(|_| ())
        }
    }
}

fn taken(path: &HostPath, field: &str, why: String) -> Fail {
    Fail::new(format!("{field}: {} {why}", shown(path.as_str())))
}

/// What has a name that a launch wants.
#[derive(Clone, Copy)]
enum Name {
    Free,
    /// A socket.
    Socket,
    /// A link to a socket in a chroot of a VM.
    Link,
}

/// What has the name `name`, where that could be an ended VM's; else why it can't.
fn look(dir: &Dir, name: &str) -> Result<Name, String> {
    let facts = match dir.entry(name) {
        Ok(facts) => facts,
        Err(error) if error.is_missing() => return Ok(Name::Free),
        Err(error) => return Err(format!("can't be looked at ({})", std::io::Error::from(error.errno()))),
    };
    match facts.kind {
        FileType::Socket => Ok(Name::Socket),
        FileType::Symlink if leads_into_a_chroot(dir, name) => Ok(Name::Link),
        kind => Err(format!("is {} already: nothing but an ended VM's socket is replaced", kind_name(kind))),
    }
}

/// The same, for what nobody listens on: a socket of a process that runs is never an ended VM's.
fn stale(dir: &Dir, name: &str, owner: &Identity) -> Result<Name, String> {
    match look(dir, name)? {
        Name::Socket => match connect(dir, name, owner) {
            Err(Errno::CONNREFUSED) => Ok(Name::Socket),
            Err(Errno::NOENT) => Ok(Name::Free),
            Ok(_) | Err(Errno::AGAIN) => Err("is a socket that something listens on: choose another".into()),
            Err(errno) => Err(format!("is a socket that can't be tried ({})", std::io::Error::from(errno))),
        },
        other => Ok(other),
    }
}

fn leads_into_a_chroot(dir: &Dir, name: &str) -> bool {
    let target = rustix::fs::readlinkat(dir, name, Vec::new()).map(|target| target.to_string_lossy().into_owned());
    target.is_ok_and(|target| {
        let mut parts = target.rsplit('/');
        matches!(parts.next(), Some("firecracker.socket" | "vsock.sock"))
            && parts.next() == Some("root")
            && parts.nth(1) == Some("firecracker")
    })
}

/// Connects to the socket `name` with the owner's rights, without waiting and without following a link: what is
/// connected to is the socket that was opened.
pub(super) fn connect(dir: &Dir, name: &str, owner: &Identity) -> Result<OwnedFd, Errno> {
    // Asked over and over while a VMM starts: as long as nothing has the name, no rights are changed for it.
    dir.entry(name).map_err(|error| error.errno())?;
    let connected = owner.run_as(|| {
        let socket = dir.open_at(name, OFlags::PATH, 0).map_err(|error| error.errno())?;
        let facts = Facts::of(&socket).map_err(|error| error.errno())?;
        if facts.kind != FileType::Socket {
            return Err(Errno::NOTSOCK);
        }
        // Who listens there sees root at the other end: so it must be the owner's own, and no second name of another's.
        if facts.uid != owner.uid || facts.nlink != 1 {
            return Err(Errno::ACCESS);
        }
        let address = SocketAddrUnix::new(format!("/proc/self/fd/{}", socket.as_raw_fd()))?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let ours = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::connect(&ours, &address)?;
        Ok(ours)
    });
    connected.unwrap_or(Err(Errno::PERM))
}

/// Makes `name` a link to a socket in a jail, with the owner's rights.
pub(super) fn link(dir: &Dir, name: &str, target: &str, owner: &Identity, field: &str) -> Result<(), Fail> {
    let failed = |error: &dyn std::fmt::Display| {
        Fail::new(format!("{field}: {} can't be made a link to the socket in the jail", shown(name))).because(error)
    };
    let made = owner.run_as(|| dir.symlink(target, name));
    made.map_err(|error| failed(&error))?.map_err(|error| failed(&error))
}

/// Removes a link to a socket in an ended VM's jail, where it still is that one, with the owner's rights.
pub(super) fn remove_link(runtime: &Dir, owner: &Identity, path: &str, target: &str) -> Result<(), Fail> {
    let failed =
        |error: &dyn std::fmt::Display| Fail::new(format!("link {} can't be removed", shown(path))).because(error);
    let Some((parent, name)) = below(runtime, path) else { return Ok(()) };
    let removed = owner.run_as(|| {
        let dir = runtime.dir(parent)?;
        let leads = rustix::fs::readlinkat(&dir, name, Vec::new());
        if leads.is_ok_and(|leads| leads.to_bytes() == target.as_bytes()) { dir.unlink(name) } else { Ok(false) }
    });
    gone(removed.map_err(|error| failed(&error))?).map_err(|error| failed(&error))
}

/// The directory below the runtime directory and the name of a path in it.
fn below<'a>(runtime: &Dir, path: &'a str) -> Option<(&'a str, &'a str)> {
    let below = path.strip_prefix(runtime.path().trim_end_matches("/."))?.strip_prefix('/')?;
    Some(below.rsplit_once('/').unwrap_or((".", below)))
}

/// A link or a mount in the way is the owner's doing: then nothing of ours is there.
fn gone(removed: Result<bool, CallError>) -> Result<(), CallError> {
    match removed {
        Err(error) if error.is_missing() || error.is_symlink() || error.is_crossing() => Ok(()),
        other => other.map(|_| ()),
    }
}

/// Removes an ended VM's socket, where it still is that one, with the owner's rights.
pub(super) fn remove(runtime: &Dir, owner: &Identity, socket: &record::Socket) -> Result<(), Fail> {
    let failed = |error: &dyn std::fmt::Display| {
        Fail::new(format!("socket {} can't be removed", shown(&socket.path))).because(error)
    };
    let Some((parent, name)) = below(runtime, &socket.path) else { return Ok(()) };
    let removed = owner.run_as(|| {
        let dir = runtime.dir(parent)?;
        let facts = dir.entry(name)?;
        let is_it = socket.made.is_none_or(|made| made == (facts.dev, facts.ino));
        if facts.kind == FileType::Socket && is_it { dir.unlink(name) } else { Ok(false) }
    });
    gone(removed.map_err(|error| failed(&error))?).map_err(|error| failed(&error))
}
