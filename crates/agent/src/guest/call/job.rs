//! What a call does between its question and its answer.

use std::os::fd::BorrowedFd;
use std::time::Instant;

use agent::copy::Copied;
use agent::protocol::{ErrorBody, Exit, Frame, ProtocolError};
use rustix::event::PollFlags;

use super::Pipe;
use super::copy::{Getting, Putting};
use super::dial::Dialling;
use super::exec::{Host, Running};

/// One kind of work or another.
#[derive(Debug)]
pub(super) enum Job {
    Exec(Box<Running>),
    Put(Box<Putting>),
    Get(Box<Getting>),
    Dial(Box<Dialling>),
}

/// How it came out.
#[derive(Debug)]
pub(super) enum Outcome {
    Exit(Exit),
    Copied(Copied),
    Closed,
    Failed(ErrorBody),
}

impl Job {
    pub(super) fn frame(&mut self, frame: &Frame, out: &mut Vec<u8>) -> Result<(), ProtocolError> {
        match self {
            Self::Exec(job) => job.frame(frame, out),
            Self::Put(job) => job.frame(frame, out),
            Self::Get(job) => job.frame(frame),
            Self::Dial(job) => job.frame(frame, out),
        }
    }

    /// What to wait for; `waiting`: what the host hasn't taken yet.
    pub(super) fn pipes(&self, waiting: usize) -> Vec<(Pipe, BorrowedFd<'_>, PollFlags)> {
        match self {
            Self::Exec(job) => job.pipes(waiting),
            Self::Dial(job) => job.pipes(waiting),
            // Files are always ready.
            Self::Put(_) | Self::Get(_) => Vec::new(),
        }
    }

    pub(super) fn ready(&mut self, pipe: Pipe, got: PollFlags, out: &mut Vec<u8>) {
        match self {
            Self::Exec(job) => job.ready(pipe, got, out),
            Self::Dial(job) => job.ready(pipe, got, out),
            Self::Put(_) | Self::Get(_) => {}
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Exec(job) => job.deadline(),
            Self::Put(_) | Self::Get(_) | Self::Dial(_) => None,
        }
    }

    pub(super) fn tick(&mut self, now: Instant, out: &mut Vec<u8>) {
        if let Self::Exec(job) = self {
            job.tick(now, out);
        }
    }

    /// Makes more for the host, where that needs no waiting.
    pub(super) fn produce(&mut self, out: &mut Vec<u8>) {
        if let Self::Get(job) = self {
            job.produce(out);
        }
    }

    /// `true`: there is still something to be done without a host.
    pub(super) fn host_is_gone(&mut self) -> bool {
        match self {
            Self::Exec(job) => {
                job.host_is_gone();
                true
            }
            Self::Put(_) | Self::Get(_) | Self::Dial(_) => false,
        }
    }

    /// Nobody waits for it, and nothing of it is left.
    pub(super) fn is_over(&self) -> bool {
        matches!(self, Self::Exec(job) if job.host == Host::Gone && job.is_over())
    }

    /// What to tell the host, once.
    pub(super) fn outcome(&mut self) -> Option<Outcome> {
        match self {
            Self::Exec(job) => job.finished().filter(|_| job.host == Host::There).map(Outcome::Exit),
            Self::Put(job) => job.outcome(),
            Self::Get(job) => job.outcome(),
            Self::Dial(job) => job.outcome(),
        }
    }
}
