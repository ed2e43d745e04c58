//! The socket: made so that nobody but the owner and root can connect at any instant, or taken over from systemd.

use crate::settings::{RUN_DIR, Settings};
use crate::trusted;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{self, AtFlags, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use std::time::Duration;
use sys::creds::Identity;
use sys::dir::{Dir, Facts};

/// Connections that the kernel keeps while none of ours takes them; it has a bound of its own, `somaxconn`.
const BACKLOG: i32 = 1024;

/// A socket that listens.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: OwnedFd,
    made: Option<Made>,
}

/// What is to be removed at the end.
#[derive(Debug)]
struct Made {
    dir: Dir,
    name: String,
    facts: Facts,
}

impl Listener {
    /// The socket that systemd passed.
    pub(crate) fn passed(mut passed: Vec<OwnedFd>) -> Result<Listener, String> {
        let (Some(socket), true) = (passed.pop(), passed.is_empty()) else {
            return Err("more than one socket was passed (LISTEN_FDS); bangerd-root serves one".into());
        };
        let is_unix = sockopt::socket_domain(&socket) == Ok(AddressFamily::UNIX);
        let is_stream = sockopt::socket_type(&socket) == Ok(SocketType::STREAM);
        if !is_unix || !is_stream || sockopt::socket_acceptconn(&socket) != Ok(true) {
            return Err("what was passed (LISTEN_FDS) is no listening Unix stream socket".into());
        }
        set_nonblocking(&socket)?;
        Ok(Listener { socket, made: None })
    }

    /// Makes the socket. Before it listens nobody can connect; by then it is the owner's alone.
    pub(crate) fn make(settings: &Settings, owner: &Identity) -> Result<Listener, String> {
        let path = &settings.socket;
        let address = SocketAddrUnix::new(path.as_str())
            .map_err(|_| format!("--socket: {path} is longer than the 107 bytes of a socket's path"))?;
        let (above, name) = trusted::split(path);
        let dir = roots_dir(above)?;
        // Until it listens: one that is bound and does not listen yet looks stale to another helper.
        let _alone = alone_in(&dir)?;
        make_room(&dir, name, &address, path)?;

        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(|errno| format!("socket(AF_UNIX): {errno}"))?;
        net::bind(&socket, &address).map_err(|errno| format!("bind({path:?}): {errno}"))?;
        let facts = dir.entry(name).map_err(|error| error.to_string())?;
        let made = Made { dir, name: name.to_owned(), facts };
        let listener = Listener { socket, made: Some(made) };
        if let Err(error) = give_to_owner(&listener, owner, path) {
            listener.remove()?;
            return Err(error);
        }
        Ok(listener)
    }

    /// Removes the socket's name where this process made it and it still is that one, and takes no more connections.
    pub(crate) fn remove(&self) -> Result<(), String> {
        let Some(made) = &self.made else { return Ok(()) };
        // The name is one way to it; who holds the socket's inode (`O_PATH`) has another, by /proc/self/fd. One that
        // does not listen yet says so, and there is nothing to end.
        let _ = net::shutdown(&self.socket, Shutdown::Both);
        match made.dir.entry(&made.name) {
            Ok(facts) if facts.is_same_file(&made.facts) => {
                made.dir.unlink(&made.name).map(drop).map_err(|error| error.to_string())
            }
            // Somebody else's by now, or gone.
            _ => Ok(()),
        }
    }

    /// Whether whoever connects from now on finds nobody: the socket was made here, and goes with us.
    pub(crate) fn ends_with_us(&self) -> bool {
        self.made.is_some()
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn give_to_owner(listener: &Listener, owner: &Identity, path: &str) -> Result<(), String> {
    let Some(made) = &listener.made else { return Ok(()) };
    let failed = |call: &str, errno: Errno| format!("{call}({path:?}): {errno}");
    let name = made.name.as_str();
    fs::chmodat(&made.dir, name, Mode::from_raw_mode(0o600), AtFlags::empty())
        .map_err(|errno| failed("fchmodat", errno))?;
    let (uid, gid) = (fs::Uid::from_raw(owner.uid), fs::Gid::from_raw(owner.gid));
    fs::chownat(&made.dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|errno| failed("fchownat", errno))?;
    net::listen(&listener.socket, BACKLOG).map_err(|errno| failed("listen", errno))
}

/// Takes a stale socket away; refuses where somebody listens, or where it is something else.
fn make_room(dir: &Dir, name: &str, address: &SocketAddrUnix, path: &str) -> Result<(), String> {
    match dir.entry(name) {
        Err(error) if error.is_missing() => return Ok(()),
        Err(error) => return Err(error.to_string()),
        Ok(facts) if facts.kind != FileType::Socket => {
            let kind = crate::places::kind_name(facts.kind);
            return Err(format!("{path} is there already and is {kind}, not a socket; move it away"));
        }
        Ok(_) => {}
    }
    // A helper that was killed while it started a VMM may live on for an instant in that child, which has all of its
    // descriptors until it has closed them.
    for _ in 0..50 {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let probe = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(|errno| format!("socket(AF_UNIX): {errno}"))?;
        match net::connect(&probe, address) {
            // Bound once, by a process that is gone.
            Err(Errno::CONNREFUSED) => return dir.unlink(name).map(drop).map_err(|error| error.to_string()),
            Err(Errno::NOENT) => return Ok(()),
            // Connected, its queue is full, or it is of another type.
            _ => std::thread::sleep(Duration::from_millis(10)),
        }
    }
    Err(format!("somebody listens on {path} already; stop that helper first"))
}

/// Waits until no other helper makes a socket in this directory, and keeps others from it until it is dropped. Another
/// program of root's could hold it for ever, so the wait has an end.
fn alone_in(dir: &Dir) -> Result<OwnedFd, String> {
    let fd = dir.open_at(".", OFlags::RDONLY | OFlags::DIRECTORY, 0).map_err(|error| error.to_string())?;
    for _ in 0..200 {
        match fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(fd),
            Err(Errno::WOULDBLOCK | Errno::INTR) => std::thread::sleep(Duration::from_millis(10)),
            Err(errno) => return Err(format!("flock({}): {errno}", dir.path())),
        }
    }
    Err(format!("{} is locked by another program (flock); a socket can't be made there", dir.path()))
}

/// The directory of that path, root's alone; made where it is missing.
pub(crate) fn roots_dir(path: &str) -> Result<Dir, String> {
    let dir = match Dir::open(path) {
        Err(error) if error.is_missing() => make_dir(path, 0o711)?,
        _ => trusted::dir(path)?,
    };
    if path == RUN_DIR {
        dir.set_mode(0o711).map_err(|error| error.to_string())?;
    }
    Ok(dir)
}

/// Makes a directory of root's, in one that is root's alone.
pub(crate) fn make_dir(path: &str, mode: u32) -> Result<Dir, String> {
    let (above, name) = trusted::split(path);
    trusted::dir(above)?.make_dir(name, mode).map_err(|error| error.to_string())
}

/// Holds root's own directory for this helper alone, until it ends however it ends.
///
/// By a lock of the process and not of a descriptor: a child that has the descriptor for a moment does not have it.
pub(crate) fn lock(run_dir: &Dir) -> Result<OwnedFd, String> {
    const NAME: &str = "lock";
    let file = run_dir.open_at(NAME, OFlags::RDWR | OFlags::CREATE, 0o600).map_err(|error| error.to_string())?;
    // A helper that was killed a moment ago may still be going.
    for _ in 0..20 {
        match fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::AGAIN | Errno::ACCESS) => std::thread::sleep(Duration::from_millis(25)),
            Err(errno) => return Err(format!("fcntl({}/{NAME}, F_SETLK): {errno}", run_dir.path())),
        }
    }
    Err(format!("another bangerd-root runs ({}/{NAME} is locked); stop it first", run_dir.path()))
}

fn set_nonblocking(fd: &OwnedFd) -> Result<(), String> {
    let flags = fs::fcntl_getfl(fd).map_err(|errno| format!("fcntl(F_GETFL): {errno}"))?;
    fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK).map_err(|errno| format!("fcntl(F_SETFL): {errno}"))
}
