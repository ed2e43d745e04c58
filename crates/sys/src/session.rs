//! A program that leads a session of its own: with a terminal, as another user, in a directory; and which of these steps
//! failed.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use rustix::process::{Gid, Uid};

/// Who a program runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its other groups.
    pub groups: Vec<u32>,
}

/// How a program is born.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Birth {
    /// Its standard input is a terminal that becomes the session's.
    pub terminal: bool,
    /// `None`: as the caller.
    pub identity: Option<Identity>,
    /// `None`: where the caller is. It is entered with the identity's rights.
    pub directory: Option<CString>,
}

/// A step on the way to a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    /// The session of its own.
    Session = 1,
    /// Its terminal.
    Terminal,
    /// Its user and groups.
    Identity,
    /// Its directory.
    Directory,
    /// The fork, and the program itself.
    Exec,
}

/// Starts `command` as the leader of a session and a group of its own, with no descriptor but 0, 1 and 2. (std empties the
/// signal mask of its children itself.)
///
/// # Errors
/// The step that failed, and what the kernel said.
pub fn spawn(command: &mut Command, birth: Birth) -> Result<Child, (Step, io::Error)> {
    let failed = |error| (Step::Exec, error);
    let (told, tell) = std::io::pipe().map_err(failed)?;
    rustix::io::ioctl_fionbio(&told, true).map_err(|error| failed(error.into()))?;
    let before_exec = move || {
        be_born(&birth).map_err(|(step, error)| {
            // The error itself goes std's way; an answer that can't be written leaves the step unknown.
            let _ = rustix::io::write(tell.as_fd(), &[step as u8]);
            error
        })
    };
    // SAFETY: the closure runs after the fork and only makes system calls: no allocation, no lock.
    unsafe { command.pre_exec(before_exec) };
    command.spawn().map_err(|error| {
        let mut step = [0];
        let step = match rustix::io::read(&told, &mut step).map(|_| step[0]) {
            Ok(1) => Step::Session,
            Ok(2) => Step::Terminal,
            Ok(3) => Step::Identity,
            Ok(4) => Step::Directory,
            _ => Step::Exec,
        };
        (step, error)
    })
}

fn be_born(birth: &Birth) -> Result<(), (Step, io::Error)> {
    rustix::process::setsid().map_err(|error| (Step::Session, error.into()))?;
    // SAFETY: marks descriptors only; all of them stay open in this process image, so nobody's is taken away.
    let marked = unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    check(marked as libc::c_int).map_err(|error| (Step::Session, error))?;
    if birth.terminal {
        let stdin = rustix::stdio::stdin();
        // SAFETY: the request takes a number; 0: don't take a terminal that is another session's.
        let answer = unsafe { libc::ioctl(stdin.as_raw_fd(), libc::TIOCSCTTY, 0) };
        check(answer).map_err(|error| (Step::Terminal, error))?;
    }
    if let Some(identity) = &birth.identity {
        become_user(identity).map_err(|error| (Step::Identity, error))?;
    }
    match &birth.directory {
        Some(path) => rustix::process::chdir(path.as_c_str()).map_err(|error| (Step::Directory, error.into())),
        None => Ok(()),
    }
}

/// The groups first: without its user's rights a process can't change them any more.
fn become_user(identity: &Identity) -> io::Result<()> {
    // SAFETY: the kernel reads as many ids as the slice has.
    check(unsafe { libc::setgroups(identity.groups.len(), identity.groups.as_ptr()) })?;
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    // After a fork there is one thread, so that the thread's user is the process's.
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    Ok(rustix::thread::set_thread_res_uid(uid, uid, uid)?)
}

fn check(answer: libc::c_int) -> io::Result<()> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_child_leads_its_own_session() {
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", "cut -d' ' -f1,5,6 /proc/self/stat; cut -d' ' -f1,5,6 /proc/$$/stat"])
            .stdout(Stdio::piped());
        let child = spawn(&mut command, Birth::default()).expect("started");
        let pid = child.id().to_string();
        let output = child.wait_with_output().expect("ended");
        let text = String::from_utf8(output.stdout).expect("text");
        assert!(text.contains(&format!("{pid} {pid} {pid}")), "{text}");
    }

    #[test]
    fn the_step_that_fails_is_named() {
        let step = |program: &str, birth| spawn(&mut Command::new(program), birth).expect_err("not started").0;
        let at = |directory: &std::ffi::CStr| Birth { directory: Some(directory.into()), ..Birth::default() };
        assert_eq!(step("/bin/true", at(c"/nowhere")), Step::Directory);
        assert_eq!(step("/nowhere", at(c"/")), Step::Exec);
        let mut command = Command::new("/bin/true");
        let no_terminal = spawn(command.stdin(Stdio::null()), Birth { terminal: true, ..Birth::default() });
        assert_eq!(no_terminal.expect_err("/dev/null is no terminal").0, Step::Terminal);
    }
}
