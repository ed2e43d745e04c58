//! The frames of one call to the agent, and their contents.
//!
//! ```text
//! length u32 little-endian | kind u8 | stream u8 | length bytes
//! ```
//!
//! One connection is one call: the agent says HELLO, the host CALL. What the host then sends and gets depends on the
//! call; `exec` is CALL, ARGS, ENV, and STARTED, DATA, END, EXIT in answer, the others have one REPLY. Any end without
//! EXIT, REPLY or ERROR is a lost call.
//!
//! | kind | payload |
//! |---|---|
//! | HELLO, CALL, STARTED, GRANT, SIGNAL, RESIZE, EXIT, ERROR, REPLY | one JSON object, at most 16 KiB (HELLO 4 KiB) |
//! | ARGS, ENV | each string and a NUL; one frame of each, in this order |
//! | DATA | bytes of the stream that the frame names |
//! | END, GONE, BYE | empty |
//!
//! Each stream starts with 256 KiB granted to its sender.

mod body;
mod calls;
mod replies;
#[cfg(test)]
mod tests;

pub use body::{
    ErrorBody, Exit, ExitCode, ExitSignal, Grant, Hello, Signal, SignalName, Started, decode_strings, encode_json,
    encode_strings,
};
pub use calls::{Attach, Call, Dial, Down, Exec, Get, Interface, Keep, MAX_LEAVE, OwnFile, Put, Start, TtySize};
pub use replies::{Listed, Listener, Stats, TimeSet};

use std::fmt;

/// The port that the agent listens on, and that it rings on the host.
pub const PORT: u32 = 1023;
/// The version of this protocol.
pub const VERSION: u16 = 1;
/// Bytes of a frame's header.
pub const HEADER_LEN: usize = 6;
/// The most bytes of a payload.
pub const MAX_PAYLOAD: usize = 65_536;
/// The most bytes of a payload that is JSON.
pub const MAX_CONTROL: usize = 16 * 1024;
/// The most bytes of HELLO.
pub const MAX_HELLO: usize = 4 * 1024;
/// What a stream's sender may send before the first GRANT, and the most that can be granted at any time.
pub const GRANT: u32 = 256 * 1024;

/// What a frame means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// The agent's first word.
    Hello = 1,
    /// What the host wants.
    Call = 2,
    /// The arguments of an exec.
    Args = 3,
    /// The environment of an exec.
    Env = 4,
    /// The program runs.
    Started = 5,
    /// Bytes of a stream.
    Data = 6,
    /// A stream's end.
    End = 7,
    /// More may be sent on a stream.
    Grant = 8,
    /// A signal for the program.
    Signal = 9,
    /// The terminal's new size.
    Resize = 10,
    /// How the program ended.
    Exit = 11,
    /// The call failed.
    Error = 12,
    /// The call's result.
    Reply = 13,
    /// Nobody reads this stream.
    Gone = 14,
    /// The host has all that it wants.
    Bye = 15,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        use Kind::*;
        const ALL: [Kind; 15] =
            [Hello, Call, Args, Env, Started, Data, End, Grant, Signal, Resize, Exit, Error, Reply, Gone, Bye];
        ALL.get(usize::from(byte).checked_sub(1)?).copied()
    }

    /// The most bytes of its payload.
    pub fn limit(self) -> usize {
        match self {
            Self::Hello => MAX_HELLO,
            Self::Data | Self::Args | Self::Env => MAX_PAYLOAD,
            Self::End | Self::Gone | Self::Bye => 0,
            _ => MAX_CONTROL,
        }
    }

    /// Whether its frame belongs to the streams 1, 2 or 3; all others have 0.
    fn has_stream(self) -> bool {
        matches!(self, Self::Data | Self::End | Self::Grant | Self::Gone)
    }
}

/// Stream numbers.
pub mod stream {
    /// What is no stream.
    pub const CONTROL: u8 = 0;
    /// The program's input.
    pub const IN: u8 = 1;
    /// Its output.
    pub const OUT: u8 = 2;
    /// Its error output.
    pub const ERR: u8 = 3;
}

/// One whole frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it means.
    pub kind: Kind,
    /// The stream, 0 for what is about none.
    pub stream: u8,
    /// The payload, as long as the kind allows at most.
    pub payload: Vec<u8>,
}

/// Why the other end can't be listened to any longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProtocolError {
    /// A kind below 128 that this version doesn't have.
    UnknownKind,
    /// Longer than that kind may be.
    TooLong,
    /// A stream that this kind can't have.
    BadStream,
    /// The payload is not what the kind says.
    BadPayload,
    /// A frame that the call's state doesn't allow.
    OutOfPlace,
    /// More data than was granted, or more granted than there can be.
    Grant,
    /// Frames without end that carry nothing.
    TooMany,
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UnknownKind => "a frame of an unknown kind",
            Self::TooLong => "a frame longer than its kind may be",
            Self::BadStream => "a frame for a stream that can't be",
            Self::BadPayload => "a frame whose content is not what its kind says",
            Self::OutOfPlace => "a frame out of place",
            Self::Grant => "more data than was granted",
            Self::TooMany => "frames without end that carry nothing",
        })
    }
}

impl std::error::Error for ProtocolError {}

/// Appends a frame to `out`. A payload beyond the kind's limit is a mistake of the caller, and cut.
pub fn encode(out: &mut Vec<u8>, kind: Kind, stream: u8, payload: &[u8]) {
    debug_assert!(payload.len() <= kind.limit());
    let payload = &payload[..payload.len().min(kind.limit())];
    out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    out.extend_from_slice(&[kind as u8, stream]);
    out.extend_from_slice(payload);
}

/// Bytes in, frames out. It holds at most one frame that is not whole, and no more than what came of it.
#[derive(Debug, Default)]
pub struct Decoder {
    held: Vec<u8>,
    /// What is left of a frame that may be skipped.
    skip: usize,
}

impl Decoder {
    /// A decoder at the beginning of a connection.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether it stands in the middle of a frame.
    pub fn is_midway(&self) -> bool {
        !self.held.is_empty() || self.skip > 0
    }

    /// Takes a first part of `bytes`: says how long that was, and the frame that it completed. To be called until
    /// nothing is left of `bytes`.
    ///
    /// # Errors
    /// [`ProtocolError`], before anything is kept of the frame that is wrong.
    pub fn take(&mut self, bytes: &[u8]) -> Result<(usize, Option<Frame>), ProtocolError> {
        if self.skip > 0 {
            let used = self.skip.min(bytes.len());
            self.skip -= used;
            return Ok((used, None));
        }
        let header = HEADER_LEN.saturating_sub(self.held.len()).min(bytes.len());
        self.held.extend_from_slice(&bytes[..header]);
        let Some((len, kind, stream)) = self.header()? else {
            return Ok((header, None));
        };
        let Some(kind) = kind else {
            self.held.clear();
            self.skip = len;
            return Ok((header, None));
        };
        let rest = &bytes[header..];
        let used = (HEADER_LEN + len - self.held.len()).min(rest.len());
        self.held.extend_from_slice(&rest[..used]);
        if self.held.len() < HEADER_LEN + len {
            return Ok((header + used, None));
        }
        let mut payload = std::mem::take(&mut self.held);
        payload.drain(..HEADER_LEN);
        Ok((header + used, Some(Frame { kind, stream, payload })))
    }

    /// Length, kind (`None`: to be skipped) and stream, once the header is there.
    #[allow(clippy::type_complexity)]
    fn header(&self) -> Result<Option<(usize, Option<Kind>, u8)>, ProtocolError> {
        let Some(&[l0, l1, l2, l3, kind, stream]) = self.held.first_chunk::<HEADER_LEN>() else { return Ok(None) };
        let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        if kind >= 128 {
            return if len <= MAX_PAYLOAD { Ok(Some((len, None, stream))) } else { Err(ProtocolError::TooLong) };
        }
        let kind = Kind::from_byte(kind).ok_or(ProtocolError::UnknownKind)?;
        if len > kind.limit() {
            return Err(ProtocolError::TooLong);
        }
        if kind.has_stream() != (1..=3).contains(&stream) || (!kind.has_stream() && stream != 0) {
            return Err(ProtocolError::BadStream);
        }
        Ok(Some((len, Some(kind), stream)))
    }
}
