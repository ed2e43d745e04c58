//! The process without rights that looks into an image: found, started, waited for, its answer read as a stranger's.

mod memory;
mod spare;
mod words;

use crate::fail::Fail;
use crate::host::Host;
use crate::program::{self, Program};
pub(super) use memory::{bounded_file, memory_file, seal};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv,
    sendmsg, socketpair,
};
use rustix::process::WaitIdStatus;
use spare::Spares;
use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::ffi::CString;
use std::fs::File;
use std::hash::BuildHasher as _;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use sys::dir::{CallError, Dir};
use sys::ground::{Ground, Shown};
use sys::pidfd::PidFd;
use sys::stripped::{self, Bounds, Start};
use wire::worker::log::MAX_LOG;
use wire::worker::reply::{self, Reply};
use wire::worker::{JOB, PASSED};
pub(super) use words::{died, nonsense, refused};

/// The worker's program.
pub(super) const PROGRAM: &str = "banger-image";
/// Users that workers run as, where the configuration names none: systemd's dynamic ones, which nobody else gives to
/// accounts.
const IDS: std::ops::RangeInclusive<u32> = 61_184..=65_519;
/// So many users are tried for one worker.
const OTHERS: usize = 8;
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
    /// The first user that is given: not the same one that another helper's workers on this machine begin with.
    first: u32,
    table: Mutex<Table>,
    freed: Condvar,
    /// For programs that load libraries.
    ground: Mutex<Option<Arc<Built>>>,
    /// For those that don't.
    bare: Mutex<Option<Arc<Built>>>,
    program: Mutex<Option<Arc<Found>>>,
    pub(super) spares: Spares,
}

#[derive(Default)]
struct Table {
    /// How many work.
    running: usize,
    /// What no two have: their users, or numbers where all have the same user.
    slots: HashSet<u32>,
}

/// The ground of workers, and the libraries that it was made with.
pub(super) struct Built {
    ground: Ground,
    libraries: Vec<Version>,
}

/// What is in the root directory that a program runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Root {
    /// Nothing: it is static.
    Empty,
    /// What it is linked with.
    Libraries,
}

impl Root {
    fn of(program: &Program) -> Root {
        if program.is_static() { Root::Empty } else { Root::Libraries }
    }
}

/// The worker's program, found and checked.
struct Found {
    program: Program,
    root: Root,
    /// Which files there were where it is looked for.
    versions: Vec<Version>,
}

/// Which file has a name now: device, inode, and when it was changed last, in seconds and nanoseconds. A change of its
/// bytes, its owner or its mode alters that, and so does another file in its place.
type Version = Option<(u64, u64, i64, u64)>;

/// One worker's turn to work.
pub(super) struct Turn<'a>(&'a Workers);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.table().running -= 1;
        self.0.freed.notify_one();
    }
}

/// The place of one worker, with its user.
pub(super) struct Place<'a> {
    workers: &'a Workers,
    slot: u32,
    pub(super) id: u32,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.workers.table().slots.remove(&self.slot);
    }
}

/// A program that is to run without rights.
pub(super) struct Run<'a> {
    pub(super) program: &'a Program,
    pub(super) root: Root,
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
}

impl Workers {
    pub(super) fn new(run_dir: Dir) -> Workers {
        let (table, freed, ground, bare, program, spares) = Default::default();
        let chance = RandomState::new().hash_one(0_u8) % u64::from(IDS.end() - IDS.start() + 1);
        let first = IDS.start() + u32::try_from(chance).unwrap_or(0);
        Workers { run_dir, first, table, freed, ground, bare, program, spares }
    }

    /// Waits until one more worker may work, a bounded time.
    pub(super) fn turn(&self, host: &Host) -> Result<Turn<'_>, Fail> {
        let (most, at_most) = (host.settings.limits.image_workers, host.settings.limits.image_time());
        let until = Instant::now() + at_most;
        let mut table = self.table();
        while table.running >= most {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Fail::new(format!(
                    "{most} images are being worked on, and more are not taken (limits.image_workers); try again"
                )));
            }
            table = self.freed.wait_timeout(table, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        table.running += 1;
        Ok(Turn(self))
    }

    /// Gives a worker a user.
    pub(super) fn place(&self, host: &Host) -> Result<Place<'_>, Fail> {
        let slots = &mut self.table().slots;
        let slot = match host.settings.worker_uid {
            Some(_) => (0..).find(|slot| !slots.contains(slot)),
            None => {
                let mut ids = (self.first..=*IDS.end()).chain(*IDS.start()..self.first);
                ids.find(|id| !slots.contains(id) && !is_somebodys(*id))
            }
        };
        let slot = slot.ok_or_else(|| {
            Fail::new("no user from 61184 to 65519 is free for the image worker: name one (worker_uid)")
        })?;
        slots.insert(slot);
        Ok(Place { workers: self, slot, id: host.settings.worker_uid.unwrap_or(slot) })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The worker's program. The file that was found and checked stays open: it is looked for again where another one
    /// has its name by now, or it was changed.
    fn program(&self, host: &Host) -> Result<Arc<Found>, Fail> {
        let mut found = self.program.lock().unwrap_or_else(PoisonError::into_inner);
        let versions = programs(host);
        if let Some(found) = found.as_ref().filter(|found| found.versions == versions) {
            return Ok(Arc::clone(found));
        }
        let program = program(host)?;
        let root = Root::of(&program);
        Ok(Arc::clone(found.insert(Arc::new(Found { program, root, versions }))))
    }

    /// The ground with that root directory, made anew where a library is another one by now.
    fn ground(&self, root: Root) -> Result<Arc<Built>, Fail> {
        let (built, names) = match root {
            Root::Empty => (&self.bare, &LIBRARIES[..0]),
            Root::Libraries => (&self.ground, &LIBRARIES[..]),
        };
        let mut built = built.lock().unwrap_or_else(PoisonError::into_inner);
        let paths = |name: &str| LIBRARY_DIRS.map(|dir| format!("{dir}/{name}"));
        // Of each the first that there is: it is also the one that is taken, if it is root's.
        let libraries: Vec<Version> =
            names.iter().map(|name| paths(name).iter().find_map(|path| version(path))).collect();
        if let Some(built) = built.as_ref().filter(|built| built.libraries == libraries) {
            return Ok(Arc::clone(built));
        }
        let found = names.iter().filter_map(|name| {
            let file = paths(name).iter().find_map(|path| program::library(path))?;
            Some((file, *name))
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
    Some((stat.st_dev, stat.st_ino, stat.st_ctime, stat.st_ctime_nsec))
}

/// Which files there are where the worker's program is looked for.
fn programs(host: &Host) -> Vec<Version> {
    let dirs = host.settings.program_dirs.iter().cloned().chain(own_dir());
    dirs.map(|dir| version(&format!("{dir}/{PROGRAM}"))).collect()
}

/// Where the helper's own program was when that was first asked.
fn own_dir() -> Option<String> {
    static OWN: OnceLock<Option<String>> = OnceLock::new();
    let find = || {
        let own = rustix::fs::readlink("/proc/self/exe", Vec::new()).ok()?;
        Some(own.to_str().ok()?.rsplit_once('/')?.0.to_owned())
    };
    OWN.get_or_init(find).clone()
}

/// The worker's program: where programs are, or beside the helper's own, where both were built together.
fn program(host: &Host) -> Result<Program, Fail> {
    let dirs = &host.settings.program_dirs;
    if let Some(program) = program::of_ours(dirs, PROGRAM)? {
        return Ok(program);
    }
    let beside = own_dir().and_then(|dir| program::of_ours(&[dir], PROGRAM).ok().flatten());
    beside.ok_or_else(|| {
        let dirs = dirs.join(", ");
        Fail::new(format!("files in images need {PROGRAM}, and there is none in {dirs}: install it there"))
    })
}

/// A worker for a job that is being prepared, and the turn to have one.
///
/// It gives up its rights beside what its caller has to do meanwhile, where the machine has another processor. To be
/// begun by who has the image already: who waits for that with a turn of his own keeps it from him who is to let it go.
/// Ended where it is dropped.
pub(super) struct Begun<'a> {
    host: &'a Host,
    // Dropped in this order: a worker has ended before another one is started in its turn.
    worker: Worker<'a>,
    /// Whether it was started for nobody in particular, and may have been ended meanwhile by whoever may do that.
    has_waited: bool,
    next: Next<'a>,
    turn: Turn<'a>,
}

/// Where one is to wait for the next request, it is asked for when this one ends, however it does.
struct Next<'a>(&'a Host);

impl Drop for Next<'_> {
    fn drop(&mut self) {
        if self.0.settings.waiting_worker {
            self.0.images.workers.spares.want();
        }
    }
}

/// Starts a worker, once one more may work.
pub(super) fn begin(host: &Host) -> Result<Begun<'_>, Fail> {
    let workers = &host.images.workers;
    let turn = workers.turn(host)?;
    let (worker, has_waited) = match workers.spares.take().filter(|spare| spare.is_current(host)) {
        Some(worker) => (worker, true),
        None => (Worker::start(host)?, false),
    };
    Ok(Begun { host, worker, has_waited, next: Next(host), turn })
}

impl<'a> Begun<'a> {
    /// Asks it, and reads what it answers. Its turn is the caller's, for as long as its output takes room.
    pub(super) fn ask(self, job: &Job<'_>) -> Result<(Reply, Turn<'a>), Fail> {
        // Dropped from the last to the first.
        let Begun { host, turn, next: _next, has_waited, mut worker } = self;
        let mut given = worker.give(job);
        if given.is_err() && has_waited {
            drop(worker);
            worker = Worker::start(host)?;
            given = worker.give(job);
        }
        match given {
            // How it ended is told better than that it has.
            Err(error) if error.errno() != Errno::PIPE => return Err(broken(&error)),
            _ => {}
        }
        Ok((worker.answer(host)?, turn))
    }
}

fn broken(cause: &dyn std::fmt::Display) -> Fail {
    Fail::new(format!("{PROGRAM} can't be started")).because(cause)
}

/// A worker for one job.
struct Worker<'a> {
    child: PidFd,
    socket: OwnedFd,
    program: Arc<Found>,
    ground: Arc<Built>,
    _place: Place<'a>,
}

impl Drop for Worker<'_> {
    fn drop(&mut self) {
        // It has ended and is reaped, if it was asked anything.
        stripped::end(&self.child);
    }
}

impl<'a> Worker<'a> {
    /// Starts one. It ends with the calling thread.
    fn start(host: &'a Host) -> Result<Worker<'a>, Fail> {
        let program = host.images.workers.program(host)?;
        let (socket, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(|errno| broken(&CallError::new("socketpair", errno)))?;
        let mut place = host.images.workers.place(host)?;
        let run = Run {
            program: &program.program,
            root: program.root,
            argv: &[c"banger-image".to_owned()],
            passed: &[theirs.as_fd()],
            devices: None,
            output: None,
            filter: None,
            // What a read gives goes to a file that can't grow.
            file: MAX_LOG,
            processes: 1,
            time: host.settings.limits.image_time(),
        };
        let (child, ground) = run.start(host, &mut place)?;
        Ok(Worker { child, socket, program, ground, _place: place })
    }

    /// Whether one that is started now would be the same.
    fn is_current(&self, host: &Host) -> bool {
        let workers = &host.images.workers;
        workers.ground(self.program.root).is_ok_and(|ground| Arc::ptr_eq(&ground, &self.ground))
            && workers.program(host).is_ok_and(|program| Arc::ptr_eq(&program, &self.program))
    }

    fn give(&self, job: &Job<'_>) -> Result<(), CallError> {
        let passed: [BorrowedFd<'_>; PASSED] = [job.image, job.request.as_fd(), job.out.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PASSED))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&passed));
        sendmsg(&self.socket, &[IoSlice::new(&[JOB])], &mut control, SendFlags::NOSIGNAL)
            .map(drop)
            .map_err(|errno| CallError::new("sendmsg(<job>)", errno))
    }

    fn answer(&self, host: &Host) -> Result<Reply, Fail> {
        let status = wait(PROGRAM, "limits.image_seconds", host.settings.limits.image_time(), &self.child)?;
        if status.exit_status() != Some(0) {
            return Err(died(PROGRAM, &status));
        }
        // It has ended, so all that it says is there; what doesn't fit is no reply.
        let mut said = [MaybeUninit::uninit(); reply::MAX_REPLY + 1];
        let said = recv(&self.socket, &mut said, RecvFlags::DONTWAIT);
        let said = said.as_ref().map_or(&[][..], |((bytes, _), _)| bytes);
        Reply::decode(said).map_err(|malformed| {
            Fail::new(format!(
                "{PROGRAM} ended without a proper answer: it is not of this version, or the image broke it"
            ))
            .because(format!("reply of {} bytes: {malformed}", said.len()))
        })
    }
}

impl Run<'_> {
    /// Starts it in a place; in another one where that user has processes already, those of another helper.
    pub(super) fn start<'a>(&self, host: &'a Host, place: &mut Place<'a>) -> Result<(PidFd, Arc<Built>), Fail> {
        let name = self.program.path.rsplit('/').next().unwrap_or("");
        let failed = |cause: &dyn std::fmt::Display| Fail::new(format!("{name} can't be started")).because(cause);
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| failed(&CallError::new("open(/dev/null)", errno)))?;
        let limits = &host.settings.limits;
        let built = host.images.workers.ground(self.root)?;
        let mut start = Start {
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
                    * if host.settings.worker_uid.is_some() { limits.image_workers as u64 + 1 } else { 1 },
            },
            filter: self.filter,
        };
        for _ in 0..OTHERS {
            match stripped::start(&start) {
                // Its devices are that user's.
                Err(error) if error.error.raw_os_error() == Some(libc::EAGAIN) && self.devices.is_none() => {
                    *place = host.images.workers.place(host)?;
                    start.id = place.id;
                }
                started => return started.map(|child| (child, built)).map_err(|error| failed(&error)),
            }
        }
        Err(failed(&format!("the last {OTHERS} users had processes of somebody else's")))
    }
}

/// Waits for a program's end, not longer than its time, and reaps it.
pub(super) fn wait(name: &str, limit: &str, time: Duration, child: &PidFd) -> Result<WaitIdStatus, Fail> {
    let is_late = !child.wait_end(time);
    let status = stripped::end(child);
    if is_late {
        let seconds = time.as_secs();
        return Err(Fail::new(format!("{name} gave no answer within {seconds} s ({limit}) and was ended")));
    }
    status.ok_or_else(|| Fail::new(format!("how {name} ended can't be told")).because("waitid"))
}
