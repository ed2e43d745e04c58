//! A netlink socket: whole datagrams from the kernel alone, with a limit on the wait.

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

/// Which part of the kernel a socket speaks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Links, addresses, routes, rules.
    Route,
    /// nftables and connection tracking.
    Netfilter,
}

/// A socket to the kernel's netlink, bound, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Socket(OwnedFd);

/// How long an answer may take. The slowest one known, a network device that goes, takes tens of milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// Room for what the kernel says in one go: a batch of a whole ruleset, its answers, a part of a dump.
const ROOM: libc::c_int = 1 << 20;

impl Socket {
    /// Opens a socket with extended errors and strict requests.
    ///
    /// # Errors
    /// What the kernel says; `ProtocolNotSupported` where it has no such netlink.
    pub fn open(family: Family) -> io::Result<Socket> {
        let protocol = match family {
            // Zero, NETLINK_ROUTE.
            Family::Route => None,
            Family::Netfilter => Some(rustix::net::netlink::NETFILTER),
        };
        let fd = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        rustix::net::bind(&fd, &rustix::net::netlink::SocketAddrNetlink::new(0, 0))?;
        rustix::net::sockopt::set_socket_timeout(&fd, rustix::net::sockopt::Timeout::Recv, Some(PATIENCE))?;
        let socket = Socket(fd);
        socket.set(libc::SOL_NETLINK, libc::NETLINK_EXT_ACK, 1)?;
        socket.set(libc::SOL_NETLINK, libc::NETLINK_CAP_ACK, 1)?;
        socket.set(libc::SOL_NETLINK, libc::NETLINK_GET_STRICT_CHK, 1)?;
        // Beyond the system's limit only with CAP_NET_ADMIN: without it the default has to do.
        let _ = socket.set(libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, ROOM);
        let _ = socket.set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, ROOM);
        Ok(socket)
    }

    /// The number by which the kernel names this socket to others.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn port(&self) -> io::Result<u32> {
        let address = rustix::net::getsockname(&self.0)?;
        Ok(rustix::net::netlink::SocketAddrNetlink::try_from(address)?.pid())
    }

    fn set(&self, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
        let length = std::mem::size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: the value is an int that outlives the call, and its length is given.
        let set = unsafe { libc::setsockopt(self.0.as_raw_fd(), level, option, (&raw const value).cast(), length) };
        if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Sends messages to the kernel, all in one datagram. Begins again where a signal came between.
    ///
    /// # Errors
    /// What the kernel says; `WriteZero` where it took a part, which it does not do.
    pub fn send(&self, messages: &[u8]) -> io::Result<()> {
        let kernel = rustix::net::netlink::SocketAddrNetlink::new(0, 0);
        let sent = rustix::io::retry_on_intr(|| {
            rustix::net::sendto(self.0.as_fd(), messages, rustix::net::SendFlags::empty(), &kernel)
        })?;
        if sent == messages.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// Receives one datagram of the kernel's into `buffer`; what another process sent is thrown away.
    ///
    /// # Errors
    /// `TimedOut` after 10 s without one; `FileTooLarge` where the buffer was too short (its rest is lost);
    /// ENOBUFS where answers were lost, because too many came at once.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        use rustix::net::RecvFlags;
        loop {
            let (_, length, from) =
                rustix::io::retry_on_intr(|| rustix::net::recvfrom(self.0.as_fd(), &mut *buffer, RecvFlags::TRUNC))
                    .map_err(|errno| match errno {
                        rustix::io::Errno::AGAIN => io::ErrorKind::TimedOut.into(),
                        other => io::Error::from(other),
                    })?;
            let from = from.and_then(|from| rustix::net::netlink::SocketAddrNetlink::try_from(from).ok());
            if from.is_none_or(|from| from.pid() != 0) {
                continue;
            }
            return if length > buffer.len() { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(length) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_request_is_answered_with_its_number() {
        let socket = Socket::open(Family::Route).expect("a socket");
        // A link that does not exist: RTM_GETLINK by index 0x7ffffff0.
        let mut request = Vec::new();
        request.extend(32u32.to_ne_bytes());
        request.extend(18u16.to_ne_bytes());
        request.extend(1u16.to_ne_bytes());
        request.extend(77u32.to_ne_bytes());
        request.extend(0u32.to_ne_bytes());
        request.extend([0, 0, 0, 0]);
        request.extend(0x7fff_fff0u32.to_ne_bytes());
        request.extend([0; 8]);
        socket.send(&request).expect("sent");
        let mut answer = [0; 4096];
        let length = socket.receive(&mut answer).expect("an answer");
        assert!(length >= 20);
        assert_eq!(answer[4..6], 2u16.to_ne_bytes(), "an error");
        assert_eq!(answer[8..12], 77u32.to_ne_bytes());
        assert_eq!(answer[16..20], (-libc::ENODEV).to_ne_bytes());
    }

    #[test]
    fn a_short_buffer_is_an_error() {
        let socket = Socket::open(Family::Route).expect("a socket");
        let mut request = Vec::new();
        request.extend(32u32.to_ne_bytes());
        request.extend(18u16.to_ne_bytes());
        request.extend(1u16.to_ne_bytes());
        request.extend([0; 8]);
        request.extend([0, 0, 0, 0]);
        request.extend(1u32.to_ne_bytes());
        request.extend([0; 8]);
        socket.send(&request).expect("sent");
        assert_eq!(socket.receive(&mut [0; 64]).expect_err("short").kind(), io::ErrorKind::FileTooLarge);
    }
}
