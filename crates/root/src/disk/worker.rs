//! The process without rights that looks into an image: found, started, waited for, its answer read as a stranger's.

use crate::fail::Fail;
use crate::host::Host;
use crate::program::{self, Program};
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::process::WaitIdStatus;
use std::collections::HashSet;
use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use sys::dir::{CallError, Dir};
use sys::ground::{Ground, Shown};
use sys::pidfd::PidFd;
use sys::stripped::{self, Bounds, Start};
use wire::worker::reply::{self, Reply, Why};

/// The worker's program.
pub(super) const PROGRAM: &str = "banger-image";
/// Users that workers run as, where the configuration names none: systemd's dynamic ones, which nobody else gives to
/// accounts.
const IDS: std::ops::RangeInclusive<u32> = 61_184..=65_519;
/// What workers are linked with: the loader, the C library, and those of e2fsprogs.
const LIBRARIES: [&str; 9] = [
    "ld-linux-x86-64.so.2",
    "libc.so.6",
    "libgcc_s.so.1",
    "libext2fs.so.2",
    "libcom_err.so.2",
    "libe2p.so.2",
    "libblkid.so.1",
    "libuuid.so.1",
    "libpthread.so.0",
];
/// Where they are, in that order: Debian's directories, others'.
const LIBRARY_DIRS: [&str; 4] = ["/usr/lib/x86_64-linux-gnu", "/lib/x86_64-linux-gnu", "/usr/lib64", "/lib64"];

/// Workers: how many there may be, as whom they run, and where.
pub(super) struct Workers {
    run_dir: Dir,
    slots: Mutex<HashSet<u32>>,
    freed: Condvar,
    ground: Mutex<Option<Arc<Built>>>,
}

/// The ground of workers, and the libraries that it was made with.
struct Built {
    ground: Ground,
    libraries: Vec<Version>,
}

/// Which file has a name now: device, inode, and when it was changed last. All that a package's upgrade alters.
type Version = Option<(u64, u64, i64)>;

/// The place of one worker, with its user.
pub(super) struct Place<'a> {
    workers: &'a Workers,
    /// What no other worker has: its user, or a number where all have the same user.
    slot: u32,
    pub(super) id: u32,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.workers.slots().remove(&self.slot);
        self.workers.freed.notify_one();
    }
}

/// A program that is to run without rights.
pub(super) struct Run<'a> {
    pub(super) program: &'a Program,
    pub(super) argv: &'a [CString],
    pub(super) passed: &'a [BorrowedFd<'a>],
    pub(super) devices: Option<BorrowedFd<'a>>,
    pub(super) output: Option<BorrowedFd<'a>>,
    pub(super) filter: Option<&'a [libc::sock_filter]>,
    /// Bytes of a file that it writes.
    pub(super) file: u64,
    /// Threads that it may have.
    pub(super) processes: u64,
    pub(super) time: Duration,
}

/// What the worker is asked, and what it is given.
pub(super) struct Job<'a> {
    /// The image, open for reading alone.
    pub(super) image: BorrowedFd<'a>,
    /// The request.
    pub(super) request: &'a File,
    /// Where its bytes go.
    pub(super) out: &'a File,
    /// How many bytes it may write there: a file in memory is nobody's until it is read.
    pub(super) most: u64,
}

impl Workers {
    pub(super) fn new(run_dir: Dir) -> Workers {
        Workers { run_dir, slots: Mutex::default(), freed: Condvar::new(), ground: Mutex::default() }
    }

    /// Waits until one more worker may run, a bounded time, and gives it a user.
    pub(super) fn place(&self, host: &Host) -> Result<Place<'_>, Fail> {
        let (most, at_most) = (host.settings.limits.image_workers, host.settings.limits.image_time());
        let until = Instant::now() + at_most;
        let mut slots = self.slots();
        while slots.len() >= most {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Fail::new(format!(
                    "{most} images are being worked on, and more are not taken (limits.image_workers); try again"
                )));
            }
            slots = self.freed.wait_timeout(slots, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let slot = match host.settings.worker_uid {
            Some(_) => (0..).find(|slot| !slots.contains(slot)),
            None => IDS.rev().find(|id| !slots.contains(id) && !is_somebodys(*id)),
        };
        let slot = slot.ok_or_else(|| {
            Fail::new("no user from 61184 to 65519 is free for the image worker: name one (worker_uid)")
        })?;
        slots.insert(slot);
        Ok(Place { workers: self, slot, id: host.settings.worker_uid.unwrap_or(slot) })
    }

    fn slots(&self) -> MutexGuard<'_, HashSet<u32>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The ground, made anew where a library is another one by now.
    fn ground(&self) -> Result<Arc<Built>, Fail> {
        let mut built = self.ground.lock().unwrap_or_else(PoisonError::into_inner);
        let paths = LIBRARIES.map(|name| LIBRARY_DIRS.map(|dir| format!("{dir}/{name}")));
        let libraries: Vec<Version> = paths.iter().flatten().map(|path| version(path)).collect();
        if let Some(built) = built.as_ref().filter(|built| built.libraries == libraries) {
            return Ok(Arc::clone(built));
        }
        let found = paths.iter().zip(LIBRARIES).filter_map(|(paths, name)| {
            let file = paths.iter().find_map(|path| program::library(path))?;
            Some((file, name))
        });
        let found: Vec<(OwnedFd, &str)> = found.collect();
        let files: Vec<Shown<'_>> = found.iter().map(|(file, name)| Shown { file: file.as_fd(), name }).collect();
        let ground = Ground::make(&self.run_dir, &files)
            .map_err(|error| Fail::new("the image worker's root directory can't be made").because(error))?;
        Ok(Arc::clone(built.insert(Arc::new(Built { ground, libraries }))))
    }
}

/// Whether an account has that uid, or systemd has given it to a service.
fn is_somebodys(id: u32) -> bool {
    let lent = rustix::fs::stat(format!("/run/systemd/dynamic-uid/{id}")).is_ok();
    // Where it can't be told it counts as taken.
    lent || !matches!(sys::creds::Identity::by_uid(id), Ok(None))
}

fn version(path: &str) -> Version {
    let stat = rustix::fs::stat(path).ok()?;
    Some((stat.st_dev, stat.st_ino, stat.st_ctime))
}

/// The worker's program: where programs are, or beside the helper's own, where both were built together.
fn program(host: &Host) -> Result<Program, Fail> {
    let dirs = &host.settings.program_dirs;
    if let Some(program) = program::of_ours(dirs, PROGRAM)? {
        return Ok(program);
    }
    let own = rustix::fs::readlink("/proc/self/exe", Vec::new()).ok();
    let beside = own.and_then(|path| Some(path.to_str().ok()?.rsplit_once('/')?.0.to_owned()));
    let beside = beside.and_then(|dir| program::of_ours(&[dir], PROGRAM).ok().flatten());
    beside.ok_or_else(|| {
        let dirs = dirs.join(", ");
        Fail::new(format!("files in images need {PROGRAM}, and there is none in {dirs}: install it there"))
    })
}

/// Asks the worker, and reads what it answers. Its place is the caller's, for as long as its output takes room.
pub(super) fn ask<'a>(host: &'a Host, job: &Job<'_>) -> Result<(Reply, Place<'a>), Fail> {
    let program = program(host)?;
    let broken = |cause: &dyn std::fmt::Display| Fail::new(format!("{PROGRAM} can't be started")).because(cause);
    let (reply_out, reply_in) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|errno| broken(&CallError::new("pipe2", errno)))?;
    let place = host.images.workers.place(host)?;
    let run = Run {
        program: &program,
        argv: &[c"banger-image".to_owned()],
        passed: &[job.image, reply_in.as_fd(), job.request.as_fd(), job.out.as_fd()],
        devices: None,
        output: None,
        filter: None,
        // The worker lowers these further, by what it is asked.
        file: job.most,
        processes: 1,
        time: host.settings.limits.image_time(),
    };
    let child = run.start(host, &place)?;
    let status = run.wait(PROGRAM, "limits.image_seconds", &child)?;
    if status.exit_status() != Some(0) {
        return Err(died(PROGRAM, &status));
    }
    // It has ended, so all that it says is there; what doesn't fit is no reply.
    let mut said = [0; reply::MAX_REPLY + 1];
    rustix::fs::fcntl_setfl(&reply_out, OFlags::NONBLOCK).map_err(|errno| broken(&CallError::new("fcntl", errno)))?;
    let length = rustix::io::retry_on_intr(|| rustix::io::read(&reply_out, &mut said[..])).unwrap_or(0);
    let reply = Reply::decode(&said[..length]).map_err(|malformed| {
        Fail::new(format!("{PROGRAM} ended without a proper answer: it is not of this version, or the image broke it"))
            .because(format!("reply of {length} bytes: {malformed}"))
    })?;
    Ok((reply, place))
}

impl Run<'_> {
    /// Starts it in a place.
    pub(super) fn start(&self, host: &Host, place: &Place<'_>) -> Result<PidFd, Fail> {
        let name = self.program.path.rsplit('/').next().unwrap_or("");
        let failed = |cause: &dyn std::fmt::Display| Fail::new(format!("{name} can't be started")).because(cause);
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| failed(&CallError::new("open(/dev/null)", errno)))?;
        let limits = &host.settings.limits;
        let built = host.images.workers.ground()?;
        let start = Start {
            program: self.program.as_fd(),
            argv: self.argv,
            id: place.id,
            ground: &built.ground,
            devices: self.devices,
            input: null.as_fd(),
            output: self.output.unwrap_or(null.as_fd()),
            passed: self.passed,
            bounds: Bounds {
                memory: limits.image_bytes(),
                // The time that passes is bounded too: this is for a worker that outlives its helper.
                seconds: self.time.as_secs().max(30),
                file: self.file,
                // They are counted by user, and all may have the same.
                processes: self.processes
                    * if host.settings.worker_uid.is_some() { limits.image_workers as u64 } else { 1 },
            },
            filter: self.filter,
        };
        stripped::start(&start).map_err(|error| failed(&error))
    }

    /// Waits for its end, not longer than its time, and reaps it.
    pub(super) fn wait(&self, name: &str, limit: &str, child: &PidFd) -> Result<WaitIdStatus, Fail> {
        let is_late = !child.wait_end(self.time);
        let status = stripped::end(child);
        if is_late {
            let seconds = self.time.as_secs();
            return Err(Fail::new(format!("{name} gave no answer within {seconds} s ({limit}) and was ended")));
        }
        status.ok_or_else(|| Fail::new(format!("how {name} ended can't be told")).because("waitid"))
    }
}

/// What a death of a program without rights means to who asked for its work.
pub(super) fn died(name: &str, status: &WaitIdStatus) -> Fail {
    let how = match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("ended with status {code} and no answer"),
        (None, Some(libc::SIGXCPU)) => "used up its time".to_owned(),
        (None, Some(libc::SIGXFSZ)) => "wrote more than it may".to_owned(),
        (None, Some(libc::SIGSYS)) => "made a system call that it may not (SIGSYS)".to_owned(),
        (None, Some(libc::SIGKILL)) => "was killed; memory may have run out".to_owned(),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    };
    Fail::new(format!("{name} {how}: the image may be damaged, or made to break it"))
}

/// An answer that the worker's protocol allows and that makes no sense here, or a call that failed on what it left.
pub(super) fn nonsense(cause: impl std::fmt::Display) -> Fail {
    Fail::new(format!("{PROGRAM}'s work can't be used; the helper's log says why")).because(cause)
}

/// What a refusal of the worker is to the client.
pub(super) fn refused(why: Why, text: &str) -> Fail {
    let what = match why {
        Why::NotSupported => "the image can't be used",
        Why::Damaged => "the image is damaged; check it (e2fsck -f) first",
        Why::NotFound => "no such file in the image",
        Why::WrongType => "it is no regular file in the image",
        Why::Loop => "too many symlinks in the image",
        Why::TooLarge => "too large",
        Why::NoSpace => "the image has not enough room",
        Why::Protected => "the image's own flags forbid it",
        Why::Failed => "the image could not be worked on",
    };
    Fail::new(format!("{what}: {text}"))
}

/// A file in memory.
pub(super) fn memory_file(name: &str) -> Result<File, Fail> {
    rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        .map(File::from)
        .map_err(|errno| Fail::new("a file in memory can't be made").because(CallError::new("memfd_create", errno)))
}

/// Nobody writes it any more, whoever holds it.
pub(super) fn seal(file: &File) -> Result<(), Fail> {
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(file, seals)
        .map_err(|errno| Fail::new("a file in memory can't be sealed").because(CallError::new("F_ADD_SEALS", errno)))
}
