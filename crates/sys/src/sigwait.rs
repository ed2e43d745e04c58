//! Signals as values: blocked in every thread, and taken by one that waits for them.

use std::io;
use std::time::{Duration, Instant};

/// Signals that are blocked in the thread that made this, and in every thread that it starts afterwards.
#[derive(Debug, Clone, Copy)]
pub struct Blocked(libc::sigset_t);

/// Blocks `signals` and no others in this thread, whatever its starter had blocked. To be called before there is
/// another one, or those still die of them.
///
/// That a child ended is the kernel's default again: a starter that ignored `SIGCHLD` would have each reaped before we
/// could.
///
/// # Errors
/// A number that is no signal.
pub fn block(signals: &[i32]) -> io::Result<Blocked> {
    // SAFETY: an all-zero `sigset_t` is a valid value, the empty set.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    for &signal in signals {
        // SAFETY: the set is ours and initialised; an impossible number is answered by an error.
        if unsafe { libc::sigaddset(&raw mut set, signal) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: sets a disposition to the default; there is no handler that a thread could be in.
    if unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) } == libc::SIG_ERR {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: reads the set that we own, writes nothing.
    let answer = unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut()) };
    if answer == 0 { Ok(Blocked(set)) } else { Err(io::Error::from_raw_os_error(answer)) }
}

impl Blocked {
    /// Waits for the next of them.
    ///
    /// # Errors
    /// What the kernel says, never for an interruption.
    pub fn wait(&self) -> io::Result<i32> {
        let mut signal = 0;
        // SAFETY: the set is initialised, and `signal` is ours to be written.
        match unsafe { libc::sigwait(&raw const self.0, &raw mut signal) } {
            0 => Ok(signal),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// Waits for the next of them, at most so long; `None` where none came.
    ///
    /// # Errors
    /// What the kernel says, never for an interruption.
    pub fn wait_for(&self, at_most: Duration) -> io::Result<Option<i32>> {
        let end = Instant::now() + at_most;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let left = libc::timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
            // SAFETY: the set and the time are initialised and ours; nothing is written, as no siginfo is asked for.
            let signal = unsafe { libc::sigtimedwait(&raw const self.0, std::ptr::null_mut(), &raw const left) };
            if signal > 0 {
                return Ok(Some(signal));
            }
            match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_signal_comes_as_a_value() {
        // In a thread of its own: the mask is the thread's, and the signal is sent to the thread alone.
        std::thread::spawn(|| {
            let blocked = super::block(&[libc::SIGUSR1]).expect("blocked");
            // SAFETY: asks for this thread's own number.
            let this = unsafe { libc::pthread_self() };
            // SAFETY: sends this thread, which lives, a signal that it has blocked.
            assert_eq!(unsafe { libc::pthread_kill(this, libc::SIGUSR1) }, 0);
            assert_eq!(blocked.wait().expect("a signal"), libc::SIGUSR1);
        })
        .join()
        .expect("the thread");
    }
}
