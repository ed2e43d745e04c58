//! What the guest's first process needs of the kernel and rustix has no safe form of: its children's signal, a child in
//! a session of its own, and an interface's address and route by the old ioctls (three calls, no netlink to parse).

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

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

/// Starts `command` as the leader of a session and a group of its own, with these supplementary groups where given, and
/// with no descriptor but 0, 1 and 2. (std empties the signal mask of its children itself.)
///
/// # Errors
/// What the start says, the child's steps before its exec included.
pub fn spawn_session(command: &mut Command, groups: Option<Vec<u32>>) -> io::Result<Child> {
    let before_exec = move || {
        rustix::process::setsid()?;
        // SAFETY: marks descriptors only; all of them stay open in this process image, so nobody's is taken away.
        let marked = unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
        check(marked as libc::c_int)?;
        match &groups {
            // SAFETY: the kernel reads as many ids as the slice has.
            Some(ids) => check(unsafe { libc::setgroups(ids.len(), ids.as_ptr()) }),
            None => Ok(()),
        }
    };
    // SAFETY: the closure runs after the fork and only makes system calls: no allocation, no lock.
    unsafe { command.pre_exec(before_exec) };
    command.spawn()
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

/// Gives an interface its address and mask.
///
/// # Errors
/// ENODEV where there is no such interface.
pub fn set_address(link: &str, address: Ipv4Addr, mask: Ipv4Addr) -> io::Result<()> {
    for (request, value) in [(libc::SIOCSIFADDR, address), (libc::SIOCSIFNETMASK, mask)] {
        let mut ask = request_for(link)?;
        ask.ifr_ifru.ifru_addr = inet(value);
        ioctl(request, &raw mut ask)?;
    }
    Ok(())
}

/// Takes an interface up.
///
/// # Errors
/// ENODEV where there is no such interface.
pub fn link_up(link: &str) -> io::Result<()> {
    let mut ask = request_for(link)?;
    ask.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    ioctl(libc::SIOCSIFFLAGS, &raw mut ask)
}

/// The default route.
///
/// # Errors
/// ENETUNREACH where no interface reaches the gateway.
pub fn default_route(gateway: Ipv4Addr) -> io::Result<()> {
    // SAFETY: `rtentry` is integers and pointers, for which zero is a value.
    let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
    route.rt_dst = inet(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = inet(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = inet(gateway);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    ioctl(libc::SIOCADDRT, &raw mut route)
}

/// For the requests above, all of which read and write no more than the structure they are called with.
fn ioctl<T>(request: libc::Ioctl, value: *mut T) -> io::Result<()> {
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: `value` is a live structure of the request's own type (see the three callers).
    check(unsafe { libc::ioctl(socket.as_raw_fd(), request, value) })
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

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    #[test]
    fn a_child_leads_its_own_session() {
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", "cut -d' ' -f1,5,6 /proc/self/stat; cut -d' ' -f1,5,6 /proc/$$/stat"])
            .stdout(Stdio::piped());
        let child = super::spawn_session(&mut command, None).expect("started");
        let pid = child.id().to_string();
        let output = child.wait_with_output().expect("ended");
        let text = String::from_utf8(output.stdout).expect("text");
        assert!(text.contains(&format!("{pid} {pid} {pid}")), "{text}");
    }
}
