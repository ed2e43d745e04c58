//! Landlock: a process that lays it upon itself opens only what its rules name, whatever it becomes. What it holds
//! already it keeps. Numbers and structures are those of the kernel's `linux/landlock.h`.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

const CREATE_RULESET_VERSION: u32 = 1;
const RULE_PATH_BENEATH: libc::c_int = 1;

const EXECUTE: u64 = 1;
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
const IOCTL_DEV: u64 = 1 << 15;
/// Rights on files that each version of the interface has, from 1 on.
const FS_RIGHTS: [u64; 5] = [(1 << 13) - 1, (1 << 14) - 1, (1 << 15) - 1, (1 << 15) - 1, (1 << 16) - 1];
/// To bind and to connect a TCP socket.
const NET_RIGHTS: u64 = 3;
/// Abstract Unix sockets and signals of others.
const SCOPES: u64 = 3;

#[repr(C)]
struct RulesetAttr {
    handled_fs: u64,
    handled_net: u64,
    scoped: u64,
}

#[repr(C, packed)]
struct PathBeneathAttr {
    allowed: u64,
    parent: i32,
}

/// What may be done with what a rule names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// To read it, and what is below it.
    Read,
    /// To read and to execute it, and what is below it.
    Execute,
    /// To read and to write it.
    Write,
    /// To use a device: read, write, control.
    Device,
}

/// Rules that are not laid upon anybody yet. Without one nothing may be opened.
#[derive(Debug)]
pub struct Ruleset {
    fd: OwnedFd,
    handled: u64,
}

impl Ruleset {
    /// One that forbids all that this kernel can forbid: every way to open, make or remove a file; TCP from version 4
    /// on; others' abstract sockets and signals from version 6 on.
    ///
    /// # Errors
    /// `Unsupported` where the kernel has no Landlock or it is turned off.
    pub fn new() -> io::Result<Self> {
        let version = version()?;
        let handled = FS_RIGHTS[(version - 1).min(FS_RIGHTS.len() - 1)];
        let attr = RulesetAttr {
            handled_fs: handled,
            handled_net: if version >= 4 { NET_RIGHTS } else { 0 },
            scoped: if version >= 6 { SCOPES } else { 0 },
        };
        // SAFETY: `attr` is a structure of the given size, read during the call; a kernel that knows a shorter one takes
        // it because what is beyond is 0 then.
        let fd = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &raw const attr, size_of_val(&attr), 0u32) };
        let fd = i32::try_from(fd).map_err(io::Error::other)?;
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call made this descriptor, so nobody else owns it.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) }, handled })
    }

    /// Allows `access` to what the descriptor names. Pipes, sockets and memory files need no rule and get none.
    ///
    /// # Errors
    /// What the kernel says; `EINVAL` where a right is for directories only.
    pub fn allow(&self, what: impl AsFd, access: Access) -> io::Result<()> {
        let what = what.as_fd();
        let rights = match access {
            Access::Read => READ_FILE | READ_DIR,
            Access::Execute => READ_FILE | READ_DIR | EXECUTE,
            Access::Write => READ_FILE | WRITE_FILE,
            Access::Device => READ_FILE | WRITE_FILE | IOCTL_DEV,
        };
        let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(what)?.st_mode);
        let of_kind = if kind == rustix::fs::FileType::Directory { rights } else { rights & !READ_DIR };
        let attr = PathBeneathAttr { allowed: of_kind & self.handled, parent: what.as_raw_fd() };
        let fd = self.fd.as_raw_fd();
        // SAFETY: `attr` is the structure that this kind of rule is, read during the call; both descriptors are borrowed.
        let answer =
            unsafe { libc::syscall(libc::SYS_landlock_add_rule, fd, RULE_PATH_BENEATH, &raw const attr, 0u32) };
        match answer {
            0 => Ok(()),
            _ => match io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::EBADFD) => Ok(()),
                error => Err(error),
            },
        }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Lays the rules upon the calling thread, for good. Without allocation: it is called between fork and exec, after
/// the thread gave up new privileges.
pub(crate) fn restrict_self(ruleset: i32) -> io::Result<()> {
    // SAFETY: takes numbers only; a descriptor that is no ruleset is told.
    let answer = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset, 0u32) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The version of the kernel's interface, from 1 on.
fn version() -> io::Result<usize> {
    let none = std::ptr::null::<RulesetAttr>();
    // SAFETY: with this flag the call reads nothing and answers a number.
    let answer = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, 0usize, CREATE_RULESET_VERSION) };
    match usize::try_from(answer) {
        Ok(version @ 1..) => Ok(version),
        _ => Err(io::Error::new(io::ErrorKind::Unsupported, io::Error::last_os_error())),
    }
}
