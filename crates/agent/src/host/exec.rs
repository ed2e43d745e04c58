//! One call with streams as the host sees it, without any I/O: most often an exec.
//!
//! ```text
//! Greeting --HELLO--> Starting --STARTED--> Running --EXIT, or a copy's or connection's REPLY--> over
//!     any of them --ERROR, a wrong frame, a limit, the connection's end--> over
//! ```
//! Nothing leaves `over`, and none of its causes but EXIT has a status. A copy has no STARTED: it runs once it is asked for.

mod ask;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::link::{greeted, lacks};
use super::{Failure, Limits, Link, Stage};
use crate::flow::{Receiver, Sender};
use crate::protocol::{
    Call, Exit, Frame, GRANT, Get, Grant, Hello, Keep, Kind, MAX_PAYLOAD, ProtocolError, Put, Signal, SignalName,
    Started, TtySize, stream,
};

/// How long a guest that has something to do for a copy may bring nothing forward: its disk may be slow.
const SILENCE: Duration = Duration::from_secs(60);
/// No more input is taken while this much waits to be sent.
const BACKLOG: usize = 64 * 1024;

/// What has happened.
#[derive(Debug)]
pub enum Event {
    /// The agent's HELLO. It is the guest's word, to be escaped where it is shown.
    Greeted(Hello),
    /// The program runs.
    Started(Started),
    /// The program reads no more input.
    Gone,
    /// The program ended, and all that it wrote has come. The last event.
    Ended(Exit),
    /// The copy or the connection ended, with this answer: one JSON object. The last event.
    Replied(Frame),
    /// There is no result. The last event.
    Failed(Failure),
}

/// One of the outputs: what came of it and was not passed on.
#[derive(Debug, Default)]
struct Output {
    flow: Receiver,
    held: VecDeque<u8>,
    /// Nobody wants it.
    unwanted: bool,
}

/// One call with streams: `exec`, by itself, after `start` or taken up again; a copy; a connection.
#[derive(Debug)]
pub struct Exec {
    link: Link,
    limits: Limits,
    /// `None`: over.
    stage: Option<Stage>,
    until: Option<Instant>,
    call: Call,
    /// ARGS and ENV, where they follow.
    words: Option<[Vec<u8>; 2]>,
    begun: Instant,
    has_tty: bool,
    caps: Vec<&'static str>,
    input: Sender,
    input_open: bool,
    has_input: bool,
    /// This end has brought a copy forward since the last [`Exec::tick`].
    has_moved: bool,
    outputs: [Output; 2],
    /// What was asked for before the program ran.
    early_signals: Vec<SignalName>,
    early_size: Option<TtySize>,
    events: VecDeque<Event>,
}

impl Exec {
    /// The next event. The program's output is no event: see [`Exec::pending`].
    pub fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Bytes from the connection.
    pub fn receive(&mut self, mut bytes: &[u8], now: Instant) {
        while !bytes.is_empty() && self.stage.is_some() {
            let took = self.link.take(&mut bytes, now).map_err(Failure::from);
            let done = took.and_then(|frame| frame.map_or(Ok(()), |frame| self.frame(frame, now)));
            if let Err(failure) = done {
                self.fail(failure);
            }
        }
    }

    /// The connection ended.
    pub fn closed(&mut self) {
        if let Some(stage) = self.stage {
            self.fail(Failure::Lost(stage));
        }
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Instant) {
        let has_moved = std::mem::take(&mut self.has_moved);
        if self.is_copy() && self.stage == Some(Stage::Running) && (has_moved || !self.is_waited_for()) {
            self.until = Some(now + SILENCE);
        }
        if let Some(stage) = self.stage
            && self.deadline().is_some_and(|deadline| deadline <= now)
        {
            self.fail(Failure::Late(stage));
        }
    }

    /// When [`Exec::tick`] is due.
    pub fn deadline(&self) -> Option<Instant> {
        self.stage?;
        [self.until, self.link.deadline()].into_iter().flatten().min()
    }

    /// Moves the limits: for so long the caller was stopped, and looked at nothing.
    pub fn forgive(&mut self, time: Duration) {
        self.until = self.until.map(|until| until + time);
        self.link.forgive(time);
    }

    /// Whether the last event is there. What is [`Exec::pending`] is still to be passed on.
    pub fn is_over(&self) -> bool {
        self.stage.is_none()
    }

    /// What is to be sent to the agent.
    pub fn output(&self) -> &[u8] {
        self.link.output()
    }

    /// So much of it was sent.
    pub fn sent(&mut self, bytes: usize) {
        self.link.sent(bytes);
    }

    /// What the program wrote and was not passed on yet, a first part of it; `stream` is `stream::OUT` or `stream::ERR`.
    pub fn pending(&self, stream: u8) -> &[u8] {
        self.outputs[index(stream)].held.as_slices().0
    }

    /// So much of it was passed on, which lets the program write more.
    pub fn passed_on(&mut self, stream: u8, bytes: usize) {
        self.has_moved = true;
        self.outputs[index(stream)].held.drain(..bytes);
        self.let_more(stream, bytes);
    }

    /// Whether this output has ended, and all of it was passed on.
    pub fn has_ended(&self, stream: u8) -> bool {
        let output = &self.outputs[index(stream)];
        output.flow.has_ended() && output.held.is_empty()
    }

    /// Nobody reads this output any more. The program is told, if it still runs.
    pub fn unwanted(&mut self, stream: u8) {
        let output = &mut self.outputs[index(stream)];
        if std::mem::replace(&mut output.unwanted, true) {
            return;
        }
        output.held = VecDeque::new();
        if self.stage == Some(Stage::Running) && !output.flow.has_ended() {
            self.link.send(Kind::Gone, stream, &[]);
        }
    }

    /// How much input is taken now.
    pub fn input_room(&self) -> usize {
        if self.stage != Some(Stage::Running) || !self.input_open {
            return 0;
        }
        self.input.room().min(BACKLOG.saturating_sub(self.link.output().len())).min(MAX_PAYLOAD)
    }

    /// Whether input may be taken, now or later.
    pub fn wants_input(&self) -> bool {
        self.stage.is_some() && self.input_open
    }

    /// Sends input: not more than there is room.
    pub fn input(&mut self, bytes: &[u8]) {
        let bytes = &bytes[..bytes.len().min(self.input_room())];
        if !bytes.is_empty() {
            self.has_moved = true;
            self.input.sent(bytes.len());
            self.link.send(Kind::Data, stream::IN, bytes);
        }
    }

    /// Ends the input.
    pub fn end_input(&mut self) {
        if std::mem::replace(&mut self.input_open, false) && self.stage == Some(Stage::Running) {
            self.has_moved = true;
            self.link.send(Kind::End, stream::IN, &[]);
        }
    }

    /// Sends a signal to the program's group; before it runs, one of each kind is kept for it.
    pub fn signal(&mut self, signal: SignalName) {
        match self.stage {
            Some(Stage::Running) => self.link.send_json(Kind::Signal, 0, &Signal { signal }),
            Some(_) if !self.early_signals.contains(&signal) => self.early_signals.push(signal),
            _ => {}
        }
    }

    /// Gives the terminal a new size; before the program runs, the last one is kept for it.
    pub fn resize(&mut self, size: TtySize) {
        match self.stage {
            _ if !self.has_tty => {}
            Some(Stage::Running) => self.link.send_json(Kind::Resize, 0, &size),
            _ => self.early_size = Some(size),
        }
    }

    /// What a copy keeps: less than was asked for, where the agent can't keep it.
    pub fn keep(&self) -> Keep {
        match &self.call {
            Call::Put(Put { keep, .. }) | Call::Get(Get { keep, .. }) => *keep,
            _ => Keep::Plain,
        }
    }

    /// Gives the call up.
    pub fn abandon(&mut self) {
        if self.stage.is_some() {
            self.fail(Failure::Abandoned);
        }
    }

    fn frame(&mut self, frame: Frame, now: Instant) -> Result<(), Failure> {
        if self.is_copy() && self.stage == Some(Stage::Running) {
            self.until = Some(now + SILENCE);
        }
        match (self.stage, frame.kind, frame.stream) {
            (Some(Stage::Greeting), ..) => self.greeted(&frame, now)?,
            (Some(_), Kind::Error, _) => {
                let body = frame.json()?;
                self.link.send(Kind::Bye, 0, &[]);
                return Err(Failure::Refused(body));
            }
            (Some(Stage::Starting), Kind::Started, _) => self.started(frame.json()?),
            (Some(Stage::Running), Kind::Data, from @ (stream::OUT | stream::ERR)) => {
                let output = &mut self.outputs[index(from)];
                output.flow.take(frame.payload.len())?;
                if output.unwanted {
                    self.let_more(from, frame.payload.len());
                } else {
                    output.held.extend(&frame.payload);
                }
            }
            (Some(Stage::Running), Kind::End, from @ (stream::OUT | stream::ERR)) => {
                self.outputs[index(from)].flow.end()?
            }
            (Some(Stage::Running), Kind::Grant, stream::IN) => {
                let grant: Grant = frame.json()?;
                // An honest receiver waits for half; who doesn't has a bound of another kind.
                if grant.bytes < GRANT / 2 {
                    self.link.count_idle(now)?;
                }
                self.input.grant(grant.bytes)?;
            }
            (Some(Stage::Running), Kind::Gone, stream::IN) => {
                self.link.count_idle(now)?;
                if std::mem::replace(&mut self.input_open, false) {
                    self.events.push_back(Event::Gone);
                }
            }
            (Some(Stage::Running), Kind::Reply, _) if self.is_copy() || matches!(self.call, Call::Dial(_)) => {
                self.link.send(Kind::Bye, 0, &[]);
                self.over(Event::Replied(frame));
            }
            (Some(Stage::Running), Kind::Exit, _) if self.has_program() => {
                let exit = frame.json()?;
                self.link.send(Kind::Bye, 0, &[]);
                self.over(Event::Ended(exit));
            }
            _ => return Err(ProtocolError::OutOfPlace.into()),
        }
        Ok(())
    }

    fn greeted(&mut self, frame: &Frame, now: Instant) -> Result<(), Failure> {
        let hello = greeted(frame)?;
        let lacking = lacks(&hello, &self.caps);
        if let (Some(_), Call::Put(Put { keep, .. }) | Call::Get(Get { keep, .. })) =
            (lacks(&hello, &["xattr"]), &mut self.call)
        {
            *keep = Keep::Plain;
        }
        // Then all of it comes.
        if let (Some(_), Call::Get(get)) = (lacks(&hello, &["leave"]), &mut self.call) {
            get.leave.clear();
        }
        self.events.push_back(Event::Greeted(hello));
        match lacking {
            Some(what) => return Err(Failure::TooOld(what)),
            None => self.ask(now),
        }
        Ok(())
    }

    fn ask(&mut self, now: Instant) {
        if let Call::Start(start) = &mut self.call {
            let passed = u64::try_from(now.duration_since(self.begun).as_nanos()).unwrap_or(u64::MAX);
            start.unix_ns = start.unix_ns.saturating_add(passed);
        }
        self.link.call(&self.call);
        if let Some([args, env]) = self.words.take() {
            self.link.send(Kind::Args, 0, &args);
            self.link.send(Kind::Env, 0, &env);
        }
        (self.stage, self.until) = match self.is_copy() {
            true => (Some(Stage::Running), Some(now + SILENCE)),
            false => (Some(Stage::Starting), Some(now + self.limits.answer)),
        };
    }

    fn has_program(&self) -> bool {
        matches!(self.call, Call::Exec(_) | Call::Start(_) | Call::Attach(_))
    }

    fn is_copy(&self) -> bool {
        matches!(self.call, Call::Put(_) | Call::Get(_))
    }

    /// Whether it is the guest's turn in a copy. It is not while this end holds what came, or has nothing to send yet.
    fn is_waited_for(&self) -> bool {
        let sends = self.has_input;
        let has_all = !self.input_open || self.input.room() == 0 || !self.link.output().is_empty();
        if sends { has_all } else { self.outputs[index(stream::OUT)].held.is_empty() }
    }

    fn started(&mut self, started: Started) {
        (self.stage, self.until) = (Some(Stage::Running), None);
        self.events.push_back(Event::Started(started));
        if let Some(size) = self.early_size.take() {
            self.resize(size);
        }
        std::mem::take(&mut self.early_signals).into_iter().for_each(|signal| self.signal(signal));
        for stream in [stream::OUT, stream::ERR] {
            if self.outputs[index(stream)].unwanted {
                self.link.send(Kind::Gone, stream, &[]);
            }
        }
        if self.has_input && !self.input_open {
            self.link.send(Kind::End, stream::IN, &[]);
        }
    }

    fn let_more(&mut self, stream: u8, passed_on: usize) {
        let grant = self.outputs[index(stream)].flow.passed_on(passed_on);
        if let Some(bytes) = grant.filter(|_| self.stage.is_some()) {
            self.link.send_json(Kind::Grant, stream, &Grant { bytes });
        }
    }

    fn fail(&mut self, failure: Failure) {
        self.over(Event::Failed(failure));
    }

    fn over(&mut self, last: Event) {
        (self.stage, self.until) = (None, None);
        self.events.push_back(last);
    }
}

fn index(stream: u8) -> usize {
    usize::from(stream == stream::ERR)
}
