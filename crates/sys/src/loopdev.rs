//! Loop devices: a file as a block device. Bound by descriptor, known by the kernel's own word of what they are bound to.
//!
//! The numbers and structures are those of `include/uapi/linux/loop.h`.

use crate::dir::{CallError, Facts};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

const LOOP_CLR_FD: libc::Ioctl = 0x4c01;
const LOOP_GET_STATUS64: libc::Ioctl = 0x4c05;
const LOOP_CONFIGURE: libc::Ioctl = 0x4c0a;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;
const LOOP_MAJOR: u32 = 7;

const READ_ONLY: u32 = 1;
const AUTOCLEAR: u32 = 4;
const DIRECT_IO: u32 = 16;

/// How often another number is asked for where somebody else took the one that was free.
const TAKEN: u32 = 256;

/// `struct loop_info64`
#[repr(C)]
#[derive(Clone, Copy)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`
#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<Info>() == 232 && size_of::<Config>() == 304);

const NO_INFO: Info = Info {
    device: 0,
    inode: 0,
    rdevice: 0,
    offset: 0,
    size_limit: 0,
    number: 0,
    encrypt_type: 0,
    encrypt_key_size: 0,
    flags: 0,
    file_name: [0; 64],
    crypt_name: [0; 64],
    encrypt_key: [0; 32],
    init: [0; 2],
};

/// What may be done with a loop device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It can't be written, by nobody.
    Read,
    /// What is written to it is written to the file.
    ReadWrite,
}

/// A loop device that is open. What it is bound to stays so for as long: the kernel ends a binding with the last close.
#[derive(Debug)]
pub struct Loop {
    fd: OwnedFd,
    number: u32,
}

/// What a loop device is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// The device that the file is on, as `fstat` says it.
    pub dev: u64,
    /// The file's inode there.
    pub ino: u64,
    /// All of the file, from its first byte to its last.
    pub is_whole: bool,
    /// It can't be written.
    pub is_read_only: bool,
    /// The binding ends with the last close.
    pub is_autoclear: bool,
    /// What is read and written passes the file's page cache by.
    pub is_direct: bool,
}

impl Loop {
    /// Binds a free loop device to all of `file`, until the last close. Direct I/O where the file's file system can.
    ///
    /// # Errors
    /// The call as it was made: `ENOENT` without loop devices or without a node for the one that is free, `EBUSY` where
    /// others took each free one, else what `LOOP_CONFIGURE` says of the file.
    pub fn bind(file: BorrowedFd<'_>, access: Access) -> Result<Loop, CallError> {
        let path = "/dev/loop-control";
        let control = open(path, OFlags::RDWR).map_err(|errno| CallError::new(format!("open({path:?})"), errno))?;
        let (open_for, flag) = match access {
            Access::Read => (OFlags::RDONLY, READ_ONLY),
            Access::ReadWrite => (OFlags::RDWR, 0),
        };
        let mut config = Config {
            // A descriptor that is open is no negative number.
            fd: file.as_raw_fd().cast_unsigned(),
            block_size: 0,
            info: Info { flags: flag | AUTOCLEAR | DIRECT_IO, ..NO_INFO },
            reserved: [0; 8],
        };
        for _ in 0..TAKEN {
            // SAFETY: LOOP_CTL_GET_FREE takes no argument.
            let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
            let number = u32::try_from(number).map_err(|_| CallError::new("ioctl(LOOP_CTL_GET_FREE)", errno()))?;
            let free = Loop::node(number, open_for)?;
            // SAFETY: LOOP_CONFIGURE reads a `loop_config`, which this is; the descriptor in it is open.
            if unsafe { libc::ioctl(free.fd.as_raw_fd(), LOOP_CONFIGURE, &raw mut config) } == 0 {
                return Ok(free);
            }
            match errno() {
                Errno::BUSY => {}
                errno => return Err(free.failed("LOOP_CONFIGURE", errno)),
            }
        }
        Err(CallError::new(format!("ioctl(LOOP_CONFIGURE), {TAKEN} times"), Errno::BUSY))
    }

    /// Opens the loop device of that number to look at it. `None` where there is none.
    ///
    /// # Errors
    /// The call as it was made.
    pub fn open(number: u32) -> Result<Option<Loop>, CallError> {
        match Loop::node(number, OFlags::RDONLY) {
            Ok(found) => Ok(Some(found)),
            // ENXIO: it is being removed, or has a node and nothing behind it.
            Err(error) if matches!(error.errno(), Errno::NOENT | Errno::NXIO | Errno::NODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn node(number: u32, flags: OFlags) -> Result<Loop, CallError> {
        let path = format!("/dev/loop{number}");
        let failed = |errno| CallError::new(format!("open({path:?})"), errno);
        let found = Loop { fd: open(&path, flags).map_err(failed)?, number };
        let facts = Facts::of(&found)?;
        if facts.kind == FileType::BlockDevice && rustix::fs::major(facts.rdev) == LOOP_MAJOR {
            Ok(found)
        } else {
            Err(CallError::new(format!("{path:?} as a loop device"), Errno::NOTBLK))
        }
    }

    /// Its number, as in `/dev/loop4`.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Which device it is.
    ///
    /// # Errors
    /// What `fstat` says.
    pub fn device(&self) -> Result<u64, CallError> {
        Facts::of(self).map(|facts| facts.rdev)
    }

    /// What it is bound to. `None` where to nothing.
    ///
    /// # Errors
    /// The call as it was made; `ESTALE` where the node is another device's.
    pub fn bound(&self) -> Result<Option<Bound>, CallError> {
        let mut info = NO_INFO;
        // SAFETY: LOOP_GET_STATUS64 writes a `loop_info64`, which this is.
        if unsafe { libc::ioctl(self.fd.as_raw_fd(), LOOP_GET_STATUS64, &raw mut info) } < 0 {
            return match errno() {
                Errno::NXIO => Ok(None),
                errno => Err(self.failed("LOOP_GET_STATUS64", errno)),
            };
        }
        if info.number != self.number {
            return Err(self.failed("LOOP_GET_STATUS64", Errno::STALE));
        }
        Ok(Some(Bound {
            dev: info.device,
            ino: info.inode,
            is_whole: info.offset == 0 && info.size_limit == 0 && info.encrypt_type == 0,
            is_read_only: info.flags & READ_ONLY != 0,
            is_autoclear: info.flags & AUTOCLEAR != 0,
            is_direct: info.flags & DIRECT_IO != 0,
        }))
    }

    /// Ends the binding: now, where nobody else has it open, else with the last close.
    ///
    /// # Errors
    /// The call as it was made. That nothing is bound to it is none.
    pub fn clear(&self) -> Result<(), CallError> {
        // SAFETY: LOOP_CLR_FD takes no argument.
        if unsafe { libc::ioctl(self.fd.as_raw_fd(), LOOP_CLR_FD) } == 0 {
            return Ok(());
        }
        match errno() {
            Errno::NXIO => Ok(()),
            errno => Err(self.failed("LOOP_CLR_FD", errno)),
        }
    }

    fn failed(&self, call: &str, errno: Errno) -> CallError {
        CallError::new(format!("ioctl(</dev/loop{}>, {call})", self.number), errno)
    }
}

impl AsFd for Loop {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn open(path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    rustix::io::retry_on_intr(|| rustix::fs::open(path, flags | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty()))
}

fn errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};

    fn bound_to(file: &std::fs::File, bound: Bound) -> bool {
        let facts = Facts::of(file).unwrap();
        (facts.dev, facts.ino) == (bound.dev, bound.ino)
    }

    #[test]
    fn bound_until_the_last_close() {
        assert!(rustix::process::geteuid().is_root(), "this test needs root");
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 8192]).unwrap();
        let first = Loop::bind(file.as_fd(), Access::Read).unwrap();
        let second = Loop::bind(file.as_fd(), Access::ReadWrite).unwrap();
        assert_ne!(first.number(), second.number());
        let bound = first.bound().unwrap().unwrap();
        assert!(bound_to(&file, bound) && bound.is_read_only && bound.is_autoclear && bound.is_whole, "{bound:?}");
        assert!(!second.bound().unwrap().unwrap().is_read_only);

        // Somebody else's clear ends nothing while it is open; what is read is the file.
        let number = first.number();
        let other = Loop::open(number).unwrap().unwrap();
        other.clear().unwrap();
        drop(other);
        assert!(first.bound().unwrap().is_some_and(|bound| bound_to(&file, bound)));
        let mut bytes = [0; 4096];
        std::fs::File::from(first.fd.try_clone().unwrap()).read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, [7; 4096]);
        drop(first);
        // Somebody else on this machine may have taken the number by now.
        let bound = Loop::open(number).unwrap().and_then(|again| again.bound().unwrap());
        assert!(bound.is_none_or(|bound| !bound_to(&file, bound)));
    }

    #[test]
    fn a_number_that_no_device_has() {
        assert!(Loop::open((1 << 20) - 1).unwrap().is_none());
    }
}
