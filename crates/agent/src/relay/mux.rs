//! Both ends of the relay: bytes in, events and bytes out.

mod receive;

use std::collections::{BTreeMap, VecDeque};

use super::event::{Event, OpenError, ProtocolError, Stream};
use super::hunt::Hunt;
use super::state::{Open, State};
use super::{HEADER_LEN, Header, Kind, MAX_DATA, MAX_STREAMS, NONCE_LEN, Nonce, WINDOW, decode, encode};

/// Above this many unwritten bytes [`Mux::send`] takes nothing.
const OUTPUT_SOFT: usize = 256 * 1024;
/// Above this many [`Mux::open`] refuses: data alone, which can fill all that it may, must not keep new streams out.
const OUTPUT_OPEN: usize = 512 * 1024;
/// Above this many a peer makes us answer and doesn't read: a protocol error.
const OUTPUT_HARD: usize = 1024 * 1024;

/// Where the reader stands in the bytes that come.
#[derive(Debug)]
enum Reader {
    /// Skips until the pattern comes: the host the echo, the guest any SYNC's header.
    Hunt(Hunt),
    Header,
    /// The payload of a frame that is not DATA; `small` collects it.
    Small(Header),
    /// The rest of a DATA frame: `None` where the stream is gone and the bytes are skipped.
    Data(Option<Stream>, usize),
    Dead(ProtocolError),
}

/// One end of the relay. The caller moves bytes between it and the port, and after each [`Mux::receive`] takes the
/// events; what is buffered is then bounded by what the caller gave in and by the streams' credit.
#[derive(Debug)]
pub struct Mux {
    /// `Some` on the host.
    nonce: Option<Nonce>,
    synced: bool,
    reader: Reader,
    small: Vec<u8>,
    streams: BTreeMap<u32, State>,
    /// The next number of ours, the highest of the peer's.
    next: Option<u32>,
    last_peer: u32,
    events: VecDeque<Event>,
    output: Vec<u8>,
    written: usize,
}

impl Mux {
    /// The host's end: its SYNC is the first output. The nonce must be random.
    pub fn host(nonce: Nonce) -> Self {
        let mut mux = Self::new(Some(nonce), Hunt::new(&sync_frame(&nonce)));
        mux.output.extend_from_slice(&sync_frame(&nonce));
        mux
    }

    /// The host's end for a guest that was restored, or whose last front-end went away in the middle of a frame.
    pub fn host_resuming(nonce: Nonce) -> Self {
        let mut mux = Self::host(nonce);
        mux.output.splice(..0, std::iter::repeat_n(0, MAX_DATA + 2 * HEADER_LEN));
        mux
    }

    /// The guest's end: silent until the host's SYNC.
    pub fn guest() -> Self {
        Self::new(None, Hunt::new(&sync_frame(&[0; NONCE_LEN])[..HEADER_LEN]))
    }

    fn new(nonce: Option<Nonce>, hunt: Hunt) -> Self {
        Self {
            nonce,
            synced: false,
            reader: Reader::Hunt(hunt),
            small: Vec::with_capacity(NONCE_LEN),
            streams: BTreeMap::new(),
            next: Some(if nonce.is_some() { 1 } else { 2 }),
            last_peer: 0,
            events: VecDeque::new(),
            output: Vec::new(),
            written: 0,
        }
    }

    /// Whether the SYNC and its echo have passed.
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// How many streams are open.
    pub fn streams(&self) -> usize {
        self.streams.len()
    }

    /// The next event.
    pub fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// All events until now.
    pub fn events(&mut self) -> impl Iterator<Item = Event> + '_ {
        std::iter::from_fn(|| self.events.pop_front())
    }

    /// The bytes to write to the port next.
    pub fn output(&self) -> &[u8] {
        &self.output[self.written..]
    }

    /// Says that the first `n` bytes of [`Mux::output`] are written.
    pub fn wrote(&mut self, n: usize) {
        self.written = (self.written + n).min(self.output.len());
        if self.written == self.output.len() {
            self.output.clear();
            self.written = 0;
        } else if self.written >= OUTPUT_SOFT {
            self.output.drain(..self.written);
            self.written = 0;
        }
    }

    /// Asks the other end for a connection to `port`. [`Event::Connected`] or [`Event::Reset`] follows; what is sent
    /// before is kept there.
    ///
    /// # Errors
    /// [`OpenError`]
    pub fn open(&mut self, port: u32) -> Result<Stream, OpenError> {
        if self.nonce.is_none() && !self.synced {
            return Err(OpenError::NotSynced);
        }
        if self.streams.len() >= MAX_STREAMS || self.output().len() > OUTPUT_OPEN {
            return Err(OpenError::Busy);
        }
        let number = self.next.ok_or(OpenError::Exhausted)?;
        self.next = number.checked_add(2);
        self.streams.insert(number, State::new(Open::Asked));
        self.put(number, Kind::Open, &port.to_le_bytes());
        Ok(Stream(number))
    }

    /// Says yes to an [`Event::Opened`].
    pub fn accept(&mut self, stream: Stream) {
        if let Some(state) = self.streams.get_mut(&stream.0)
            && state.open == Open::Asking
        {
            state.open = Open::Connected;
            self.put(stream.0, Kind::Ok, &[]);
        }
    }

    /// Says no to an [`Event::Opened`].
    pub fn refuse(&mut self, stream: Stream) {
        self.reset(stream);
    }

    /// How many bytes [`Mux::send`] would take now.
    pub fn sendable(&self, stream: Stream) -> usize {
        let Some(state) = self.streams.get(&stream.0) else { return 0 };
        if state.we_finished || state.open == Open::Asking {
            return 0;
        }
        (state.credit as usize).min(OUTPUT_SOFT.saturating_sub(self.output().len()))
    }

    /// Sends as much of `bytes` as credit and unwritten output allow, and says how much that was.
    pub fn send(&mut self, stream: Stream, bytes: &[u8]) -> usize {
        let taken = self.sendable(stream).min(bytes.len());
        for piece in bytes[..taken].chunks(MAX_DATA) {
            self.put(stream.0, Kind::Data, piece);
        }
        if let Some(state) = self.streams.get_mut(&stream.0) {
            state.credit -= taken as u32;
        }
        taken
    }

    /// No more will be sent on that stream.
    pub fn finish(&mut self, stream: Stream) {
        if let Some(state) = self.streams.get_mut(&stream.0)
            && !state.we_finished
            && state.open != Open::Asking
        {
            state.we_finished = true;
            self.put(stream.0, Kind::Fin, &[]);
            self.forget_if_done(stream.0);
        }
    }

    /// Gives a stream up; nothing more is heard of it.
    pub fn reset(&mut self, stream: Stream) {
        if self.streams.remove(&stream.0).is_some() {
            self.put(stream.0, Kind::Rst, &[]);
        }
    }

    /// Says that `n` bytes of a stream's [`Event::Data`] were passed on, so that the peer may send as many again.
    pub fn consumed(&mut self, stream: Stream, n: usize) {
        let Some(state) = self.streams.get_mut(&stream.0) else { return };
        let n = state.held.min(u32::try_from(n).unwrap_or(u32::MAX));
        state.held -= n;
        state.owed += n;
        if state.owed >= WINDOW / 2 && !state.peer_finished {
            let credit = std::mem::take(&mut state.owed);
            state.allowance += credit;
            self.put(stream.0, Kind::Window, &credit.to_le_bytes());
        }
        self.forget_if_done(stream.0);
    }

    /// Takes what was read from the port, in pieces of any size.
    ///
    /// # Errors
    /// [`ProtocolError`]. The host's end is dead after it; a guest's end never fails, it drops its streams and waits
    /// for the next SYNC.
    pub fn receive(&mut self, mut bytes: &[u8]) -> Result<(), ProtocolError> {
        while !bytes.is_empty() {
            match self.step(bytes) {
                Ok(used) => bytes = &bytes[used..],
                Err(error) if self.nonce.is_some() => {
                    self.reader = Reader::Dead(error);
                    self.streams.clear();
                    return Err(error);
                }
                Err(_) => self.lose_sync(),
            }
        }
        Ok(())
    }

    /// Takes a first part of `bytes` and says how long it was, at least 1.
    fn step(&mut self, bytes: &[u8]) -> Result<usize, ProtocolError> {
        match &mut self.reader {
            Reader::Dead(error) => Err(*error),
            Reader::Hunt(hunt) => {
                let (used, found) = hunt.feed(bytes);
                if found {
                    self.found();
                }
                Ok(used)
            }
            Reader::Header => {
                let (used, whole) = collect(&mut self.small, bytes, HEADER_LEN);
                if whole {
                    let mut header = [0; HEADER_LEN];
                    header.copy_from_slice(&self.small);
                    self.small.clear();
                    self.header(decode(&header)?)?;
                }
                Ok(used)
            }
            &mut Reader::Small(header) => {
                let (used, whole) = collect(&mut self.small, bytes, header.len as usize);
                if whole {
                    self.reader = Reader::Header;
                    let payload = std::mem::take(&mut self.small);
                    self.payload(header, &payload)?;
                }
                Ok(used)
            }
            &mut Reader::Data(stream, left) => {
                let used = left.min(bytes.len());
                let rest = left - used;
                self.reader = if rest == 0 { Reader::Header } else { Reader::Data(stream, rest) };
                if let Some(stream) = stream {
                    self.data(stream, &bytes[..used]);
                }
                Ok(used)
            }
        }
    }

    /// The hunt is over.
    fn found(&mut self) {
        if self.nonce.is_some() {
            self.synced = true;
            self.events.push_back(Event::Synced);
            self.reader = Reader::Header;
        } else {
            self.reader = Reader::Small(Header { stream: 0, kind: Kind::Sync, len: NONCE_LEN as u32 });
        }
    }

    /// A guest's answer to nonsense. Its streams are told as reset, since no SYNC may follow.
    fn lose_sync(&mut self) {
        let gone = std::mem::take(&mut self.streams);
        self.events.extend(gone.into_keys().map(|number| Event::Reset(Stream(number))));
        let fresh = Self::guest();
        self.reader = fresh.reader;
        self.synced = false;
        self.small.clear();
        self.output.clear();
        self.written = 0;
    }

    fn ours(&self, number: u32) -> bool {
        (number % 2 == 1) == self.nonce.is_some()
    }

    /// Whether a stream of that number was ever open.
    fn was(&self, number: u32) -> bool {
        if self.ours(number) { self.next.is_none_or(|next| number < next) } else { number <= self.last_peer }
    }

    /// A stream lives until both ends have finished and all that came is passed on.
    fn forget_if_done(&mut self, number: u32) {
        if self.streams.get(&number).is_some_and(|s| s.we_finished && s.peer_finished && s.held == 0) {
            self.streams.remove(&number);
        }
    }

    fn put(&mut self, stream: u32, kind: Kind, payload: &[u8]) {
        self.output.extend_from_slice(&encode(Header { stream, kind, len: payload.len() as u32 }));
        self.output.extend_from_slice(payload);
    }
}

/// Fills `into` up to `want` bytes; says how many it took and whether all are there.
fn collect(into: &mut Vec<u8>, bytes: &[u8], want: usize) -> (usize, bool) {
    let used = want.saturating_sub(into.len()).min(bytes.len());
    into.extend_from_slice(&bytes[..used]);
    (used, into.len() >= want)
}

fn sync_frame(nonce: &Nonce) -> [u8; HEADER_LEN + NONCE_LEN] {
    let mut frame = [0; HEADER_LEN + NONCE_LEN];
    frame[..HEADER_LEN].copy_from_slice(&encode(Header { stream: 0, kind: Kind::Sync, len: NONCE_LEN as u32 }));
    frame[HEADER_LEN..].copy_from_slice(nonce);
    frame
}
