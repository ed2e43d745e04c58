//! The relay's frames: many byte streams over the one virtio-serial port between a VMM's front-end and the guest.
//!
//! A frame is a header of twelve bytes, little-endian, and its payload:
//!
//! ```text
//! stream u32 | type u16 | pad u16 (zero) | len u32 | len bytes
//! ```
//!
//! | type | stream | payload | meaning |
//! |---|---|---|---|
//! | 1 SYNC | 0 | nonce, 16 bytes | host: drop every stream; guest: done, the same nonce back |
//! | 2 OPEN | new | port, u32 | connect to that port at the other end |
//! | 3 OK | open | none | connected |
//! | 4 DATA | open | 1 to 16,384 bytes | |
//! | 5 FIN | open | none | no more data from here |
//! | 6 RST | any | none | refused, or given up; the stream is gone |
//! | 7 WINDOW | open | credit, u32 | that many bytes more may be sent |
//!
//! The host numbers its streams 1, 3, 5 …, the guest 2, 4, 6 …, always upwards until the next SYNC. Each direction of
//! a stream starts with [`WINDOW`] bytes of credit; the opener may use its own before OK comes, so SYNC, OPEN and a
//! request go out in one write.
//!
//! A guest that is restored from a saved state goes on in the middle of whatever it was writing. So the host skips all
//! that comes until the exact echo of its SYNC. The other direction has the same trouble (half a frame of the old
//! host's): a guest that reads nonsense drops its streams and waits for the next SYNC, and [`Mux::host_resuming`]
//! sends enough zeros first to end any half frame.
//!
//! Nothing here does I/O: [`Mux`] takes bytes and gives events and bytes.

mod event;
mod hunt;
mod mux;
mod state;
#[cfg(test)]
mod tests;

pub use event::{Event, OpenError, ProtocolError, Stream};
pub use mux::Mux;

/// Bytes of a frame's header.
pub const HEADER_LEN: usize = 12;
/// The most bytes that one DATA frame carries.
pub const MAX_DATA: usize = 16 * 1024;
/// The credit that each direction of a stream starts with, and the most that it can ever have, in bytes.
pub const WINDOW: u32 = 256 * 1024;
/// The most streams that are open at once, from both sides together (Firecracker's number).
pub const MAX_STREAMS: usize = 1023;
/// Bytes of a SYNC's nonce.
pub const NONCE_LEN: usize = 16;

/// A SYNC's nonce: random, so that no earlier byte of the stream can be taken for its echo.
pub type Nonce = [u8; NONCE_LEN];

/// What a frame means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Kind {
    /// Drop every stream, and its echo.
    Sync = 1,
    /// Connect to a port.
    Open = 2,
    /// Connected.
    Ok = 3,
    /// Bytes.
    Data = 4,
    /// No more bytes from this side.
    Fin = 5,
    /// The stream is gone.
    Rst = 6,
    /// More credit.
    Window = 7,
}

/// A frame's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The stream, 0 for SYNC.
    pub stream: u32,
    /// What the frame means.
    pub kind: Kind,
    /// Bytes of payload that follow.
    pub len: u32,
}

/// Writes a header.
pub fn encode(header: Header) -> [u8; HEADER_LEN] {
    let mut out = [0; HEADER_LEN];
    out[..4].copy_from_slice(&header.stream.to_le_bytes());
    out[4..6].copy_from_slice(&(header.kind as u16).to_le_bytes());
    out[8..].copy_from_slice(&header.len.to_le_bytes());
    out
}

/// Reads a header, and checks all of it that can be checked without knowing the streams: type, pad, length, and that
/// SYNC alone has stream 0.
///
/// # Errors
/// [`ProtocolError`], where it is no header that this protocol has.
pub fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Header, ProtocolError> {
    let [s0, s1, s2, s3, k0, k1, p0, p1, l0, l1, l2, l3] = *bytes;
    let kind = match u16::from_le_bytes([k0, k1]) {
        1 => Kind::Sync,
        2 => Kind::Open,
        3 => Kind::Ok,
        4 => Kind::Data,
        5 => Kind::Fin,
        6 => Kind::Rst,
        7 => Kind::Window,
        _ => return Err(ProtocolError::UnknownType),
    };
    let (stream, len) = (u32::from_le_bytes([s0, s1, s2, s3]), u32::from_le_bytes([l0, l1, l2, l3]));
    let fits = match kind {
        Kind::Sync => len as usize == NONCE_LEN,
        Kind::Open | Kind::Window => len == 4,
        Kind::Ok | Kind::Fin | Kind::Rst => len == 0,
        Kind::Data => (1..=MAX_DATA).contains(&(len as usize)),
    };
    if !fits || p0 != 0 || p1 != 0 {
        return Err(ProtocolError::BadHeader);
    }
    if (stream == 0) != (kind == Kind::Sync) {
        return Err(ProtocolError::BadStream);
    }
    Ok(Header { stream, kind, len })
}
