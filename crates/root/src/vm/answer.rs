//! Whether a VMM runs its VM: asked over its API, until it says so, ends, or the time is over.

use super::sockets;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use rustix::io::Errno;
use serde::Deserialize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};
use sys::creds::Identity;
use sys::dir::Dir;
use sys::pidfd::PidFd;

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\r\n";
/// The most of an answer that is read: Firecracker's has some hundred bytes.
const MAX_ANSWER: usize = 16 << 10;
/// Between two looks where nothing wakes us: the socket has its name a moment before it is listened on.
const SHORT: Duration = Duration::from_millis(2);
const LONG: Duration = Duration::from_millis(50);
/// Between two questions to a VMM whose VM does not run yet.
const AGAIN: Duration = Duration::from_millis(5);

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
    /// Tells of new names in `dir`. Made before the VMM runs; without it the directory is looked at again and again.
    pub(super) news: Option<OwnedFd>,
}

#[derive(Deserialize)]
struct Instance {
    state: String,
}

/// A descriptor that can be read when something has got a name in `dir`.
pub(super) fn news_of(dir: &Dir) -> Option<OwnedFd> {
    let news = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).ok()?;
    let path = format!("/proc/self/fd/{}", dir.as_fd().as_raw_fd());
    let names = inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
    inotify::add_watch(&news, path, names).ok()?;
    Some(news)
}

impl Awaited<'_> {
    /// Waits until the VM runs.
    pub(super) fn run(&self, vmm: &PidFd) -> Result<(), NotRunning> {
        const WHAT: &str = "its VM to run";
        loop {
            let api = self.connected(vmm)?;
            match self.state(&api, vmm)?.as_str() {
                "Running" => return Ok(()),
                "Not started" if Instant::now() + AGAIN > self.until => return Err(NotRunning::Late(WHAT)),
                "Not started" => self.pause(vmm, AGAIN, WHAT)?,
                _ => return Err(NotRunning::Said("its VM is neither running nor about to".into())),
            }
        }
    }

    /// A connection to the socket, once it is there and this VMM's.
    fn connected(&self, vmm: &PidFd) -> Result<OwnedFd, NotRunning> {
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
                Err(Errno::NOENT) => self.news_or_pause(vmm, WHAT)?,
                // A jailer's directory is root's until it becomes the VMM.
                Err(Errno::ACCESS) if self.is_jailed => self.news_or_pause(vmm, WHAT)?,
                Err(Errno::CONNREFUSED | Errno::AGAIN) => self.pause(vmm, SHORT, WHAT)?,
                Err(errno) => return Err(NotRunning::Said(format!("its API socket can't be used ({errno})"))),
            }
        }
    }

    fn state(&self, api: &OwnedFd, vmm: &PidFd) -> Result<String, NotRunning> {
        const WHAT: &str = "its API's answer";
        // Into an empty socket buffer: it takes these few bytes at once or not at all.
        if rustix::net::send(api, REQUEST, rustix::net::SendFlags::NOSIGNAL) != Ok(REQUEST.len()) {
            self.pause(vmm, SHORT, WHAT)?;
            return Err(NotRunning::Said("its API takes no request".into()));
        }
        let mut answer = Vec::new();
        loop {
            let mut piece = [0u8; 2048];
            match rustix::io::read(api, &mut piece[..]) {
                // It may be ending: that tells more than the connection's end.
                Ok(0) | Err(Errno::CONNRESET) => {
                    self.pause(vmm, LONG, WHAT)?;
                    return Err(NotRunning::Said("its API hung up".into()));
                }
                Ok(n) => answer.extend_from_slice(&piece[..n]),
                Err(Errno::AGAIN) => self.wait(vmm, Some(api.as_fd()), None, WHAT)?,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(NotRunning::Said(format!("its API can't be read ({errno})"))),
            }
            if let Some(state) = read(&answer).map_err(|why| NotRunning::Said(why.into()))? {
                return Ok(state);
            }
            if answer.len() > MAX_ANSWER {
                return Err(NotRunning::Said("its API answers without end".into()));
            }
        }
    }

    fn news_or_pause(&self, vmm: &PidFd, what: &'static str) -> Result<(), NotRunning> {
        let Some(news) = &self.news else { return self.pause(vmm, SHORT, what) };
        self.wait(vmm, Some(news.as_fd()), Some(LONG), what)?;
        // What it says is of no interest, only that it was said. Not to its end: whoever makes names without end must
        // not hold us here.
        let _ = rustix::io::read(news, &mut [0u8; 16 << 10][..]);
        Ok(())
    }

    fn pause(&self, vmm: &PidFd, time: Duration, what: &'static str) -> Result<(), NotRunning> {
        self.wait(vmm, None, Some(time), what)
    }

    /// Waits until `readable` is, or the pause is over. The VMM's end and the end of the time are errors.
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
        if fds[0].revents().is_empty() { Ok(()) } else { Err(NotRunning::Ended) }
    }
}

/// The state that an HTTP answer tells; `None` where it is not whole yet.
fn read(answer: &[u8]) -> Result<Option<String>, &'static str> {
    const NO_HTTP: &str = "its API does not answer in HTTP";
    let start = b"HTTP/1.";
    let seen = answer.len().min(start.len());
    if answer[..seen] != start[..seen] {
        return Err(NO_HTTP);
    }
    let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&answer[..end]).map_err(|_| NO_HTTP)?;
    let mut lines = head.split("\r\n");
    if lines.next().and_then(|line| line.split(' ').nth(1)) != Some("200") {
        return Err("its API refuses to tell its state");
    }
    let length = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    let length =
        length.filter(|&length| length <= MAX_ANSWER).ok_or("its API's answer has no length that makes sense")?;
    let Some(body) = answer[end + 4..].get(..length) else { return Ok(None) };
    let instance: Instance = serde_json::from_slice(body).map_err(|_| "its API tells no state")?;
    Ok(Some(instance.state))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        let body = r#"{"id":"a","state":"Running","vmm_version":"1","app_name":"Firecracker"}"#;
        let whole = format!("HTTP/1.1 200 OK\r\nServer: x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        for cut in 0..whole.len() {
            assert_eq!(read(&whole.as_bytes()[..cut]), Ok(None), "{cut}");
        }
        assert_eq!(read(whole.as_bytes()), Ok(Some("Running".into())));
        for bad in [
            "garbage",
            "HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\n{}",
            "HTTP/1.1 200 OK\r\n\r\n{}",
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n{}",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
        ] {
            assert!(read(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
