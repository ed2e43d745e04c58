//! A program of a call: whose it is, how it starts, its pipes.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use agent::protocol::{ErrorBody, Exec};
use rustix::fs::OFlags;
use rustix::process::Pid;

/// More of /etc/passwd or /etc/group is not read.
const ACCOUNTS_LIMIT: u64 = 1 << 20;
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A started program.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) pid: Pid,
    pub(super) stdin: Option<OwnedFd>,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
}

/// A user of the guest's own files.
#[derive(Debug, Clone, PartialEq, Eq)]
struct User {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
    shell: String,
}

/// The `ERROR` of a step that failed.
pub(super) fn error(code: &str, step: &str, error: &io::Error) -> ErrorBody {
    ErrorBody { code: code.into(), step: step.into(), errno: error.raw_os_error().unwrap_or(0) }
}

/// Starts the program of an exec.
///
/// # Errors
/// The body of the ERROR that answers.
pub(super) fn start(exec: &Exec, args: &[&[u8]], env: &[&[u8]]) -> Result<Started, ErrorBody> {
    let user = user(&exec.user)?;
    let cwd = if exec.cwd.is_empty() { home_of(&user) } else { exec.cwd.clone() };
    match std::fs::metadata(&cwd) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => return Err(error("bad_cwd", "cwd", &io::Error::from_raw_os_error(20))),
        Err(e) => return Err(error("bad_cwd", "cwd", &e)),
    }
    let [program, arguments @ ..] = args else {
        return Err(error("not_found", "exec", &io::Error::from_raw_os_error(2)));
    };
    let mut command = Command::new(std::ffi::OsStr::from_bytes(program));
    command.args(arguments.iter().map(|arg| std::ffi::OsStr::from_bytes(arg)));
    set_environment(&mut command, &user, env);
    command.current_dir(&cwd).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.stdin(if exec.stdin { Stdio::piped() } else { Stdio::null() });
    let mut groups = None;
    if user.uid != rustix::process::geteuid().as_raw() {
        groups = Some(groups_of(&user));
        command.uid(user.uid).gid(user.gid);
    }
    let child = sys::guest::spawn_session(&mut command, groups).map_err(|e| start_error(program, &e))?;
    pipes(child).map_err(|e| error("failed", "pipes", &e))
}

fn pipes(mut child: std::process::Child) -> io::Result<Started> {
    let missing = || io::Error::from(io::ErrorKind::BrokenPipe);
    let started = Started {
        pid: i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or_else(missing)?,
        stdin: child.stdin.take().map(OwnedFd::from),
        stdout: child.stdout.take().ok_or_else(missing)?.into(),
        stderr: child.stderr.take().ok_or_else(missing)?.into(),
    };
    for fd in started.stdin.iter().chain([&started.stdout, &started.stderr]) {
        // Of our end alone: the two ends of a pipe are two open files.
        rustix::fs::fcntl_setfl(fd, OFlags::NONBLOCK)?;
    }
    Ok(started)
}

fn start_error(program: &[u8], e: &io::Error) -> ErrorBody {
    let is_path = program.contains(&b'/');
    let code = match e.raw_os_error() {
        // The file is there: its interpreter isn't.
        Some(2) if is_path && std::fs::metadata(std::ffi::OsStr::from_bytes(program)).is_ok() => "not_executable",
        Some(2 | 20) => "not_found",
        Some(8 | 13 | 21) => "not_executable",
        Some(7) => "too_big",
        Some(11 | 12) => "no_memory",
        _ => "failed",
    };
    error(code, "exec", e)
}

/// The caller's variables, and those that every program expects where they are missing.
fn set_environment(command: &mut Command, user: &User, env: &[&[u8]]) {
    command.env_clear();
    let filled = [("HOME", &*user.home), ("USER", &user.name), ("SHELL", &user.shell), ("PATH", DEFAULT_PATH)];
    command.envs(filled);
    for variable in env {
        let cut = variable.iter().position(|byte| *byte == b'=').unwrap_or(variable.len());
        let (key, value) = (&variable[..cut], variable.get(cut + 1..).unwrap_or_default());
        if !key.is_empty() {
            command.env(std::ffi::OsStr::from_bytes(key), std::ffi::OsStr::from_bytes(value));
        }
    }
}

fn home_of(user: &User) -> String {
    if std::fs::metadata(&user.home).is_ok_and(|home| home.is_dir()) { user.home.clone() } else { "/".into() }
}

fn user(name: &str) -> Result<User, ErrorBody> {
    let passwd = accounts("/etc/passwd");
    let wanted = name.parse::<u32>().ok();
    let found = passwd.lines().filter_map(parse_user).find(|user| user.name == name || Some(user.uid) == wanted);
    let bare = |uid, home: &str| User { name: name.into(), uid, gid: uid, home: home.into(), shell: "/bin/sh".into() };
    match (found, wanted) {
        (Some(user), _) => Ok(user),
        // An image without accounts has a root all the same.
        (None, _) if name == "root" => Ok(bare(0, "/root")),
        (None, Some(uid)) if uid != u32::MAX => Ok(bare(uid, "/")),
        (None, _) => Err(error("no_user", "user", &io::Error::from_raw_os_error(2))),
    }
}

fn parse_user(line: &str) -> Option<User> {
    let fields: Vec<&str> = line.split(':').collect();
    let &[name, _, uid, gid, _, home, shell] = fields.as_slice() else { return None };
    let shell = if shell.is_empty() { "/bin/sh" } else { shell };
    let (uid, gid) = (uid.parse().ok()?, gid.parse().ok()?);
    Some(User { name: name.into(), uid, gid, home: home.into(), shell: shell.into() })
}

/// The primary group, and those of /etc/group that name the user.
fn groups_of(user: &User) -> Vec<u32> {
    let text = accounts("/etc/group");
    let mut out = vec![user.gid];
    for line in text.lines() {
        let fields: Vec<&str> = line.split(':').collect();
        if let &[_, _, gid, members] = fields.as_slice()
            && members.split(',').any(|member| member == user.name)
            && let Ok(gid) = gid.parse()
        {
            out.push(gid);
        }
    }
    out.truncate(1024);
    out
}

fn accounts(path: &str) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = File::open(path) {
        // What could be read counts; an account that isn't found says so itself.
        let _ = file.take(ACCOUNTS_LIMIT).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_read_as_the_guest_writes_them() {
        let user = parse_user("www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin").unwrap();
        assert_eq!((user.uid, user.gid, &*user.home), (33, 33, "/var/www"));
        assert_eq!(parse_user("a:x:1:1::/:").unwrap().shell, "/bin/sh");
        assert_eq!(parse_user("a:x:-1:1::/:/bin/sh"), None);
        assert_eq!(parse_user("+::::::x:y"), None);
    }
}
