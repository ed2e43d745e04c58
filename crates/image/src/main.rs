//! `banger-image`: the worker that `bangerd-root` starts for one request about an image.
//!
//! It has a socket and nothing else, gives up what it can, and waits there for its job. The rest it gives up before it
//! reads the image's first byte; what is left to whoever takes it over are other bytes for that image.

use image::overlay::Overlay;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, SealFlags, SeekFrom, memfd_create, seek};
use rustix::io::retry_on_intr;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{DumpableBehavior, Resource, Rlimit, Signal, getrlimit};
use std::fs::File;
use std::io::{IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::process::ExitCode;
use sys::confine::Call;
use wire::worker::ask::{self, Ask};
use wire::worker::log::{MAX_DATA, MAX_LOG};
use wire::worker::reply::Reply;
use wire::worker::{JOB, MAX_READ, MAX_REPLAY, Malformed, PASSED};

/// Address space: bitmaps and groups of some terabytes, and a request's head.
const MEMORY: u64 = 256 << 20;
/// Seconds of a processor.
const TIME: u64 = 20;
/// Every system call of the library, the allocator and ours from there on.
const CALLS: &[Call] = &[
    Call::ReadAt,
    Call::WriteAt,
    Call::Write,
    Call::Map,
    Call::Unmap,
    Call::Remap,
    Call::Break,
    Call::Time,
    Call::TimeOfDay,
    Call::Seconds,
    Call::Memory,
    Call::AlternateStack,
    Call::Exit,
];

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        None => {}
        Some("--version") => {
            println!("banger-image {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Some(_) => {
            eprintln!("banger-image is started by bangerd-root, and has no arguments");
            return ExitCode::from(2);
        }
    }
    // Ends without closing anything: the kernel does it, and a debug build would ask it about each descriptor first,
    // by a call that is not allowed.
    let given = std::mem::ManuallyDrop::new(take());
    let done = given.as_ref().map_err(String::clone).and_then(work);
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => {
            eprintln!("banger-image: {what}");
            ExitCode::FAILURE
        }
    }
}

struct Given {
    socket: File,
    image: File,
    size: u64,
    request: File,
    /// The request's length.
    asked: u64,
    out: File,
    /// Takes what a journal's replay changes of an image that is only read.
    scratch: File,
}

fn work(given: &Given) -> Result<(), String> {
    let Given { socket, image, size, request, asked, out, scratch } = given;
    // A refusal is an answer; an error is a request that is none.
    let answer = match read_ask(request, *asked)? {
        Ask::Read(path) => image::read::read(&Overlay::new(image, *size, scratch, MAX_REPLAY), &path, out),
        Ask::Write(files) => image::write::write(&Overlay::new(image, *size, out, MAX_DATA), &files),
    };
    let answer = answer.unwrap_or_else(Reply::from);
    (&*socket).write_all(&answer.encode()).map_err(|error| format!("the reply could not be sent: {error}"))
}

fn take() -> Result<Given, String> {
    let passed = sys::sandbox::take_passed(1)
        .map_err(|error| format!("descriptor 3 is needed: {error}; this program is started by bangerd-root"))?;
    let [socket]: [OwnedFd; 1] = passed.try_into().map_err(|_| "not as many descriptors as asked for")?;
    let scratch = scratch().map_err(|errno| format!("a file in memory: {errno}"))?;
    end_with_the_helper(&socket)?;
    confine()?;
    let [image, request, out] = job(&socket)?.map(File::from);
    // A block device tells its length by its end alone.
    let length = |file: &File| seek(file, SeekFrom::End(0)).map_err(|errno| format!("a file's length: {errno}"));
    let (size, asked) = (length(&image)?, length(&request)?);
    limit(Resource::Nofile, 0)?;
    sys::confine::allow_calls(CALLS).map_err(|error| format!("seccomp: {error}"))?;
    Ok(Given { socket: File::from(socket), image, size, request, asked, out, scratch: File::from(scratch) })
}

/// Waits for the job: image, request, and where the result goes.
fn job(socket: &OwnedFd) -> Result<[OwnedFd; PASSED], String> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PASSED))];
    let (mut control, mut byte) = (RecvAncillaryBuffer::new(&mut space), [0]);
    let mut into = [IoSliceMut::new(&mut byte)];
    let came = retry_on_intr(|| recvmsg(socket, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC))
        .map_err(|errno| format!("the job: recvmsg: {errno}"))?;
    let passed: Vec<OwnedFd> = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    if (came.bytes, byte) != (1, [JOB]) {
        return Err("no job came".to_owned());
    }
    passed.try_into().map_err(|_| "a job without its descriptors".to_owned())
}

/// A file in memory that whoever takes this process over can't make larger: the kernel counts it as nobody's.
fn scratch() -> rustix::io::Result<OwnedFd> {
    let scratch = memfd_create("replay", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&scratch, MAX_REPLAY)?;
    rustix::fs::fcntl_add_seals(&scratch, SealFlags::GROW | SealFlags::SEAL)?;
    Ok(scratch)
}

/// From now on the worker ends with the helper, which may have ended before: then nobody asks it anything.
fn end_with_the_helper(socket: &OwnedFd) -> Result<(), String> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|errno| format!("PR_SET_PDEATHSIG: {errno}"))?;
    let mut reader = [PollFd::new(socket, PollFlags::OUT)];
    let none = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut reader, Some(&none)).map_err(|errno| format!("poll: {errno}"))?;
    if reader[0].revents().intersects(PollFlags::ERR | PollFlags::HUP) {
        return Err("nobody is there to ask it".to_owned());
    }
    Ok(())
}

/// Gives up all that it doesn't need to take its job.
fn confine() -> Result<(), String> {
    if rustix::process::geteuid().is_root() || rustix::process::getuid().is_root() {
        return Err("this program does not run as root".to_owned());
    }
    let none = rustix::thread::CapabilitySets {
        effective: rustix::thread::CapabilitySet::empty(),
        permitted: rustix::thread::CapabilitySet::empty(),
        inheritable: rustix::thread::CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, none).map_err(|errno| format!("capset: {errno}"))?;
    rustix::thread::set_no_new_privs(true).map_err(|errno| format!("PR_SET_NO_NEW_PRIVS: {errno}"))?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|errno| format!("PR_SET_DUMPABLE: {errno}"))?;
    sys::confine::deny_names().map_err(|error| format!("Landlock: {error}"))?;
    let bounds = [
        (Resource::As, MEMORY),
        (Resource::Cpu, TIME),
        (Resource::Fsize, MAX_LOG.max(MAX_READ)),
        (Resource::Nproc, 0),
        (Resource::Core, 0),
    ];
    bounds.into_iter().try_for_each(|(resource, most)| limit(resource, most))
}

fn limit(resource: Resource, most: u64) -> Result<(), String> {
    // What the helper has set already stays where it is lower.
    let most = getrlimit(resource).maximum.map_or(most, |maximum| maximum.min(most));
    let limit = Rlimit { current: Some(most), maximum: Some(most) };
    rustix::process::setrlimit(resource, limit).map_err(|errno| format!("setrlimit {resource:?}: {errno}"))
}

fn read_ask(request: &File, length: u64) -> Result<Ask, String> {
    let unread = |error| format!("the request can't be read: {error}");
    let bad = |error: Malformed| format!("the request: {error}");
    let length = usize::try_from(length).ok().filter(|length| *length <= ask::MAX_REQUEST);
    let mut bytes = vec![0; length.ok_or_else(|| "the request is too long".to_owned())?];
    request.read_exact_at(&mut bytes, 0).map_err(unread)?;
    ask::decode(&bytes).map_err(bad)
}
