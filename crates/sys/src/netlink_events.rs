//! What the kernel tells by itself over netlink: changes of rules, links and routes.

use crate::netlink::Family;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

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

    /// Hears no more of what the socket with that number caused: nobody is woken for it.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn pass_over(&self, port: u32) -> io::Result<()> {
        const NUMBER: u32 = 12;
        let step = |code: u32, jt, k| libc::sock_filter { code: code as u16, jt, jf: 0, k };
        // A datagram tells of one commit. Its first message says who made it (`nlmsg_pid`); the filter reads a number in
        // the network's order.
        let mut filter = [
            step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, NUMBER),
            step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, port.to_be()),
            step(libc::BPF_RET | libc::BPF_K, 0, u32::MAX),
            step(libc::BPF_RET | libc::BPF_K, 0, 0),
        ];
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        let length = std::mem::size_of::<libc::sock_fprog>() as libc::socklen_t;
        let (level, option) = (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER);
        // SAFETY: the program and the steps that it points to outlive the call, and their lengths are given.
        let set = unsafe { libc::setsockopt(self.0.as_raw_fd(), level, option, (&raw const program).cast(), length) };
        if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::Socket;

    #[test]
    fn a_filter_is_taken() {
        let events = Events::open(Family::Netfilter, &[7]).expect("a socket");
        events
            .pass_over(Socket::open(Family::Netfilter).expect("a socket").port().expect("its number"))
            .expect("a filter");
        assert_eq!(events.receive(&mut [0; 4096]).expect("nothing is no error"), None);
    }
}
