//! As a service: answers the host over the port, one request at a time.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use lab::{CHUNK, Command, Kind};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::{MountFlags, mount};
use rustix::time::{ClockId, Timespec as Clock, clock_settime};

const SECOND_DISK: &str = "/dev/vdb";
const FOLDER: &str = "/lab";
/// How soon a stream is looked at again after its command has ended.
const LAST_LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// The port, written to by several threads, a whole frame at a time.
type Port = Arc<Mutex<File>>;

/// Serves the host; a host that went is followed by the next.
pub(crate) fn forever() -> io::Result<()> {
    let path = find_port()?;
    loop {
        let port = File::options().read(true).write(true).open(&path)?;
        match serve(port) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => thread::sleep(Duration::from_millis(20)),
            Err(e) => return Err(e),
            Ok(()) => {}
        }
    }
}

fn find_port() -> io::Result<PathBuf> {
    for entry in fs::read_dir("/sys/class/virtio-ports")? {
        let entry = entry?;
        if fs::read_to_string(entry.path().join("name")).is_ok_and(|name| name.trim() == lab::PORT) {
            return Ok(Path::new("/dev").join(entry.file_name()));
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, "this machine has no port of the lab's"))
}

fn serve(mut port: File) -> io::Result<()> {
    let answers: Port = Arc::new(Mutex::new(port.try_clone()?));
    let mut input = None;
    loop {
        let (kind, body) = lab::receive(&mut port)?;
        let done = match kind {
            Kind::Wake => wake(&body).and_then(|()| say(&answers, Kind::Awake, &body[8..24])),
            Kind::Attach => attach(&body).and_then(|()| say(&answers, Kind::Attached, &[])),
            Kind::Run => run(&body, &answers).map(|to| input = Some(to)),
            Kind::Input => {
                feed(&mut input, &body);
                Ok(())
            }
            Kind::Poke => say(&answers, Kind::Poked, &[]),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the host said what only the lab says")),
        };
        if let Err(e) = done {
            say(&answers, Kind::Failed, e.to_string().as_bytes())?;
        }
    }
}

fn say(port: &Port, kind: Kind, body: &[u8]) -> io::Result<()> {
    lab::send(&mut *port.lock().unwrap_or_else(PoisonError::into_inner), kind, body)
}

/// A machine that was restored has the time and the random numbers of the save.
fn wake(body: &[u8]) -> io::Result<()> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidData, "a wake of the wrong length");
    let (nanos, random) = body.split_at_checked(8).ok_or_else(invalid)?;
    let nanos = i64::from_le_bytes(nanos.try_into().map_err(|_| invalid())?);
    let random: [u8; 64] = random.try_into().map_err(|_| invalid())?;
    clock_settime(ClockId::Realtime, Clock { tv_sec: nanos / 1_000_000_000, tv_nsec: nanos % 1_000_000_000 })?;
    sys::entropy::reseed(random)
}

/// Mounts what the host brought, and makes the links that it asks for where nothing else has the name.
fn attach(body: &[u8]) -> io::Result<()> {
    fs::create_dir_all(FOLDER)?;
    mount(SECOND_DISK, FOLDER, "ext4", MountFlags::NOATIME, None)?;
    for pair in lab::split(body).chunks_exact(2) {
        let (link, to) = (Path::new(OsStr::from_bytes(pair[0])), Path::new(OsStr::from_bytes(pair[1])));
        if fs::symlink_metadata(link).is_ok() {
            continue;
        }
        if let Some(parent) = link.parent() {
            fs::create_dir_all(parent)?;
        }
        symlink(to, link)?;
    }
    Ok(())
}

/// Starts a command; two threads carry its output, a third says how it ended.
fn run(body: &[u8], port: &Port) -> io::Result<ChildStdin> {
    let command = Command::from_body(body).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no command"))?;
    let mut child = start(&command)?;
    let missing = || io::Error::other("a stream is missing");
    let input = child.stdin.take().ok_or_else(missing)?;
    let output = child.stdout.take().ok_or_else(missing)?;
    let errors = child.stderr.take().ok_or_else(missing)?;
    let ended = Arc::new(AtomicBool::new(false));
    let carriers = [carry(output, Kind::Output, port, &ended), carry(errors, Kind::Errors, port, &ended)];
    let port = Arc::clone(port);
    thread::spawn(move || {
        let status = child.wait();
        ended.store(true, Ordering::Release);
        for carrier in carriers {
            let _ = carrier.join();
        }
        // A host that is gone needs no answer.
        let _ = match status {
            Ok(status) => say(&port, Kind::Ended, &shell_status(status).to_le_bytes()),
            Err(e) => say(&port, Kind::Failed, e.to_string().as_bytes()),
        };
    });
    Ok(input)
}

fn start(command: &Command<'_>) -> io::Result<Child> {
    let words: Vec<&OsStr> = command.words.iter().map(|w| OsStr::from_bytes(w)).collect();
    let variables = command.environment.iter().filter_map(|v| {
        let at = v.iter().position(|b| *b == b'=')?;
        Some((OsStr::from_bytes(&v[..at]), OsStr::from_bytes(&v[at + 1..])))
    });
    let mut start = std::process::Command::new(words[0]);
    start.args(&words[1..]).env_clear().envs(variables).current_dir(OsStr::from_bytes(command.folder));
    start.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    start.spawn().map_err(|e| io::Error::new(e.kind(), format!("can't start {}: {e}", words[0].display())))
}

/// Carries one stream until its end, or until the command has ended and nothing more lies in the pipe: what it left in
/// the background may hold the stream for ever.
fn carry(
    mut from: impl Read + AsFd + Send + 'static,
    kind: Kind,
    port: &Port,
    ended: &Arc<AtomicBool>,
) -> thread::JoinHandle<()> {
    let (port, ended) = (Arc::clone(port), Arc::clone(ended));
    thread::spawn(move || {
        let mut bytes = vec![0; CHUNK];
        loop {
            // Asked before the look at the pipe: what was written before the end is seen by that look.
            let last = ended.load(Ordering::Acquire);
            let mut fds = [PollFd::new(&from, PollFlags::IN)];
            match poll(&mut fds, Some(&LAST_LOOK)) {
                Ok(0) if last => return,
                Ok(0) | Err(rustix::io::Errno::INTR) => continue,
                Ok(_) => {}
                Err(_) => return,
            }
            match from.read(&mut bytes) {
                Ok(0) | Err(_) => return,
                Ok(n) if say(&port, kind, &bytes[..n]).is_err() => return,
                Ok(_) => {}
            }
        }
    })
}

/// Input for the command, or its end. A command that has gone or reads no more loses it, as in any pipe.
fn feed(input: &mut Option<ChildStdin>, bytes: &[u8]) {
    if bytes.is_empty() || input.as_mut().is_some_and(|to| to.write_all(bytes).is_err()) {
        *input = None;
    }
}

fn shell_status(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(255)
}
