//! A connection to the vsock's socket that has not said yet where to: the line `CONNECT port`.

use std::io::{ErrorKind, Read as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// The longest line, its end included; Firecracker's.
const MAX_LINE: usize = 32;
/// How long a client may take for it.
const PATIENCE: Duration = Duration::from_secs(5);

/// A client in the middle of its line.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) socket: UnixStream,
    pub(super) deadline: Instant,
    /// Whether there is something to read.
    pub(super) ready: bool,
    line: Vec<u8>,
}

/// What was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// Not all of it.
    Partial,
    /// Anything else, or the client has gone.
    Bad,
    /// A port, and what the client sent after the line.
    Connect { port: u32, rest: Vec<u8> },
}

impl Pending {
    pub(super) fn new(socket: UnixStream) -> Self {
        Self { socket, deadline: Instant::now() + PATIENCE, ready: false, line: Vec::new() }
    }

    pub(super) fn read(&mut self) -> Line {
        let mut piece = [0; MAX_LINE];
        match self.socket.read(&mut piece) {
            Ok(0) => Line::Bad,
            Ok(got) => {
                self.line.extend_from_slice(&piece[..got]);
                parse(&self.line)
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Line::Partial,
            Err(_) => Line::Bad,
        }
    }
}

fn parse(bytes: &[u8]) -> Line {
    let Some(end) = bytes.iter().take(MAX_LINE).position(|byte| *byte == b'\n') else {
        return if bytes.len() < MAX_LINE { Line::Partial } else { Line::Bad };
    };
    let Ok(line) = std::str::from_utf8(&bytes[..end]) else { return Line::Bad };
    let mut words = line.split_ascii_whitespace();
    let (Some(verb), Some(port), None) = (words.next(), words.next(), words.next()) else { return Line::Bad };
    if !verb.eq_ignore_ascii_case("connect") || !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return Line::Bad;
    }
    match port.parse() {
        Ok(port) => Line::Connect { port, rest: bytes[end + 1..].to_vec() },
        Err(_) => Line::Bad,
    }
}

#[cfg(test)]
mod tests {
    use super::{Line, parse};

    #[test]
    fn a_line_is_a_verb_and_a_port() {
        assert_eq!(parse(b"CONNECT 52\n"), Line::Connect { port: 52, rest: vec![] });
        assert_eq!(parse(b"connect 4294967295\r\nhi"), Line::Connect { port: u32::MAX, rest: b"hi".to_vec() });
        for partial in [&b""[..], b"CONN", b"CONNECT 52"] {
            assert_eq!(parse(partial), Line::Partial);
        }
        for bad in [
            &b"\n"[..],
            b"CONNECT\n",
            b"CONNECT 4294967296\n",
            b"CONNECT +5\n",
            b"CONNECT -1\n",
            b"CONNECT 5 6\n",
            b"OPEN 5\n",
            b"\xff\xff\n",
            b"CONNECT                          5\n",
            &[b'x'; 32],
        ] {
            assert_eq!(parse(bad), Line::Bad, "{bad:?}");
        }
    }
}
