//! ssh, where no other first process starts its server: a listener, and `sshd -i` for each connection. So it costs nothing
//! before somebody comes.

use std::collections::HashSet;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::Command;

use rustix::process::Pid;
use sys::session::Birth;

use super::console::say;
use super::environment::DEFAULT_PATH;

/// The server, of the package openssh-server.
const SERVER: &str = "/usr/sbin/sshd";
/// Its empty directory, which a unit of the distribution's would make (sshd(8)).
const EMPTY: &str = "/run/sshd";
const PORT: u16 = 22;
/// Connections at once; one more waits.
const MOST: usize = 64;

/// The listener, and the servers that run.
#[derive(Debug, Default)]
pub(super) struct Ssh {
    listener: Option<TcpListener>,
    servers: HashSet<Pid>,
}

impl Ssh {
    /// Listens where the guest has a server, which may have been installed a moment ago, and nobody else has the port.
    pub(super) fn look(&mut self) {
        if self.listener.is_some() || !Path::new(SERVER).exists() {
            return;
        }
        match listen() {
            Ok(listener) => self.listener = Some(listener),
            // The guest runs a server of its own: it is the one.
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            Err(error) => say(&format!("ssh: port {PORT}: {error}")),
        }
    }

    /// What to wait for.
    pub(super) fn listener(&self) -> Option<BorrowedFd<'_>> {
        self.listener.as_ref().filter(|_| self.servers.len() < MOST).map(AsFd::as_fd)
    }

    /// Takes a connection and starts a server on it.
    pub(super) fn accept(&mut self) {
        let Some(Ok((connection, _))) = self.listener.as_ref().map(TcpListener::accept) else { return };
        match serve(connection.into()) {
            Ok(pid) => drop(pid.map(|pid| self.servers.insert(pid))),
            Err(error) => say(&format!("{SERVER}: {error}")),
        }
    }

    /// A child has ended; it may have been a server.
    pub(super) fn buried(&mut self, pid: Pid) {
        self.servers.remove(&pid);
    }
}

fn listen() -> io::Result<TcpListener> {
    match std::fs::create_dir(EMPTY) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Its messages go to the console (`-e`): there need be no log in the guest.
fn serve(connection: OwnedFd) -> io::Result<Option<Pid>> {
    let console = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stderr(), 3)?;
    let mut server = Command::new(SERVER);
    server.args(["-i", "-e"]).current_dir("/").env_clear().env("PATH", DEFAULT_PATH);
    server.stdin(connection.try_clone()?).stdout(connection).stderr(console);
    let child = sys::session::spawn(&mut server, Birth::default()).map_err(|(_, error)| error)?;
    Ok(i32::try_from(child.id()).ok().and_then(Pid::from_raw))
}
