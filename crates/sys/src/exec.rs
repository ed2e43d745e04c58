//! The last step of a process that becomes a program.

use rustix::fd::{AsFd, AsRawFd};
use std::convert::Infallible;
use std::ffi::{CString, c_char};
use std::io;

/// Executes the file that is open there, whatever its name leads to by now, with an empty environment. Returns only where
/// that failed.
///
/// # Errors
/// `execveat(2)`: `EACCES` where this user may not execute it, `ENOENT` where its interpreter is not to be found from
/// here.
pub fn by_descriptor(program: impl AsFd, argv: &[CString]) -> io::Result<Infallible> {
    let mut arguments: Vec<*const c_char> = argv.iter().map(|arg| arg.as_ptr()).collect();
    arguments.push(std::ptr::null());
    let environment: [*const c_char; 1] = [std::ptr::null()];
    let fd = program.as_fd().as_raw_fd();
    // SAFETY: the path is an empty C string; both lists end with a null pointer, and all that they point to lives until
    // the call is over.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            fd,
            c"".as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    Err(io::Error::last_os_error())
}

/// Gives this process an empty session keyring, which stays empty and can't be kept: it may be searched, read and seen.
/// Who has its starter's possesses the keys in that, whatever his uid. A
/// kernel without keys, and a filter that forbids them to us, forbids them to the program too.
///
/// # Errors
/// `keyctl(2)`.
pub fn own_keyring() -> io::Result<()> {
    // SAFETY: the operation takes a name or null for a keyring without one.
    let answer = unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<u8>()) };
    match answer {
        -1 => match io::Error::last_os_error() {
            error if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => Ok(()),
            error => Err(error),
        },
        _ => forbid_all_but_looking(),
    }
}

/// Takes writing, linking and changing away from those who possess this process's session keyring, and all from its user.
fn forbid_all_but_looking() -> io::Result<()> {
    const POSSESSOR_VIEWS_READS_SEARCHES: u32 = 0x0b00_0000;
    // SAFETY: numbers alone.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            libc::KEYCTL_SETPERM,
            libc::KEY_SPEC_SESSION_KEYRING,
            POSSESSOR_VIEWS_READS_SEARCHES,
        )
    };
    if answer == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
