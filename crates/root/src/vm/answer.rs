//! Whether a VMM runs its VM: asked over its API, until it says so, ends, or the time is over.

use super::sockets;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde::Deserialize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};
use sys::creds::Identity;
use sys::dir::Dir;
use sys::pidfd::PidFd;

const STATE: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\r\n";
/// The most of an answer that is read: Firecracker's has some hundred bytes.
const MAX_ANSWER: usize = 16 << 10;
/// Between two looks is a part of the time that was waited already. The kernel could tell of the socket's name (inotify),
/// but it takes 15 ms to let go of that.
const PART: u32 = 32;
const SHORT: Duration = Duration::from_micros(500);
const LONG: Duration = Duration::from_millis(50);

/// Why there is no running VM.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NotRunning {
    /// The VMM has ended.
    Ended,
    /// The time is over: what was waited for.
    Late(&'static str),
    /// It answered, and not that it runs.
    Said(String),
}

/// A VMM whose API socket is to appear as `name` in `dir`.
pub(super) struct Awaited<'a> {
    pub(super) dir: &'a Dir,
    pub(super) name: &'a str,
    /// Whether `dir` is a jail's root.
    pub(super) is_jailed: bool,
    pub(super) owner: &'a Identity,
    pub(super) until: Instant,
}

#[derive(Deserialize)]
struct Instance {
    state: String,
}

/// What Firecracker says of a request that it refuses.
#[derive(Deserialize)]
struct Fault {
    fault_message: String,
}

/// An HTTP answer: its status and its body.
#[derive(Debug, PartialEq, Eq)]
struct Answer<'a> {
    status: &'a str,
    body: &'a [u8],
}

impl Awaited<'_> {
    /// Waits until the VM runs.
    pub(super) fn run(&self, vmm: &PidFd) -> Result<(), NotRunning> {
        const WHAT: &str = "its VM to run";
        let begin = Instant::now();
        loop {
            let api = self.connected(vmm, begin)?;
            match self.state(&api, vmm)?.as_str() {
                "Running" => return Ok(()),
                "Not started" => self.pause(vmm, begin, WHAT)?,
                _ => return Err(NotRunning::Said("its VM is neither running nor about to".into())),
            }
        }
    }

    /// Has it load a saved VM: `body` is that of `PUT /snapshot/load`.
    pub(super) fn load(&self, vmm: &PidFd, body: &str) -> Result<(), NotRunning> {
        let api = self.connected(vmm, Instant::now())?;
        let request = format!(
            "PUT /snapshot/load HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\nContent-Type: \
             application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.exchange(&api, vmm, request.as_bytes(), |answer| match answer.status {
            "204" => Ok(()),
            _ => {
                let fault = serde_json::from_slice::<Fault>(answer.body);
                let why = fault.map_or_else(|_| "it doesn't say why".to_owned(), |fault| plain(&fault.fault_message));
                Err(format!("it loads no such state: {why}"))
            }
        })
    }

    /// A connection to the socket, once it is there and this VMM's.
    fn connected(&self, vmm: &PidFd, begin: Instant) -> Result<OwnedFd, NotRunning> {
        const WHAT: &str = "its API socket";
        loop {
            match sockets::connect(self.dir, self.name, self.owner) {
                Ok(api) => {
                    let peer = rustix::net::sockopt::socket_peercred(&api);
                    return match peer {
                        Ok(peer) if peer.pid.as_raw_nonzero().get() == vmm.pid() => Ok(api),
                        _ => Err(NotRunning::Said("its API socket is another process's".into())),
                    };
                }
                // The socket has its name a moment before it is listened on.
                Err(Errno::NOENT | Errno::CONNREFUSED | Errno::AGAIN) => self.pause(vmm, begin, WHAT)?,
                // A jailer's directory is root's until it becomes the VMM.
                Err(Errno::ACCESS) if self.is_jailed => self.pause(vmm, begin, WHAT)?,
                Err(errno) => return Err(NotRunning::Said(format!("its API socket can't be used ({errno})"))),
            }
        }
    }

    fn state(&self, api: &OwnedFd, vmm: &PidFd) -> Result<String, NotRunning> {
        self.exchange(api, vmm, STATE, |answer| match answer.status {
            "200" => {
                let instance = serde_json::from_slice::<Instance>(answer.body);
                instance.map(|instance| instance.state).map_err(|_| "its API tells no state".to_owned())
            }
            _ => Err("its API refuses to tell its state".to_owned()),
        })
    }

    /// Sends a request, and has `meaning` judge the answer.
    fn exchange<T>(
        &self,
        api: &OwnedFd,
        vmm: &PidFd,
        request: &[u8],
        meaning: impl Fn(&Answer<'_>) -> Result<T, String>,
    ) -> Result<T, NotRunning> {
        const WHAT: &str = "its API's answer";
        // Into an empty socket buffer: it takes these few bytes at once or not at all.
        if rustix::net::send(api, request, rustix::net::SendFlags::NOSIGNAL) != Ok(request.len()) {
            self.wait(vmm, None, Some(SHORT), WHAT)?;
            return Err(NotRunning::Said("its API takes no request".into()));
        }
        let mut answer = Vec::new();
        loop {
            let mut piece = [0u8; 2048];
            match rustix::io::read(api, &mut piece[..]) {
                // It may be ending: that tells more than the connection's end.
                Ok(0) | Err(Errno::CONNRESET) => {
                    self.wait(vmm, None, Some(LONG), WHAT)?;
                    return Err(NotRunning::Said("its API hung up".into()));
                }
                Ok(n) => answer.extend_from_slice(&piece[..n]),
                Err(Errno::AGAIN) => self.wait(vmm, Some(api.as_fd()), None, WHAT)?,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(NotRunning::Said(format!("its API can't be read ({errno})"))),
            }
            if let Some(answer) = read(&answer).map_err(|why| NotRunning::Said(why.into()))? {
                return meaning(&answer).map_err(NotRunning::Said);
            }
            if answer.len() > MAX_ANSWER {
                return Err(NotRunning::Said("its API answers without end".into()));
            }
        }
    }

    fn pause(&self, vmm: &PidFd, begin: Instant, what: &'static str) -> Result<(), NotRunning> {
        let pause = (begin.elapsed() / PART).clamp(SHORT, LONG);
        if Instant::now() + pause > self.until {
            return Err(NotRunning::Late(what));
        }
        self.wait(vmm, None, Some(pause), what)
    }

    /// Waits until `readable` is, or the pause is over. The VMM's end and the end of the time are errors; of a VMM that
    /// answered and ended, the answer counts.
    fn wait(
        &self,
        vmm: &PidFd,
        readable: Option<BorrowedFd<'_>>,
        pause: Option<Duration>,
        what: &'static str,
    ) -> Result<(), NotRunning> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(NotRunning::Late(what));
        }
        let time = pause.map_or(left, |pause| pause.min(left));
        let time = Timespec { tv_sec: time.as_secs().cast_signed(), tv_nsec: time.subsec_nanos().into() };
        let mut fds = vec![PollFd::new(vmm, PollFlags::IN)];
        fds.extend(readable.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        // A failed poll is a pause of no length: the next look finds out more.
        let _ = poll(&mut fds, Some(&time));
        let has_answered = fds.get(1).is_some_and(|api| !api.revents().is_empty());
        if has_answered || fds[0].revents().is_empty() { Ok(()) } else { Err(NotRunning::Ended) }
    }
}

/// What a VMM says, fit to be shown.
fn plain(text: &str) -> String {
    const MOST: usize = 512;
    text.chars().take(MOST).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// An HTTP answer; `None` where it is not whole yet.
fn read(answer: &[u8]) -> Result<Option<Answer<'_>>, &'static str> {
    const NO_HTTP: &str = "its API does not answer in HTTP";
    let start = b"HTTP/1.";
    let seen = answer.len().min(start.len());
    if answer[..seen] != start[..seen] {
        return Err(NO_HTTP);
    }
    let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&answer[..end]).map_err(|_| NO_HTTP)?;
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).ok_or(NO_HTTP)?;
    // That one has no body, and says no length of none.
    if status == "204" {
        return Ok(Some(Answer { status, body: &[] }));
    }
    let length = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    let length =
        length.filter(|&length| length <= MAX_ANSWER).ok_or("its API's answer has no length that makes sense")?;
    let Some(body) = answer[end + 4..].get(..length) else { return Ok(None) };
    Ok(Some(Answer { status, body }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_counts_though_its_vmm_has_ended() {
        let mut ended = std::process::Command::new("/bin/true").spawn().unwrap();
        let vmm = sys::pidfd::open(ended.id().cast_signed()).unwrap();
        ended.wait().unwrap();
        let (api, far) = std::os::unix::net::UnixStream::pair().unwrap();
        let owner = Identity { uid: 0, gid: 0, groups: Vec::new(), name: String::new(), home: String::new() };
        let until = Instant::now() + Duration::from_secs(5);
        let awaited = Awaited { dir: &Dir::open("/").unwrap(), name: "", is_jailed: false, owner: &owner, until };
        assert_eq!(awaited.wait(&vmm, Some(api.as_fd()), None, "an answer"), Err(NotRunning::Ended));
        std::io::Write::write_all(&mut &far, b"why").unwrap();
        assert_eq!(awaited.wait(&vmm, Some(api.as_fd()), None, "an answer"), Ok(()));
    }

    #[test]
    fn answers() {
        let body = r#"{"id":"a","state":"Running","vmm_version":"1","app_name":"Firecracker"}"#;
        let whole = format!("HTTP/1.1 200 OK\r\nServer: x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        for cut in 0..whole.len() {
            assert_eq!(read(&whole.as_bytes()[..cut]), Ok(None), "{cut}");
        }
        assert_eq!(read(whole.as_bytes()), Ok(Some(Answer { status: "200", body: body.as_bytes() })));
        let done = b"HTTP/1.1 204 \r\nServer: x\r\n\r\n";
        assert_eq!(read(done), Ok(Some(Answer { status: "204", body: &[] })));
        let refused = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\n{}";
        assert_eq!(read(refused), Ok(Some(Answer { status: "400", body: b"{}" })));
        for bad in [
            "garbage",
            "HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}",
            "HTTP/1.1 200 OK\r\n\r\n{}",
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n{}",
        ] {
            assert!(read(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
