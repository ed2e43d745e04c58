//! The doorbell: one connection to the host's port 1023, by which it learns that the agent listens.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use agent::protocol::PORT;
use agent::relay::{Mux, Stream};
use rustix::net::sockopt::socket_error;

use super::port::Port;

const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(50);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Stream,
    Socket,
}

/// The ring that is under way, if any.
#[derive(Debug, Default)]
pub(super) struct Doorbell {
    /// Tries that are left, by which way, and when the next is due.
    due: Option<(u32, Way, Instant)>,
    stream: Option<Stream>,
    socket: Option<OwnedFd>,
}

impl Doorbell {
    /// The relay has begun.
    pub(super) fn ring_by_stream(&mut self) {
        self.stream = None;
        self.due = Some((TRIES, Way::Stream, Instant::now()));
    }

    /// There is a VMM's vsock.
    pub(super) fn ring_by_socket(&mut self) {
        self.due = Some((TRIES, Way::Socket, Instant::now()));
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        // While a try is out, its answer is what is waited for.
        self.due.filter(|_| self.stream.is_none() && self.socket.is_none()).map(|(_, _, at)| at)
    }

    pub(super) fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(|socket| socket.as_fd())
    }

    /// Makes the next try where it is due.
    pub(super) fn tick(&mut self, now: Instant, port: Option<&mut Port>) {
        if self.deadline().is_none_or(|at| at > now) {
            return;
        }
        let Some((left, way, _)) = self.due.take() else { return };
        if left == 0 {
            return;
        }
        self.due = Some((left - 1, way, now + PAUSE));
        match way {
            Way::Stream => self.stream = port.and_then(|port| port.mux.open(PORT).ok()),
            Way::Socket => {
                let to = sys::vsock::Address { cid: sys::vsock::CID_HOST, port: PORT };
                self.socket = sys::vsock::connect(to).ok();
            }
        }
    }

    /// The host took a stream of ours.
    pub(super) fn connected(&mut self, stream: Stream, mux: &mut Mux) {
        if self.stream == Some(stream) {
            self.stream = None;
            self.due = None;
        }
        // Nothing is said: the ring itself is the word.
        mux.finish(stream);
    }

    /// The host, or its front-end, didn't take it.
    pub(super) fn reset(&mut self, stream: Stream) {
        if self.stream == Some(stream) {
            self.stream = None;
        }
    }

    /// The socket is connected or has failed.
    pub(super) fn socket_ready(&mut self) {
        if let Some(socket) = self.socket.take()
            && matches!(socket_error(&socket), Ok(Ok(())))
        {
            self.due = None;
        }
    }
}
