//! One connection between a Unix socket on the host and a stream of the relay.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use agent::relay::{Mux, Stream};
use rustix::event::PollFlags;

/// Where Firecracker begins to number the host's ends.
const FIRST_HOST_PORT: u32 = 1 << 30;
/// How long a host that is behind may read what a guest left before it went.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How long a guest may take to end its side after the host is gone.
const FAREWELL: Duration = Duration::from_secs(10);

/// The host's end of a stream, and what lies between.
#[derive(Debug)]
pub(super) struct Conn {
    pub(super) socket: UnixStream,
    /// When to give it up, where something is waited for.
    pub(super) deadline: Option<Instant>,
    /// The guest sends no more.
    pub(super) guest_finished: bool,
    connected: bool,
    /// What came behind the `CONNECT` line.
    to_guest: Vec<u8>,
    to_host: Vec<u8>,
    /// Bytes of `to_host` that are ours, not the guest's: they cost no credit.
    ours: usize,
    /// The host sends no more.
    host_finished: bool,
    /// Nor does it read.
    host_gone: bool,
    /// The guest is gone without a farewell.
    guest_gone: bool,
    told_end: bool,
}

impl Conn {
    /// A host's `CONNECT` that waits for the guest's answer.
    pub(super) fn from_host(socket: UnixStream, rest: Vec<u8>, deadline: Instant) -> Self {
        Self { to_guest: rest, deadline: Some(deadline), connected: false, ..Self::from_guest(socket) }
    }

    /// A guest's connection that the host has taken.
    pub(super) fn from_guest(socket: UnixStream) -> Self {
        Self {
            socket,
            deadline: None,
            guest_finished: false,
            connected: true,
            to_guest: Vec::new(),
            to_host: Vec::new(),
            ours: 0,
            host_finished: false,
            host_gone: false,
            guest_gone: false,
            told_end: false,
        }
    }

    /// The guest has taken it.
    pub(super) fn answered(&mut self, stream: Stream) {
        let answer = format!("OK {}\n", FIRST_HOST_PORT + stream.number() / 2);
        self.connected = true;
        self.deadline = None;
        self.ours += answer.len();
        self.to_host.extend_from_slice(answer.as_bytes());
    }

    /// Bytes of the guest's; `false` where nobody reads them any more.
    pub(super) fn take(&mut self, bytes: &[u8]) -> bool {
        self.to_host.extend_from_slice(bytes);
        !self.host_gone
    }

    /// The guest is gone, or never came.
    pub(super) fn reset(&mut self) {
        self.guest_gone = true;
        self.deadline = Some(Instant::now() + LAST_WORDS);
    }

    /// What to poll for; `None` where nothing could be done about any answer.
    pub(super) fn interest(&self, sendable: usize) -> Option<PollFlags> {
        if !self.to_host.is_empty() {
            let reads = self.reads() && sendable > 0;
            return Some(if reads { PollFlags::IN | PollFlags::OUT } else { PollFlags::OUT });
        }
        if self.host_gone {
            return None;
        }
        // A hang-up is told without being asked for, and again and again, so it must be wanted.
        if !self.connected || self.host_finished {
            return Some(PollFlags::empty());
        }
        (self.reads() && sendable > 0).then_some(PollFlags::IN)
    }

    fn reads(&self) -> bool {
        self.connected && !self.host_finished && !self.guest_gone && self.to_guest.is_empty()
    }

    /// The socket said something; `true` where bytes of it are on their way to the guest.
    ///
    /// # Errors
    /// The connection is over.
    pub(super) fn ready(&mut self, mux: &mut Mux, stream: Stream, flags: PollFlags) -> io::Result<bool> {
        let hung_up = flags.intersects(PollFlags::HUP | PollFlags::ERR);
        if hung_up && !self.connected {
            return Err(ErrorKind::ConnectionAborted.into());
        }
        if self.reads() && flags.intersects(PollFlags::IN | PollFlags::HUP) {
            let mut piece = [0; 64 * 1024];
            let room = mux.sendable(stream).min(piece.len());
            if room == 0 {
                return Ok(false);
            }
            match self.socket.read(&mut piece[..room]) {
                Ok(0) => {
                    self.host_finished = true;
                    mux.finish(stream);
                }
                Ok(got) => {
                    mux.send(stream, &piece[..got]);
                    return Ok(true);
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(error) => return Err(error),
            }
        }
        if hung_up && self.host_finished && !self.host_gone {
            self.host_gone = true;
            self.deadline = Some(Instant::now() + FAREWELL);
        }
        Ok(false)
    }

    /// Passes on what can be passed on; `true` when nothing is left to be done.
    ///
    /// # Errors
    /// The connection is over.
    pub(super) fn settle(&mut self, mux: &mut Mux, stream: Stream) -> io::Result<bool> {
        if self.connected && !self.to_guest.is_empty() {
            let sent = mux.send(stream, &self.to_guest);
            self.to_guest.drain(..sent);
        }
        self.write(mux, stream)?;
        if !self.to_host.is_empty() {
            return Ok(false);
        }
        if self.guest_finished && !self.told_end {
            self.told_end = true;
            // It may be gone already.
            let _ = self.socket.shutdown(Shutdown::Write);
        }
        Ok(self.guest_gone || (self.guest_finished && self.host_finished))
    }

    fn write(&mut self, mux: &mut Mux, stream: Stream) -> io::Result<()> {
        while !self.to_host.is_empty() {
            match self.socket.write(&self.to_host) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => {
                    self.to_host.drain(..written);
                    let ours = self.ours.min(written);
                    self.ours -= ours;
                    mux.consumed(stream, written - ours);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
