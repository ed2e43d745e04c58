//! Ends: of children, of the command line's program, of the machine.

use std::time::{Duration, Instant};

use agent::protocol::{Down, Exit};
use rustix::process::{Pid, Signal};
use rustix::system::RebootCommand;

use super::{Role, Serve};
use crate::guest::console::say;
use crate::guest::settings::Then;
use crate::guest::{boot, handover, reap};

/// An end of the machine that is under way.
#[derive(Debug)]
pub(super) struct Ending {
    how: RebootCommand,
    pub(super) kill_at: Instant,
}

impl Ending {
    /// Asks every process to end; who hasn't by then is killed. Another first process is asked to do all of that itself.
    pub(super) fn begin(role: Role, how: Down, grace: Duration) -> Self {
        if role == Role::First {
            let _ = sys::guest::signal_all(Signal::TERM);
        } else if let Err(error) = handover::ask_init(how) {
            say(&format!("down: {error}"));
        }
        let how = match how {
            Down::Reset => RebootCommand::Restart,
            Down::Poweroff => RebootCommand::PowerOff,
        };
        Self { how, kill_at: Instant::now() + grace.min(Duration::from_secs(3600)) }
    }
}

impl Serve {
    /// Looks at every child that has ended: the leaders' calls are told and bury them in time, orphans are not missed.
    pub(super) fn bury(&mut self) {
        // The signals themselves say no more than that there is something to do.
        while rustix::io::read(&self.children, &mut self.buffer).is_ok_and(|n| n > 0) {}
        let ending = self.ending.is_some();
        self.calls.values_mut().for_each(|(call, _)| call.look_at_leader(ending));
        let leaders: Vec<Pid> = self.calls.values().filter_map(|(call, _)| call.leader()).collect();
        let mut ended = Vec::new();
        let some_left = reap::bury_orphans(|pid| leaders.contains(&pid), |pid, exit| ended.push((pid, exit)));
        for (pid, exit) in ended {
            self.ssh.buried(pid);
            if let Some((_, then)) = self.program.take_if(|(program, _)| *program == pid) {
                match exit {
                    Exit::Code(exit) => say(&format!("program ended: exit {}", exit.code)),
                    Exit::Signal(exit) => say(&format!("program ended: signal {}", exit.signal)),
                }
                self.program_ended(then);
            }
        }
        // An end that waits for the last one needn't wait longer. Beside an init they are not ours to wait for.
        if ending && !some_left && self.role == Role::First {
            self.end();
        }
    }

    pub(super) fn program_ended(&mut self, then: Then) {
        if then == Then::Poweroff && self.role == Role::First {
            // Its own background children have had their time.
            let _ = sys::guest::signal_all(Signal::KILL);
            boot::reset();
        }
    }

    /// Its time is over. An init of another kind that was handed the machine, and has not ended it, is passed over.
    pub(super) fn end(&mut self) {
        let Some(ending) = self.ending.take() else { return };
        match self.role {
            Role::First => {
                let _ = sys::guest::signal_all(Signal::KILL);
                boot::restart(ending.how);
            }
            Role::HandedOver => {
                say("the init has not ended the machine in its time");
                boot::restart(ending.how);
            }
            Role::Service | Role::Called { .. } => {}
        }
    }
}
