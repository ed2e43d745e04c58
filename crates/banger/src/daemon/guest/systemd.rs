//! A guest whose first process is systemd, around its save as a template: when it is up, what is brought to rest before, and
//! what goes on in each VM from it.

use super::call;
use crate::api::Fault;
use crate::daemon::error::exit;
use crate::daemon::serve::{Caller, Woken};
use agent::client::{Output, Program};
use agent::host::Failure;
use agent::protocol::{Exit, ExitCode};
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
/// An emulated guest has done what it is told within this time.
const LIMIT: Duration = Duration::from_secs(60);
const REST: [&str; 3] = ["/bin/sh", "-c", include_str!("systemd/rest.sh")];
const GO_ON: [&str; 3] = ["/bin/sh", "-c", include_str!("systemd/go_on.sh")];

/// Waits until it is up, for so long.
///
/// # Errors
/// `interrupted`; `boot_failed` where the VMM ended; `template_failed` where it does not come up, or is no systemd.
pub(crate) fn await_up(vsock: &Path, process: &PidFd, caller: &mut Caller, limit: Duration) -> Result<(), Fault> {
    let failed = |what: String, why: &str| Fault::new("template_failed", exit::FAILED, what).why(why.escape_default());
    let end = Instant::now() + limit;
    loop {
        let said = match run(vsock, &IS_UP) {
            Ok(output) => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
            Err(Failure::Refused(body)) => {
                return Err(failed("its init is no systemd".into(), &Failure::Refused(body).to_string()));
            }
            // One that is paused says nothing, nor does one that is too busy.
            Err(failure) => failure.to_string(),
        };
        if UP.contains(&said.as_str()) {
            return Ok(());
        }
        let now = Instant::now();
        if now >= end {
            return Err(failed(format!("its init is not up after {} s", limit.as_secs()), &said));
        }
        match caller.wait(&[process.as_fd()], Some(now + AGAIN)) {
            Woken::Time => {}
            Woken::Ready(_) => return Err(Fault::new("boot_failed", exit::FAILED, "the VMM ended")),
            _ => return Err(Fault::interrupted(&[])),
        }
    }
}

/// Brings it to rest, for its save; the units that have failed, as it says.
///
/// # Errors
/// Why that can't be.
pub(crate) fn rest(vsock: &Path) -> io::Result<String> {
    let Output { exit, stdout, stderr } = run(vsock, &REST).map_err(io::Error::other)?;
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().escape_default().to_string();
    match exit {
        Exit::Code(ExitCode { code: 0, .. }) => Ok(said(&stdout)),
        exit => Err(io::Error::other(format!("{exit:?}: {}", said(&stderr)))),
    }
}

/// Has it go on with what was left for it, unless it has. What becomes of that systemd tells its user.
pub(crate) fn go_on(vsock: &Path) {
    let _ = run(vsock, &GO_ON);
}

fn run(vsock: &Path, args: &[&str]) -> Result<Output, Failure> {
    call(vsock, LIMIT)?.exec(Program { args, env: &[], user: "root", cwd: "/", most: 16 << 10 })
}
