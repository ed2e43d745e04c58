//! Starting a program that gets no rights at all: a user of its own, no capabilities, other namespaces, bounded
//! memory, time and files, a few descriptors. It can't outlive its starter.

use crate::ground::Ground;
use crate::pidfd::PidFd;
use crate::spawn::{self, BlockedSignals, Failed, Step, call, errno, limit, prctl};
use rustix::io::Errno;
use std::cell::Cell;
use std::ffi::{CString, c_char};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

/// The number under which the program finds the first of [`Start::passed`].
pub const PASSED: RawFd = 3;
/// As many can be passed.
pub const MOST_PASSED: usize = 4;
const PROGRAM: RawFd = 8;
const DEVICES: RawFd = 9;
const NAMESPACES: RawFd = 10;
/// One behind the last of the numbers above.
const END: RawFd = NAMESPACES + 4;
/// Above all of these: nothing is overwritten while the descriptors are put in their places.
const ASIDE: RawFd = 32;

/// A program, and all that it is given. Its environment is empty, its umask 077; it leads a session of its own, no
/// signal is blocked, ignored or handled in it, and it leaves no core.
pub struct Start<'a> {
    /// The file that is executed, an ELF program.
    pub program: BorrowedFd<'a>,
    /// Its arguments, its name first.
    pub argv: &'a [CString],
    /// Its user and its group, the only one.
    pub id: u32,
    /// The namespaces and the root directory that it runs in.
    pub ground: &'a Ground,
    /// What stands on `/dev` of its root directory, in a mount namespace of its own then.
    pub devices: Option<BorrowedFd<'a>>,
    /// Its descriptor 0.
    pub input: BorrowedFd<'a>,
    /// Its descriptors 1 and 2.
    pub output: BorrowedFd<'a>,
    /// Its descriptors from [`PASSED`] on, at most [`MOST_PASSED`].
    pub passed: &'a [BorrowedFd<'a>],
    /// What it may take.
    pub bounds: Bounds,
    /// The system calls that it may make. `None`: the program sees to that itself.
    pub filter: Option<&'a [libc::sock_filter]>,
}

/// What a program may take.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bytes of memory, mapped files among them.
    pub memory: u64,
    /// Seconds of a processor's time.
    pub seconds: u64,
    /// Bytes of a file that it writes.
    pub file: u64,
    /// Processes of its user, itself among them.
    pub processes: u64,
}

/// Starts it. It executes its program when this returns, and is its starter's to reap; it is killed when the calling
/// *thread* ends.
///
/// # Errors
/// The step before the execution, or the execution itself, that failed; nothing of it is left.
pub fn start(start: &Start<'_>) -> Result<PidFd, Failed> {
    let failed = |call: &'static str| move |error: io::Error| Failed { call, error };
    if start.passed.len() > MOST_PASSED {
        return Err(failed("descriptors")(Errno::INVAL.into()));
    }
    let mut argv: Vec<*const c_char> = start.argv.iter().map(|arg| arg.as_ptr()).collect();
    argv.push(std::ptr::null());
    let filter = start
        .filter
        .map(|code| libc::sock_fprog { len: u16::try_from(code.len()).unwrap_or(0), filter: code.as_ptr().cast_mut() });
    let parent = rustix::process::getpid().as_raw_nonzero().get();
    // What the child says of itself, in the memory that it shares with this thread until it executes its program.
    let stopped = Cell::new(None);
    let mut fds = places(start);
    let inheriting = spawn::inheriting();
    let signals = BlockedSignals::new().map_err(failed("pthread_sigmask"))?;
    let child = spawn::fork_and_wait(|| stopped.set(Some(become_it(start, &mut fds, &argv, filter.as_ref(), parent))));
    drop((signals, inheriting));
    let (pid, pidfd) = child.map_err(failed("clone"))?;
    let child = PidFd::from_fd(pidfd, pid);
    match stopped.take() {
        None => Ok(child),
        Some((call, error)) => {
            end(&child);
            Err(Failed { call, error: io::Error::from_raw_os_error(error) })
        }
    }
}

/// Kills a program that was started here, and reaps it. How it ended, where it could be told.
pub fn end(child: &PidFd) -> Option<rustix::process::WaitIdStatus> {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    use std::os::fd::AsFd;
    // It has ended already, most often.
    let _ = child.send_signal(libc::SIGKILL);
    rustix::io::retry_on_intr(|| waitid(WaitId::PidFd(child.as_fd()), WaitIdOptions::EXITED)).ok().flatten()
}

/// Each descriptor and the number that it gets. Those that are not there are -1.
type Places = [(RawFd, RawFd); 13];

fn places(start: &Start<'_>) -> Places {
    let raw = |fd: BorrowedFd<'_>| fd.as_raw_fd();
    let passed = |index: usize| start.passed.get(index).map_or(-1, |fd| raw(*fd));
    let [net, ipc, uts, mnt] = &start.ground.namespaces;
    [
        (raw(start.input), 0),
        (raw(start.output), 1),
        (raw(start.output), 2),
        (passed(0), PASSED),
        (passed(1), PASSED + 1),
        (passed(2), PASSED + 2),
        (passed(3), PASSED + 3),
        (raw(start.program), PROGRAM),
        (start.devices.map_or(-1, raw), DEVICES),
        (net.as_raw_fd(), NAMESPACES),
        (ipc.as_raw_fd(), NAMESPACES + 1),
        (uts.as_raw_fd(), NAMESPACES + 2),
        (mnt.as_raw_fd(), NAMESPACES + 3),
    ]
}

/// The child. Only system calls from here on: the memory is its parent's, whose other threads go on. Returns the call
/// that failed, and its errno.
fn become_it(
    start: &Start<'_>,
    fds: &mut Places,
    argv: &[*const c_char],
    filter: Option<&libc::sock_fprog>,
    parent: i32,
) -> (&'static str, i32) {
    let (id, bounds) = (start.id as usize, start.bounds);
    let steps: [(&str, &mut dyn FnMut() -> Step); 24] = [
        ("descriptors", &mut || take_places(fds)),
        ("umask", &mut || call(libc::SYS_umask, [0o077, 0, 0, 0, 0])),
        ("setsid", &mut || call(libc::SYS_setsid, [0; 5])),
        ("sigaction", &mut spawn::default_signals),
        ("setns", &mut || (0..4).try_for_each(|n| call(libc::SYS_setns, [(NAMESPACES + n) as usize, 0, 0, 0, 0]))),
        ("mount of the devices", &mut || if start.devices.is_some() { mount_devices() } else { Ok(()) }),
        ("setrlimit(core)", &mut || limit(libc::RLIMIT_CORE as i32, 0)),
        ("setrlimit(memory)", &mut || limit(libc::RLIMIT_AS as i32, bounds.memory)),
        ("setrlimit(time)", &mut || limit(libc::RLIMIT_CPU as i32, bounds.seconds)),
        ("setrlimit(file)", &mut || limit(libc::RLIMIT_FSIZE as i32, bounds.file)),
        ("setrlimit(descriptors)", &mut || limit(libc::RLIMIT_NOFILE as i32, ASIDE as u64)),
        ("setrlimit(processes)", &mut || limit(libc::RLIMIT_NPROC as i32, bounds.processes)),
        ("drop of the bounding set", &mut spawn::drop_bounding_set),
        ("clear of the ambient set", &mut || prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as usize)),
        ("setgroups", &mut || call(libc::SYS_setgroups, [0; 5])),
        // The bare calls: the C library's tell all threads, and would tell the parent's.
        ("setresgid", &mut || call(libc::SYS_setresgid, [id, id, id, 0, 0])),
        ("setresuid", &mut || call(libc::SYS_setresuid, [id, id, id, 0, 0])),
        // The kernel has put it to fs.suid_dumpable, for all who share this memory.
        ("not dumpable", &mut || prctl(libc::PR_SET_DUMPABLE, 0)),
        ("new session keyring", &mut spawn::own_keyring),
        ("capset", &mut spawn::no_capabilities),
        // Behind the change of the user, which clears it.
        ("death with the parent", &mut || die_with(parent)),
        ("no_new_privs", &mut || prctl(libc::PR_SET_NO_NEW_PRIVS, 1)),
        ("sigprocmask", &mut spawn::unblock_signals),
        ("execveat", &mut || execute(argv, filter)),
    ];
    for (name, step) in steps {
        if let Err(error) = step() {
            return (name, error);
        }
    }
    ("execveat", 0)
}

/// Puts the descriptors under their numbers and closes all others.
fn take_places(fds: &mut Places) -> Step {
    for (fd, _) in fds.iter_mut().filter(|(fd, _)| *fd >= 0) {
        // SAFETY: copies a descriptor that the parent lent us.
        *fd = unsafe { libc::fcntl(*fd, libc::F_DUPFD_CLOEXEC, ASIDE) };
        if *fd < 0 {
            return Err(errno());
        }
    }
    call(libc::SYS_close_range, [0, ASIDE as usize - 1, 0, 0, 0])?;
    for (fd, place) in fds.iter().filter(|(fd, _)| *fd >= 0) {
        let cloexec = if *place >= PROGRAM { libc::O_CLOEXEC } else { 0 };
        call(libc::SYS_dup3, [*fd as usize, *place as usize, cloexec as usize, 0, 0])?;
    }
    call(libc::SYS_close_range, [END as usize, u32::MAX as usize, 0, 0, 0])
}

/// A copy of the mounts, gone with this process, and the devices on its `/dev`.
fn mount_devices() -> Step {
    call(libc::SYS_unshare, [libc::CLONE_NEWNS as usize, 0, 0, 0, 0])?;
    const FROM_EMPTY_PATH: usize = 4;
    let (empty, dev) = (c"".as_ptr() as usize, c"/dev".as_ptr() as usize);
    call(libc::SYS_move_mount, [DEVICES as usize, empty, libc::AT_FDCWD as usize, dev, FROM_EMPTY_PATH])
}

fn die_with(parent: i32) -> Step {
    prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as usize)?;
    // SAFETY: asks for a number.
    let now = unsafe { libc::syscall(libc::SYS_getppid) };
    // It may have gone before that call; then nothing will be sent.
    if now == libc::c_long::from(parent) { Ok(()) } else { Err(libc::ESRCH) }
}

fn execute(argv: &[*const c_char], filter: Option<&libc::sock_fprog>) -> Step {
    if let Some(filter) = filter {
        let mode = libc::SECCOMP_SET_MODE_FILTER as usize;
        call(libc::SYS_seccomp, [mode, 0, std::ptr::from_ref(filter) as usize, 0, 0])?;
    }
    let environment: [*const c_char; 1] = [std::ptr::null()];
    let empty = c"".as_ptr() as usize;
    let args =
        [PROGRAM as usize, empty, argv.as_ptr() as usize, environment.as_ptr() as usize, libc::AT_EMPTY_PATH as usize];
    call(libc::SYS_execveat, args)
}
