//! Which child has ended, without burying it: until then its number is nobody else's.

use std::io;

use rustix::process::Pid;

/// A child of ours that has ended and is not buried; the same one again until it is. `None`: all that there are live.
///
/// # Errors
/// ECHILD where there are no children.
pub fn first_ended() -> io::Result<Option<Pid>> {
    // SAFETY: `siginfo_t` is integers and unions of them, for which zero is a value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: the kernel writes one `siginfo_t`, which is ours.
    let answer = unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, flags) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: waitid has filled the fields of a child's signal, or left all of it zero.
    let pid = unsafe { info.si_pid() };
    Ok(Pid::from_raw(pid))
}
