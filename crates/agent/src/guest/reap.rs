//! The one place where children are waited for. A call's leader is only looked at when it has ended, and buried last: until
//! then its number is its own, so that a signal to its group or session can reach nobody else.

use std::io;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitIdStatus, kill_process_group, waitid};

use agent::protocol::{Exit, ExitCode, ExitSignal};

/// How often a session is looked through for who is left of it.
const ROUNDS: usize = 16;

/// The first process of a call, leader of its session and group.
#[derive(Debug)]
pub(super) struct Leader {
    pid: Pid,
    buried: bool,
}

impl Leader {
    pub(super) fn new(pid: Pid) -> Self {
        Self { pid, buried: false }
    }

    pub(super) fn pid(&self) -> Pid {
        self.pid
    }

    /// Whether its number is still kept from others.
    pub(super) fn is_kept(&self) -> bool {
        !self.buried
    }

    /// How it ended, where it has.
    pub(super) fn ended(&self) -> Option<WaitIdStatus> {
        if self.buried {
            return None;
        }
        let flags = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        waitid(WaitId::Pid(self.pid), flags).ok().flatten()
    }

    /// Sends a signal to its group.
    pub(super) fn signal(&self, signal: Signal) {
        if !self.buried {
            // A group whose last member has just gone needs no signal.
            let _ = kill_process_group(self.pid, signal);
        }
    }

    /// Kills whoever is left of its session; whoever made a session of his own meant to stay.
    pub(super) fn kill_session(&self) {
        self.signal(Signal::KILL);
        // Again while there are some: one may have made another since it was looked for.
        for _ in 0..ROUNDS {
            let members = self.others();
            if members.is_empty() {
                return;
            }
            members.into_iter().for_each(|member| self.kill_member(member));
        }
    }

    /// Kills a process that, once it is held by descriptor, is still of this session.
    fn kill_member(&self, pid: Pid) {
        let number = pid.as_raw_nonzero().get();
        let Ok(held) = sys::pidfd::open(number) else { return };
        let stat = std::fs::read(format!("/proc/{number}/stat")).unwrap_or_default();
        if parse(pid, &stat).is_some_and(|p| p.session == self.pid.as_raw_nonzero().get()) {
            let _ = held.send_signal(Signal::KILL.as_raw());
        }
    }

    /// The living members of its session beside itself.
    pub(super) fn others(&self) -> Vec<Pid> {
        if self.buried {
            return Vec::new();
        }
        let own = self.pid.as_raw_nonzero().get();
        processes().filter(|p| p.session == own && p.pid != self.pid && !p.ended).map(|p| p.pid).collect()
    }

    /// Buries it, where it has ended.
    pub(super) fn bury(&mut self) {
        self.buried |= bury(self.pid).is_some();
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        // One that lives on is buried with the orphans.
        self.bury();
    }
}

/// Buries every child that has ended but those that are kept; each one's end is told. `false`: there are no children left.
pub(super) fn bury_orphans(kept: impl Fn(Pid) -> bool, mut told: impl FnMut(Pid, Exit)) -> bool {
    loop {
        match sys::reap::first_ended() {
            Ok(Some(pid)) if kept(pid) => break,
            Ok(Some(pid)) => {
                if let Some(status) = bury(pid) {
                    told(pid, exit_of(&status, false));
                }
            }
            Ok(None) => return true,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
    // The kernel names the same kept one again and again; those behind it are found by name.
    let own = rustix::process::getpid();
    for pid in processes().filter(|p| p.ended && p.parent == Some(own)).map(|p| p.pid).filter(|pid| !kept(*pid)) {
        if let Some(status) = bury(pid) {
            told(pid, exit_of(&status, false));
        }
    }
    true
}

fn bury(pid: Pid) -> Option<WaitIdStatus> {
    waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG).ok().flatten()
}

/// `oom`: whether the kernel killed somebody for want of memory while it ran.
pub(super) fn exit_of(status: &WaitIdStatus, oom: bool) -> Exit {
    match status.terminating_signal() {
        Some(signal) => {
            let oom = oom && signal == Signal::KILL.as_raw();
            Exit::Signal(ExitSignal { signal: signal as u8, core: status.dumped(), oom })
        }
        None => {
            let code = status.exit_status().unwrap_or(0) as u8;
            // A shell's own end, where a command of its own had that one.
            Exit::Code(ExitCode { code, oom: oom && i32::from(code) == 128 + Signal::KILL.as_raw() })
        }
    }
}

/// How many processes this kernel has killed for want of memory.
pub(super) fn killed_for_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

#[derive(Debug, PartialEq, Eq)]
struct Process {
    pid: Pid,
    parent: Option<Pid>,
    session: i32,
    ended: bool,
}

fn processes() -> impl Iterator<Item = Process> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let name = entry.file_name();
        let pid = name.to_str()?.parse().ok().and_then(Pid::from_raw)?;
        parse(pid, &std::fs::read(entry.path().join("stat")).ok()?)
    })
}

/// A line of /proc/PID/stat (proc(5)); the name in it is the process's own choice, so the last `)` counts.
fn parse(pid: Pid, stat: &[u8]) -> Option<Process> {
    let behind = stat.iter().rposition(|byte| *byte == b')')? + 1;
    let mut fields = std::str::from_utf8(&stat[behind..]).ok()?.split_ascii_whitespace();
    let ended = matches!(fields.next()?, "Z" | "X");
    let parent = fields.next()?.parse().ok().and_then(Pid::from_raw);
    let _group = fields.next()?;
    Some(Process { pid, parent, session: fields.next()?.parse().ok()?, ended })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_moves_no_field() {
        let pid = Pid::from_raw(7).unwrap();
        let of = |text: &str| parse(pid, text.as_bytes());
        let process = Process { pid, parent: Pid::from_raw(1), session: 5, ended: true };
        assert_eq!(of("7 (a) S 9 (b) Z 1 6 5 0 -1"), Some(process));
        assert_eq!(of("7 (sh) S 1 6 x"), None);
        assert_eq!(of(""), None);
    }

    #[test]
    fn this_very_process_is_found() {
        let own = rustix::process::getpid();
        let found = processes().find(|process| process.pid == own).unwrap();
        assert_eq!((found.parent, found.ended), (rustix::process::getppid(), false));
    }
}
