//! A guest whose first process is systemd, around its save as a template: when it is up, what is brought to rest before, and
//! what goes on in each VM from it.

use super::{Bounds, call_within};
use crate::api::Fault;
use crate::daemon::error::exit;
use crate::daemon::serve::{Caller, Woken};
use crate::image::store::hex;
use agent::client::{Output, Program};
use agent::host::Failure;
use agent::protocol::{Exit, ExitCode};
use sha2::{Digest, Sha256};
use std::cell::RefCell;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};
use sys::pidfd::PidFd;

const IS_UP: [&str; 2] = ["systemctl", "is-system-running"];
/// What it says when it has done all that it was to do, and when some of that has failed.
const UP: [&str; 2] = ["running", "degraded"];
/// How often it is asked, which takes a fifth of a second's work.
const AGAIN: Duration = Duration::from_secs(1);
/// An emulated guest has done what it is told within this time; whatever it says meanwhile, it is over then.
const LIMIT: Duration = Duration::from_secs(60);
const REST: [&str; 3] = ["/bin/sh", "-c", include_str!("systemd/rest.sh")];
const GO_ON: [&str; 3] = ["/bin/sh", "-c", include_str!("systemd/go_on.sh")];

/// What tells one version of what it is told from another.
pub(crate) fn version() -> String {
    hex(&Sha256::digest([REST, GO_ON].concat().concat()))
}

/// A guest that becomes a template, or tries one: it is asked as long as its VMM is there and somebody waits.
pub(crate) struct Making<'a> {
    pub(crate) vsock: &'a Path,
    pub(crate) process: &'a PidFd,
    pub(crate) caller: &'a mut Caller,
}

impl Making<'_> {
    /// Waits until it is up, for so long.
    ///
    /// # Errors
    /// `interrupted`; `boot_failed` where the VMM ended; `init_silent` where it does not come up; `template_failed` where it is no
    /// systemd.
    pub(crate) fn await_up(&mut self, limit: Duration) -> Result<(), Fault> {
        let end = Instant::now() + limit;
        loop {
            let said = match self.run(&IS_UP)? {
                Ok(output) => word(&output.stdout),
                Err(Failure::Refused(body)) if body.code == "not_found" => {
                    return Err(failed("its init is no systemd", &Failure::Refused(body)));
                }
                // One that is paused says nothing, nor does one that is too busy.
                Err(failure) => failure.to_string(),
            };
            if UP.contains(&said.as_str()) {
                return Ok(());
            }
            if Instant::now() >= end {
                let message = format!("a template can't be made: its init is not up after {} s", limit.as_secs());
                return Err(Fault::new("init_silent", exit::FAILED, message).why(said.escape_default()));
            }
            self.wait(AGAIN)?;
        }
    }

    /// Brings it to rest, for its save; the units that have not come up, as it says.
    ///
    /// # Errors
    /// As of [`Making::await_up`]; `template_failed` where that can't be.
    pub(crate) fn rest(&mut self) -> Result<String, Fault> {
        let done = self.run(&REST)?.map_err(io::Error::other).and_then(done);
        let output = done.map_err(|error| failed("its init can't be brought to rest", &error))?;
        Ok(shown(&output.stdout))
    }

    /// Has it go on, as each VM from it will; its systemd answers then.
    ///
    /// # Errors
    /// As of [`Making::await_up`].
    pub(crate) fn try_to_go_on(&mut self) -> Result<(), Fault> {
        let done = self.run(&GO_ON)?.map_err(io::Error::other).and_then(done);
        done.map_err(|error| failed("its init does not go on", &error))?;
        let said = match self.run(&IS_UP)? {
            Ok(output) => word(&output.stdout),
            Err(failure) => failure.to_string(),
        };
        match UP.contains(&said.as_str()) {
            true => Ok(()),
            false => Err(failed("its init does not go on", &said.escape_default())),
        }
    }

    /// Lets it work for so long.
    ///
    /// # Errors
    /// `interrupted`; `boot_failed` where the VMM ended.
    pub(crate) fn wait(&mut self, time: Duration) -> Result<(), Fault> {
        match self.caller.wait(&[self.process.as_fd()], Some(Instant::now() + time)) {
            Woken::Time => Ok(()),
            Woken::Ready(_) => Err(ended()),
            _ => Err(Fault::interrupted(&[])),
        }
    }

    /// What root's program said, or why it said nothing.
    fn run(&mut self, args: &[&str]) -> Result<Result<Output, Failure>, Fault> {
        self.exec(roots(args))
    }

    /// The same of any program.
    ///
    /// # Errors
    /// As of [`Making::wait`].
    pub(crate) fn exec(&mut self, program: Program<'_>) -> Result<Result<Output, Failure>, Fault> {
        let Making { vsock, process, caller } = self;
        // What the caller says meanwhile he says once.
        let heard = RefCell::new((Ok(()), caller));
        let is_enough = || {
            let (heard, caller) = &mut *heard.borrow_mut();
            if heard.is_ok() {
                *heard = if process.is_alive() { caller.go_on() } else { Err(ended()) };
            }
            heard.is_err()
        };
        let said = run(vsock, program, Bounds { end: Instant::now() + LIMIT, is_enough: &is_enough });
        heard.into_inner().0.map(|()| said)
    }
}

/// Has it go on with what was left for it, unless it has, as long as `is_enough` does not say that it had its time. What systemd
/// could not begin, as it says; what becomes of the rest it tells its user.
///
/// # Errors
/// It has not gone on, as far as its answer tells, and can be asked again.
pub(crate) fn go_on(vsock: &Path, is_enough: &dyn Fn() -> bool) -> io::Result<String> {
    let bounds = Bounds { end: Instant::now() + LIMIT, is_enough };
    let output = done(run(vsock, roots(&GO_ON), bounds).map_err(io::Error::other)?)?;
    Ok(shown(&output.stderr))
}

fn run(vsock: &Path, program: Program<'_>, bounds: Bounds<'_>) -> Result<Output, Failure> {
    call_within(vsock, bounds)?.exec(program)
}

fn roots<'a>(args: &'a [&'a str]) -> Program<'a> {
    Program { args, env: &[], user: "root", cwd: "/", most: 16 << 10 }
}

fn done(output: Output) -> io::Result<Output> {
    match output.exit {
        Exit::Code(ExitCode { code: 0, .. }) => Ok(output),
        exit => Err(io::Error::other(format!("{exit:?}: {}", shown(&output.stderr)))),
    }
}

fn word(said: &[u8]) -> String {
    String::from_utf8_lossy(said).trim().to_owned()
}

fn shown(said: &[u8]) -> String {
    word(said).escape_default().to_string()
}

fn failed(what: &str, why: &dyn std::fmt::Display) -> Fault {
    Fault::new("template_failed", exit::FAILED, format!("a template can't be made: {what}")).why(why)
}

fn ended() -> Fault {
    Fault::new("boot_failed", exit::FAILED, "the VMM ended")
}

#[cfg(test)]
mod tests;
