//! What every call shares: frames out of bytes, HELLO, and the limits of time and number.

use std::time::{Duration, Instant};

use super::Failure;
use crate::protocol::{Call, Decoder, Frame, Hello, Kind, ProtocolError, VERSION, encode, encode_json};

/// How long a frame may take from its first byte to its last.
const MIDWAY: Duration = Duration::from_secs(10);
/// Frames that carry nothing: so many at once, and so many a second.
const IDLE_FRAMES: u32 = 1000;

/// The connection of one call.
#[derive(Debug)]
pub struct Link {
    decoder: Decoder,
    output: Vec<u8>,
    midway_until: Option<Instant>,
    /// Frames without content that may still come.
    idle_left: u32,
    idle_since: Instant,
}

impl Link {
    /// A link that begins now.
    pub fn new(now: Instant) -> Self {
        let (decoder, output) = (Decoder::new(), Vec::new());
        Self { decoder, output, midway_until: None, idle_left: IDLE_FRAMES, idle_since: now }
    }

    /// Takes a first part of `bytes`, which it shortens, up to the end of a frame. To be called until nothing is left.
    ///
    /// # Errors
    /// [`ProtocolError`]; the call is over then.
    pub fn take(&mut self, bytes: &mut &[u8], now: Instant) -> Result<Option<Frame>, ProtocolError> {
        let (used, frame) = self.decoder.take(bytes)?;
        *bytes = &bytes[used..];
        if self.decoder.is_midway() {
            self.midway_until.get_or_insert(now + MIDWAY);
            return Ok(None);
        }
        self.midway_until = None;
        if frame.as_ref().is_none_or(|frame| frame.kind == Kind::Data && frame.payload.is_empty()) {
            self.count_idle(now)?;
        }
        Ok(frame)
    }

    /// Counts a frame that carries nothing.
    ///
    /// # Errors
    /// [`ProtocolError::TooMany`]
    pub fn count_idle(&mut self, now: Instant) -> Result<(), ProtocolError> {
        if self.idle_left == 0 && now.duration_since(self.idle_since) >= Duration::from_secs(1) {
            (self.idle_left, self.idle_since) = (IDLE_FRAMES, now);
        }
        self.idle_left = self.idle_left.checked_sub(1).ok_or(ProtocolError::TooMany)?;
        Ok(())
    }

    /// When the frame that has begun has to be whole.
    pub fn deadline(&self) -> Option<Instant> {
        self.midway_until
    }

    /// Moves the limit: for so long nobody looked.
    pub fn forgive(&mut self, time: Duration) {
        self.midway_until = self.midway_until.map(|until| until + time);
    }

    /// What is to be sent.
    pub fn output(&self) -> &[u8] {
        &self.output
    }

    /// So much of it was.
    pub fn sent(&mut self, bytes: usize) {
        self.output.drain(..bytes);
    }

    /// Sends a frame.
    pub fn send(&mut self, kind: Kind, stream: u8, payload: &[u8]) {
        encode(&mut self.output, kind, stream, payload);
    }

    /// Sends a frame with a JSON object.
    pub fn send_json<T: serde::Serialize>(&mut self, kind: Kind, stream: u8, body: &T) {
        encode_json(&mut self.output, kind, stream, body);
    }

    /// Asks for something.
    pub fn call(&mut self, call: &Call) {
        self.send_json(Kind::Call, 0, call);
    }
}

/// Reads the agent's first frame.
///
/// # Errors
/// `Protocol` for any other frame; `TooOld` where it speaks no version that we do.
pub(crate) fn greeted(frame: &Frame) -> Result<Hello, Failure> {
    if frame.kind != Kind::Hello {
        return Err(ProtocolError::OutOfPlace.into());
    }
    let hello: Hello = frame.json()?;
    let [lowest, highest] = hello.protocol;
    if (lowest..=highest).contains(&VERSION) { Ok(hello) } else { Err(Failure::TooOld("this program")) }
}

/// The first of `caps` that an agent doesn't have.
pub(crate) fn lacks(hello: &Hello, caps: &[&'static str]) -> Option<&'static str> {
    caps.iter().copied().find(|cap| !hello.caps.iter().any(|has| has == cap))
}
