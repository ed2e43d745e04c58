//! A second process out of one that has a single thread.

use rustix::process::Pid;
use std::io;

/// What a fork has made of the caller.
#[derive(Debug, PartialEq, Eq)]
pub enum Side {
    /// It goes on as it was; that is its child.
    Parent(Pid),
    /// It is the child.
    Child,
}

/// Forks, the child in a PID namespace of its own where `new_pid_ns` says so.
///
/// # Errors
/// `Unsupported` where this process has more than one thread: the others' locks would stay locked in the child. What
/// `clone3(2)` says.
pub fn alone(new_pid_ns: bool) -> io::Result<Side> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "a process of several threads does not fork"));
    }
    // SAFETY: all fields are integers, for which zeros are a value.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.exit_signal = libc::SIGCHLD as u64;
    args.flags = if new_pid_ns { libc::CLONE_NEWPID as u64 } else { 0 };
    // SAFETY: without CLONE_VM this is a fork, and there is no other thread whose locks the child could miss.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Side::Child),
        pid => {
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
            pid.map(Side::Parent).ok_or_else(|| io::Error::other("clone3 gave no process id"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_of_several_threads_is_refused() {
        // The test runner's thread is there beside this one.
        let refused = std::thread::spawn(|| alone(false).unwrap_err().kind()).join().unwrap();
        assert_eq!(refused, io::ErrorKind::Unsupported);
    }
}
