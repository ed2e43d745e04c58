//! One call: what the host asked, and how far it is. It moves frames and pipes; whose bytes they are is the server's.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use agent::protocol::{
    Call as Asked, Decoder, Down, ErrorBody, Exec, Exit, ExitCode, ExitSignal, Frame, GRANT, Grant, Hello, Kind,
    ProtocolError, Signal, Started, VERSION, decode_strings, encode, encode_json, stream,
};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::process::{Pid, Signal as Sig, WaitStatus, kill_process_group};

use super::process;

/// A pipe isn't read while this much waits for the host.
const BACKLOG: usize = 64 * 1024;
const ASKING: Duration = Duration::from_secs(5);
const CLOSING: Duration = Duration::from_secs(30);
const LAST_WORDS: Duration = Duration::from_secs(5);

/// A pipe of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pipe {
    In,
    Out(usize),
}

#[derive(Debug)]
enum State {
    /// CALL, and for an exec ARGS, have come or not.
    Asking(Option<(Exec, Option<Vec<u8>>)>),
    Running(Box<Running>),
    Closing,
    Gone,
}

#[derive(Debug)]
struct Running {
    pid: Pid,
    hold: bool,
    input: Input,
    outputs: [Output; 2],
    ended: Option<Exit>,
}

#[derive(Debug)]
struct Input {
    pipe: Option<OwnedFd>,
    held: VecDeque<u8>,
    end: bool,
    /// What the host may still send, and what was passed on and not granted anew.
    allowed: u32,
    owed: u32,
}

#[derive(Debug)]
struct Output {
    stream: u8,
    pipe: Option<OwnedFd>,
    granted: u32,
    /// After the program's end: what it wrote and is not sent yet.
    owed: Option<u64>,
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
    may_end: bool,
    /// Set by `down`, once its REPLY is in the output.
    pub(super) down: Option<(Down, Duration)>,
}

impl Call {
    /// `may_end`: whether `down` is ours to do.
    pub(super) fn new(id: u32, hello: &Hello, may_end: bool) -> Self {
        let mut output = Vec::new();
        encode_json(&mut output, Kind::Hello, 0, hello);
        let deadline = Some(Instant::now() + ASKING);
        let state = State::Asking(None);
        Self { id, decoder: Decoder::new(), output, state, host_gone: false, deadline, may_end, down: None }
    }

    /// Nothing is left to do, and nobody to tell.
    pub(super) fn is_gone(&self) -> bool {
        matches!(self.state, State::Gone)
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Bytes from the host.
    pub(super) fn receive(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.is_gone() && !self.host_gone {
            match self.decoder.take(bytes) {
                Ok((used, frame)) => {
                    bytes = &bytes[used..];
                    if let Some(Err(_)) = frame.map(|frame| self.frame(frame)) {
                        return self.misspoken();
                    }
                }
                Err(_) => return self.misspoken(),
            }
        }
    }

    /// The host closed, or its link is gone.
    pub(super) fn host_is_gone(&mut self) {
        if std::mem::replace(&mut self.host_gone, true) {
            return;
        }
        self.output.clear();
        match &mut self.state {
            State::Running(running) if running.ended.is_none() => {
                // First the chance to end itself; a stopped one must wake up for it.
                let _ = kill_process_group(running.pid, Sig::HUP);
                let _ = kill_process_group(running.pid, Sig::CONT);
                running.input.pipe = None;
                self.deadline = Some(Instant::now() + LAST_WORDS);
            }
            _ => self.state = State::Gone,
        }
    }

    /// Time has passed.
    pub(super) fn tick(&mut self, now: Instant) {
        if self.deadline.is_none_or(|deadline| deadline > now) {
            return;
        }
        self.deadline = None;
        match &self.state {
            State::Asking(_) => self.fail(&ErrorBody { code: "timeout".into(), step: "call".into(), errno: 0 }),
            State::Running(running) => {
                let _ = kill_process_group(running.pid, Sig::KILL);
            }
            State::Closing | State::Gone => self.state = State::Gone,
        }
    }

    /// The leader, while it is not buried.
    pub(super) fn leader(&self) -> Option<Pid> {
        match &self.state {
            State::Running(running) if running.ended.is_none() => Some(running.pid),
            _ => None,
        }
    }

    /// The leader was buried. All that it wrote is in the pipes now; that much is still sent, and no more.
    pub(super) fn buried(&mut self, status: WaitStatus) {
        let State::Running(running) = &mut self.state else { return };
        running.ended = Some(exit_of(status));
        running.input.pipe = None;
        for output in &mut running.outputs {
            if !running.hold {
                output.owed = output.pipe.as_ref().map(|pipe| rustix::io::ioctl_fionread(pipe).unwrap_or(0));
            }
        }
        if self.host_gone {
            self.state = State::Gone;
            return;
        }
        self.finish_if_drained();
    }

    /// The pipes that something can be done with now.
    pub(super) fn pipes(&self) -> impl Iterator<Item = (Pipe, BorrowedFd<'_>, PollFlags)> {
        let running = match &self.state {
            State::Running(running) => Some(running),
            _ => None,
        };
        let room = self.output.len() < BACKLOG || self.host_gone;
        running.into_iter().flat_map(move |running| {
            let input = running.input.pipe.as_ref().filter(|_| !running.input.held.is_empty());
            let input = input.map(|pipe| (Pipe::In, pipe.as_fd(), PollFlags::OUT));
            let outputs = running.outputs.iter().enumerate().filter_map(move |(at, output)| {
                let wanted = room && output.granted > 0;
                output.pipe.as_ref().filter(|_| wanted).map(|pipe| (Pipe::Out(at), pipe.as_fd(), PollFlags::IN))
            });
            input.into_iter().chain(outputs)
        })
    }

    /// A pipe can be read or written.
    pub(super) fn ready(&mut self, pipe: Pipe) {
        let State::Running(running) = &mut self.state else { return };
        match pipe {
            Pipe::In => running.input.pass_on(&mut self.output),
            Pipe::Out(at) => {
                if let Some(output) = running.outputs.get_mut(at) {
                    output.pass_on(&mut self.output);
                }
            }
        }
        if self.host_gone {
            self.output.clear();
        }
        self.finish_if_drained();
    }

    fn frame(&mut self, frame: Frame) -> Result<(), ProtocolError> {
        match (&mut self.state, frame.kind) {
            (State::Asking(None), Kind::Call) => self.asked(frame.json()?),
            (State::Asking(Some((_, args @ None))), Kind::Args) => *args = Some(frame.payload),
            (State::Asking(Some((exec, Some(args)))), Kind::Env) => {
                let (exec, args) = (exec.clone(), std::mem::take(args));
                self.start(&exec, &args, &frame.payload)?;
            }
            (State::Running(running), kind) => running.frame(kind, &frame, &mut self.output)?,
            (State::Closing, Kind::Bye) => self.state = State::Gone,
            // Under way when the program ended.
            (State::Closing, Kind::Data | Kind::End | Kind::Grant | Kind::Signal | Kind::Resize) => {}
            _ => return Err(ProtocolError::OutOfPlace),
        }
        Ok(())
    }

    fn asked(&mut self, asked: Asked) {
        let (Asked::Ping { v } | Asked::Down { v, .. } | Asked::Exec(Exec { v, .. })) = asked;
        if v != VERSION {
            return self.fail(&ErrorBody { code: "unsupported".into(), step: "version".into(), errno: 0 });
        }
        match asked {
            Asked::Ping { .. } => self.reply(),
            Asked::Down { .. } if !self.may_end => {
                self.fail(&ErrorBody { code: "unsupported".into(), step: "down".into(), errno: 0 });
            }
            Asked::Down { how, grace_ms, .. } => {
                self.reply();
                self.down = Some((how, Duration::from_millis(grace_ms.into())));
            }
            Asked::Exec(Exec { tty: Some(_), .. }) => {
                self.fail(&ErrorBody { code: "unsupported".into(), step: "tty".into(), errno: 0 });
            }
            Asked::Exec(exec) => self.state = State::Asking(Some((exec, None))),
        }
    }

    fn start(&mut self, exec: &Exec, args: &[u8], env: &[u8]) -> Result<(), ProtocolError> {
        let (args, env) = (decode_strings(args)?, decode_strings(env)?);
        let started = match process::start(exec, &args, &env) {
            Ok(started) => started,
            Err(error) => {
                self.fail(&error);
                return Ok(());
            }
        };
        let pid = started.pid.as_raw_nonzero().get().unsigned_abs();
        encode_json(&mut self.output, Kind::Started, 0, &Started { id: format!("c{}", self.id), pid });
        self.deadline = None;
        let output = |stream, pipe| Output { stream, pipe: Some(pipe), granted: GRANT, owed: None };
        self.state = State::Running(Box::new(Running {
            pid: started.pid,
            hold: exec.hold,
            input: Input { pipe: started.stdin, held: VecDeque::new(), end: false, allowed: GRANT, owed: 0 },
            outputs: [output(stream::OUT, started.stdout), output(stream::ERR, started.stderr)],
            ended: None,
        }));
        Ok(())
    }

    fn reply(&mut self) {
        encode(&mut self.output, Kind::Reply, 0, b"{}");
        self.close();
    }

    fn fail(&mut self, error: &ErrorBody) {
        encode_json(&mut self.output, Kind::Error, 0, error);
        self.close();
    }

    fn close(&mut self) {
        self.state = State::Closing;
        self.deadline = Some(Instant::now() + CLOSING);
    }

    /// What the host sent is nothing that can be answered; its program ends with the call.
    fn misspoken(&mut self) {
        if let Some(pid) = self.leader() {
            let _ = kill_process_group(pid, Sig::KILL);
        }
        if !self.is_gone() {
            self.fail(&ErrorBody { code: "protocol".into(), step: "frame".into(), errno: 0 });
        }
    }

    fn finish_if_drained(&mut self) {
        let State::Running(running) = &mut self.state else { return };
        let Some(exit) = running.ended else { return };
        for output in &mut running.outputs {
            if output.owed == Some(0) {
                output.end(&mut self.output);
            }
        }
        if running.outputs.iter().all(|output| output.pipe.is_none()) {
            encode_json(&mut self.output, Kind::Exit, 0, &exit);
            self.close();
        }
    }
}

impl Running {
    fn frame(&mut self, kind: Kind, frame: &Frame, out: &mut Vec<u8>) -> Result<(), ProtocolError> {
        match (kind, frame.stream) {
            (Kind::Data, stream::IN) => self.input.take(&frame.payload, out),
            (Kind::End, stream::IN) if !self.input.end => {
                self.input.end = true;
                self.input.close_if_done();
                Ok(())
            }
            (Kind::Grant, stream::OUT | stream::ERR) => {
                let output = &mut self.outputs[usize::from(frame.stream - stream::OUT)];
                let sum = output.granted.checked_add(frame.json::<Grant>()?.bytes).filter(|sum| *sum <= GRANT);
                output.granted = sum.ok_or(ProtocolError::Grant)?;
                Ok(())
            }
            (Kind::Gone, stream::OUT | stream::ERR) => {
                self.outputs[usize::from(frame.stream - stream::OUT)].pipe = None;
                Ok(())
            }
            (Kind::Signal, _) => {
                let signal = signal_of(&frame.json::<Signal>()?.signal).ok_or(ProtocolError::BadPayload)?;
                // Buried, and its number somebody else's: nothing is sent.
                if self.ended.is_none() {
                    let _ = kill_process_group(self.pid, signal);
                }
                Ok(())
            }
            _ => Err(ProtocolError::OutOfPlace),
        }
    }
}

impl Input {
    fn take(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), ProtocolError> {
        if self.end {
            return Err(ProtocolError::OutOfPlace);
        }
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.allowed = self.allowed.checked_sub(len).ok_or(ProtocolError::Grant)?;
        if self.pipe.is_some() {
            self.held.extend(bytes);
            self.pass_on(out);
        }
        Ok(())
    }

    fn pass_on(&mut self, out: &mut Vec<u8>) {
        let Some(pipe) = &self.pipe else { return };
        while !self.held.is_empty() {
            match rustix::io::write(pipe, self.held.as_slices().0) {
                Ok(n) => {
                    self.held.drain(..n);
                    self.owed += n as u32;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => {
                    // The program reads no more.
                    self.pipe = None;
                    self.held.clear();
                    return encode(out, Kind::Gone, stream::IN, &[]);
                }
            }
        }
        if self.owed >= GRANT / 2 {
            let bytes = std::mem::take(&mut self.owed);
            self.allowed += bytes;
            encode_json(out, Kind::Grant, stream::IN, &Grant { bytes });
        }
        self.close_if_done();
    }

    fn close_if_done(&mut self) {
        if self.end && self.held.is_empty() {
            self.pipe = None;
        }
    }
}

impl Output {
    fn pass_on(&mut self, out: &mut Vec<u8>) {
        let Some(pipe) = &self.pipe else { return };
        let most = (self.granted as u64).min(self.owed.unwrap_or(u64::MAX)).min(16 * 1024);
        let mut bytes = [0; 16 * 1024];
        match rustix::io::read(pipe, &mut bytes[..most as usize]) {
            Ok(0) => self.end(out),
            Ok(n) => {
                encode(out, Kind::Data, self.stream, &bytes[..n]);
                self.granted -= n as u32;
                self.owed = self.owed.map(|owed| owed - n as u64);
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.end(out),
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        if self.pipe.take().is_some() {
            encode(out, Kind::End, self.stream, &[]);
        }
    }
}

fn exit_of(status: WaitStatus) -> Exit {
    match status.terminating_signal() {
        // The kernel's WCOREDUMP.
        Some(signal) => {
            Exit::Signal(ExitSignal { signal: signal as u8, core: status.as_raw() & 0x80 != 0, oom: false })
        }
        None => Exit::Code(ExitCode { code: status.exit_status().unwrap_or(0) as u8 }),
    }
}

fn signal_of(name: &str) -> Option<Sig> {
    Some(match name {
        "TERM" => Sig::TERM,
        "KILL" => Sig::KILL,
        "INT" => Sig::INT,
        "HUP" => Sig::HUP,
        "QUIT" => Sig::QUIT,
        "USR1" => Sig::USR1,
        "USR2" => Sig::USR2,
        "ABRT" => Sig::ABORT,
        _ => return None,
    })
}
