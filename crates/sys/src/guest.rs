//! What the guest's first process needs of the kernel and rustix has no safe form of: its children's signal, and an
//! interface's address and route by the old ioctls (a few calls, no netlink to parse).

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// Blocks SIGCHLD in this thread, and gives a descriptor that can be read when one came.
///
/// # Errors
/// What the kernel says.
pub fn child_signals() -> io::Result<OwnedFd> {
    // SAFETY: an all-zero `sigset_t` is a valid value, the empty set.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is ours and initialised.
    check(unsafe { libc::sigaddset(&raw mut set, libc::SIGCHLD) })?;
    // SAFETY: reads the set that we own, writes nothing.
    let answer = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
    if answer != 0 {
        return Err(io::Error::from_raw_os_error(answer));
    }
    // SAFETY: reads the set that we own; -1 asks for a new descriptor.
    let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    check(fd)?;
    // SAFETY: the kernel has just given us this descriptor, nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends `signal` to every process but the caller, as the first process may.
///
/// # Errors
/// ESRCH where there is no other; EPERM, and nothing sent, where the caller is not PID 1.
pub fn signal_all(signal: rustix::process::Signal) -> io::Result<()> {
    if rustix::process::getpid() != rustix::process::Pid::INIT {
        return Err(io::Error::from_raw_os_error(libc::EPERM));
    }
    // SAFETY: sends a signal; -1 is every process but this one and the kernel's own.
    check(unsafe { libc::kill(-1, signal.as_raw()) })
}

/// A network interface, and the socket by which it is asked for.
#[derive(Debug)]
pub struct Link<'a> {
    name: &'a str,
    socket: OwnedFd,
}

impl<'a> Link<'a> {
    /// Of that name, whether it is there or not.
    ///
    /// # Errors
    /// What the kernel says of a socket.
    pub fn new(name: &'a str) -> io::Result<Link<'a>> {
        let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        Ok(Link { name, socket })
    }

    /// Gives it its address and mask.
    ///
    /// # Errors
    /// ENODEV where there is no such interface.
    pub fn set_address(&self, address: Ipv4Addr, mask: Ipv4Addr) -> io::Result<()> {
        for (request, value) in [(libc::SIOCSIFADDR, address), (libc::SIOCSIFNETMASK, mask)] {
            let mut ask = request_for(self.name)?;
            ask.ifr_ifru.ifru_addr = inet(value);
            self.ioctl(request, &raw mut ask)?;
        }
        Ok(())
    }

    /// Takes it up.
    ///
    /// # Errors
    /// ENODEV where there is no such interface.
    pub fn up(&self) -> io::Result<()> {
        self.set_flags(libc::IFF_UP | libc::IFF_RUNNING)
    }

    /// Takes it down.
    ///
    /// # Errors
    /// ENODEV where there is no such interface.
    pub fn down(&self) -> io::Result<()> {
        self.set_flags(0)
    }

    fn set_flags(&self, flags: libc::c_int) -> io::Result<()> {
        let mut ask = request_for(self.name)?;
        ask.ifr_ifru.ifru_flags = flags as libc::c_short;
        self.ioctl(libc::SIOCSIFFLAGS, &raw mut ask)
    }

    /// Gives an Ethernet interface its hardware address. Some drivers want it down for that.
    ///
    /// # Errors
    /// ENODEV where there is no such interface, EBUSY where it has to be down, EADDRNOTAVAIL for an address of a group.
    pub fn set_mac(&self, mac: [u8; 6]) -> io::Result<()> {
        let mut ask = request_for(self.name)?;
        let mut address = libc::sockaddr { sa_family: libc::ARPHRD_ETHER, sa_data: [0; 14] };
        for (to, from) in address.sa_data.iter_mut().zip(mac) {
            *to = from as libc::c_char;
        }
        ask.ifr_ifru.ifru_hwaddr = address;
        self.ioctl(libc::SIOCSIFHWADDR, &raw mut ask)
    }

    /// The default route, by whichever interface reaches the gateway.
    ///
    /// # Errors
    /// ENETUNREACH where none does.
    pub fn default_route(&self, gateway: Ipv4Addr) -> io::Result<()> {
        // SAFETY: `rtentry` is integers and pointers, for which zero is a value.
        let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
        route.rt_dst = inet(Ipv4Addr::UNSPECIFIED);
        route.rt_genmask = inet(Ipv4Addr::UNSPECIFIED);
        route.rt_gateway = inet(gateway);
        route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
        self.ioctl(libc::SIOCADDRT, &raw mut route)
    }

    /// For the requests above, all of which read and write no more than the structure they are called with.
    fn ioctl<T>(&self, request: libc::Ioctl, value: *mut T) -> io::Result<()> {
        // SAFETY: `value` is a live structure of the request's own type (see the callers).
        check(unsafe { libc::ioctl(self.socket.as_raw_fd(), request, value) })
    }
}

/// Makes a mounted ext4 so many blocks long, of which `root` is any file; one that is so long stays as it is.
///
/// # Errors
/// EINVAL where it would be shorter, ENOTTY where it is no ext4, EPERM where the caller is not root.
pub fn grow_ext4(root: impl AsFd, blocks: u64) -> io::Result<()> {
    // linux/ext4.h: EXT4_IOC_RESIZE_FS is _IOW('f', 16, __u64).
    const RESIZE: libc::Ioctl = 0x4008_6610;
    let fd = root.as_fd().as_raw_fd();
    // SAFETY: the request reads the one u64 that it is called with, which lives until it returns.
    check(unsafe { libc::ioctl(fd, RESIZE, &raw const blocks) })
}

fn request_for(link: &str) -> io::Result<libc::ifreq> {
    // SAFETY: `ifreq` is a name and a union of plain data, for which zero is a value.
    let mut ask: libc::ifreq = unsafe { std::mem::zeroed() };
    if link.is_empty() || link.len() >= ask.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in ask.ifr_name.iter_mut().zip(link.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(ask)
}

/// An address as a `sockaddr`: family, port 0, four bytes.
fn inet(address: Ipv4Addr) -> libc::sockaddr {
    let mut out = libc::sockaddr { sa_family: libc::AF_INET as libc::sa_family_t, sa_data: [0; 14] };
    for (to, from) in out.sa_data[2..6].iter_mut().zip(address.octets()) {
        *to = from as libc::c_char;
    }
    out
}

fn check(answer: libc::c_int) -> io::Result<()> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
