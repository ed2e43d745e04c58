//! The check of a snapshot's file system: `e2fsck -fy`, which can do nothing but read and write that device.

use super::snapshot::{self, For};
use super::uses::Key;
use super::worker::{self, Root, Run};
use crate::fail::Fail;
use crate::host::Host;
use crate::program::{self, Program};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::pipe::PipeFlags;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};
use sys::dir::CallError;
use sys::pidfd::PidFd;
use wire::code::shown;
use wire::name::dm::DmName;

const METHOD: &str = "fsck_snapshot";
/// Where e2fsck is.
const DIRS: [&str; 2] = ["/usr/sbin", "/sbin"];
/// The device's name in its `/dev`.
const DEVICE: &str = "snapshot";
/// What e2fsck's exit status may be of: nothing found, and all that was found repaired.
const GOOD: [i32; 2] = [0, 1];
/// The part of its output's end that is kept, and the lines of it that an error shows.
const KEPT: usize = 4096;
const SHOWN_LINES: usize = 4;
const SHOWN_CHARS: usize = 400;

/// The calls that e2fsck, its libraries and their loader make.
const CALLS: [libc::c_long; 56] = [
    libc::SYS_access,
    libc::SYS_arch_prctl,
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_execveat,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_fstat,
    libc::SYS_fsync,
    libc::SYS_futex,
    libc::SYS_getcwd,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_getrusage,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_getuid,
    libc::SYS_ioctl,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_newfstatat,
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_pread64,
    libc::SYS_prlimit64,
    libc::SYS_pwrite64,
    libc::SYS_read,
    libc::SYS_readlink,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_stat,
    libc::SYS_sysinfo,
    libc::SYS_time,
    libc::SYS_uname,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Checks and repairs a snapshot's file system.
pub(crate) fn fsck(host: &Host, name: &DmName) -> Result<(), Fail> {
    let _using = host.images.uses.alone(Key::of_snapshot(name), host.settings.limits.image_time(), METHOD)?;
    let _held = snapshot::hold(host, name, METHOD)?;
    let device = snapshot::open(host, name, For::Changing)?;
    let rdev = device.dev;
    // e2fsck opens it itself so that nobody else has it and nobody can mount it.
    drop(device);
    sys::spawn::none_inherits();
    let program = e2fsck()?;
    let _turn = host.images.workers.turn(host)?;
    let mut place = host.images.workers.place(host)?;
    let failed = |cause: &dyn std::fmt::Display| Fail::new("e2fsck can't be started").because(cause);
    let devices = sys::ground::one_device(DEVICE, rdev, place.id).map_err(|error| failed(&error))?;
    let (said, output) =
        rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|errno| failed(&CallError::new("pipe2", errno)))?;
    rustix::fs::fcntl_setfl(&said, OFlags::NONBLOCK).map_err(|errno| failed(&CallError::new("fcntl", errno)))?;
    let filter = sys::filter::allowing(&CALLS);
    let run = Run {
        program: &program,
        root: Root::Libraries,
        argv: &[c"e2fsck".to_owned(), c"-fy".to_owned(), c"/dev/snapshot".to_owned()],
        passed: &[],
        devices: Some(devices.as_fd()),
        output: Some(output.as_fd()),
        filter: Some(&filter),
        file: u64::MAX,
        processes: THREADS,
        time: host.settings.limits.fsck_time(),
    };
    let (child, _) = run.start(host, &mut place)?;
    let words = listen(&said, &child, run.time);
    let status = worker::wait("e2fsck", "limits.fsck_seconds", run.time, &child)?;
    match status.exit_status() {
        Some(code) if GOOD.contains(&code) => Ok(()),
        Some(code) => {
            let told = shown(name.as_str());
            Err(Fail::new(format!("e2fsck of snapshot {told} ended with status {code} ({}): {words}", meaning(code))))
        }
        None => Err(worker::died("e2fsck", &status)),
    }
}

/// It reads bitmaps with several.
const THREADS: u64 = 64;

fn e2fsck() -> Result<Program, Fail> {
    program::of_ours(&DIRS.map(str::to_owned), "e2fsck")?
        .ok_or_else(|| Fail::new(format!("there is no e2fsck in {}: install e2fsprogs", DIRS.join(" or "))))
}

/// e2fsck(8): a sum of these.
fn meaning(code: i32) -> &'static str {
    match code {
        code if code & 8 != 0 => "it could not work on the device",
        code if code & 4 != 0 => "errors are left",
        code if code & 2 != 0 => "repaired, but the machine should be started anew",
        code if code & 32 != 0 => "it was cancelled",
        _ => "it was used wrongly",
    }
}

/// Takes what the child says until it has ended, so that it never waits for us, and gives the last of it.
fn listen(said: &OwnedFd, child: &PidFd, at_most: Duration) -> String {
    let until = Instant::now() + at_most;
    let (mut kept, mut piece) = (Vec::new(), [0; KEPT]);
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        let mut fds = [PollFd::new(said, PollFlags::IN), PollFd::from_borrowed_fd(child.as_fd(), PollFlags::IN)];
        match poll(&mut fds, Some(&left)) {
            Err(rustix::io::Errno::INTR) => continue,
            Ok(1..) => {}
            _ => break,
        }
        let has_ended = !fds[1].revents().is_empty();
        match rustix::io::read(said, &mut piece[..]) {
            Ok(length @ 1..) => {
                kept.extend_from_slice(&piece[..length]);
                kept.drain(..kept.len().saturating_sub(KEPT));
            }
            // Our own end of it is open: there is no end of the file, only nothing more.
            _ if has_ended => break,
            _ => {}
        }
    }
    last_words(&kept)
}

/// The last lines, fit to be shown: what stands in them may come from the image.
fn last_words(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let lines = &lines[lines.len().saturating_sub(SHOWN_LINES)..];
    let words: String = lines.join(" | ").chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    let skip = words.chars().count().saturating_sub(SHOWN_CHARS);
    if words.is_empty() { "it said nothing".to_owned() } else { words.chars().skip(skip).collect() }
}
