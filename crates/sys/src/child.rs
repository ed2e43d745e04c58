//! A child that can't outlive its parent: killed by the kernel when the parent goes, however it goes, and holding no
//! descriptor but those that it is meant to have.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use crate::filter;
use crate::landlock::{self, Ruleset};

/// Starts `command` so that
/// - it is killed when the calling *thread* ends, or was killed already when that ended during the start,
/// - it holds 0, 1, 2 and `keep`, under their numbers here, and no other descriptor,
/// - it can't gain rights by an exec, and no signal is blocked or ignored in it (but what was ignored from outside).
///
/// # Errors
/// What the start says, the child's steps before its exec included.
pub fn spawn_bound(command: &mut Command, keep: &[BorrowedFd<'_>]) -> io::Result<Child> {
    spawn_confined(command, keep, None)
}

/// The same; and it opens only what `rules` allow, where there are some. Its program is among what has to be allowed.
///
/// # Errors
/// As [`spawn_bound`].
pub fn spawn_confined(command: &mut Command, keep: &[BorrowedFd<'_>], rules: Option<&Ruleset>) -> io::Result<Child> {
    let keep: Vec<RawFd> = keep.iter().map(AsRawFd::as_raw_fd).collect();
    let rules = rules.map(|rules| rules.fd().as_raw_fd());
    let parent = rustix::process::getpid();
    let before_exec = move || {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        // The parent may have gone before that call; then nothing will be sent.
        if rustix::process::getppid() != Some(parent) {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        rustix::thread::set_no_new_privs(true)?;
        if let Some(rules) = rules {
            landlock::restrict_self(rules)?;
        }
        close_all_but(&keep)?;
        unblock_signals()
    };
    // SAFETY: the closure runs after the fork and only makes system calls: no allocation, no lock.
    unsafe { command.pre_exec(before_exec) };
    command.spawn()
}

/// Has `command` started with no signal blocked, whatever this thread has blocked: who waits for signals as values passes that on
/// to no program.
pub fn unblocked(command: &mut Command) -> &mut Command {
    // SAFETY: the closure runs after the fork and makes one system call: no allocation, no lock.
    unsafe { command.pre_exec(unblock_signals) }
}

/// Has `command` get huge pages only for pieces of memory of at least `least` bytes. It can't gain rights by an exec then.
pub fn huge_pages_from(command: &mut Command, least: u32) -> &mut Command {
    let code = filter::huge_pages_from(least);
    let before_exec = move || {
        rustix::thread::set_no_new_privs(true)?;
        filter::apply(&code)
    };
    // SAFETY: the closure runs after the fork and makes two system calls: no allocation, no lock.
    unsafe { command.pre_exec(before_exec) }
}

/// Marks every descriptor from 3 on to be closed at exec, and `keep` not to be.
fn close_all_but(keep: &[RawFd]) -> io::Result<()> {
    // SAFETY: marks descriptors only; all of them stay open in this process image, so nobody's is taken away.
    let answer = unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if answer != 0 {
        return Err(io::Error::last_os_error());
    }
    for &fd in keep {
        // SAFETY: sets one flag of a descriptor that the caller has borrowed to us.
        if unsafe { libc::fcntl(fd, libc::F_SETFD, 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

fn unblock_signals() -> io::Result<()> {
    // SAFETY: an all-zero `sigset_t` is a valid value, the empty set.
    let none: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: reads the set that we own, writes nothing.
    let answer = unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()) };
    if answer == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(answer)) }
}

#[cfg(test)]
mod tests {
    use super::{spawn_bound, spawn_confined, unblocked};
    use crate::landlock::{Access, Ruleset};
    use std::os::fd::{AsFd, AsRawFd};
    use std::process::{Command, Stdio};

    #[test]
    fn what_is_blocked_here_is_not_there() {
        // In a thread of its own: the mask is the thread's.
        std::thread::spawn(|| {
            crate::sigwait::block(&[libc::SIGTERM]).expect("blocked");
            let blocked = |command: &mut Command| {
                let out = command.args(["^SigBlk", "/proc/self/status"]).output().expect("grep");
                String::from_utf8(out.stdout).expect("text").split_whitespace().last().map(str::to_owned)
            };
            assert_eq!(blocked(&mut Command::new("grep")).as_deref(), Some("0000000000004000"));
            assert_eq!(blocked(unblocked(&mut Command::new("grep"))).as_deref(), Some("0000000000000000"));
        })
        .join()
        .expect("the thread");
    }

    #[test]
    fn the_child_holds_what_it_is_given_and_no_more() {
        let (given, _other_end) = std::os::unix::net::UnixStream::pair().expect("a pair");
        let not_given = std::fs::File::open("/dev/null").expect("open");
        let mut command = Command::new("/bin/ls");
        command.arg("/proc/self/fd").env_clear().stdout(Stdio::piped());
        let child = spawn_bound(&mut command, &[given.as_fd()]).expect("started");
        let output = child.wait_with_output().expect("ended");
        let seen = String::from_utf8(output.stdout).expect("text");
        let seen: Vec<i32> = seen.lines().map(|line| line.parse().expect("a number")).collect();
        assert!(seen.contains(&given.as_raw_fd()), "{seen:?}");
        // One more: the directory that ls reads.
        assert_eq!(seen.len(), 5, "{seen:?}, and {} was not given", not_given.as_raw_fd());
    }

    #[test]
    fn the_child_dies_with_the_thread_that_made_it() {
        let made = std::thread::spawn(|| spawn_bound(Command::new("/bin/sleep").arg("60"), &[]).expect("started"));
        let mut child = made.join().expect("the thread");
        let status = child.wait().expect("ended");
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    }

    /// Where the kernel has no Landlock this can't be shown, and says so.
    #[test]
    fn the_child_opens_what_the_rules_name() {
        let rules = match Ruleset::new() {
            Ok(rules) => rules,
            Err(error) => {
                eprintln!("not run: this kernel has no Landlock ({error})");
                return;
            }
        };
        let dir = tempfile::tempdir().expect("a directory");
        let (open, shut) = (dir.path().join("open"), dir.path().join("shut"));
        std::fs::write(&open, "seen").expect("written");
        std::fs::write(&shut, "unseen").expect("written");
        for path in ["/bin/cat", "/lib", "/lib64", "/usr/lib"] {
            if let Ok(file) = std::fs::File::open(path) {
                rules.allow(&file, Access::Execute).expect(path);
            }
        }
        rules.allow(std::fs::File::open(&open).expect("open"), Access::Read).expect("a file's rule");
        let (reader, _writer) = std::io::pipe().expect("a pipe");
        rules.allow(&reader, Access::Read).expect("a pipe needs none");
        let mut command = Command::new("/bin/cat");
        command.args([&open, &shut]).stdout(Stdio::piped()).stderr(Stdio::null());
        let output =
            spawn_confined(&mut command, &[], Some(&rules)).expect("started").wait_with_output().expect("ended");
        assert_eq!((output.stdout.as_slice(), output.status.success()), (&b"seen"[..], false));
    }

    #[test]
    fn no_new_rights() {
        let mut command = Command::new("/bin/grep");
        command.args(["-E", "^(NoNewPrivs:\t1|SigBlk:\t0+)$", "-c", "/proc/self/status"]).stdout(Stdio::piped());
        let output = spawn_bound(&mut command, &[]).expect("started").wait_with_output().expect("ended");
        assert_eq!(output.stdout, b"2\n");
    }
}
