//! What the relay tells its caller: events, and why it can't go on.

use std::fmt;

/// A stream's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stream(pub(super) u32);

impl Stream {
    /// The number as it travels: odd where the host opened it, even where the guest did.
    pub fn number(self) -> u32 {
        self.0
    }
}

/// What came from the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Host: the guest has echoed our SYNC. Guest: a SYNC came, every stream of before is gone without a word of its
    /// own.
    Synced,
    /// The other end wants a connection to that port: [`Mux::accept`] or [`Mux::refuse`].
    Opened {
        /// The new stream.
        stream: Stream,
        /// The port asked for.
        port: u32,
    },
    /// A stream that we opened is connected.
    Connected(Stream),
    /// Bytes of a stream, in order. They count against its credit until [`Mux::consumed`] is told of them.
    Data(Stream, Vec<u8>),
    /// More may be sent on that stream.
    Credit(Stream),
    /// The other end sends no more on that stream.
    Finished(Stream),
    /// That stream is gone: refused, or given up by the other end. Nothing more comes of it.
    Reset(Stream),
}

/// Why the other end can't be listened to any longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProtocolError {
    /// A type that no frame has.
    UnknownType,
    /// A length or a pad that the type can't have.
    BadHeader,
    /// A stream number that this frame can't have here.
    BadStream,
    /// A frame that the stream's state doesn't allow.
    OutOfPlace,
    /// More data than the credit allowed, or more credit than there can be.
    Credit,
    /// It makes us answer and doesn't read.
    NotReading,
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UnknownType => "relay: a frame of an unknown type",
            Self::BadHeader => "relay: a frame's length or padding is wrong",
            Self::BadStream => "relay: a frame for a stream that can't be",
            Self::OutOfPlace => "relay: a frame out of place",
            Self::Credit => "relay: the credit is overrun",
            Self::NotReading => "relay: the other end asks and doesn't read the answers",
        })
    }
}

impl std::error::Error for ProtocolError {}

/// Why no stream could be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenError {
    /// There are 1,023 streams, or too much is unwritten: try again later.
    Busy,
    /// Every number was used since the last SYNC.
    Exhausted,
    /// A guest before the host's first SYNC.
    NotSynced,
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Busy => "relay: too many streams, or too much unwritten",
            Self::Exhausted => "relay: all stream numbers are used",
            Self::NotSynced => "relay: the host has not begun",
        })
    }
}

impl std::error::Error for OpenError {}
