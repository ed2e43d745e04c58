//! A conversation with the system's message bus: connect, say who we are, ask, hear the answer, all within five
//! seconds. No descriptors are taken, no service is started by it, and nothing is asked of the bus but replies.

use super::calls::{self, BUS, Call};
use super::message::{self, HEAD, Heard, Target};
use rustix::fs::{AtFlags, CWD, FileType};
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_peercred};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

const SOCKET: &str = "/run/dbus/system_bus_socket";

/// How long a whole conversation may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why there is no reply, or no good one.
#[derive(Debug)]
pub(super) enum Trouble {
    /// What was asked answered with an error: the call, the error's name and its words.
    Said { call: String, name: String, words: String },
    /// The conversation broke off: what was done, and why.
    Lost(String),
}

impl Trouble {
    /// Whether it is the error of that name.
    pub(super) fn is(&self, wanted: &str) -> bool {
        matches!(self, Trouble::Said { name, .. } if name == wanted)
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::Said { call, name, words } => write!(f, "{call}: {name}: {words}"),
            Trouble::Lost(why) => f.write_str(why),
        }
    }
}

/// A connection that knows its own name.
pub(super) struct Bus {
    stream: UnixStream,
    serial: u32,
    ends: Instant,
}

impl Bus {
    /// Connects to the system's bus; `None` where there is none.
    pub(super) fn open() -> Result<Option<Bus>, Trouble> {
        Bus::open_at(SOCKET)
    }

    fn open_at(path: &str) -> Result<Option<Bus>, Trouble> {
        let lost = |what: &str, error: &dyn fmt::Display| Trouble::Lost(format!("{what} {path}: {error}"));
        match rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Socket => {
                return Err(lost("lstat", &"not a socket"));
            }
            Ok(stat) if stat.st_uid != 0 => return Err(lost("lstat", &"it is not root's")),
            Ok(_) => {}
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(None),
            Err(error) => return Err(lost("lstat", &error)),
        }
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .map_err(|error| lost("socket for", &error))?;
        // It bounds the connecting too.
        set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE)).map_err(|error| lost("SO_SNDTIMEO", &error))?;
        let address = SocketAddrUnix::new(path).map_err(|error| lost("connect", &error))?;
        match connect(&socket, &address) {
            Ok(()) => {}
            // It was there, and nobody listens any more.
            Err(rustix::io::Errno::CONNREFUSED | rustix::io::Errno::NOENT) => return Ok(None),
            Err(error) => return Err(lost("connect", &error)),
        }
        let peer = socket_peercred(&socket).map_err(|error| lost("SO_PEERCRED of", &error))?;
        if !peer.uid.is_root() {
            return Err(lost("connect", &format!("uid {} listens, not root", peer.uid.as_raw())));
        }
        let mut bus = Bus { stream: socket.into(), serial: 0, ends: Instant::now() + PATIENCE };
        bus.greet().map_err(|error| lost("greeting", &error))?;
        bus.ask(&BUS, &calls::hello())?;
        Ok(Some(bus))
    }

    /// Who we are: the kernel tells the bus our uid, we name the same.
    fn greet(&mut self) -> io::Result<()> {
        let uid = rustix::process::geteuid().as_raw().to_string();
        let hex: String = uid.bytes().map(|digit| format!("{digit:02x}")).collect();
        self.stream.write_all(format!("\0AUTH EXTERNAL {hex}\r\n").as_bytes())?;
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            self.read(&mut byte)?;
            line.push(byte[0]);
            if line.len() > 256 {
                return Err(io::Error::other("a line without end"));
            }
        }
        if !line.starts_with(b"OK ") {
            return Err(io::Error::other(format!("refused: {}", String::from_utf8_lossy(&line).trim_end())));
        }
        self.stream.write_all(b"BEGIN\r\n")
    }

    /// Asks, and waits for the reply's body.
    pub(super) fn ask(&mut self, to: &Target, call: &Call) -> Result<Vec<u8>, Trouble> {
        let lost = |error: &dyn fmt::Display| Trouble::Lost(format!("{} {}: {error}", to.name, call.member));
        self.serial += 1;
        let bytes = message::call(self.serial, to, call.member, call.signature, &call.body);
        self.stream.write_all(&bytes).map_err(|error| lost(&error))?;
        loop {
            let whole = self.next().map_err(|error| lost(&error))?;
            match message::read(&whole, self.serial) {
                Some(Heard::Reply(_, body)) => return Ok(body),
                Some(Heard::Error(name, words)) => {
                    return Err(Trouble::Said { call: format!("{} {}", to.name, call.member), name, words });
                }
                Some(Heard::Other) => {}
                None => return Err(lost(&"a malformed message")),
            }
        }
    }

    /// The same for a reply that is one number.
    pub(super) fn number(&mut self, to: &Target, call: &Call) -> Result<u32, Trouble> {
        let body = self.ask(to, call)?;
        message::number(&body)
            .ok_or_else(|| Trouble::Lost(format!("{} {}: a reply without its number", to.name, call.member)))
    }

    fn next(&mut self) -> io::Result<Vec<u8>> {
        let mut head = [0; HEAD];
        self.read(&mut head)?;
        let length = message::length(&head).ok_or_else(|| io::Error::other("a message that is none, or too long"))?;
        let mut whole = head.to_vec();
        whole.resize(length, 0);
        self.read(&mut whole[HEAD..])?;
        Ok(whole)
    }

    /// Fills `buffer` before the time is up, however slowly the bytes come.
    fn read(&mut self, mut buffer: &mut [u8]) -> io::Result<()> {
        while !buffer.is_empty() {
            let left = self.ends.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "no answer within five seconds"));
            }
            self.stream.set_read_timeout(Some(left))?;
            match self.stream.read(buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => buffer = &mut buffer[count..],
                Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "bus_tests.rs"]
mod tests;
