//! What a service tells systemd: sd_notify(3).

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Sends `state` (`READY=1`, `STOPPING=1`, `WATCHDOG=1`) to the socket that `NOTIFY_SOCKET` names: a path, or an abstract
/// name behind an `@`. It never waits.
///
/// # Errors
/// The name is none, nobody listens there, or who listens has not read what came before.
pub fn tell(socket: &str, state: &str) -> io::Result<()> {
    let address = match socket.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    let from = UnixDatagram::unbound()?;
    from.set_nonblocking(true)?;
    from.send_to_addr(state.as_bytes(), &address).map(drop)
}
