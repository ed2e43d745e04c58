//! A program of a call: how it starts, with which streams, and what became of the attempt.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use agent::protocol::{ErrorBody, Exec};
use rustix::io::Errno;
use rustix::process::Pid;
use sys::session::{Birth, Identity, Step};

use super::accounts::{self, User};
use super::call::failed;
use super::environment;
use super::reap::killed_for_memory;
use super::tty::Terminal;

/// A started program, and our ends of its streams, which don't block.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) pid: Pid,
    pub(super) stdin: Option<OwnedFd>,
    pub(super) stdout: OwnedFd,
    /// `None`: a terminal takes both.
    pub(super) stderr: Option<OwnedFd>,
    /// Our hold on its end of the terminal.
    pub(super) slave: Option<OwnedFd>,
    /// How many processes had been killed for want of memory before.
    pub(super) killed_before: u64,
}

/// Starts the program of an exec.
///
/// # Errors
/// The body of the ERROR that answers.
pub(super) fn start(exec: &Exec, args: &[&[u8]], env: &[&[u8]]) -> Result<Started, ErrorBody> {
    let user = accounts::user(&exec.user).ok_or_else(|| failed("no_user", "user", Errno::NOENT.raw_os_error()))?;
    let mut command = command(args, &user);
    environment::set(&mut command, &user, env);
    let directory = if exec.cwd.is_empty() { user.home() } else { exec.cwd.clone() };
    let base = PathBuf::from(&directory);
    let directory = CString::new(directory).map_err(|_| failed("bad_cwd", "cwd", Errno::INVAL.raw_os_error()))?;
    let other = user.uid != rustix::process::geteuid().as_raw();
    let identity = other.then(|| Identity { uid: user.uid, gid: user.gid, groups: user.groups() });
    let birth = Birth { terminal: exec.tty.is_some(), identity, directory: Some(directory) };
    let killed_before = killed_for_memory();
    let terminal = exec.tty.map(|size| Terminal::open(size, user.uid)).transpose();
    let terminal = terminal.map_err(|error| failed_with("no_pty", "pty", &error))?;
    let streams = streams(&mut command, exec, terminal).map_err(|error| failed_with("failed", "pipes", &error))?;
    let child =
        sys::session::spawn(&mut command, birth).map_err(|(step, error)| start_error(&command, &base, step, &error))?;
    let [stdin, stdout, stderr, slave] = streams;
    let missing = || failed("failed", "pipes", 0);
    Ok(Started {
        pid: i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or_else(missing)?,
        stdin,
        stdout: stdout.ok_or_else(missing)?,
        stderr,
        slave,
        killed_before,
    })
}

/// The program by its words; without any, the user's shell as at a login.
fn command(args: &[&[u8]], user: &User) -> Command {
    let Some((program, arguments)) = args.split_first() else {
        let name = user.shell.rsplit('/').next().unwrap_or_default();
        let mut command = Command::new(&user.shell);
        command.arg0(format!("-{name}"));
        return command;
    };
    let mut command = Command::new(OsStr::from_bytes(program));
    command.args(arguments.iter().map(|arg| OsStr::from_bytes(arg)));
    command
}

/// Gives the program its ends; ours are its input, output, error output, and what keeps its terminal. Each pipe is its own:
/// that one end is set not to block must not reach another's.
fn streams(command: &mut Command, exec: &Exec, terminal: Option<Terminal>) -> io::Result<[Option<OwnedFd>; 4]> {
    if let Some(Terminal { master, slave }) = terminal {
        command.stdin(slave.try_clone()?).stdout(slave.try_clone()?).stderr(slave.try_clone()?);
        return Ok([Some(master.try_clone()?), Some(master), None, Some(slave)]);
    }
    let ours = |end: OwnedFd| rustix::io::ioctl_fionbio(&end, true).map(|()| Some(end));
    let stdin = if exec.stdin {
        let (theirs, end) = io::pipe()?;
        command.stdin(theirs);
        ours(end.into())?
    } else {
        command.stdin(Stdio::null());
        None
    };
    let (out, stdout) = io::pipe()?;
    let (err, stderr) = io::pipe()?;
    command.stdout(stdout).stderr(stderr);
    Ok([stdin, ours(out.into())?, ours(err.into())?, None])
}

fn failed_with(code: &str, step: &str, error: &io::Error) -> ErrorBody {
    failed(code, step, error.raw_os_error().unwrap_or(0))
}

fn start_error(command: &Command, base: &Path, step: Step, error: &io::Error) -> ErrorBody {
    let (code, name) = match (step, error.raw_os_error().map(Errno::from_raw_os_error)) {
        (Step::Session, _) => ("failed", "session"),
        (Step::Terminal, _) => ("no_pty", "terminal"),
        (Step::Identity, _) => ("no_user", "identity"),
        (Step::Directory, _) => ("bad_cwd", "cwd"),
        // The file is there: its interpreter isn't.
        (Step::Exec, Some(Errno::NOENT)) if is_there(command, base) => ("not_executable", "interpreter"),
        (Step::Exec, Some(Errno::NOENT | Errno::NOTDIR)) => ("not_found", "exec"),
        (Step::Exec, Some(Errno::NOEXEC | Errno::ACCESS | Errno::ISDIR)) => ("not_executable", "exec"),
        (Step::Exec, Some(Errno::TOOBIG)) => ("too_big", "exec"),
        (Step::Exec, Some(Errno::AGAIN | Errno::NOMEM)) => ("no_memory", "exec"),
        (Step::Exec, _) => ("failed", "exec"),
    };
    failed_with(code, name, error)
}

/// Whether the program is a file that could be found: by its path, or in `PATH`.
fn is_there(command: &Command, base: &Path) -> bool {
    let program = Path::new(command.get_program());
    if program.as_os_str().as_bytes().contains(&b'/') {
        return base.join(program).is_file();
    }
    let path = command.get_envs().find(|(key, _)| *key == "PATH").and_then(|(_, value)| value);
    path.is_some_and(|path| std::env::split_paths(path).any(|folder| base.join(folder).join(program).is_file()))
}
