//! One connection: its request comes in pieces, its reply goes out in pieces, and nobody waits for either.

use crate::gate::{Charge, Peer, Taken};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};
use std::mem::MaybeUninit;
use std::time::Instant;
use wire::Refusal;
use wire::frame::{Decoder, Frame};

/// What is read at once.
const PIECE: usize = 64 << 10;
/// Pieces that one connection gets before it is another's turn.
const PIECES: usize = 16;
/// What is read at once of bytes that nobody wants, and how often.
const SCRAP: usize = 8 << 10;
const SCRAPS: usize = 128;

/// A connection.
#[derive(Debug)]
pub(crate) struct Conn {
    stream: OwnedFd,
    /// Who connected.
    pub(crate) peer: Peer,
    /// When it came.
    pub(crate) since: Instant,
    /// When it has taken too long.
    pub(crate) deadline: Instant,
    /// Whether the door watches it already.
    pub(crate) watched: bool,
    /// What it waits for.
    pub(crate) state: State,
    _place: Taken,
}

/// What a connection waits for.
pub(crate) enum State {
    /// The rest of its request.
    Reading(Decoder, Charge),
    /// That its peer reads.
    Writing {
        /// The reply.
        reply: Vec<u8>,
        /// How much of it is sent.
        sent: usize,
        /// Its bytes.
        _held: Charge,
    },
    /// Nothing: somebody works on its request.
    Working,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            State::Reading(..) => "Reading",
            State::Writing { .. } => "Writing",
            State::Working => "Working",
        })
    }
}

/// What came.
pub(crate) enum Received {
    /// Not all yet.
    Part,
    /// The request, whole, and what it is charged.
    Whole(Frame, Charge),
    /// It can't become one.
    Refused(Refusal),
    /// All requests together have too many bytes.
    NoRoom,
    /// The connection broke.
    Broken,
}

/// How far a reply is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// The peer has to read first.
    Part,
    /// Gone, or never to be read.
    Done,
}

impl Conn {
    pub(crate) fn new(
        stream: OwnedFd,
        peer: Peer,
        place: Taken,
        since: Instant,
        deadline: Instant,
        state: State,
    ) -> Conn {
        Conn { stream, peer, since, deadline, watched: false, state, _place: place }
    }

    /// Reads what is there, as far as it is this one's turn.
    ///
    /// A request that comes in one piece is looked at and left in the socket until it is answered: taking it would wake
    /// its peer, who waits there for the answer and not for room, and a wake costs microseconds.
    // Not inlined: an operation that comes of it should not have these buffers on its stack.
    #[inline(never)]
    pub(crate) fn receive(&mut self) -> Received {
        let State::Reading(decoder, charge) = &mut self.state else { return Received::Part };
        let mut piece = [MaybeUninit::<u8>::uninit(); PIECE];
        for _ in 0..PIECES {
            let is_first = decoder.received() == 0;
            let look = if is_first { RecvFlags::PEEK } else { RecvFlags::empty() };
            let bytes = match recv(&self.stream, &mut piece, RecvFlags::DONTWAIT | look) {
                Ok((([], _), _)) => return Received::Refused(decoder.ended()),
                Ok(((bytes, _), _)) => bytes,
                Err(Errno::AGAIN) => return Received::Part,
                Err(Errno::INTR) => continue,
                Err(_) => return Received::Broken,
            };
            let came = bytes.len();
            if !charge.grow(decoder.received() + came) {
                return Received::NoRoom;
            }
            match decoder.push(bytes) {
                Ok(None) => {}
                Ok(Some(frame)) => return self.whole(frame),
                Err(refusal) => return Received::Refused(refusal),
            }
            // What was looked at is there, and nobody else reads here.
            if is_first
                && !matches!(recv(&self.stream, &mut piece[..came], RecvFlags::DONTWAIT), Ok((_, n)) if n == came)
            {
                return Received::Broken;
            }
            if came < PIECE {
                return Received::Part;
            }
        }
        Received::Part
    }

    fn whole(&mut self, frame: Frame) -> Received {
        match std::mem::replace(&mut self.state, State::Working) {
            State::Reading(_, charge) => Received::Whole(frame, charge),
            _ => Received::Broken,
        }
    }

    /// Sends what the peer takes of its reply.
    pub(crate) fn send(&mut self) -> Sent {
        let State::Writing { reply, sent, .. } = &mut self.state else { return Sent::Done };
        while *sent < reply.len() {
            match send(&self.stream, &reply[*sent..], SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(more) => *sent += more,
                Err(Errno::AGAIN) => return Sent::Part,
                Err(Errno::INTR) => {}
                // It went away: the operation is done all the same.
                Err(_) => return Sent::Done,
            }
        }
        self.finish();
        Sent::Done
    }

    /// The end, as a reader expects it: no more will come, and what he sent is not lying here unread, which the
    /// kernel would tell him as a reset.
    #[inline(never)]
    fn finish(&self) {
        let _ = shutdown(&self.stream, Shutdown::Write);
        let mut scrap = [MaybeUninit::<u8>::uninit(); SCRAP];
        for _ in 0..SCRAPS {
            match recv(&self.stream, &mut scrap, RecvFlags::DONTWAIT) {
                Ok(((bytes, _), _)) if bytes.len() == SCRAP => {}
                _ => return,
            }
        }
    }
}

impl AsFd for Conn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
