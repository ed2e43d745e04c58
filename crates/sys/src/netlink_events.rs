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
        // A datagram tells of one commit. Its first message says who made it (`nlmsg_pid`); the filter reads a number in
        // the network's order.
        self.filter(&mut [
            step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, NUMBER),
            step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, 0, port.to_be()),
            step(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
            step(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
        ])
    }

    /// Hears of links only what tells one whole, not the messages of its family (`ifi_family`), and all else as before.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn whole_links(&self) -> io::Result<()> {
        const TYPE: u32 = 4;
        // Behind the message's header, in `struct ifinfomsg`.
        const FAMILY: u32 = 16;
        let is = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
        // Each datagram holds one message.
        self.filter(&mut [
            step(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, 0, 0, TYPE),
            step(is, 1, 0, libc::RTM_NEWLINK.to_be().into()),
            step(is, 0, 2, libc::RTM_DELLINK.to_be().into()),
            step(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, FAMILY),
            step(is, 0, 1, 0),
            step(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
            step(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
        ])
    }

    /// Hears no more of all the switches of a link that comes or goes: messages of switches (`RTM_NEWNETCONF`) with the
    /// attribute `switch` are passed over, a change of that one alone among them, and those that a link's are gone.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn no_links_coming(&self, switch: u16) -> io::Result<()> {
        const TYPE: u32 = 4;
        // Behind the message's header and `struct netconfmsg`, aligned.
        const ATTRIBUTES: u32 = 20;
        let is = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
        let find = (libc::SKF_AD_OFF + libc::SKF_AD_NLATTR).cast_unsigned();
        self.filter(&mut [
            step(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, 0, 0, TYPE),
            step(is, 5, 0, libc::RTM_DELNETCONF.to_be().into()),
            step(is, 0, 5, libc::RTM_NEWNETCONF.to_be().into()),
            // Where that attribute is, among those that begin there; 0 without one.
            step(libc::BPF_LDX | libc::BPF_IMM, 0, 0, switch.into()),
            step(libc::BPF_LD | libc::BPF_IMM, 0, 0, ATTRIBUTES),
            step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, find),
            step(is, 1, 0, 0),
            step(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
            step(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
        ])
    }

    fn filter(&self, steps: &mut [libc::sock_filter]) -> io::Result<()> {
        let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
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

/// A step of a filter: what it does, how many it passes over where that is so and where it is not, its number.
fn step(code: u32, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt, jf, k }
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
