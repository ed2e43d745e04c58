//! One connection of the host's: what it asked, and how far that is.
//!
//! ```text
//! asking --CALL (ARGS, ENV)--> working --its end--> closing --BYE, or 30 s--> gone
//! ```
//! Whose descriptors are ready, and when time has passed, the server says.

mod copy;
mod dial;
mod exec;
mod job;
mod pipes;

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use agent::protocol::{
    Attach, Call as Asked, Decoder, Down, ErrorBody, Exec, Frame, Hello, Kind, ProtocolError, VERSION, decode_strings,
    encode_json,
};
use rustix::event::PollFlags;
use rustix::process::Pid;

use super::{clock, facts, identity, process};
use copy::{Getting, Putting};
use dial::Dialling;
use exec::Running;
use job::{Job, Outcome};

const ASKING: Duration = Duration::from_secs(5);
const CLOSING: Duration = Duration::from_secs(30);

/// A descriptor of a call's work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pipe {
    In,
    Out(usize),
}

/// What the calls know of the machine they are in.
#[derive(Debug)]
pub(super) struct Machine {
    /// Whether clock and identity of it are ours to set.
    pub(super) ours: bool,
    /// Whether we can end it: as its first process, or by one that we know how to ask.
    pub(super) may_end: bool,
    /// Only `start` is answered.
    pub(super) armed: bool,
}

/// What a call wants of the server.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// End the machine, once the host has its REPLY.
    Down(Down, Duration),
    /// Take up another call's exec.
    Attach(Attach),
}

#[derive(Debug)]
enum State {
    /// CALL, and for an exec ARGS, have come or not.
    Asking(Option<(Exec, Option<Vec<u8>>)>),
    /// Until the server has found what to attach to.
    Attaching,
    Working(Job),
    Closing,
    Gone,
}

/// One connection of the host's.
#[derive(Debug)]
pub(super) struct Call {
    id: u32,
    decoder: Decoder,
    /// What the host is to get.
    pub(super) output: Vec<u8>,
    state: State,
    host_gone: bool,
    deadline: Option<Instant>,
    /// When the last bytes came: a time that is told in them was true then, and not when they have been taken apart.
    came: clock::Came,
    pub(super) wish: Option<Wish>,
}

impl Call {
    pub(super) fn new(id: u32, hello: &Hello) -> Self {
        let mut output = Vec::new();
        encode_json(&mut output, Kind::Hello, 0, hello);
        let deadline = Some(Instant::now() + ASKING);
        let state = State::Asking(None);
        Self {
            id,
            decoder: Decoder::new(),
            output,
            state,
            host_gone: false,
            deadline,
            came: clock::Came::now(),
            wish: None,
        }
    }

    /// One too many: it is told so, and nothing else.
    pub(super) fn busy(id: u32, hello: &Hello) -> Self {
        let mut call = Self::new(id, hello);
        call.fail(&failed("busy", "call", 0));
        call
    }

    /// Nothing is left to do, and nobody to tell.
    pub(super) fn is_gone(&self) -> bool {
        matches!(self.state, State::Gone)
    }

    /// When [`Call::tick`] is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let own = match &self.state {
            State::Working(job) => job.deadline(),
            _ => None,
        };
        own.into_iter().chain(self.deadline).min()
    }

    /// Bytes from the host.
    pub(super) fn receive(&mut self, mut bytes: &[u8], machine: &mut Machine) {
        self.came = clock::Came::now();
        while !bytes.is_empty() && !self.is_gone() && !self.host_gone {
            match self.decoder.take(bytes) {
                Ok((used, frame)) => {
                    bytes = &bytes[used..];
                    if let Some(Err(_)) = frame.map(|frame| self.frame(frame, machine)) {
                        return self.misspoken();
                    }
                }
                Err(_) => return self.misspoken(),
            }
        }
        self.finish();
    }

    /// The host closed, or its link is gone.
    pub(super) fn host_is_gone(&mut self) {
        if std::mem::replace(&mut self.host_gone, true) {
            return;
        }
        self.output.clear();
        if let State::Working(job) = &mut self.state
            && job.host_is_gone()
        {
            return self.finish();
        }
        self.state = State::Gone;
    }

    /// Time has passed.
    pub(super) fn tick(&mut self, now: Instant) {
        if let State::Working(job) = &mut self.state {
            job.tick(now, &mut self.output);
            self.finish();
        }
        if self.deadline.is_none_or(|deadline| deadline > now) {
            return;
        }
        self.deadline = None;
        match &self.state {
            State::Asking(_) => self.fail(&failed("timeout", "call", 0)),
            State::Attaching | State::Working(_) => {}
            State::Closing | State::Gone => self.state = State::Gone,
        }
    }

    /// The leader, while its number is kept for it.
    pub(super) fn leader(&self) -> Option<Pid> {
        match &self.state {
            State::Working(Job::Exec(running)) => running.leader(),
            _ => None,
        }
    }

    /// A child has ended: perhaps the leader.
    pub(super) fn look_at_leader(&mut self, machine_ends: bool) {
        if let State::Working(Job::Exec(running)) = &mut self.state {
            running.look(machine_ends, &mut self.output);
            self.finish();
        }
    }

    /// The descriptors that something can be done with now.
    pub(super) fn pipes(&self) -> Vec<(Pipe, BorrowedFd<'_>, PollFlags)> {
        match &self.state {
            State::Working(job) => job.pipes(self.output.len()),
            _ => Vec::new(),
        }
    }

    /// One of them is ready.
    pub(super) fn ready(&mut self, pipe: Pipe, got: PollFlags) {
        if let State::Working(job) = &mut self.state {
            job.ready(pipe, got, &mut self.output);
            self.finish();
        }
    }

    /// Makes more for the host, where that needs no waiting.
    pub(super) fn produce(&mut self) {
        if let State::Working(job) = &mut self.state {
            job.produce(&mut self.output);
            self.finish();
        }
    }

    /// Gives its exec to another connection, where it is the one of that name and lingers.
    pub(super) fn hand_over(&mut self, id: &str) -> Option<Box<Running>> {
        match std::mem::replace(&mut self.state, State::Gone) {
            State::Working(Job::Exec(running)) if running.lingers() && running.id == id => Some(running),
            state => {
                self.state = state;
                None
            }
        }
    }

    /// Answers `attach`: with the exec, where there was one.
    pub(super) fn attached(&mut self, attach: &Attach, running: Option<Box<Running>>) -> Option<Box<Running>> {
        let Some(mut running) = running else {
            self.fail(&failed("no_call", "attach", 0));
            return None;
        };
        if !running.attach([attach.out, attach.err], &mut self.output) {
            self.fail(&failed("no_call", "offset", 0));
            return Some(running);
        }
        self.deadline = None;
        self.state = State::Working(Job::Exec(running));
        self.finish();
        None
    }

    /// Takes back what [`Call::hand_over`] gave.
    pub(super) fn take_back(&mut self, running: Box<Running>) {
        self.state = State::Working(Job::Exec(running));
    }

    fn frame(&mut self, frame: Frame, machine: &mut Machine) -> Result<(), ProtocolError> {
        match (&mut self.state, frame.kind) {
            (State::Asking(None), Kind::Call) => self.asked(frame.json()?, machine),
            (State::Asking(Some((_, args @ None))), Kind::Args) => *args = Some(frame.payload),
            (State::Asking(Some((exec, Some(args)))), Kind::Env) => {
                let (exec, args) = (exec.clone(), std::mem::take(args));
                self.start(&exec, &args, &frame.payload)?;
            }
            (State::Working(job), _) => job.frame(&frame, &mut self.output)?,
            (State::Closing, Kind::Bye) => self.state = State::Gone,
            // Under way when the call ended.
            (
                State::Closing,
                Kind::Call
                | Kind::Args
                | Kind::Env
                | Kind::Data
                | Kind::End
                | Kind::Grant
                | Kind::Gone
                | Kind::Signal
                | Kind::Resize,
            ) => {}
            _ => return Err(ProtocolError::OutOfPlace),
        }
        Ok(())
    }

    fn asked(&mut self, asked: Asked, machine: &mut Machine) {
        if asked.version() != VERSION {
            return self.fail(&failed("unsupported", "version", 0));
        }
        if machine.armed && !matches!(asked, Asked::Start(_)) {
            return self.fail(&failed("armed", "call", 0));
        }
        let unsupported = |step| failed("unsupported", step, 0);
        match asked {
            Asked::Exec(exec) => self.state = State::Asking(Some((exec, None))),
            Asked::Attach(attach) => {
                self.state = State::Attaching;
                self.wish = Some(Wish::Attach(attach));
            }
            Asked::Put(put) => self.work(Putting::new(&put).map(|job| Job::Put(Box::new(job)))),
            Asked::Get(get) => self.work(Getting::new(&get).map(|job| Job::Get(Box::new(job)))),
            Asked::Dial(dial) => {
                let job = Dialling::new(format!("c{}", self.id), &dial);
                self.work(job.map(|job| Job::Dial(Box::new(job))));
            }
            Asked::Ping { .. } => self.reply(&Nothing {}),
            Asked::Stats { .. } => self.reply(&facts::stats()),
            Asked::ListenList { .. } => {
                let listed = facts::listeners(&mut self.output);
                self.reply(&listed);
            }
            Asked::Down { .. } if !machine.may_end => self.fail(&unsupported("down")),
            Asked::Arm { .. } if !machine.ours => self.fail(&unsupported("arm")),
            Asked::Start(_) if !machine.ours => self.fail(&unsupported("start")),
            Asked::Time { .. } if !machine.ours => self.fail(&unsupported("time")),
            Asked::Entropy { .. } if !machine.ours => self.fail(&unsupported("entropy")),
            Asked::Down { how, grace_ms, .. } => {
                self.reply(&Nothing {});
                self.wish = Some(Wish::Down(how, Duration::from_millis(grace_ms.into())));
            }
            Asked::Arm { files, .. } => {
                let done = identity::prepare(&files);
                machine.armed = done.is_ok();
                self.answer(done.map(|()| Nothing {}));
            }
            Asked::Time { unix_ns, by_ns, .. } => self.answer(clock::correct(unix_ns, by_ns)),
            Asked::Entropy { bytes, .. } => self.answer(identity::add_entropy(&bytes).map(|()| Nothing {})),
            Asked::Start(start) => match identity::take(&start, machine.armed, self.came) {
                Ok(()) => {
                    machine.armed = false;
                    match start.exec {
                        Some(exec) => self.state = State::Asking(Some((exec, None))),
                        None => self.reply(&Nothing {}),
                    }
                }
                Err(error) => self.fail(&error),
            },
        }
    }

    fn start(&mut self, exec: &Exec, args: &[u8], env: &[u8]) -> Result<(), ProtocolError> {
        let (args, env) = (decode_strings(args)?, decode_strings(env)?);
        match process::start(exec, &args, &env) {
            Ok(started) => {
                self.deadline = None;
                let running = Running::new(format!("c{}", self.id), exec, started, &mut self.output);
                self.state = State::Working(Job::Exec(Box::new(running)));
            }
            Err(error) => self.fail(&error),
        }
        Ok(())
    }

    fn work(&mut self, job: Result<Job, ErrorBody>) {
        match job {
            Ok(job) => (self.state, self.deadline) = (State::Working(job), None),
            Err(error) => self.fail(&error),
        }
    }

    fn answer<T: serde::Serialize>(&mut self, answer: Result<T, ErrorBody>) {
        match answer {
            Ok(body) => self.reply(&body),
            Err(error) => self.fail(&error),
        }
    }

    fn reply<T: serde::Serialize>(&mut self, body: &T) {
        encode_json(&mut self.output, Kind::Reply, 0, body);
        self.close();
    }

    fn fail(&mut self, error: &ErrorBody) {
        encode_json(&mut self.output, Kind::Error, 0, error);
        self.close();
    }

    fn close(&mut self) {
        self.state = if self.host_gone { State::Gone } else { State::Closing };
        self.deadline = Some(Instant::now() + CLOSING);
    }

    /// What the host sent is nothing that can be answered; its program ends with the call.
    fn misspoken(&mut self) {
        if let State::Working(Job::Exec(running)) = &self.state {
            running.kill();
        }
        if !self.is_gone() {
            self.fail(&failed("protocol", "frame", 0));
        }
    }

    /// Ends the call where its work is done.
    fn finish(&mut self) {
        if self.host_gone {
            self.output.clear();
        }
        let State::Working(job) = &mut self.state else { return };
        match job.outcome() {
            Some(Outcome::Exit(exit)) => {
                encode_json(&mut self.output, Kind::Exit, 0, &exit);
                self.close();
            }
            Some(Outcome::Copied(copied)) => self.reply(&copied),
            Some(Outcome::Closed) => self.reply(&Nothing {}),
            Some(Outcome::Failed(error)) => self.fail(&error),
            None if job.is_over() => self.state = State::Gone,
            None => {}
        }
    }
}

/// A REPLY that says no more than that it is one.
#[derive(Debug, serde::Serialize)]
struct Nothing {}

/// The body of an ERROR.
pub(super) fn failed(code: &str, step: &str, errno: i32) -> ErrorBody {
    ErrorBody { code: code.into(), step: step.into(), errno }
}
