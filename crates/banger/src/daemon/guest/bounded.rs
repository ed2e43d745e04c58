//! A call to a guest that may be none: it is over when the guest had its time, whatever it says meanwhile.

use super::{AGAIN, ask, entry, is_cut_off, packed};
use agent::client::{self, Client};
use agent::host::{CopyFailure, Limits, put_archive};
use agent::protocol::{Keep, Put, VERSION};
use agent::tar::Entry;
use rustix::event::{PollFd, PollFlags, poll};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};
use wire::image::NewFile;

/// How often it is asked whether the guest had its time.
const LOOK: Duration = Duration::from_millis(50);

/// When a call is over.
#[derive(Clone, Copy)]
pub(crate) struct Bounds<'a> {
    /// At that moment in any case.
    pub(crate) end: Instant,
    /// When this says that the guest had its time.
    pub(crate) is_enough: &'a dyn Fn() -> bool,
}

impl Bounds<'_> {
    /// So long from now on.
    pub(crate) fn within(limit: Duration) -> Bounds<'static> {
        Bounds { end: Instant::now() + limit, is_enough: &|| false }
    }

    /// Whether it is over.
    pub(crate) fn are_reached(self) -> bool {
        Instant::now() >= self.end || (self.is_enough)()
    }
}

/// A connection with an end.
pub(crate) struct Bounded<'a> {
    stream: UnixStream,
    bounds: Bounds<'a>,
}

impl<'a> Bounded<'a> {
    pub(super) fn new(stream: UnixStream, bounds: Bounds<'a>) -> Bounded<'a> {
        Bounded { stream, bounds }
    }
}

impl Read for Bounded<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let look = crate::daemon::serve::timespec(LOOK);
        loop {
            // Before each read: who sends a byte now and then is not waited for either.
            if self.bounds.are_reached() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            match poll(&mut [PollFd::new(&self.stream, PollFlags::IN)], Some(&look)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => return self.stream.read(into),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl Write for Bounded<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// Connects to the agent. A call that is cut off before its answer is made again.
fn connect_within<'a>(vsock: &Path, bounds: Bounds<'a>) -> io::Result<Bounded<'a>> {
    loop {
        let mut stream = Bounded::new(ask(vsock)?, bounds);
        match client::answered(&mut stream) {
            Err(error) if is_cut_off(&error) && !bounds.are_reached() => std::thread::sleep(AGAIN),
            done => return done.map(|()| stream),
        }
    }
}

/// A call to the agent, whose HELLO and answer are there within the bounds.
///
/// # Errors
/// It doesn't answer, or says nothing that makes sense.
pub(crate) fn call_within<'a>(vsock: &Path, bounds: Bounds<'a>) -> io::Result<Client<Bounded<'a>>> {
    Client::new(connect_within(vsock, bounds)?).map_err(io::Error::other)
}

/// Writes files into a running guest, each whole and in the place of what is there; their directories are there already. The
/// guest's own digest of what arrived is that of what was sent.
///
/// # Errors
/// The agent's.
pub(crate) fn put_within(vsock: &Path, files: &[NewFile], bounds: Bounds<'_>) -> Result<(), CopyFailure> {
    let entries: Vec<(Entry, Vec<u8>)> = files.iter().map(entry).collect();
    let archive = rustix::fs::memfd_create("files", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut archive = File::from(archive);
    archive.write_all(&packed(&entries)).and_then(|()| archive.rewind())?;
    put_archive_within(vsock, "/", &archive, bounds)
}

/// The same of what goes below the guest's directory `to`, as a tar: files, and directories, which stay as they are where they
/// are there.
///
/// # Errors
/// The agent's.
pub(crate) fn put_archive_within(
    vsock: &Path,
    to: &str,
    archive: &File,
    bounds: Bounds<'_>,
) -> Result<(), CopyFailure> {
    let asked = Put { v: VERSION, to: to.into(), into: true, owner: None, clobber: true, keep: Keep::Plain };
    let stream = connect_within(vsock, bounds)?.stream;
    std::thread::scope(|scope| {
        let (working, is_over) = mpsc::channel::<()>();
        let stream = &stream;
        let copying = scope.spawn(move || {
            let _working = working;
            put_archive(stream, asked, archive.as_fd(), Limits::EMULATED, |_| true)
        });
        // It waits longer for a guest that is silent.
        while is_over.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
            if bounds.are_reached() {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
        copying.join().unwrap_or(Err(CopyFailure::Abandoned)).map(drop)
    })
}

#[cfg(test)]
mod tests;
