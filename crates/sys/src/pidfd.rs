//! Processes by descriptor: what is signalled is the process that was opened, not whoever has its number now.

use crate::dir::CallError;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// A process that was opened. Its number may have been given away since; this is never another one.
#[derive(Debug)]
pub struct PidFd {
    fd: OwnedFd,
    pid: i32,
}

/// Opens the process that has the number `pid` now.
///
/// Read what it is *after* this call and ask [`PidFd::is_alive`] after that: then what was read was this process.
///
/// # Errors
/// `ESRCH` where there is none, `EINVAL` for a number that no process can have.
pub fn open(pid: i32) -> Result<PidFd, CallError> {
    let failed = |errno| CallError::new(format!("pidfd_open({pid}, 0)"), errno);
    let number = (pid > 0).then(|| Pid::from_raw(pid)).flatten().ok_or_else(|| failed(Errno::INVAL))?;
    pidfd_open(number, PidfdFlags::empty()).map(|fd| PidFd { fd, pid }).map_err(failed)
}

/// The same; `None` where no process has the number, so that who has no descriptor left doesn't take one that runs for gone.
///
/// # Errors
/// What else the kernel says: EMFILE.
pub fn find(pid: i32) -> Result<Option<PidFd>, CallError> {
    match open(pid) {
        Ok(process) => Ok(Some(process)),
        Err(error) if matches!(error.errno(), Errno::SRCH | Errno::INVAL) => Ok(None),
        Err(error) => Err(error),
    }
}

impl PidFd {
    /// The process of a descriptor that came with its start (`CLONE_PIDFD`).
    pub fn from_fd(fd: OwnedFd, pid: i32) -> PidFd {
        PidFd { fd, pid }
    }

    /// The number that it had when it was opened.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Sends it a signal, a real-time one too.
    ///
    /// # Errors
    /// `ESRCH` where it has ended, `EINVAL` for a number that no signal has.
    pub fn send_signal(&self, signal: i32) -> Result<(), CallError> {
        let failed = |errno| CallError::new(format!("pidfd_send_signal(<pid {}>, {signal})", self.pid), errno);
        let known = Signal::from_named_raw(signal).or_else(|| real_time(signal));
        let signal = known.ok_or_else(|| failed(Errno::INVAL))?;
        pidfd_send_signal(&self.fd, signal).map_err(failed)
    }

    /// Whether it has not ended yet. A zombie has.
    pub fn is_alive(&self) -> bool {
        !self.wait_end(Duration::ZERO)
    }

    /// Waits for its end, at most so long. True where it has ended.
    pub fn wait_end(&self, at_most: Duration) -> bool {
        let end = Instant::now() + at_most;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
            let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
            match poll(&mut fds, Some(&left)) {
                Ok(0) => return false,
                Ok(_) => return true,
                Err(Errno::INTR) => {}
                // It can't be asked, so nobody may say that it has ended.
                Err(_) => return false,
            }
        }
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Kills this process at once: nothing is undone, flushed or told.
pub fn kill_self() -> ! {
    let _ = rustix::process::kill_process(rustix::process::getpid(), Signal::KILL);
    std::process::abort()
}

/// Stops this process, all threads of it, until somebody continues it. This thread goes no step further: a signal to
/// the process might reach another one first.
pub fn stop_self() {
    // SAFETY: it sends this very thread a signal, and takes no memory of ours.
    unsafe { libc::raise(libc::SIGSTOP) };
}

/// When a process started, in clock ticks since the boot: field 22 of its `stat`. A number that was given away again
/// has another one.
///
/// # Errors
/// `NotFound` where there is no such process, `InvalidData` where the kernel's text is not as documented.
pub fn start_time(pid: i32) -> std::io::Result<u64> {
    let stat = std::fs::read(format!("/proc/{pid}/stat"))?;
    field(&stat, 22).ok_or_else(|| std::io::Error::other("no start time in /proc/PID/stat"))
}

/// Field `number` (from 1, as in proc(5), above 2) of a `stat` text. Field 2 is the command's name in parentheses, and
/// the process chooses it: what counts is behind the last `)`.
fn field(stat: &[u8], number: usize) -> Option<u64> {
    let behind = stat.iter().rposition(|&b| b == b')')? + 1;
    let text = std::str::from_utf8(&stat[behind..]).ok()?;
    text.split_ascii_whitespace().nth(number - 3)?.parse().ok()
}

/// The id of this boot. Numbers and start times of processes mean nothing in another one.
///
/// # Errors
/// Where `/proc` is not mounted.
pub fn boot_id() -> std::io::Result<String> {
    // No process sees two boots.
    static READ: OnceLock<String> = OnceLock::new();
    if let Some(id) = READ.get() {
        return Ok(id.clone());
    }
    let read = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(READ.get_or_init(|| read.trim_end().to_owned()).clone())
}

/// One that the C library has not kept for itself.
fn real_time(signal: i32) -> Option<Signal> {
    if !(libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(&signal) {
        return None;
    }
    // SAFETY: the number is a signal's, and no library's own.
    Some(unsafe { Signal::from_raw_unchecked(signal) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_from_start_to_end() {
        let mut child = Command::new("/bin/sleep").arg("60").spawn().unwrap();
        let pid = child.id().cast_signed();
        let opened = open(pid).unwrap();
        assert!(opened.is_alive() && !opened.wait_end(Duration::from_millis(5)));
        assert!(start_time(pid).unwrap() >= start_time(std::process::id().cast_signed()).unwrap());
        opened.send_signal(libc::SIGTERM).unwrap();
        assert!(opened.wait_end(Duration::from_secs(5)));
        child.wait().unwrap();
        assert!(!opened.is_alive());
        assert_eq!(opened.send_signal(libc::SIGTERM).unwrap_err().errno(), Errno::SRCH);
    }

    #[test]
    fn a_real_time_signal_arrives() {
        use std::os::unix::process::ExitStatusExt;
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let opened = open(child.id().cast_signed()).unwrap();
        // 32 and 33 are the C library's.
        for none in [0, -1, 32, 33, 65] {
            assert_eq!(opened.send_signal(none).unwrap_err().errno(), Errno::INVAL);
        }
        opened.send_signal(39).unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(39));
    }

    #[test]
    fn numbers_that_no_process_has() {
        for pid in [0, -1, i32::MIN] {
            assert_eq!(open(pid).unwrap_err().errno(), Errno::INVAL);
        }
        assert_eq!(open(i32::MAX).unwrap_err().to_string(), "pidfd_open(2147483647, 0): No such process (ESRCH)");
    }

    #[test]
    fn a_name_with_parentheses_moves_no_field() {
        let stat = b"7 (a) 1 (b) R 1 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 1 1";
        assert_eq!(field(stat, 22), Some(4711));
        assert_eq!(field(b"", 22), None);
    }

    #[test]
    fn the_boot_has_an_id() {
        assert_eq!(boot_id().unwrap().len(), 36);
    }
}
