//! The way to a VM's agent: its ring, a connection, its HELLO, and how it is asked to end. All that it says is a guest's
//! word.

mod bounded;
pub(crate) mod systemd;

pub(crate) use bounded::{Bounded, Bounds, call_within, put_archive_within, put_within};

use super::error::exit;
use super::serve::{Caller, Woken};
use super::vm::Wait;
use crate::api::Fault;
use agent::client::{self, Client};
use agent::host::Failure;
use agent::protocol::Down;
use agent::tar;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};
use sys::pidfd::PidFd;
use wire::image::NewFile;

/// The agent's answer to a CONNECT, and its HELLO, take no longer; a guest that still boots is waited for elsewhere.
pub(crate) const ANSWER: Duration = Duration::from_secs(10);
/// An agent waits for a call for 5 s; one that was asked for longer ago than this is not used for a command any more.
const FRESH: Duration = Duration::from_secs(1);
/// So long a connection is tried that is cut off before its answer.
const CUT_OFF: Duration = Duration::from_secs(3);
/// Looks at a guest's clock, until they tell it so well.
const LOOKS: usize = 10;
const PRECISE_MS: i64 = 6;
/// An agent that did not answer to one ring is called again after this time.
const AGAIN: Duration = Duration::from_millis(100);
/// A console's last words: lines, and characters of each.
const WORDS: (usize, usize) = (3, 160);
/// What Linux says before it is over.
const PANIC: &str = "Kernel panic - not syncing";
const TAIL: u64 = 8 << 10;

/// Where the agent rings when it listens. Any program in the guest can ring, so a ring is a hint.
pub(crate) struct Doorbell(UnixListener);

impl Doorbell {
    /// Hangs it up, in place of one that an earlier daemon left.
    pub(crate) fn hang(path: &Path) -> Result<Doorbell, Fault> {
        let failed = |error: io::Error| Fault::file("listening on", path, &error);
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Doorbell(listener))
    }
}

/// Waits until the agent has answered; its version, as it says.
pub(crate) fn await_agent(
    bell: &Doorbell,
    vsock: &Path,
    process: &PidFd,
    caller: &mut Caller,
    wait: Wait,
) -> Result<String, Fault> {
    let silent = || {
        let limit = wait.limit.as_secs_f64();
        Fault::new("agent_silent", exit::FAILED, format!("it runs, but its agent has not answered for {limit} s"))
            .fix("--boot-timeout 5m waits longer")
    };
    let end = wait.boots + wait.limit;
    let mut ring = Instant::now() + wait.ring;
    // One CONNECT at a time; while it waits for its answer, nobody listens to the bell.
    let mut pending: Option<UnixStream> = None;
    loop {
        let until = if pending.is_some() { end } else { ring.min(end) };
        let next = pending.as_ref().map_or(bell.0.as_fd(), AsFd::as_fd);
        let woken = caller.wait(&[process.as_fd(), next], Some(until));
        let fault = match woken {
            Woken::Cancel | Woken::Gone => Some(Fault::interrupted(&[])),
            Woken::Ready(0) => Some(Fault::new("boot_failed", exit::FAILED, "the VMM ended")),
            Woken::Time if Instant::now() >= end => Some(silent()),
            _ => None,
        };
        if let Some(fault) = fault {
            pending.into_iter().for_each(keep_until_answered);
            return Err(fault);
        }
        match (woken, pending.take()) {
            (Woken::Ready(_), Some(stream)) => {
                if let Ok(agent) = greeted(stream) {
                    return Ok(agent);
                }
                // The ring was somebody else's, or the call was cut off: the next one may be the agent's.
                ring = Instant::now() + AGAIN;
            }
            (Woken::Ready(_) | Woken::Time, None) => {
                if woken != Woken::Time {
                    drop(bell.0.accept());
                }
                pending = ask(vsock).ok();
                ring = Instant::now() + AGAIN;
            }
            (_, before) => pending = before,
        }
    }
}

/// The agent behind an answered CONNECT; its version, as it says.
fn greeted(stream: UnixStream) -> io::Result<String> {
    let mut stream = Bounded::new(stream, Bounds::within(ANSWER));
    client::answered(&mut stream)?;
    let client = Client::new(stream).map_err(io::Error::other)?;
    Ok(client.hello().agent.chars().take(64).filter(char::is_ascii_graphic).collect())
}

/// A connection to an agent that was asked for, and is answered or not yet. One that nobody wants any more is kept until it is.
pub(crate) struct Asked {
    stream: Option<UnixStream>,
    since: Instant,
}

impl Drop for Asked {
    fn drop(&mut self) {
        if let Some(stream) = self.stream.take() {
            keep_until_answered(stream);
        }
    }
}

impl Asked {
    /// Asks for one.
    ///
    /// # Errors
    /// Nobody listens.
    pub(crate) fn now(vsock: &Path) -> io::Result<Asked> {
        Ok(Asked { since: Instant::now(), stream: Some(ask(vsock)?) })
    }

    /// The stream, at the first byte of HELLO.
    ///
    /// # Errors
    /// The answer is none, or took more than `limit` from now on.
    pub(crate) fn answered(mut self, limit: Duration) -> io::Result<UnixStream> {
        let Some(mut stream) = self.stream.take() else { return Err(io::ErrorKind::NotConnected.into()) };
        stream.set_read_timeout(Some(limit))?;
        match client::answered(&mut stream) {
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                keep_until_answered(stream);
                Err(error)
            }
            Err(error) => Err(error),
            Ok(()) => stream.set_read_timeout(Some(ANSWER)).map(|()| stream),
        }
    }
}

/// Connects to the agent through the VMM's socket. The stream is at the first byte of HELLO.
///
/// # Errors
/// Nobody listens, or the answer took more than `limit`.
pub(crate) fn dial(vsock: &Path, limit: Duration) -> io::Result<UnixStream> {
    Asked::now(vsock)?.answered(limit)
}

/// Sends CONNECT.
fn ask(vsock: &Path) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(vsock)?;
    stream.set_write_timeout(Some(ANSWER))?;
    client::ask(&mut stream)?;
    Ok(stream)
}

/// A CONNECT is never given up: some VMMs answer nobody any more after one was.
fn keep_until_answered(mut stream: UnixStream) {
    let kept = std::thread::Builder::new().name("connect".into()).spawn(move || {
        let _ = stream.set_read_timeout(None);
        let _ = stream.read(&mut [0; 32]);
    });
    drop(kept);
}

/// The connection for a call that is handed over: the one that was asked for ahead, else a new one.
///
/// # Errors
/// As [`connect`].
pub(crate) fn connect_ahead(vsock: &Path, ahead: Option<Asked>) -> io::Result<UnixStream> {
    match ahead.filter(|asked| asked.since.elapsed() < FRESH).map(|asked| asked.answered(ANSWER)) {
        Some(Err(error)) if is_cut_off(&error) => connect(vsock),
        Some(done) => done,
        None => connect(vsock),
    }
}

/// Connects for a call that is handed over. A VMM that has just ended other calls cuts one off before it is answered
/// now and then (seen of Firecracker); nothing was begun yet, so it is tried again for a while.
///
/// # Errors
/// The agent doesn't answer.
pub(crate) fn connect(vsock: &Path) -> io::Result<UnixStream> {
    connect_within(vsock, ANSWER)
}

/// The same, within `limit`.
///
/// # Errors
/// As [`connect`].
pub(crate) fn connect_within(vsock: &Path, limit: Duration) -> io::Result<UnixStream> {
    let end = Instant::now() + CUT_OFF.min(limit);
    loop {
        match dial(vsock, limit) {
            Err(error) if Instant::now() < end && is_cut_off(&error) => std::thread::sleep(AGAIN),
            done => return done,
        }
    }
}

/// Whether there is a VMM, and it closed the connection.
fn is_cut_off(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof)
}

/// Gives a guest that has come up this machine's clock, and randomness of this machine's. An agent that can't take them has a
/// guest of its own making, and is left alone; so is one of which `is_over` says so.
pub(crate) fn settle(vsock: &Path, is_over: &dyn Fn() -> bool) {
    let _ = set_clock(vsock, is_over);
    if let Ok(client) = call_unless(vsock, ANSWER, is_over) {
        let _ = client.entropy();
    }
}

/// Sets a guest's clock by this machine's: by more than one look, for what it is told once is late by its way there.
pub(crate) fn set_clock(vsock: &Path, is_over: &dyn Fn() -> bool) -> Result<(), Failure> {
    let (mut least, mut most) = (i64::MIN, i64::MAX);
    for _ in 0..LOOKS {
        let client = call_unless(vsock, ANSWER, is_over)?;
        let asked = Instant::now();
        let told = client.time()?;
        if told.stepped {
            continue;
        }
        // It was so far behind at least when the question was there, and at most when the answer was; a part of a millisecond
        // is not told.
        let took = i64::try_from(asked.elapsed().as_millis()).unwrap_or(i64::MAX / 2);
        let (now_least, now_most) = (told.behind_ms.saturating_sub(1), told.behind_ms.saturating_add(took + 2));
        (least, most) = (least.max(now_least), most.min(now_most));
        if least > most {
            // This machine's clock was set meanwhile.
            (least, most) = (now_least, now_most);
        }
        if most.saturating_sub(least) <= PRECISE_MS {
            break;
        }
        std::thread::sleep(AGAIN);
    }
    // As far as these tell it may be right.
    if least <= 0 && most >= 0 {
        return Ok(());
    }
    let by_ns = (least + (most - least) / 2).saturating_mul(1_000_000);
    call_unless(vsock, ANSWER, is_over)?.adjust(by_ns).map(drop)
}

/// A call to the agent, which has `limit` for its HELLO and as long again for its answer, whatever else it says.
///
/// # Errors
/// It doesn't answer, or says nothing that makes sense.
pub(crate) fn call(vsock: &Path, limit: Duration) -> io::Result<Client<Bounded<'static>>> {
    call_unless(vsock, limit, &|| false)
}

/// The same, as long as `is_over` doesn't say so.
fn call_unless<'a>(vsock: &Path, limit: Duration, is_over: &'a dyn Fn() -> bool) -> io::Result<Client<Bounded<'a>>> {
    let stream = connect_within(vsock, limit)?;
    let bounds = Bounds { end: Instant::now() + 2 * limit, is_enough: is_over };
    Client::new(Bounded::new(stream, bounds)).map_err(io::Error::other)
}

/// A file as an entry of a copy.
fn entry(file: &NewFile) -> (tar::Entry, Vec<u8>) {
    let name = file.path.to_string().trim_start_matches('/').as_bytes().to_vec();
    let (kind, mode, mtime) = (tar::Kind::File(file.data.len() as u64), file.mode.into(), crate::time::unix_now());
    (tar::Entry { name, kind, mode, mtime, extra: tar::Extra::default() }, file.data.clone())
}

fn packed(entries: &[(tar::Entry, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (entry, data) in entries {
        tar::header(entry, &mut out);
        out.extend(data);
        out.extend(tar::padding(data.len() as u64));
    }
    out.extend(tar::trailer());
    out
}

/// Asks the guest to end; it has `patience` for that. An answer that doesn't come says nothing: the guest may be ending
/// already.
///
/// # Errors
/// It could not be asked, or refuses.
pub(crate) fn ask_down(vsock: &Path, patience: Duration) -> io::Result<()> {
    let client = call(vsock, patience)?;
    let grace_ms = u32::try_from(patience.as_millis()).unwrap_or(u32::MAX).saturating_sub(500).max(500);
    // Only a reset ends every VMM.
    match client.down(Down::Reset, grace_ms) {
        Ok(()) | Err(Failure::Lost(_) | Failure::Late(_) | Failure::Io(_)) => Ok(()),
        Err(failure) => Err(io::Error::other(failure)),
    }
}

/// The last lines that a guest wrote to its console, escaped, or those up to its kernel's end, where that has said so; `None`
/// where it said nothing. The VMM's own lines in the same file, which bear the VM's id, are none of its.
pub(crate) fn last_words(console: &Path, id: &str) -> Option<String> {
    let mut file = File::open(console).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL))).ok()?;
    let mut bytes = Vec::new();
    file.take(TAIL).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let of_vmm = format!("[{id}:");
    let of_guest = |line: &&str| !line.is_empty() && !line.contains(&of_vmm);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(of_guest).collect();
    let (most, length) = WORDS;
    // What comes behind is where it was in the program.
    let panicked = lines.iter().position(|line| line.contains(PANIC));
    let lines = &lines[..panicked.map_or(lines.len(), |at| at + 1)];
    let last = lines[lines.len().saturating_sub(most)..].iter();
    let shown: Vec<String> =
        last.map(|line| line.chars().take(length).flat_map(char::escape_default).collect()).collect();
    (!shown.is_empty()).then(|| shown.join("\n"))
}

/// How long the guest's own stages took, by its own clock, as far as its console tells them.
pub(crate) fn stages(console: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(console).ok()?.take(1 << 20).read_to_end(&mut bytes).ok()?;
    stages_in(&String::from_utf8_lossy(&bytes))
}

fn stages_in(text: &str) -> Option<String> {
    let told = |line: &str| {
        let (seconds, name) = line.trim_end().strip_prefix("banger-agent: ")?.split_once(' ')?;
        let named = [("start", "kernel"), ("modules", "modules"), ("root", "root"), ("network", "network")];
        let (_, shown) = named.into_iter().find(|(known, _)| *known == name)?;
        Some((shown, seconds.parse::<f64>().ok().filter(|seconds| (0.0..1e6).contains(seconds))?))
    };
    let mut before = 0.0;
    let mut parts = Vec::new();
    for (shown, at) in text.lines().filter_map(told).take(4) {
        parts.push(format!("{shown} {:.0}", (at - before).max(0.0) * 1000.0));
        before = at;
    }
    (!parts.is_empty()).then(|| parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_console_is_quoted_by_its_last_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console");
        assert_eq!(last_words(&path, "7f3a"), None);
        fs::write(&path, "a\r\nb\n\n\x1b[2Jc\nd\n2026-11-28T23:15:24 [7f3a:banger-qemu] It runs.\n").unwrap();
        assert_eq!(last_words(&path, "7f3a").unwrap(), "b\n\\u{1b}[2Jc\nd");
        fs::write(&path, "a\nb\n[ 0.4] Kernel panic - not syncing: no root\nCPU: 0\nCall Trace:\nx\ny\n").unwrap();
        assert_eq!(last_words(&path, "7f3a").unwrap(), "a\nb\n[ 0.4] Kernel panic - not syncing: no root");
    }

    #[test]
    fn stages_are_told_by_their_own_length() {
        let text = "x\nbanger-agent: 0.391000 start\r\nbanger-agent: 0.501500 modules\nbanger-agent: nan root\nbanger-agent: 1 x\n";
        assert_eq!(stages_in(text).unwrap(), "kernel 391, modules 110");
        assert_eq!(stages_in(""), None);
    }

    #[test]
    fn a_connection_asked_for_ahead_is_used_while_its_agent_waits_and_never_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vsock");
        let listener = UnixListener::bind(&path).unwrap();
        let accepted = || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.read_exact(&mut [0; 13]).unwrap();
            stream
        };
        let says = |stream: &mut UnixStream, word: &str| stream.write_all(word.as_bytes()).unwrap();
        let hears = |mut stream: UnixStream| {
            let mut word = [0; 1];
            stream.read_exact(&mut word).unwrap();
            word[0]
        };

        let asked = Asked::now(&path).unwrap();
        says(&mut accepted(), "OK 1\na");
        assert_eq!(hears(connect_ahead(&path, Some(asked)).unwrap()), b'a', "nobody else is asked");

        let asked = Asked::now(&path).unwrap();
        drop(accepted());
        let again = std::thread::scope(|scope| {
            scope.spawn(|| says(&mut accepted(), "OK 2\nb"));
            connect_ahead(&path, Some(asked)).unwrap()
        });
        assert_eq!(hears(again), b'b', "it was cut off");

        let mut old = Asked::now(&path).unwrap();
        old.since = Instant::now().checked_sub(FRESH).unwrap();
        let mut first = accepted();
        let again = std::thread::scope(|scope| {
            scope.spawn(|| says(&mut accepted(), "OK 4\nd"));
            connect_ahead(&path, Some(old)).unwrap()
        });
        assert_eq!(hears(again), b'd', "its agent may have stopped waiting");
        // It is held until it is answered, and let go then.
        says(&mut first, "OK 3\n");
        assert_eq!(first.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn only_ok_is_an_answer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vsock");
        let listener = UnixListener::bind(&path).unwrap();
        let answers = ["OK 1073741824\nHELLO", "OK \n", "NO\n", "OK 12345678901234567890123456789012345"];
        let vmm = std::thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut asked = [0; 13];
                stream.read_exact(&mut asked).unwrap();
                assert_eq!(&asked, b"CONNECT 1023\n");
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        let mut stream = dial(&path, ANSWER).unwrap();
        let mut rest = [0; 5];
        stream.read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"HELLO");
        for _ in 1..4 {
            assert!(dial(&path, ANSWER).is_err());
        }
        vmm.join().unwrap();
    }
}
