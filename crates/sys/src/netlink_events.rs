//! What the kernel tells by itself over netlink: changes of rules, links and routes.

use crate::netlink::Family;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A socket that hears of changes in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Events(OwnedFd);

impl Events {
    /// Opens one for groups, each by its number, 1 to 32.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open(family: Family, groups: &[u32]) -> io::Result<Events> {
        let protocol = match family {
            Family::Route => None,
            Family::Netfilter => Some(rustix::net::netlink::NETFILTER),
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
        let mask =
            groups.iter().filter_map(|group| 1u32.checked_shl(group.checked_sub(1)?)).fold(0, |mask, one| mask | one);
        rustix::net::bind(&fd, &SocketAddrNetlink::new(0, mask))?;
        Ok(Events(fd))
    }

    /// Receives one datagram of the kernel's; `None` where there is none now.
    ///
    /// # Errors
    /// Each says that something was lost: ENOBUFS where too many came, `FileTooLarge` where one did not fit into
    /// `buffer`.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            let received = rustix::io::retry_on_intr(|| rustix::net::recvfrom(&self.0, &mut *buffer, RecvFlags::TRUNC));
            let (_, length, from) = match received {
                Ok(received) => received,
                Err(rustix::io::Errno::AGAIN) => return Ok(None),
                Err(errno) => return Err(errno.into()),
            };
            let from = from.and_then(|from| SocketAddrNetlink::try_from(from).ok());
            // Another process may send what it likes.
            if from.is_none_or(|from| from.pid() != 0) {
                continue;
            }
            return if length > buffer.len() { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(Some(length)) };
        }
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
