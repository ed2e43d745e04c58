//! Taps, made and given away: what only root does. A VMM's end of one is `tapfd`.

use crate::spawn;
use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

static NO_CARRIER: libc::c_int = 0;

/// A tap that this process holds. It goes when this is dropped, or is anybody's to open where it was made to stay: no child that
/// is being started has it then.
#[derive(Debug)]
pub struct Tap(ManuallyDrop<OwnedFd>);

impl Drop for Tap {
    fn drop(&mut self) {
        // SAFETY: it is not used again.
        unsafe { ManuallyDrop::drop(&mut self.0) };
        spawn::none_inherits();
    }
}

impl Tap {
    /// Takes the tap `name`, or makes it where there is none: frames without a packet header, with one of virtio-net's.
    ///
    /// # Errors
    /// `InvalidInput` for a name that isn't one; else what the kernel says: EBUSY where something has it open,
    /// EINVAL where that name is another kind of link.
    pub fn open(name: &str) -> io::Result<Tap> {
        Tap::with(name, 0)
    }

    /// Makes the tap `name`, and never takes one that is there.
    ///
    /// # Errors
    /// As [`Tap::open`]; EBUSY where any link has the name already.
    pub fn make(name: &str) -> io::Result<Tap> {
        Tap::with(name, libc::IFF_TUN_EXCL)
    }

    fn with(name: &str, more: libc::c_int) -> io::Result<Tap> {
        if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.bytes().any(|byte| byte == 0 || byte == b'%') {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let tun = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
        // SAFETY: an all-zero `ifreq` is a valid value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from.cast_signed();
        }
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | more;
        // Sixteen bits, of which the kernel's own type takes the highest for a sign.
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        // SAFETY: TUNSETIFF reads and writes an `ifreq`, which this is, and its name ends in a NUL.
        if unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Tap(ManuallyDrop::new(tun.into())))
    }

    /// Says whose it is: that user, and that group, may open it.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn give_to(&self, uid: u32, gid: u32) -> io::Result<()> {
        self.set(libc::TUNSETOWNER, uid.into())?;
        self.set(libc::TUNSETGROUP, gid.into())
    }

    /// Pulls its plug, as the end of who has it open will: nobody is at the other end yet. Who opens it puts it in.
    ///
    /// # Errors
    /// What the kernel says; EINVAL before Linux 4.20.
    pub fn unplug(&self) -> io::Result<()> {
        // SAFETY: TUNSETCARRIER reads one `int`, which this is.
        let set = unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TUNSETCARRIER, &raw const NO_CARRIER) };
        if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Makes it stay when this is dropped.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn keep(self) -> io::Result<()> {
        self.set(libc::TUNSETPERSIST, 1)
    }

    /// Puts a frame into it, as a VMM does: it comes in by the tap. Without anything that a card would do for it.
    ///
    /// # Errors
    /// What the kernel says; EIO where the tap is down.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        // `struct virtio_net_hdr`: no checksum to be made, no segments.
        let bytes = [&[0; 10], frame].concat();
        let sent = rustix::io::retry_on_intr(|| rustix::io::write(&*self.0, &bytes))?;
        if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// Makes it go when this is dropped, though it was to stay.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn let_go(&self) -> io::Result<()> {
        self.set(libc::TUNSETPERSIST, 0)
    }

    fn set(&self, what: libc::Ioctl, value: libc::c_ulong) -> io::Result<()> {
        // SAFETY: these requests of a tun descriptor take their value itself, and no memory of ours.
        let set = unsafe { libc::ioctl(self.0.as_raw_fd(), what, value) };
        if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_name_is_no_pattern() {
        for bad in ["", "tap%d", "sixteen-letters-", "a\0b"] {
            assert_eq!(super::Tap::open(bad).expect_err(bad).kind(), std::io::ErrorKind::InvalidInput);
        }
    }
}
