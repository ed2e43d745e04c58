//! The ends of a program's streams, and their credit.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use agent::flow::{Receiver, Sender};
use agent::protocol::{GRANT, Grant, Kind, ProtocolError, encode, encode_json, stream};
use rustix::event::PollFlags;
use rustix::io::Errno;

use crate::guest::tty;

/// An output isn't read while this much waits for the host.
const BACKLOG: usize = 64 * 1024;
/// What is read at once.
const PIECE: usize = 16 * 1024;
/// How long a terminal has to be quiet after its program's end: its bytes take a way through the kernel's own queue.
const QUIET: Duration = Duration::from_millis(20);
/// How long somebody else who writes now and then can put that off, once the terminal had nothing. (Kernels move their queue
/// at each read, so that all of the program's has come by then.)
const CHATTER: Duration = Duration::from_millis(200);
/// What that queue and both buffers of a terminal hold at most, twice over: more is of somebody who still writes.
const TERMINAL_HOLDS: u64 = 256 * 1024;

/// A program's input.
#[derive(Debug, Default)]
pub(super) struct Input {
    pub(super) pipe: Option<OwnedFd>,
    pub(super) is_terminal: bool,
    held: VecDeque<u8>,
    flow: Receiver,
    end: bool,
    in_a_line: bool,
}

impl Input {
    pub(super) fn new(pipe: Option<OwnedFd>, is_terminal: bool) -> Self {
        Self { pipe, is_terminal, ..Self::default() }
    }

    /// What to wait for. Nothing but its reader's leaving, where there is nothing to write.
    pub(super) fn wants(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let pipe = self.pipe.as_ref().filter(|_| !self.is_terminal || !self.held.is_empty())?;
        Some((pipe.as_fd(), if self.held.is_empty() { PollFlags::empty() } else { PollFlags::OUT }))
    }

    pub(super) fn take(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), ProtocolError> {
        self.flow.take(bytes.len())?;
        if self.pipe.is_some() {
            self.held.extend(bytes);
            self.pass_on(out);
        }
        Ok(())
    }

    /// The host sends no more.
    pub(super) fn end(&mut self, out: &mut Vec<u8>) -> Result<(), ProtocolError> {
        self.flow.end()?;
        self.end = true;
        if let Some(pipe) = self.pipe.as_ref().filter(|_| self.is_terminal) {
            self.held.extend(tty::end_of_input(pipe, self.in_a_line));
        }
        self.pass_on(out);
        Ok(())
    }

    pub(super) fn pass_on(&mut self, out: &mut Vec<u8>) {
        let Some(pipe) = &self.pipe else { return };
        let mut passed_on = 0;
        while !self.held.is_empty() {
            let bytes = self.held.as_slices().0;
            match rustix::io::write(pipe, bytes) {
                Ok(n) => {
                    self.in_a_line = bytes.get(n.wrapping_sub(1)).is_some_and(|last| !matches!(last, b'\n' | b'\r'));
                    self.held.drain(..n);
                    passed_on += n;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => return self.is_gone(out),
            }
        }
        if let Some(bytes) = self.flow.passed_on(passed_on) {
            encode_json(out, Kind::Grant, stream::IN, &Grant { bytes });
        }
        if self.end && self.held.is_empty() {
            self.pipe = None;
        }
    }

    /// It can be written, or nobody reads it any more.
    pub(super) fn ready(&mut self, got: PollFlags, out: &mut Vec<u8>) {
        let gone = self.pipe.is_some() && !self.is_terminal && got.contains(PollFlags::ERR);
        if gone { self.is_gone(out) } else { self.pass_on(out) }
    }

    fn is_gone(&mut self, out: &mut Vec<u8>) {
        self.pipe = None;
        self.held = VecDeque::new();
        if !self.end {
            encode(out, Kind::Gone, stream::IN, &[]);
        }
    }
}

/// What of an output is still sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rest {
    /// All, to its end.
    All,
    /// So much, which the program had written when it ended.
    Bytes(u64),
    /// A terminal's: so much at most, until it has been quiet up to then; and since when it once had nothing.
    UntilQuiet(u64, Instant, Option<Instant>),
}

/// One of a program's outputs.
#[derive(Debug)]
pub(super) struct Output {
    stream: u8,
    pipe: Option<OwnedFd>,
    is_terminal: bool,
    flow: Sender,
    rest: Rest,
    /// Nobody wants it: it is read, where it has to be, and dropped.
    unwanted: bool,
    /// For who takes the call up again: the last bytes sent, and how many there were in all. `None`: nobody may.
    sent: Option<(VecDeque<u8>, u64)>,
    /// END was sent.
    ended: bool,
}

impl Output {
    pub(super) fn new(stream: u8, pipe: OwnedFd, is_terminal: bool, kept: bool) -> Self {
        let sent = kept.then(Default::default);
        let (flow, rest) = (Sender::default(), Rest::All);
        Self { stream, pipe: Some(pipe), is_terminal, flow, rest, unwanted: false, sent, ended: false }
    }

    pub(super) fn stream(&self) -> u8 {
        self.stream
    }

    pub(super) fn is_done(&self) -> bool {
        self.pipe.is_none()
    }

    /// `waiting`: what the host hasn't taken yet.
    pub(super) fn wants(&self, waiting: usize) -> Option<(BorrowedFd<'_>, PollFlags)> {
        self.pipe.as_ref().filter(|_| self.may_read(waiting)).map(|pipe| (pipe.as_fd(), PollFlags::IN))
    }

    fn may_read(&self, waiting: usize) -> bool {
        self.unwanted || (waiting < BACKLOG && self.flow.room() > 0)
    }

    pub(super) fn grant(&mut self, bytes: u32) -> Result<(), ProtocolError> {
        self.flow.grant(bytes)
    }

    /// The host reads it no more: a pipe's writer is told by the kernel, a terminal has other uses.
    pub(super) fn is_unwanted(&mut self) {
        if self.is_terminal {
            self.unwanted = true;
        } else {
            self.pipe = None;
        }
    }

    /// The host is gone, and the program is to end: what it says to that is for nobody.
    pub(super) fn discard(&mut self) {
        self.unwanted = true;
        self.sent = None;
        if self.is_terminal {
            self.pipe = None;
        }
    }

    /// There is no host for now.
    pub(super) fn pause(&mut self) {
        let room = self.flow.room();
        self.flow.sent(room);
    }

    /// The program has ended. All that it wrote is in the pipe now: that much is still sent, and no more.
    pub(super) fn measure(&mut self) {
        let Some(pipe) = &self.pipe else { return };
        self.rest = match self.is_terminal {
            true => Rest::UntilQuiet(TERMINAL_HOLDS, Instant::now() + QUIET, None),
            false => Rest::Bytes(rustix::io::ioctl_fionread(pipe).unwrap_or(0)),
        };
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.rest {
            // Without a grant it can't be heard whether it is quiet.
            Rest::UntilQuiet(_, until, _) => Some(until).filter(|_| self.pipe.is_some() && self.may_read(0)),
            _ => None,
        }
    }

    /// Reads a piece; says the end where it has come.
    pub(super) fn pass_on(&mut self, out: &mut Vec<u8>) {
        let Some(pipe) = &self.pipe else { return };
        if !self.may_read(out.len()) && self.rest != Rest::Bytes(0) {
            return;
        }
        let owed = match self.rest {
            Rest::All => u64::MAX,
            Rest::Bytes(left) | Rest::UntilQuiet(left, ..) => left,
        };
        let room = if self.unwanted { PIECE } else { self.flow.room().min(PIECE) };
        let most = owed.min(room as u64) as usize;
        if owed == 0 {
            return self.finish(out);
        }
        let mut bytes = [0; PIECE];
        match rustix::io::read(pipe, &mut bytes[..most]) {
            Ok(0) => self.finish(out),
            Ok(n) => {
                if n < most {
                    self.had_nothing();
                }
                self.send(&bytes[..n], out);
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => self.had_nothing(),
            // EIO: a terminal that its last user has left.
            Err(_) => self.finish(out),
        }
    }

    /// All that there was is read. What others write from now on is heard for a while and no longer: who reads only when
    /// there is something would never find a terminal empty on which somebody goes on writing.
    fn had_nothing(&mut self) {
        if let Rest::UntilQuiet(.., since) = &mut self.rest {
            since.get_or_insert_with(Instant::now);
        }
    }

    /// Time has passed: a terminal may have been quiet for long enough.
    pub(super) fn tick(&mut self, now: Instant, out: &mut Vec<u8>) {
        let Rest::UntilQuiet(left, until, since) = self.rest else { return };
        if until > now {
            return;
        }
        if since.is_some_and(|since| since + CHATTER <= now) {
            return self.finish(out);
        }
        // What comes, or can't be taken now, begins the time anew.
        let could_read = self.may_read(out.len());
        self.pass_on(out);
        match &mut self.rest {
            Rest::UntilQuiet(still, ..) if could_read && *still == left => self.finish(out),
            Rest::UntilQuiet(_, until, _) => *until = now + QUIET,
            Rest::All | Rest::Bytes(_) => {}
        }
    }

    fn send(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let count = bytes.len() as u64;
        match &mut self.rest {
            Rest::All => {}
            Rest::Bytes(left) => *left = left.saturating_sub(count),
            Rest::UntilQuiet(left, until, since) => {
                let next = Instant::now() + QUIET;
                let latest = since.map(|since| since + CHATTER);
                (*left, *until) = (left.saturating_sub(count), latest.map_or(next, |latest| next.min(latest)));
            }
        }
        if !self.unwanted {
            encode(out, Kind::Data, self.stream, bytes);
            self.flow.sent(bytes.len());
            if let Some((kept, all)) = &mut self.sent {
                kept.extend(bytes);
                kept.drain(..kept.len().saturating_sub(GRANT as usize));
                *all += count;
            }
        }
        if self.rest == Rest::Bytes(0) {
            self.finish(out);
        }
    }

    fn finish(&mut self, out: &mut Vec<u8>) {
        self.pipe = None;
        if !self.ended && !self.unwanted {
            self.ended = true;
            encode(out, Kind::End, self.stream, &[]);
        }
    }

    /// Whether a new host can go on from that offset.
    pub(super) fn has(&self, offset: u64) -> bool {
        let Some((kept, count)) = &self.sent else { return false };
        offset <= *count && *count - offset <= kept.len() as u64
    }

    /// Sends again what a new host lacks, and its credit begins anew.
    pub(super) fn resume(&mut self, offset: u64, out: &mut Vec<u8>) {
        let Some((kept, count)) = &self.sent else { return };
        let lacking = (*count - offset) as usize;
        let again: Vec<u8> = kept.range(kept.len() - lacking..).copied().collect();
        self.flow = Sender::default();
        self.flow.sent(again.len());
        again.chunks(PIECE).for_each(|piece| encode(out, Kind::Data, self.stream, piece));
        if self.ended {
            encode(out, Kind::End, self.stream, &[]);
        }
    }
}
