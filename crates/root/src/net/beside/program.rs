//! `iptables-legacy`, started: the one program beside a VMM that an operation starts. It is the interface of the
//! kernel's old tables; nothing else reads and writes them and is believed by an administrator.
//!
//! Only the file that was checked to be root's own runs, by its descriptor; with arguments that no caller has a say in,
//! without an environment, and not for longer than [`LONGEST`].

use crate::trusted;
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{MemfdFlags, SeekFrom};
use std::fs::File;
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

/// `iptables-legacy` is a link to it; it is what it is called.
const FILE: &str = "xtables-legacy-multi";
const CALLED: &str = "iptables-legacy";
/// Where distributions have it.
const DIRS: [&str; 3] = ["/usr/sbin", "/usr/bin", "/sbin"];
/// It waits 5 s itself, for another one that changes rules.
const LONGEST: Duration = Duration::from_secs(10);
/// A chain's list may be long; nobody reads more of it.
const MOST: u64 = 4 << 20;

/// What it said.
pub(super) struct Said {
    pub(super) success: bool,
    pub(super) out: String,
    pub(super) err: String,
}

/// Runs it. An error is a text for the log.
pub(super) fn run(arguments: &[&str]) -> Result<Said, String> {
    let file = find()?;
    let (mut out, mut err) = (sink()?, sink()?);
    let into = |file: &File| file.try_clone().map(Stdio::from).map_err(|error| format!("dup: {error}"));
    let failed =
        |what: &str, error: &dyn std::fmt::Display| format!("{CALLED} {}: {what}: {error}", arguments.join(" "));
    // In the child the descriptor is there until the program is.
    #[allow(clippy::disallowed_methods, reason = "the file that was checked, by its descriptor; fixed arguments")]
    let mut command = Command::new(format!("/proc/self/fd/{}", file.as_raw_fd()));
    command
        .arg0(CALLED)
        .args(["-w", "5"])
        .args(arguments)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(into(&out)?)
        .stderr(into(&err)?);
    let mut child = sys::spawn::start(&mut command).map_err(|error| failed("it did not start", &error))?;
    let ended = sys::pidfd::open(child.id().cast_signed()).is_ok_and(|process| process.wait_end(LONGEST));
    if !ended {
        let _ = child.kill();
    }
    let status = child.wait().map_err(|error| failed("waiting", &error))?;
    if !ended {
        return Err(failed("killed", &format!("it took more than {} s", LONGEST.as_secs())));
    }
    Ok(Said { success: status.success(), out: read(&mut out), err: read(&mut err) })
}

fn find() -> Result<OwnedFd, String> {
    let mut mistakes = Vec::new();
    for dir in DIRS {
        match trusted::file(&format!("{dir}/{FILE}")) {
            Ok(Some(file)) => return Ok(file),
            Ok(None) => {}
            Err(mistake) => mistakes.push(mistake),
        }
    }
    Err([vec![format!("there is no {FILE} of root's in {}", DIRS.join(", "))], mistakes].concat().join("; "))
}

/// Memory that takes what it says: no pipe that fills up while nobody reads.
fn sink() -> Result<File, String> {
    let made = rustix::fs::memfd_create(CALLED, MemfdFlags::CLOEXEC);
    made.map(File::from).map_err(|errno| format!("memfd_create: {errno}"))
}

fn read(sink: &mut File) -> String {
    let mut bytes = Vec::new();
    // What can't be read was not said.
    let _ = rustix::fs::seek(&*sink, SeekFrom::Start(0));
    let _ = sink.take(MOST).read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}
