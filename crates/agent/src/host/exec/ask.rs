//! What a call can ask for.

use std::collections::VecDeque;
use std::os::unix::ffi::OsStrExt;
use std::time::Instant;

use super::super::link::lacks;
use super::super::{Failure, Limits, Link, Program, Stage};
use super::{Exec, Output};
use crate::flow::Sender;
use crate::protocol::{Attach, Call, Dial, Exec as Asked, Get, Hello, Keep, Put, Start, VERSION, encode_strings};

/// The most bytes of a user's name or a directory: a CALL with both, escaped, is one frame still.
const MAX_TEXT: usize = 1024;

impl Exec {
    /// A call on a connection that was made now.
    ///
    /// # Errors
    /// [`Failure::BadArguments`]
    pub fn new(program: &Program, limits: Limits, now: Instant) -> Result<Self, Failure> {
        Self::on(Link::new(now), program, limits, now)
    }

    /// The same by `start`: the machine gets its identity first. `start.exec` is made of `program`, and `start.unix_ns` is
    /// the time at `now`.
    ///
    /// # Errors
    /// [`Failure::BadArguments`]
    pub fn with_start(program: &Program, start: Start, limits: Limits, now: Instant) -> Result<Self, Failure> {
        let mut exec = Self::new(program, limits, now)?;
        exec.caps.push("start");
        exec.call = Call::Start(Box::new(Start { exec: Some(asked(program)), ..start }));
        Ok(exec)
    }

    /// Takes up an exec that lingers in the guest: STARTED's id, and how many bytes of each output were passed on before.
    pub fn attached(id: &str, passed_on: [u64; 2], limits: Limits, now: Instant) -> Self {
        let [out, err] = passed_on;
        let call = Call::Attach(Attach { v: VERSION, id: id.into(), out, err });
        let mut exec = Self::made(Link::new(now), call, None, limits, now);
        exec.caps.push("linger");
        exec
    }

    /// Files into the guest: a tar is the input.
    pub fn put(put: Put, limits: Limits, now: Instant) -> Self {
        let caps = copy_caps(put.keep);
        let mut call = Self::made(Link::new(now), Call::Put(put), None, limits, now);
        (call.caps, call.has_input, call.input_open) = (caps, true, true);
        call
    }

    /// Files out of the guest: a tar is the output.
    pub fn get(get: Get, limits: Limits, now: Instant) -> Self {
        let caps = copy_caps(get.keep);
        let mut call = Self::made(Link::new(now), Call::Get(get), None, limits, now);
        call.caps = caps;
        call
    }

    /// A connection to a port of the guest's. It has input, output, and no status.
    pub fn dial(dial: Dial, limits: Limits, now: Instant) -> Self {
        let mut call = Self::made(Link::new(now), Call::Dial(dial), None, limits, now);
        (call.caps, call.has_input, call.input_open) = (vec!["dial"], true, true);
        call
    }

    fn on(link: Link, program: &Program, limits: Limits, now: Instant) -> Result<Self, Failure> {
        let strings = |list: &[std::ffi::OsString]| {
            encode_strings(&list.iter().map(|text| text.as_bytes()).collect::<Vec<_>>()).ok_or(Failure::BadArguments)
        };
        if program.user.len() > MAX_TEXT || program.cwd.len() > MAX_TEXT {
            return Err(Failure::BadArguments);
        }
        let words = [strings(&program.args)?, strings(&program.env)?];
        let mut exec = Self::made(link, Call::Exec(asked(program)), Some(words), limits, now);
        exec.caps.extend(program.tty.map(|_| "tty"));
        exec.caps.extend((program.linger_s > 0).then_some("linger"));
        (exec.has_tty, exec.has_input, exec.input_open) = (program.tty.is_some(), program.stdin, program.stdin);
        Ok(exec)
    }

    fn made(link: Link, call: Call, words: Option<[Vec<u8>; 2]>, limits: Limits, now: Instant) -> Self {
        Self {
            link,
            limits,
            stage: Some(Stage::Greeting),
            until: Some(now + limits.greeting),
            call,
            words,
            begun: now,
            has_tty: false,
            has_input: false,
            has_moved: false,
            caps: vec!["exec"],
            input: Sender::default(),
            input_open: false,
            outputs: [Output::default(), Output::default()],
            early_signals: Vec::new(),
            early_size: None,
            events: VecDeque::new(),
        }
    }

    /// A call on a connection whose HELLO was read already.
    ///
    /// # Errors
    /// [`Failure::BadArguments`]; [`Failure::TooOld`], where that agent can't do this.
    pub(crate) fn after(
        hello: &Hello,
        link: Link,
        program: &Program,
        limits: Limits,
        now: Instant,
    ) -> Result<Self, Failure> {
        let mut exec = Self::on(link, program, limits, now)?;
        match lacks(hello, &exec.caps) {
            Some(what) => Err(Failure::TooOld(what)),
            None => {
                exec.ask(now);
                Ok(exec)
            }
        }
    }
}

/// What an agent has to have for a copy: who asks for all doesn't want less.
fn copy_caps(keep: Keep) -> Vec<&'static str> {
    if keep == Keep::All { vec!["tar", "xattr"] } else { vec!["tar"] }
}

fn asked(program: &Program) -> Asked {
    Asked {
        v: VERSION,
        tty: program.tty,
        stdin: program.stdin,
        user: program.user.clone(),
        cwd: program.cwd.clone(),
        hold: program.hold,
        linger_s: program.linger_s,
    }
}
