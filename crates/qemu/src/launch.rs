//! QEMU as a process: started by the main thread, to which the kernel binds its life, and waited for by one of its own.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use sys::landlock::Ruleset;
use wire::firecracker::QEMU_PLACES as PLACES;

use crate::rate::Rate;

/// How much of QEMU's last words is kept.
const MAX_LAST_WORDS: usize = 2048;
/// How much of it is passed on, and in which time: a guest's drivers can make it complain without an end.
const MOST_WORDS: (u64, Duration) = (64 * 1024, Duration::from_secs(60));

/// QEMU asks for huge pages for each block of its machine, also where that has a few pages that are used: the ACPI tables, of
/// 2 MiB, would take one whole. The guest's memory and translated code are longer than this.
const HUGE_PAGES_FROM: u32 = 4 << 20;

/// What the main thread is told.
#[derive(Debug)]
pub(crate) enum Event {
    /// Start QEMU.
    Order(Box<Order>),
    /// A signal to this process.
    Signal(i32),
    /// QEMU is gone; `true` where its VM was running by then.
    Ended(ExitStatus, bool),
    /// There is no sense in going on: the exit code, and why.
    GivenUp(u8, String),
}

/// A process to be started.
#[derive(Debug)]
pub(crate) struct Order {
    command: Command,
    keep: Vec<OwnedFd>,
    rules: Option<Ruleset>,
    reply: SyncSender<io::Result<Qemu>>,
}

/// A QEMU that was started.
#[derive(Debug)]
pub(crate) struct Qemu {
    pub(crate) pidfd: OwnedFd,
    /// Its number, for as long as this process lives: this one ends with it.
    pub(crate) pid: i32,
    phase: Arc<Phase>,
    words: Option<JoinHandle<Vec<u8>>>,
}

#[derive(Debug, Default)]
struct Phase {
    now: Mutex<Now>,
    changed: Condvar,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Now {
    #[default]
    Starting,
    Running,
    Dead(ExitStatus),
}

/// QEMU's program, if the one that is there is root's alone to change.
///
/// # Errors
/// Says what to install.
pub(crate) fn program() -> Result<PathBuf, String> {
    let trusted = |path: &&Path| {
        std::fs::metadata(path).is_ok_and(|seen| seen.is_file() && seen.uid() == 0 && seen.mode() & 0o022 == 0)
    };
    PLACES.iter().map(Path::new).find(trusted).map(Path::to_path_buf).ok_or_else(|| {
        format!(
            "QEMU is not installed: neither {} nor {} is a program of root's (Debian: qemu-system-x86)",
            PLACES[0], PLACES[1]
        )
    })
}

/// Has the main thread start QEMU with `arguments` and the descriptors `keep`; it opens what `rules` allow, where
/// there are some.
///
/// # Errors
/// What starting says, or that the main thread is ending.
pub(crate) fn order(
    main: &Sender<Event>,
    program: &Path,
    arguments: &[String],
    keep: Vec<OwnedFd>,
    rules: Option<Ruleset>,
) -> io::Result<Qemu> {
    let mut command = Command::new(program);
    command.args(arguments).env_clear().current_dir("/").stderr(Stdio::piped());
    sys::child::huge_pages_from(&mut command, HUGE_PAGES_FROM);
    let (reply, answer) = sync_channel(1);
    let ending = |_| io::Error::other("banger-qemu is ending");
    main.send(Event::Order(Box::new(Order { command, keep, rules, reply }))).map_err(|_| ending(()))?;
    answer.recv().map_err(|_| ending(()))?
}

impl Order {
    /// Starts it, from the calling thread, and answers. Gives QEMU's pidfd back.
    pub(crate) fn fulfil(self, main: &Sender<Event>) -> Option<OwnedFd> {
        let Self { mut command, keep, rules, reply } = self;
        let borrowed: Vec<_> = keep.iter().map(OwnedFd::as_fd).collect();
        let started =
            sys::child::spawn_confined(&mut command, &borrowed, rules.as_ref()).and_then(|child| watch(child, main));
        let pidfd = started.as_ref().ok().and_then(|qemu| qemu.pidfd.try_clone().ok());
        // Nobody waits any more only if the process is ending.
        let _ = reply.send(started);
        pidfd
    }
}

/// Gives each part of the new process its thread. Where one can't be had, the process ends.
fn watch(child: Child, main: &Sender<Event>) -> io::Result<Qemu> {
    // The number is the process's own for as long as nobody waits for it.
    let number = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
    try_watch(child, main.clone()).inspect_err(|_| {
        if let Some(pid) = number {
            // Nobody else does either.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
        }
    })
}

fn try_watch(mut child: Child, main: Sender<Event>) -> io::Result<Qemu> {
    // It is not waited for yet, so this number is its own.
    let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::other("QEMU has no process number"))?;
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?;
    let stderr = child.stderr.take();
    let words = move || stderr.map(|stderr| pass_on(stderr, io::stderr())).unwrap_or_default();
    let words = std::thread::Builder::new().name("qemu-stderr".into()).spawn(words)?;
    let phase = Arc::new(Phase::default());
    let told = Arc::clone(&phase);
    std::thread::Builder::new().name("qemu-wait".into()).spawn(move || {
        let Ok(status) = child.wait() else { return };
        // Told with the lock held: whoever sees the end here and starts anew is behind it in the main thread's queue.
        let mut now = told.lock();
        let was = std::mem::replace(&mut *now, Now::Dead(status));
        // Without a main thread there is nobody to be told.
        let _ = main.send(Event::Ended(status, was == Now::Running));
        told.changed.notify_all();
    })?;
    Ok(Qemu { pidfd, pid: pid.as_raw_nonzero().get(), phase, words: Some(words) })
}

/// Copies what QEMU says to our own standard error, up to a measure, and keeps its end.
fn pass_on(mut from: impl io::Read, mut to: impl io::Write) -> Vec<u8> {
    let mut last = Vec::new();
    let mut piece = [0; 1024];
    let mut rate = Rate::new(MOST_WORDS.0, MOST_WORDS.1);
    loop {
        match from.read(&mut piece) {
            Ok(0) | Err(_) => return last,
            Ok(got) => {
                // Ours may be closed; QEMU's words are still kept.
                if let Some(left_out) = rate.admit(got as u64) {
                    if left_out > 0 {
                        let _ =
                            to.write_all(format!("\n… {left_out} bytes of QEMU's words were left out\n").as_bytes());
                    }
                    let _ = to.write_all(&piece[..got]);
                }
                last.extend_from_slice(&piece[..got]);
                last.drain(..last.len().saturating_sub(MAX_LAST_WORDS));
            }
        }
    }
}

impl Phase {
    fn lock(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Qemu {
    /// From now on its end is the end of this process. `false` where it has ended already.
    pub(crate) fn is_running(&self) -> bool {
        let mut now = self.phase.lock();
        if *now == Now::Starting {
            *now = Now::Running;
        }
        *now == Now::Running
    }

    /// Ends it, if it hasn't ended, and gives its last words and how it went.
    pub(crate) fn end(mut self) -> String {
        let starting = |now: &mut Now| !matches!(now, Now::Dead(_));
        // One that is ending by itself may say why.
        let patience = Duration::from_millis(500);
        let waited = self.phase.changed.wait_timeout_while(self.phase.lock(), patience, starting);
        let (mut now, _) = waited.unwrap_or_else(PoisonError::into_inner);
        // It may be gone.
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, rustix::process::Signal::KILL);
        let status = loop {
            match *now {
                Now::Dead(status) => break status,
                Now::Starting | Now::Running => {
                    now = self.phase.changed.wait(now).unwrap_or_else(PoisonError::into_inner);
                }
            }
        };
        drop(now);
        let words = self.words.take().and_then(|thread| thread.join().ok()).unwrap_or_default();
        let words = String::from_utf8_lossy(&words);
        let lines: Vec<&str> = words.lines().map(|line| line.trim_start_matches("qemu-system-x86_64: ")).collect();
        format!("QEMU ended with {status}: {}", lines.join("; "))
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_qemu_that_complains_without_an_end_fills_nothing() {
        let mut to = Vec::new();
        let last = super::pass_on(std::io::Read::take(std::io::repeat(b'x'), 10 << 20), &mut to);
        assert_eq!((last.len(), to.len()), (super::MAX_LAST_WORDS, 64 * 1024));
    }
}
