//! Starting a program as another user, for good: it outlives us, has no rights, and begins only when it is let go. Or a
//! jailer, who gives up the rights himself.
//!
//! The child is forked, takes its new descriptors and waits. Until [`Held::release`] it has executed nothing, and it
//! ends by itself when its starter goes, however that goes. So its process id can be written down before it runs.

use crate::pidfd;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

/// The number under which the program finds [`Plan::passed`].
pub const PASSED: RawFd = 3;
const PROGRAM: RawFd = 4;
const GATE: RawFd = 5;
const REPORT: RawFd = 6;
/// clone(2). In libc it is an int, into which it does not fit.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
/// Above all of these: nothing is overwritten while the descriptors are put in their places.
const ASIDE: RawFd = 16;

/// Held, shared, from a fork on until the child has closed what it inherited.
static INHERITING: RwLock<()> = RwLock::new(());

/// Of whoever forks, until the child has closed what it inherited.
pub(crate) fn inheriting() -> RwLockReadGuard<'static, ()> {
    INHERITING.read().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until no child that is being started has a copy of what this process closed before: for what others can only have
/// when nobody has it any more.
pub fn none_inherits() {
    drop(INHERITING.write().unwrap_or_else(PoisonError::into_inner));
}

/// Starts a program of the standard library's making; no child has a copy of this process's descriptors when this returns.
///
/// # Errors
/// What the start says.
pub fn start(command: &mut std::process::Command) -> io::Result<std::process::Child> {
    let _inheriting = inheriting();
    command.spawn()
}

/// A program, and all that it is given. Its environment is empty, its directory `/`, its umask 077 (a jailer's 022); it leads a session
/// of its own and a session keyring of its own, no signal is blocked, ignored or handled in it, and it leaves no core.
#[derive(Clone, Copy)]
pub struct Plan<'a> {
    /// The file that is executed, whatever its name leads to by then.
    pub program: BorrowedFd<'a>,
    /// Whether it is a script: its interpreter then opens it by descriptor, which has to stay.
    pub is_script: bool,
    /// Its arguments, its name first.
    pub argv: &'a [CString],
    /// Whose it is. `None`: it keeps this process's user and rights, and gives them up itself; a jailer.
    pub user: Option<User<'a>>,
    /// Its descriptor 0.
    pub input: BorrowedFd<'a>,
    /// Its descriptors 1 and 2.
    pub output: BorrowedFd<'a>,
    /// Its descriptor [`PASSED`].
    pub passed: BorrowedFd<'a>,
    /// The most descriptors that it may hold.
    pub open_files: u64,
    /// What its `oom_score_adj` is set to.
    pub oom_score_adj: &'a CStr,
    /// Whether it is the first process of a PID namespace of its own: what it starts ends with it.
    pub new_pid_namespace: bool,
    /// The control groups that it is in before it does anything else.
    pub groups: Groups<'a>,
}

/// A child's control groups.
#[derive(Clone, Copy, Debug)]
pub enum Groups<'a> {
    /// Its starter's.
    Same,
    /// One of the second version, a directory: it is forked into that.
    Unified(BorrowedFd<'a>),
    /// Of the first version, the file `tasks` of each, open for writing: it enters them itself. Who is moved by another
    /// process waits until all CPUs have looked up, some 10 ms.
    Each(&'a [BorrowedFd<'a>]),
}

/// A user, who is to have no rights but his own.
#[derive(Clone, Copy)]
pub struct User<'a> {
    /// His uid.
    pub uid: u32,
    /// His group.
    pub gid: u32,
    /// His supplementary groups, all of them.
    pub groups: &'a [u32],
}

/// Why a child did not come to execute its program: the call that failed, and its error.
#[derive(Debug)]
pub struct Failed {
    /// The call.
    pub call: &'static str,
    /// Its error.
    pub error: io::Error,
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.call, self.error)
    }
}

impl std::error::Error for Failed {}

/// A child that waits to be let go. Dropped, it ends without having executed anything, and is reaped.
#[derive(Debug)]
pub struct Held {
    pid: i32,
    start_time: u64,
    pidfd: Option<OwnedFd>,
    gate: Option<OwnedFd>,
    report: OwnedFd,
}

impl Held {
    /// The child's process id.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// When it was forked, as [`pidfd::start_time`].
    pub fn start_time(&self) -> u64 {
        self.start_time
    }

    /// Lets it go, and returns its pidfd once it executes its program. It is its starter's to reap.
    ///
    /// Between the change of its user and the execution the child is that user's to stop: so it gets a time.
    ///
    /// # Errors
    /// The step before the execution, or the execution itself, that failed or was not reached in that time; the child
    /// has ended and is reaped.
    pub fn release(mut self, at_most: Duration) -> Result<OwnedFd, Failed> {
        let failed = |call| move |error| Failed { call, error };
        let until = Instant::now() + at_most;
        // One that has ended by itself says more than its closed gate.
        let opened = self.gate.take().map_or(Ok(()), |gate| std::fs::File::from(gate).write_all(b"g"));
        // One write of a few bytes, or none: all of it is there when the end of the file is.
        let mut said = [0; 8];
        let mut length = 0;
        while length < said.len() {
            self.wait_for_report(until).map_err(failed("wait for the report"))?;
            match rustix::io::read(&self.report, &mut said[length..]) {
                Ok(0) => break,
                Ok(n) => length += n,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(failed("read of the report")(errno.into())),
            }
        }
        if let [step, a, b, c, d, ..] = said[..length] {
            let call = STEPS.get(usize::from(step)).copied().unwrap_or("start");
            return Err(Failed { call, error: io::Error::from_raw_os_error(i32::from_ne_bytes([a, b, c, d])) });
        }
        opened.map_err(failed("write to the gate"))?;
        // Closed without a word: by the execution, or by a death that the pidfd tells of.
        self.pidfd.take().ok_or(Failed { call: "release", error: io::ErrorKind::NotConnected.into() })
    }

    fn wait_for_report(&self, until: Instant) -> io::Result<()> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
            match poll(&mut [PollFd::new(&self.report, PollFlags::IN)], Some(&left)) {
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.gate = None;
        if let Some(pidfd) = self.pidfd.take() {
            // Nothing that a failure here would change: the child has no gate to wait at any more.
            let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
            let _ = rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
        }
    }
}

/// Forks the child of `plan`, which waits at its gate.
///
/// # Errors
/// What the kernel says to the pipes, the fork, or the child's way into its groups.
pub fn hold(plan: &Plan<'_>) -> Result<Held, Failed> {
    let failed = |call| move |error| Failed { call, error };
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(io::Error::from);
    let (gate_out, gate_in) = pipe().map_err(failed("pipe2"))?;
    let (report_out, report_in) = pipe().map_err(failed("pipe2"))?;
    // All memory that the child needs is made here: behind the fork nothing may allocate.
    let mut argv: Vec<*const c_char> = plan.argv.iter().map(|arg| arg.as_ptr()).collect();
    argv.push(std::ptr::null());
    let mut fds = [
        (plan.input.as_raw_fd(), 0),
        (plan.output.as_raw_fd(), 1),
        (plan.output.as_raw_fd(), 2),
        (plan.passed.as_raw_fd(), PASSED),
        (plan.program.as_raw_fd(), PROGRAM),
        (gate_out.as_raw_fd(), GATE),
        (report_in.as_raw_fd(), REPORT),
    ];
    let group = match plan.groups {
        Groups::Unified(group) => Some(group),
        Groups::Same | Groups::Each(_) => None,
    };
    let inheriting = inheriting();
    let signals = BlockedSignals::new().map_err(failed("pthread_sigmask"))?;
    let (pid, pidfd) = match fork(group, plan.new_pid_namespace).map_err(failed("clone3"))? {
        Some(child) => child,
        None => become_it(plan, &mut fds, &argv),
    };
    drop(signals);
    drop((gate_out, report_in));
    let mut held = Held { pid, start_time: 0, pidfd: Some(pidfd), gate: Some(gate_in), report: report_out };
    // While it is on its way to the gate.
    held.start_time = pidfd::start_time(pid).map_err(failed("read of the start time"))?;
    // Until it has closed what it inherited it holds all of our descriptors: a listening socket that outlives us would
    // look like a helper that lives.
    let read = |bytes: &mut [u8]| {
        let read = rustix::io::retry_on_intr(|| rustix::io::read(&held.report, &mut *bytes));
        read.map_err(|errno| failed("read of the report")(errno.into()))
    };
    let (mut word, mut errno) = ([0u8; 1], [0u8; 4]);
    let said = read(&mut word)?;
    drop(inheriting);
    match said {
        1 if word == [AT_THE_GATE] => Ok(held),
        1 if read(&mut errno)? == errno.len() => {
            let call = if word == [TAKES_PLACES] { "descriptors" } else { "write to tasks" };
            Err(failed(call)(io::Error::from_raw_os_error(i32::from_ne_bytes(errno))))
        }
        _ => Err(failed("start")(io::Error::other("the child was ended"))),
    }
}

/// A fork with a pidfd, into a control group of the second version where one is named, and into a PID namespace of its
/// own where that is asked for; its number is the one that it has here. `None` is the child.
pub(crate) fn fork(group: Option<BorrowedFd<'_>>, new_pid_namespace: bool) -> io::Result<Option<(i32, OwnedFd)>> {
    let mut pidfd: RawFd = -1;
    // SAFETY: all fields are integers, for which zeros are a value.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = libc::CLONE_PIDFD as u64;
    if new_pid_namespace {
        args.flags |= libc::CLONE_NEWPID as u64;
    }
    if let Some(group) = group {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::try_from(group.as_raw_fd()).unwrap_or(u64::MAX);
    }
    args.pidfd = &raw mut pidfd as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    // SAFETY: without CLONE_VM this is a fork: the child has its own copy of all memory. Its other threads are gone, so
    // what it does from here on takes no lock and no memory (`become_it`).
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        _ => {
            // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Some((i32::try_from(pid).unwrap_or(-1), pidfd)))
        }
    }
}

/// The child's stack while it has its parent's memory.
#[repr(align(16))]
struct Stack([MaybeUninit<u8>; 32 << 10]);

/// A child that runs `act` in this process's memory while the calling thread waits: until it has executed a program, or
/// `act` has returned, which ends it (vfork(2)). Nothing of the memory is copied for a program that needs none of it.
///
/// All signals must be blocked, and `act` must do nothing but system calls and write what is its own: other threads go
/// on, and hold locks. What the child does to descriptors, user, limits, namespaces and signals is its own.
pub(crate) fn fork_and_wait<F: FnMut()>(mut act: F) -> io::Result<(i32, OwnedFd)> {
    extern "C" fn child<F: FnMut()>(act: *mut c_void) -> c_int {
        // SAFETY: it is `act` below, which the waiting thread neither moves nor touches.
        let act = unsafe { &mut *act.cast::<F>() };
        act();
        exit()
    }
    let mut stack = Stack([MaybeUninit::uninit(); _]);
    let top = stack.0.as_mut_ptr_range().end;
    let mut pidfd: RawFd = -1;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
    // SAFETY: `stack`, `act` and `pidfd` outlive the child's use of them, since this thread goes on only when the child
    // has left this memory; the top of the stack is aligned as the type is.
    let pid = unsafe { libc::clone(child::<F>, top.cast(), flags, (&raw mut act).cast(), &raw mut pidfd) };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
    Ok((pid, unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

/// All signals blocked in this thread, so that none of our handlers runs in the child; undone when dropped.
pub(crate) struct BlockedSignals(libc::sigset_t);

impl BlockedSignals {
    pub(crate) fn new() -> io::Result<BlockedSignals> {
        // SAFETY: zeros are a value of the type.
        let mut before: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: as above.
        let mut all: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: writes to the set that we own.
        unsafe { libc::sigfillset(&raw mut all) };
        // SAFETY: both are sets of ours.
        match unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before) } {
            0 => Ok(BlockedSignals(before)),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // SAFETY: reads a set that we own.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, std::ptr::null_mut()) };
    }
}

/// What the child says first. No step has this number.
static AT_THE_GATE: u8 = u8::MAX;
/// What it says where it does not come to it.
const ENTERS: u8 = 0;
const TAKES_PLACES: u8 = 1;

/// What the child does, by name and in order; a report is an index into this list and an errno.
const STEPS: [&str; 17] = [
    "setsid",
    "sigaction",
    "oom_score_adj",
    "setrlimit(core)",
    "setrlimit(nofile)",
    "chdir",
    "drop of the bounding set",
    "clear of the ambient set",
    "gate",
    "new session keyring",
    "setgroups",
    "setresgid",
    "setresuid",
    "capset",
    "no_new_privs",
    "sigprocmask",
    "execveat",
];

/// The child. Only system calls from here on: other threads held locks when this process was forked off them.
fn become_it(plan: &Plan<'_>, fds: &mut [(RawFd, RawFd); 7], argv: &[*const c_char]) -> ! {
    // By the number that the report has: it is in no place yet.
    if let Err(error) = enter(plan.groups) {
        tell(fds[6].0, ENTERS, error)
    }
    if let Err(error) = take_places(fds) {
        tell(fds[6].0, TAKES_PLACES, error)
    }
    let _ = call(libc::SYS_write, [REPORT as usize, (&raw const AT_THE_GATE) as usize, 1, 0, 0]);
    let user = plan.user.as_ref();
    let steps: [&dyn Fn() -> Step; 17] = [
        &|| call(libc::SYS_setsid, [0; 5]),
        &default_signals,
        &|| write_oom(plan.oom_score_adj),
        &|| limit(libc::RLIMIT_CORE as i32, 0),
        &|| limit(libc::RLIMIT_NOFILE as i32, plan.open_files),
        &|| call(libc::SYS_chdir, [c"/".as_ptr() as usize, 0, 0, 0, 0]),
        &|| of(user, |_| drop_bounding_set()),
        &|| prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as usize),
        // What is above is done while its starter writes down who it is; below it becomes somebody who can be meddled with.
        &wait_at_gate,
        // Root's still: it does not count among the keys that its user may have.
        &own_keyring,
        &|| of(user, |user| call(libc::SYS_setgroups, [user.groups.len(), user.groups.as_ptr() as usize, 0, 0, 0])),
        // The bare calls: the C library's tell all threads, and this process has none of those that it knows of.
        &|| of(user, |user| call(libc::SYS_setresgid, [user.gid as usize, user.gid as usize, user.gid as usize, 0, 0])),
        &|| of(user, |user| call(libc::SYS_setresuid, [user.uid as usize, user.uid as usize, user.uid as usize, 0, 0])),
        &|| of(user, |_| no_capabilities()),
        &|| of(user, |_| prctl(libc::PR_SET_NO_NEW_PRIVS, 1)),
        &unblock_signals,
        &|| execute(plan.is_script, argv),
    ];
    // A jailer's copies of what root may show are for others to read.
    let umask = if user.is_some() { 0o077 } else { 0o022 };
    let _ = call(libc::SYS_umask, [umask, 0, 0, 0, 0]);
    take(&steps, REPORT);
    exit()
}

/// What is done for a user, and not for who keeps his rights.
fn of(user: Option<&User<'_>>, step: impl FnOnce(&User<'_>) -> Step) -> Step {
    user.map_or(Ok(()), step)
}

/// Done, or an errno.
pub(crate) type Step = Result<(), i32>;

pub(crate) fn call(number: libc::c_long, args: [usize; 5]) -> Step {
    let [a, b, c, d, e] = args;
    // SAFETY: the callers of this file give numbers, or addresses of memory that lives until the child has gone.
    match unsafe { libc::syscall(number, a, b, c, d, e) } {
        -1 => Err(errno()),
        _ => Ok(()),
    }
}

pub(crate) fn errno() -> i32 {
    // SAFETY: the address of this thread's own errno.
    let at = unsafe { libc::__errno_location() };
    // SAFETY: it is valid as long as the thread is.
    unsafe { *at }
}

pub(crate) fn exit() -> ! {
    // SAFETY: ends the process at once, without the handlers that belong to its parent.
    unsafe { libc::_exit(127) }
}

/// Takes the steps of a child one by one. The first that fails is told on `report`, by its index and its errno, and ends
/// the process.
pub(crate) fn take(steps: &[&dyn Fn() -> Step], report: RawFd) {
    for (index, step) in steps.iter().enumerate() {
        if let Err(error) = step() {
            tell(report, u8::try_from(index).unwrap_or(u8::MAX), error)
        }
    }
}

/// Tells which step failed, and how, and ends the process.
fn tell(report: RawFd, step: u8, error: i32) -> ! {
    let [a, b, c, d] = error.to_ne_bytes();
    let said = [step, a, b, c, d];
    let _ = call(libc::SYS_write, [report as usize, said.as_ptr() as usize, said.len(), 0, 0]);
    exit()
}

/// Puts the descriptors under their numbers and closes all others, other children's gates among them. Where that fails, the
/// last one is still under the number that stands there.
fn take_places(fds: &mut [(RawFd, RawFd); 7]) -> Step {
    for (fd, _) in fds.iter_mut() {
        // SAFETY: copies a descriptor that the parent lent us.
        let aside = unsafe { libc::fcntl(*fd, libc::F_DUPFD_CLOEXEC, ASIDE) };
        if aside < 0 {
            return Err(errno());
        }
        *fd = aside;
    }
    for (fd, place) in fds.iter() {
        let cloexec = if matches!(*place, GATE | REPORT) { libc::O_CLOEXEC } else { 0 };
        call(libc::SYS_dup3, [*fd as usize, *place as usize, cloexec as usize, 0, 0])?;
    }
    call(libc::SYS_close_range, [REPORT as usize + 1, u32::MAX as usize, 0, 0, 0])
}

/// Enters the groups that are entered from inside.
fn enter(groups: Groups<'_>) -> Step {
    let Groups::Each(tasks) = groups else { return Ok(()) };
    tasks
        .iter()
        .try_for_each(|tasks| call(libc::SYS_write, [tasks.as_raw_fd() as usize, c"0".as_ptr() as usize, 1, 0, 0]))
}

/// Returns when the parent lets us go. End of file: it has gone itself, or thought better of it.
fn wait_at_gate() -> Step {
    let mut byte = [0u8; 1];
    loop {
        // SAFETY: one byte of ours.
        match unsafe { libc::read(GATE, byte.as_mut_ptr().cast(), 1) } {
            1 => return Ok(()),
            -1 if errno() == libc::EINTR => {}
            _ => exit(),
        }
    }
}

/// By the bare call: the C library refuses the two signals that it keeps for itself, and they may be ignored too.
pub(crate) fn default_signals() -> Step {
    // The kernel's struct, all zero: SIG_DFL, no flags, no restorer, an empty mask.
    let default = [0usize; 4];
    for signal in 1..=64 {
        if !matches!(signal, libc::SIGKILL | libc::SIGSTOP) {
            call(libc::SYS_rt_sigaction, [signal as usize, default.as_ptr() as usize, 0, 8, 0])?;
        }
    }
    Ok(())
}

pub(crate) fn unblock_signals() -> Step {
    // SAFETY: zeros are the empty set.
    let none: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: reads a set that we own.
    match unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(errno()),
    }
}

fn write_oom(value: &CStr) -> Step {
    // SAFETY: a constant path.
    let fd = unsafe { libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) };
    if fd < 0 {
        return Err(errno());
    }
    call(libc::SYS_write, [fd as usize, value.as_ptr() as usize, value.count_bytes(), 0, 0])?;
    call(libc::SYS_close, [fd as usize, 0, 0, 0, 0])
}

pub(crate) fn limit(resource: i32, most: u64) -> Step {
    let limit = libc::rlimit64 { rlim_cur: most, rlim_max: most };
    call(libc::SYS_prlimit64, [0, resource as usize, &raw const limit as usize, 0, 0])
}

pub(crate) fn prctl(option: i32, value: usize) -> Step {
    call(libc::SYS_prctl, [option as usize, value, 0, 0, 0])
}

/// Every capability that this kernel knows: the first that it doesn't is EINVAL.
pub(crate) fn drop_bounding_set() -> Step {
    for capability in 0..64 {
        // Asked first: for each drop the kernel makes new credentials, also where there is nothing to drop.
        // SAFETY: asks for a number.
        match unsafe { libc::syscall(libc::SYS_prctl, libc::PR_CAPBSET_READ, capability, 0, 0, 0) } {
            0 => {}
            1 => prctl(libc::PR_CAPBSET_DROP, capability)?,
            // No capability has that number, or a higher one.
            _ => return Ok(()),
        }
    }
    Ok(())
}

/// An empty session keyring. The call makes an error of a number, which takes no memory.
pub(crate) fn own_keyring() -> Step {
    crate::exec::own_keyring().map_err(|error| error.raw_os_error().unwrap_or(libc::EIO))
}

/// The change of the user has cleared the effective and the permitted set; this clears the inheritable one.
pub(crate) fn no_capabilities() -> Step {
    const VERSION_3: u32 = 0x2008_0522;
    let header: [u32; 2] = [VERSION_3, 0];
    let sets = [0u32; 6];
    call(libc::SYS_capset, [header.as_ptr() as usize, sets.as_ptr() as usize, 0, 0, 0])
}

/// By descriptor. A program's is closed by the execution; a script's stays, for its interpreter opens `/dev/fd/4`.
fn execute(is_script: bool, argv: &[*const c_char]) -> Step {
    if !is_script {
        // SAFETY: sets a flag of a descriptor of ours.
        unsafe { libc::fcntl(PROGRAM, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    let environment: [*const c_char; 1] = [std::ptr::null()];
    let empty = c"".as_ptr() as usize;
    let args =
        [PROGRAM as usize, empty, argv.as_ptr() as usize, environment.as_ptr() as usize, libc::AT_EMPTY_PATH as usize];
    call(libc::SYS_execveat, args)
}

#[cfg(test)]
#[path = "spawn_tests.rs"]
mod tests;
