//! The processes that the lab has started, so that a signal or the end of its time ends them: what waited for them then
//! fails, and undoes what it had begun.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// The exit status of a lab whose time was up, as `timeout` has it.
pub(super) const TIME_UP: i32 = 124;
/// How long the undoing may take after a signal.
const PATIENCE: Duration = Duration::from_secs(20);

static RUNNING: Mutex<Vec<(u32, OwnedFd)>> = Mutex::new(Vec::new());
/// 0, or the exit status of a lab that is being ended.
static ENDED_BY: AtomicI32 = AtomicI32::new(0);

/// A child that dies with this process, with this process's whole group, or when everything is ended.
pub(super) struct Bound(Child);

/// Starts a child that holds `keep` and no other descriptor. The child dies with the thread that calls this.
pub(super) fn spawn(command: &mut Command, keep: &[BorrowedFd<'_>]) -> Result<Bound> {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    check()?;
    let child = sys::child::spawn_bound(command, keep).with_context(|| format!("can't start {program}"))?;
    let bound = Bound(child);
    let pid = i32::try_from(bound.0.id()).ok().and_then(Pid::from_raw).context("a child without a pid")?;
    running.push((bound.0.id(), pidfd_open(pid, PidfdFlags::empty())?));
    Ok(bound)
}

/// Runs a program to its end, with its output in a file.
pub(super) fn run(mut command: Command, log: &Path) -> Result<()> {
    let log = File::create(log)?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let status = spawn(&mut command, &[])?.0.wait()?;
    check()?;
    if !status.success() {
        bail!("{} failed ({status})", command.get_program().display());
    }
    Ok(())
}

impl Drop for Bound {
    fn drop(&mut self) {
        RUNNING.lock().unwrap_or_else(PoisonError::into_inner).retain(|(pid, _)| *pid != self.0.id());
        // Both fail only where it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Bound {
    /// Whether it has ended.
    pub(super) fn has_ended(&mut self) -> bool {
        !matches!(self.0.try_wait(), Ok(None))
    }
}

/// Ends all children, and lets no other start.
fn end(status: i32) {
    ENDED_BY.store(status, Ordering::Release);
    for (_, pidfd) in RUNNING.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        let _ = pidfd_send_signal(pidfd.as_fd(), Signal::KILL);
    }
}

/// The exit status, where everything is being ended.
pub(super) fn ended_by() -> Option<i32> {
    Some(ENDED_BY.load(Ordering::Acquire)).filter(|status| *status != 0)
}

/// An error where everything is being ended.
pub(super) fn check() -> Result<()> {
    match ended_by() {
        Some(TIME_UP) => bail!("the time is up"),
        Some(_) => bail!("interrupted"),
        None => Ok(()),
    }
}

/// Ends everything when one of these signals comes. To be called before there is another thread.
pub(super) fn end_on_signals() -> Result<()> {
    use rustix::process::Signal as S;
    let signals = sys::sigwait::block(&[S::INT, S::TERM, S::HUP].map(S::as_raw)).context("can't block signals")?;
    thread::spawn(move || {
        let Ok(signal) = signals.wait() else { return };
        end(128 + signal);
        thread::sleep(PATIENCE);
        std::process::exit(128 + signal);
    });
    Ok(())
}

/// Ends everything after a while.
pub(super) fn end_after(limit: Duration) {
    thread::spawn(move || {
        thread::sleep(limit);
        end(TIME_UP);
        thread::sleep(PATIENCE);
        std::process::exit(TIME_UP);
    });
}
