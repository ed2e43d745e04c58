//! Files between this machine and a guest, over a connected socket.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::driver::timespec;
use super::{Event, Exec, Failure, Limits, Stage};
use crate::copy::{Copied, CopyError, Look, Pack, Rules, Unpack};
use crate::protocol::{Get, Keep, Put, stream};
use crate::tar::TarError;

/// What is read from the socket at once.
const PIECE: usize = 64 * 1024;

/// Why a copy has no result.
#[derive(Debug)]
pub enum CopyFailure {
    /// The call.
    Call(Failure),
    /// This machine's side of it.
    Here(CopyError),
    /// What one side sent is not what the other got.
    Differs,
    /// The caller gave it up.
    Abandoned,
}

impl fmt::Display for CopyFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Call(failure) => failure.fmt(f),
            Self::Here(error) => error.fmt(f),
            Self::Differs => f.write_str("what arrived is not what was sent"),
            Self::Abandoned => f.write_str("the copy was given up"),
        }
    }
}

impl std::error::Error for CopyFailure {}

impl<T: Into<Failure>> From<T> for CopyFailure {
    fn from(error: T) -> Self {
        Self::Call(error.into())
    }
}

impl From<CopyError> for CopyFailure {
    fn from(error: CopyError) -> Self {
        Self::Here(error)
    }
}

/// Copies what `pack` reads into a guest: `socket` is connected to the agent, and nothing of its words read. `go_on` is told from
/// time to time how many bytes of archive have gone, and `false` ends the copy.
///
/// # Errors
/// [`CopyFailure`]; what had arrived whole stays.
pub fn put(
    socket: &UnixStream,
    put: Put,
    mut pack: Pack,
    limits: Limits,
    mut go_on: impl FnMut(u64) -> bool,
) -> Result<Copied, CopyFailure> {
    let mut ready = Vec::new();
    let mut gone = 0;
    let theirs = drive(socket, None, Exec::put(put, limits, Instant::now()), |call| {
        while call.input_room() > 0 {
            if ready.is_empty() {
                pack.keep(call.keep());
                pack.fill(&mut ready, PIECE)?;
            }
            if ready.is_empty() {
                call.end_input();
                break;
            }
            let piece = ready.len().min(call.input_room());
            call.input(&ready[..piece]);
            ready.drain(..piece);
            gone += piece as u64;
        }
        if go_on(gone) { Ok(()) } else { Err(CopyFailure::Abandoned) }
    })?;
    same(pack.copied().ok_or(CopyFailure::Differs)?, &theirs)
}

/// The same of an archive that is made already, a tar that `archive` gives; it is waited for as long as it takes.
///
/// # Errors
/// As [`put`]; [`CopyFailure::Here`] where what comes is no archive, or can't be read.
pub fn put_archive(
    socket: &UnixStream,
    put: Put,
    archive: BorrowedFd<'_>,
    limits: Limits,
    mut go_on: impl FnMut(u64) -> bool,
) -> Result<Copied, CopyFailure> {
    let (mut look, mut gone, mut buffer) = (Look::default(), 0, vec![0; PIECE]);
    let theirs = drive(socket, Some(archive), Exec::put(put, limits, Instant::now()), |call| {
        while call.input_room() > 0 && is_ready(archive)? {
            let room = call.input_room().min(PIECE);
            match rustix::io::read(archive, &mut buffer[..room]) {
                // The guest's own word would come too late: this end knows it first.
                Ok(0) if !look.has_ended() => return Err(CopyError::Tar(TarError::Cut, Vec::new()).into()),
                Ok(0) => call.end_input(),
                Ok(n) => {
                    look.take(&buffer[..n])?;
                    if look.has_holes() && call.keep() == Keep::Plain {
                        return Err(Failure::TooOld("xattr").into());
                    }
                    call.input(&buffer[..n]);
                    gone += n as u64;
                }
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(errno) => return Err(CopyError::File("read", b"the archive".to_vec(), errno).into()),
            }
        }
        if go_on(gone) { Ok(()) } else { Err(CopyFailure::Abandoned) }
    })?;
    same(look.end()?, &theirs)
}

/// What both ends agree upon. What each of them left out or took away is lost on the way, wherever that was.
fn same(ours: Copied, theirs: &Copied) -> Result<Copied, CopyFailure> {
    if ours.sha256 != theirs.sha256 {
        return Err(CopyFailure::Differs);
    }
    let left_out = ours.left_out.saturating_add(theirs.left_out);
    let stripped = ours.stripped.saturating_add(theirs.stripped);
    let listed = [ours.listed.as_slice(), &theirs.listed].concat();
    Ok(Copied { left_out, stripped, listed, ..ours })
}

/// Copies files out of a guest, below the directory `place`, under `rules`. Nothing that the guest sends leads out of
/// there.
///
/// # Errors
/// [`CopyFailure`]; what had arrived whole stays, and no half of a file.
pub fn get(
    socket: &UnixStream,
    get: Get,
    place: OwnedFd,
    rules: Rules,
    limits: Limits,
    go_on: impl FnMut(u64) -> bool,
) -> Result<Copied, CopyFailure> {
    let mut unpack = Unpack::new(place, rules)?;
    let theirs = receive(socket, get, limits, |piece| unpack.take(piece), go_on)?;
    same(unpack.end()?, &theirs)
}

/// The same, and the archive goes on to `take`, in pieces of which each was looked at before: names that lead out of
/// their place end the copy. Whoever unpacks it has still to mind its links.
///
/// # Errors
/// [`CopyFailure`], also those of `take`.
pub fn get_archive(
    socket: &UnixStream,
    get: Get,
    limits: Limits,
    mut take: impl FnMut(&[u8]) -> Result<(), CopyError>,
    go_on: impl FnMut(u64) -> bool,
) -> Result<Copied, CopyFailure> {
    let mut look = Look::default();
    let look_at = |piece: &[u8]| look.take(piece).and_then(|()| take(piece));
    let theirs = receive(socket, get, limits, look_at, go_on)?;
    same(look.end()?, &theirs)
}

fn receive(
    socket: &UnixStream,
    get: Get,
    limits: Limits,
    mut take: impl FnMut(&[u8]) -> Result<(), CopyError>,
    mut go_on: impl FnMut(u64) -> bool,
) -> Result<Copied, CopyFailure> {
    let mut come = 0;
    drive(socket, None, Exec::get(get, limits, Instant::now()), |call| {
        while !call.pending(stream::OUT).is_empty() {
            let piece = call.pending(stream::OUT);
            take(piece)?;
            come += piece.len() as u64;
            let taken = piece.len();
            call.passed_on(stream::OUT, taken);
        }
        if go_on(come) { Ok(()) } else { Err(CopyFailure::Abandoned) }
    })
}

/// Whether a read of it doesn't wait.
fn is_ready(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    match poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&now)) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::INTR) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Makes a call of whose streams `step` takes care, whenever something has come or may go; `source` is what it reads,
/// where that may have to be waited for.
fn drive(
    socket: &UnixStream,
    source: Option<BorrowedFd<'_>>,
    mut call: Exec,
    mut step: impl FnMut(&mut Exec) -> Result<(), CopyFailure>,
) -> Result<Copied, CopyFailure> {
    let mut buffer = vec![0; PIECE];
    let mut deaf = false;
    loop {
        step(&mut call)?;
        while !deaf && !call.output().is_empty() {
            match rustix::net::send(socket, call.output(), SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(n) => call.sent(n),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                // There may still be an ERROR to be read.
                Err(_) => deaf = true,
            }
        }
        while let Some(event) = call.next_event() {
            match event {
                Event::Replied(frame) => return frame.json().map_err(CopyFailure::from),
                Event::Failed(failure) => return Err(failure.into()),
                Event::Ended(_) => return Err(Failure::Lost(Stage::Running).into()),
                Event::Greeted(_) | Event::Started(_) | Event::Gone => {}
            }
        }
        // What was sent above may have made room for more.
        if !deaf && source.is_none() && call.output().is_empty() && call.input_room() > 0 {
            continue;
        }
        let flags = if deaf || call.output().is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
        let mut fds = vec![PollFd::from_borrowed_fd(socket.as_fd(), flags)];
        if let Some(source) = source.filter(|_| !deaf && call.input_room() > 0) {
            fds.push(PollFd::from_borrowed_fd(source, PollFlags::IN));
        }
        let left = call.deadline().map(|until| timespec(until.saturating_duration_since(Instant::now())));
        match poll(&mut fds, left.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        match rustix::net::recv(socket, &mut *buffer, RecvFlags::DONTWAIT) {
            Ok((_, 0)) => call.closed(),
            Ok((_, n)) => call.receive(&buffer[..n], Instant::now()),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => call.closed(),
        }
        call.tick(Instant::now());
    }
}
