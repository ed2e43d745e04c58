//! The VMM's end of a tap that exists: its frames come out of the descriptor, and go into it.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

/// Takes the tap `name`, with a virtio-net header before each frame. Nobody else can take it until this is closed.
///
/// # Errors
/// `NotFound` where no interface has that name (none is made); `InvalidInput` for a name of more than 15 bytes; else
/// what the kernel says: EPERM for somebody else's tap, EBUSY for one that is taken, EINVAL for what is no tap.
pub fn attach(name: &str) -> io::Result<OwnedFd> {
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.bytes().any(|byte| byte == 0 || byte == b'%') {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    // TUNSETIFF makes what isn't there where the caller may; a VMM is given a tap, and must not make one unseen.
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    match rustix::net::netdevice::name_to_index(&socket, name) {
        Err(rustix::io::Errno::NODEV) => return Err(io::ErrorKind::NotFound.into()),
        other => other?,
    };
    let tun = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    // SAFETY: an all-zero `ifreq` is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the request is an `ifreq` of ours, which is what TUNSETIFF reads and writes; its name ends in a NUL.
    if unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(tun.into())
}

#[cfg(test)]
mod tests {
    #[test]
    fn only_a_tap_that_exists_is_taken() {
        assert_eq!(super::attach("no-such-tap0").expect_err("none").kind(), std::io::ErrorKind::NotFound);
        assert_eq!(super::attach("tap%d").expect_err("a pattern").kind(), std::io::ErrorKind::InvalidInput);
        assert!(super::attach("lo").is_err());
    }
}
