//! What a frame that came does: to which stream, and whether it may.

use super::super::event::{Event, ProtocolError, Stream};
use super::super::state::{Open, State};
use super::super::{Header, Kind, MAX_DATA, MAX_STREAMS, NONCE_LEN};
use super::{Mux, OUTPUT_HARD, Reader, sync_frame};

impl Mux {
    pub(super) fn header(&mut self, header: Header) -> Result<(), ProtocolError> {
        let number = header.stream;
        if self.output().len() > OUTPUT_HARD {
            return Err(ProtocolError::NotReading);
        }
        match header.kind {
            Kind::Sync if self.nonce.is_some() => return Err(ProtocolError::OutOfPlace),
            Kind::Sync => {}
            Kind::Open if self.ours(number) || number <= self.last_peer => return Err(ProtocolError::BadStream),
            Kind::Open => {}
            // What was under way when a stream ended is no fault; a stream that never was is.
            _ if !self.streams.contains_key(&number) && !self.was(number) => return Err(ProtocolError::BadStream),
            Kind::Data => return self.data_header(header),
            _ => {}
        }
        if header.len == 0 {
            return self.payload(header, &[]);
        }
        self.reader = Reader::Small(header);
        Ok(())
    }

    fn data_header(&mut self, header: Header) -> Result<(), ProtocolError> {
        let mut to = None;
        if let Some(state) = self.streams.get_mut(&header.stream) {
            if state.open == Open::Asked || state.peer_finished {
                return Err(ProtocolError::OutOfPlace);
            }
            state.allowance = state.allowance.checked_sub(header.len).ok_or(ProtocolError::Credit)?;
            state.held += header.len;
            to = Some(Stream(header.stream));
        }
        self.reader = Reader::Data(to, header.len as usize);
        Ok(())
    }

    pub(super) fn data(&mut self, stream: Stream, bytes: &[u8]) {
        // Reset by us while the frame came in.
        if !self.streams.contains_key(&stream.0) {
            return;
        }
        match self.events.back_mut() {
            Some(Event::Data(last, held)) if *last == stream && held.len() + bytes.len() <= MAX_DATA => {
                held.extend_from_slice(bytes);
            }
            _ => self.events.push_back(Event::Data(stream, bytes.to_vec())),
        }
    }

    /// Any whole frame but DATA.
    pub(super) fn payload(&mut self, header: Header, payload: &[u8]) -> Result<(), ProtocolError> {
        let number = header.stream;
        match header.kind {
            Kind::Sync => self.echo(payload),
            Kind::Open => self.opened(number, word(payload)),
            Kind::Rst => {
                if self.streams.remove(&number).is_some() {
                    self.events.push_back(Event::Reset(Stream(number)));
                }
            }
            Kind::Ok | Kind::Fin | Kind::Window | Kind::Data => {
                if let Some(state) = self.streams.get_mut(&number) {
                    let event = state.change(Stream(number), header.kind, word(payload))?;
                    self.events.push_back(event);
                    self.forget_if_done(number);
                }
            }
        }
        Ok(())
    }

    fn echo(&mut self, payload: &[u8]) {
        let mut nonce = [0; NONCE_LEN];
        nonce.copy_from_slice(payload);
        *self = Self::guest();
        self.synced = true;
        self.reader = Reader::Header;
        self.output.extend_from_slice(&sync_frame(&nonce));
        self.events.push_back(Event::Synced);
    }

    fn opened(&mut self, number: u32, port: u32) {
        self.last_peer = number;
        if self.streams.len() < MAX_STREAMS {
            self.streams.insert(number, State::new(Open::Asking));
            self.events.push_back(Event::Opened { stream: Stream(number), port });
            return;
        }
        self.put(number, Kind::Rst, &[]);
    }
}

fn word(payload: &[u8]) -> u32 {
    payload.try_into().map_or(0, u32::from_le_bytes)
}
