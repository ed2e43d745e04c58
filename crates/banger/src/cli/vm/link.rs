//! A connection to a VM's agent for one call of ours, handed over by the daemon.

use super::{Status, run};
use crate::api::client::{self, Next, Running};
use crate::api::vm::{Vm, Vms};
use crate::api::{Attached, Fault, Request, Word};
use crate::cli::problem::Problem;
use crate::cli::reach::Reach;
use crate::cli::several;
use crate::daemon::error::exit;
use agent::client::Client;
use agent::host::{CopyFailure, Failure, Limits, Stage};
use std::io;
use std::os::unix::net::UnixStream;
use std::thread::{self, ScopedJoinHandle};

/// The connection, and the daemon's call that it belongs to: it ends when this is dropped.
pub(super) struct Link {
    running: Running,
    attached: Attached,
    /// At the first byte of the agent's HELLO.
    pub(super) socket: UnixStream,
}

impl Link {
    /// Connects to the agent of a VM that runs.
    pub(super) fn to(reach: &Reach, name: &str) -> Result<Link, Problem> {
        let call = reach.call(Request::VmExec { name: name.to_owned(), looks: false });
        let mut running = client::begin(&reach.socket, &call).map_err(Problem::of_fault)?;
        let (attached, socket) = run::attach(&mut running, |_| {})?;
        Ok(Link { running, attached, socket })
    }

    /// The VM's name.
    pub(super) fn vm(&self) -> &str {
        &self.attached.vm
    }

    /// How patient to be with its guest.
    pub(super) fn limits(&self) -> Limits {
        if self.attached.accel == "kvm" { Limits::HARDWARE } else { Limits::EMULATED }
    }

    /// Ends the call, and waits until the daemon knows so: what it notes of calls is true then.
    fn finish(mut self) {
        self.running.say(Word::Finished {});
        while let Ok(Next::Stage(_) | Next::Attached(..)) = self.running.event() {}
    }

    /// Waits until the VM has ended, or the daemon: why.
    pub(super) fn ended(mut self) -> Fault {
        loop {
            match self.running.event() {
                Ok(client::Next::Done(_)) => return Fault::bug("the call ended by itself"),
                Ok(_) => {}
                Err(fault) => return fault,
            }
        }
    }

    /// What a failure of the call is for a person; the daemon knows why a connection broke.
    fn problem(&mut self, failure: &Failure) -> Problem {
        if let Some(fault) = run::reason(&mut self.running, failure) {
            return Problem::of_fault(fault);
        }
        let vm = self.vm();
        Problem::of_fault(match failure {
            Failure::Io(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Fault::new("agent_silent", exit::FAILED, format!("{vm}'s agent doesn't answer"))
                    .fix(format!("banger vm logs {vm} shows its console"))
            }
            Failure::TooOld(what) => {
                Fault::new("agent_too_old", exit::STATE, format!("{vm}'s agent is too old for this: it has no {what}"))
                    .fix(format!("banger vm restart {vm}"))
            }
            Failure::Lost(_) => Fault::new("lost", exit::FAILED, format!("the connection to {vm} broke")).why(failure),
            other => Fault::new("guest", exit::FAILED, format!("{vm}: {other}")),
        })
    }
}

/// Makes a call on a connection of its own; once more, where the first ended before the agent said a word. `refine` makes
/// a problem of what is particular to this call.
pub(super) fn call<T>(
    reach: &Reach,
    name: &str,
    mut make: impl FnMut(&Link) -> Result<T, CopyFailure>,
    refine: impl Fn(&str, &CopyFailure) -> Option<Problem>,
) -> Result<T, Problem> {
    let mut link = Link::to(reach, name)?;
    let mut made = make(&link);
    if let Err(CopyFailure::Call(Failure::Lost(Stage::Greeting) | Failure::Late(Stage::Greeting))) = made
        && let Ok(again) = Link::to(reach, name)
    {
        link = again;
        made = make(&link);
    }
    match made {
        Ok(made) => {
            link.finish();
            Ok(made)
        }
        Err(failure) => Err(refine(link.vm(), &failure).unwrap_or_else(|| match &failure {
            CopyFailure::Call(failure) => link.problem(failure),
            other => Problem::new("copy", format!("{}: {other}", link.vm())),
        })),
    }
}

/// Makes a call that has one answer.
fn ask<T>(reach: &Reach, name: &str, make: impl Fn(Client<&UnixStream>) -> Result<T, Failure>) -> Result<T, Problem> {
    let make = |link: &Link| {
        link.socket.set_read_timeout(Some(link.limits().answer)).map_err(Failure::Io)?;
        make(Client::new(&link.socket)?)
    };
    call(reach, name, |link| make(link).map_err(CopyFailure::from), |_, _| None)
}

/// The VMs of those names; of none: all that run.
pub(super) fn named(reach: &Reach, names: &[String]) -> Result<(Vec<Vm>, Status), Problem> {
    if names.is_empty() {
        let Vms { mut vms } = reach.ask(Request::VmList {})?;
        vms.retain(|vm| vm.state == "running");
        return Ok((vms, 0));
    }
    several::told(names.iter().map(|name| reach.ask(Request::VmShow { name: name.clone() })).collect())
}

/// Asks several VMs' agents at once. A failure of the only one is ours; of one of several it is told, and a status.
pub(super) fn ask_each<T: Send>(
    reach: &Reach,
    vms: Vec<Vm>,
    make: impl Fn(Client<&UnixStream>) -> Result<T, Failure> + Sync,
) -> Result<(Vec<(Vm, T)>, Status), Problem> {
    let make = &make;
    let answers: Vec<Result<T, Problem>> = thread::scope(|scope| {
        let begin = |vm: &Vm| {
            let name = vm.name.clone();
            scope.spawn(move || ask(reach, &name, make))
        };
        let running: Vec<ScopedJoinHandle<'_, _>> = vms.iter().map(begin).collect();
        let wait = |thread: ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|_| Err(Problem::of_fault(Fault::bug("the thread of a call panicked"))))
        };
        running.into_iter().map(wait).collect()
    });
    several::told(vms.into_iter().zip(answers).map(|(vm, answer)| Ok((vm, answer?))).collect())
}
