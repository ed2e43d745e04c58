//! A program that a call runs.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use agent::protocol::{
    Exec, Exit, Frame, Grant, Kind, ProtocolError, Signal as Wanted, Started, TtySize, encode_json, stream,
};
use rustix::event::PollFlags;
use rustix::process::{Pid, Signal};

use super::Pipe;
use super::pipes::{Input, Output};
use crate::guest::reap::{self, Leader};
use crate::guest::{process, tty};

/// What the programs have between HUP and KILL when their host is gone.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How often it is looked whether some are left.
const LOOK: Duration = Duration::from_millis(50);

/// Whether somebody listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Host {
    There,
    /// Gone, and it may come back.
    Away,
    Gone,
}

/// A program, its streams and its end.
#[derive(Debug)]
pub(in crate::guest) struct Running {
    pub(super) id: String,
    pub(super) host: Host,
    leader: Leader,
    hold: bool,
    linger: Duration,
    /// Our hold on the program's end of its terminal.
    slave: Option<OwnedFd>,
    input: Input,
    outputs: Vec<Output>,
    ended: Option<Exit>,
    killed_before: u64,
    until: Option<Instant>,
    /// Without a host: when to see next who is left of the session. Nobody tells us of children that aren't ours.
    next_look: Option<Instant>,
}

impl Running {
    pub(super) fn new(id: String, exec: &Exec, started: process::Started, out: &mut Vec<u8>) -> Self {
        let is_terminal = started.slave.is_some();
        let kept = exec.linger_s > 0;
        let mut input = Input::new(started.stdin, is_terminal);
        let output = |stream, pipe| Output::new(stream, pipe, is_terminal, kept);
        let outputs = [(stream::OUT, Some(started.stdout)), (stream::ERR, started.stderr)];
        let outputs = outputs.into_iter().filter_map(|(stream, pipe)| pipe.map(|pipe| output(stream, pipe))).collect();
        let leader = Leader::new(started.pid);
        encode_json(out, Kind::Started, 0, &Started { id: id.clone(), pid: number(started.pid) });
        if !exec.stdin {
            // A pipe is /dev/null then; who reads the terminal sees its end. Nothing was sent before, so it can't fail.
            let _ = input.end(out);
        }
        Self {
            id,
            host: Host::There,
            leader,
            hold: exec.hold,
            linger: Duration::from_secs(exec.linger_s.into()),
            slave: started.slave,
            input,
            outputs,
            ended: None,
            killed_before: started.killed_before,
            until: None,
            next_look: None,
        }
    }

    pub(super) fn leader(&self) -> Option<Pid> {
        self.leader.is_kept().then(|| self.leader.pid())
    }

    pub(super) fn kill(&self) {
        self.leader.kill_session();
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.outputs.iter().filter_map(Output::deadline).chain(self.until).chain(self.next_look).min()
    }

    pub(super) fn frame(&mut self, frame: &Frame, out: &mut Vec<u8>) -> Result<(), ProtocolError> {
        match (frame.kind, frame.stream) {
            (Kind::Data, stream::IN) => self.input.take(&frame.payload, out),
            (Kind::End, stream::IN) => self.input.end(out),
            (Kind::Grant, from) => self.output(from)?.grant(frame.json::<Grant>()?.bytes),
            // A terminal has one output; that the host has nobody for another is nothing to it.
            (Kind::Gone, stream::ERR) if self.outputs.len() == 1 => Ok(()),
            (Kind::Gone, from) => {
                self.output(from)?.is_unwanted();
                Ok(())
            }
            (Kind::Signal, _) => {
                let signal = frame.json::<Wanted>()?.signal.signal();
                self.leader.signal(signal);
                Ok(())
            }
            (Kind::Resize, _) => {
                let size: TtySize = frame.json()?;
                // After its end there is nobody to see the size.
                let _ = self.slave.as_ref().map(|slave| tty::resize(slave, size));
                Ok(())
            }
            _ => Err(ProtocolError::OutOfPlace),
        }
    }

    fn output(&mut self, stream: u8) -> Result<&mut Output, ProtocolError> {
        self.outputs.iter_mut().find(|output| output.stream() == stream).ok_or(ProtocolError::OutOfPlace)
    }

    pub(super) fn pipes(&self, waiting: usize) -> Vec<(Pipe, BorrowedFd<'_>, PollFlags)> {
        let input = self.input.wants().map(|(fd, flags)| (Pipe::In, fd, flags));
        let outputs = self.outputs.iter().enumerate().filter_map(|(at, output)| {
            let (fd, flags) = output.wants(waiting)?;
            Some((Pipe::Out(at), fd, flags))
        });
        input.into_iter().chain(outputs).collect()
    }

    pub(super) fn ready(&mut self, pipe: Pipe, got: PollFlags, out: &mut Vec<u8>) {
        match pipe {
            Pipe::In => self.input.ready(got, out),
            Pipe::Out(at) => {
                if let Some(output) = self.outputs.get_mut(at) {
                    output.pass_on(out);
                }
            }
        }
    }

    /// A child has ended: perhaps this one. `machine_ends`: there is nobody to keep it for.
    pub(super) fn look(&mut self, machine_ends: bool, out: &mut Vec<u8>) {
        if self.ended.is_none()
            && let Some(status) = self.leader.ended()
        {
            let oom = reap::killed_for_memory() > self.killed_before;
            self.ended = Some(reap::exit_of(&status, oom));
            self.input.pipe = None;
            if self.hold {
                // Its end is when the last one leaves, and we are one.
                self.slave = None;
            } else {
                self.outputs.iter_mut().for_each(Output::measure);
                self.outputs.iter_mut().for_each(|output| output.pass_on(out));
            }
        }
        if machine_ends && self.ended.is_some() {
            self.leader.bury();
        }
    }

    pub(super) fn host_is_gone(&mut self) {
        self.input.pipe = None;
        if self.linger.is_zero() {
            return self.end_without_host();
        }
        self.host = Host::Away;
        self.outputs.iter_mut().for_each(Output::pause);
        self.until = Some(Instant::now() + self.linger);
    }

    /// First the chance to end themselves; a stopped one must wake up for it.
    fn end_without_host(&mut self) {
        self.host = Host::Gone;
        self.leader.signal(Signal::HUP);
        self.leader.signal(Signal::CONT);
        // Its terminal is hung up, as by any that goes away.
        self.slave = None;
        self.outputs.iter_mut().for_each(Output::discard);
        self.until = Some(Instant::now() + LAST_WORDS);
    }

    /// Time has passed.
    pub(super) fn tick(&mut self, now: Instant, out: &mut Vec<u8>) {
        self.outputs.iter_mut().for_each(|output| output.tick(now, out));
        self.next_look = (self.host == Host::Gone && self.ended.is_some()).then_some(now + LOOK);
        if self.until.is_none_or(|until| until > now) {
            return;
        }
        self.until = None;
        match self.host {
            Host::There => {}
            Host::Away => self.end_without_host(),
            Host::Gone => self.leader.kill_session(),
        }
    }

    /// How it ended, once all that it wrote was sent.
    pub(super) fn finished(&self) -> Option<Exit> {
        self.ended.filter(|_| self.outputs.iter().all(Output::is_done))
    }

    /// Nobody waits for it, and nobody of it is left who has to go.
    pub(super) fn is_over(&self) -> bool {
        self.ended.is_some() && (self.until.is_none() || self.leader.others().is_empty())
    }

    pub(super) fn lingers(&self) -> bool {
        self.host == Host::Away
    }

    /// A host is there again and has so much of each output. `false`: what it lacks is gone.
    pub(super) fn attach(&mut self, offsets: [u64; 2], out: &mut Vec<u8>) -> bool {
        let offset = |output: &Output| offsets[usize::from(output.stream() == stream::ERR)];
        if !self.outputs.iter().all(|output| output.has(offset(output))) {
            return false;
        }
        (self.host, self.until) = (Host::There, None);
        encode_json(out, Kind::Started, 0, &Started { id: self.id.clone(), pid: number(self.leader.pid()) });
        self.outputs.iter_mut().for_each(|output| output.resume(offset(output), out));
        true
    }
}

fn number(pid: Pid) -> u32 {
    pid.as_raw_nonzero().get().unsigned_abs()
}
