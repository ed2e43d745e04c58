//! What is kept of one stream.

use super::event::{Event, ProtocolError, Stream};
use super::{Kind, WINDOW};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Open {
    /// We asked, no answer yet.
    Asked,
    /// We were asked and have not answered.
    Asking,
    Connected,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) open: Open,
    /// What we may still send.
    pub(super) credit: u32,
    /// What the peer may still send.
    pub(super) allowance: u32,
    /// Received, not yet reported by `consumed`.
    pub(super) held: u32,
    /// Consumed, not yet given back by a WINDOW. `allowance + held + owed` is always `WINDOW`.
    pub(super) owed: u32,
    pub(super) we_finished: bool,
    pub(super) peer_finished: bool,
}

impl State {
    pub(super) fn new(open: Open) -> Self {
        let (we_finished, peer_finished) = (false, false);
        Self { open, credit: WINDOW, allowance: WINDOW, held: 0, owed: 0, we_finished, peer_finished }
    }
    /// An OK, FIN or WINDOW from the peer.
    pub(super) fn change(&mut self, stream: Stream, kind: Kind, credit: u32) -> Result<Event, ProtocolError> {
        match (kind, self.open) {
            (Kind::Ok, Open::Asked) => {
                self.open = Open::Connected;
                Ok(Event::Connected(stream))
            }
            (Kind::Fin, Open::Asking | Open::Connected) if !self.peer_finished => {
                self.peer_finished = true;
                Ok(Event::Finished(stream))
            }
            (Kind::Window, Open::Connected) => {
                let sum = self.credit.checked_add(credit).filter(|sum| *sum <= WINDOW && credit > 0);
                self.credit = sum.ok_or(ProtocolError::Credit)?;
                Ok(Event::Credit(stream))
            }
            _ => Err(ProtocolError::OutOfPlace),
        }
    }
}
