//! The way to the root helper: its socket, and a time within which a call must be over.

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};
use wire::client::Client;

/// Where the helper listens.
pub const SOCKET: &str = "/run/banger-root/bangerd-root.sock";

/// A client of the helper on `socket`. Each call must be over within `limit`, else it fails with
/// [`io::ErrorKind::TimedOut`]; the helper goes on with what it was asked.
pub fn client(socket: &Path, limit: Duration) -> Client<impl Fn() -> io::Result<Stream> + use<'_>> {
    Client::new(move || Stream::open(socket, limit))
}

/// A connection that ends at a fixed time, however the bytes drip.
pub struct Stream {
    stream: UnixStream,
    until: Instant,
}

impl Stream {
    /// Connects; all that is read and written is over within `limit`.
    ///
    /// # Errors
    /// The socket's, [`io::ErrorKind::TimedOut`] where nobody takes the connection.
    pub fn open(path: &Path, limit: Duration) -> io::Result<Stream> {
        let until = Instant::now() + limit;
        let address = SocketAddrUnix::new(path)?;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        // Where the queue of callers is full, connect waits as long as a send would.
        set_socket_timeout(&socket, Timeout::Send, Some(limit))?;
        connect(&socket, &address).map_err(|error| timed_out(error.into()))?;
        Ok(Stream { stream: UnixStream::from(socket), until })
    }

    fn left(&self) -> io::Result<Option<Duration>> {
        match self.until.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
            left => Ok(Some(left)),
        }
    }
}

/// A socket's timeout shows as "would block"; to a caller it is a timeout.
fn timed_out(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::WouldBlock { io::ErrorKind::TimedOut.into() } else { error }
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(into).map_err(timed_out)
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(bytes).map_err(timed_out)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use wire::client::Error;

    #[test]
    fn a_helper_that_drips_does_not_hold_a_call_beyond_its_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let drip = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            while stream.write_all(b" ").is_ok() {
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        let begun = Instant::now();
        let error = client(&path, Duration::from_millis(200)).list_resources().unwrap_err();
        assert!(matches!(error, Error::Io(ref io) if io.kind() == io::ErrorKind::TimedOut), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(5));
        drip.join().unwrap();
    }

    #[test]
    fn a_full_queue_is_waited_for_no_longer_than_asked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let address = SocketAddrUnix::new(&path).unwrap();
        let listener = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        rustix::net::bind(&listener, &address).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let _first = UnixStream::connect(&path).unwrap();
        let error = client(&path, Duration::from_millis(100)).list_resources().unwrap_err();
        assert!(matches!(error, Error::Io(ref io) if io.kind() == io::ErrorKind::TimedOut), "{error}");
    }
}
