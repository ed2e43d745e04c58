//! A small blocking host side: one call over anything that reads and writes (a VMM's vsock socket after its `OK`).
//!
//! It believes as little as [`crate::host`], whose parts it is made of. Silence is the connection's own to limit
//! (`set_read_timeout`); who sends a byte now and then, or what means nothing, is cut off here ([`PATIENCE`]).

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::flow::Receiver;
use crate::host::{self, Event, Exec, Failure, Limits, Link, Stage};
use crate::listeners;
use crate::protocol::{
    Call, Down, Exit, Frame, Hello, Kind, Listed, Listener, PORT, ProtocolError, Start, Stats, TimeSet, VERSION, stream,
};

pub use crate::host::Failure as Error;

/// What a guest has for its HELLO, and again for its answer, whatever it sends meanwhile. A caller with less of it has a
/// connection that ends sooner.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A program for [`Client::exec`].
#[derive(Debug, Clone, Copy)]
pub struct Program<'a> {
    /// The program and its arguments.
    pub args: &'a [&'a str],
    /// `KEY=value`.
    pub env: &'a [&'a str],
    /// A user of the guest's.
    pub user: &'a str,
    /// A directory in the guest; empty: the user's home.
    pub cwd: &'a str,
    /// The most bytes taken, of each of the two outputs.
    pub most: usize,
}

/// What a program did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// How it ended.
    pub exit: Exit,
    /// What it wrote.
    pub stdout: Vec<u8>,
    /// What it wrote on its error output.
    pub stderr: Vec<u8>,
}

/// An answer without content.
#[derive(Debug, Deserialize)]
struct Nothing {}

/// Asks a VMM, over its vsock socket, for a connection to the agent.
///
/// # Errors
/// The socket's.
pub fn ask(vmm: &mut impl Write) -> io::Result<()> {
    // In one piece: Firecracker hangs up on whoever has sent a part of the line by when it looks.
    vmm.write_all(format!("CONNECT {PORT}\n").as_bytes())
}

/// Reads the VMM's answer, and no byte behind it: what follows the line is the agent's.
///
/// # Errors
/// The socket's; `InvalidData` where the answer is not OK.
pub fn answered(vmm: &mut impl Read) -> io::Result<()> {
    let (mut line, mut byte) = (Vec::new(), [0]);
    while !line.ends_with(b"\n") && line.len() < 32 {
        vmm.read_exact(&mut byte)?;
        line.push(byte[0]);
    }
    let number = line.strip_prefix(b"OK ").and_then(|rest| rest.strip_suffix(b"\n"));
    match number.is_some_and(|number| !number.is_empty() && number.iter().all(u8::is_ascii_digit)) {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::InvalidData, "the VMM did not answer OK to CONNECT")),
    }
}

/// One connection, which is one call.
#[derive(Debug)]
pub struct Client<S> {
    io: S,
    link: Link,
    /// What was read and not decoded yet.
    held: Vec<u8>,
    hello: Hello,
    patience: Duration,
    /// When what it is waited for now has to be there.
    end: Instant,
}

impl<S: Read + Write> Client<S> {
    /// Reads the agent's HELLO.
    ///
    /// # Errors
    /// [`Failure`]
    pub fn new(io: S) -> Result<Self, Failure> {
        Self::with(io, PATIENCE)
    }

    fn with(io: S, patience: Duration) -> Result<Self, Failure> {
        let now = Instant::now();
        let hello =
            Hello { protocol: [0, 0], agent: String::new(), boot: String::new(), init: String::new(), caps: vec![] };
        let mut client = Self { io, link: Link::new(now), held: Vec::new(), hello, patience, end: now + patience };
        let frame = client.frame(Stage::Greeting)?;
        client.hello = host::greeted(&frame)?;
        Ok(client)
    }

    /// What the agent said of itself. It is the guest's word: to be escaped where it is shown.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Waits for an answer.
    ///
    /// # Errors
    /// [`Failure`]
    pub fn ping(self) -> Result<(), Failure> {
        self.ask::<Nothing>(&Call::Ping { v: VERSION }, &[]).map(drop)
    }

    /// Ends the machine. The answer says that it has begun.
    ///
    /// # Errors
    /// [`Failure`]; whether the machine ends is then unknown.
    pub fn down(self, how: Down, grace_ms: u32) -> Result<(), Failure> {
        self.ask::<Nothing>(&Call::Down { v: VERSION, how, grace_ms }, &[]).map(drop)
    }

    /// Sets the guest's clock to this machine's, where it is off by more than half a second.
    ///
    /// # Errors
    /// [`Failure`]
    pub fn time(self) -> Result<TimeSet, Failure> {
        self.ask(&Call::Time { v: VERSION, unix_ns: unix_ns(), by_ns: None }, &["time"])
    }

    /// Moves the guest's clock.
    ///
    /// # Errors
    /// [`Failure`]
    pub fn adjust(self, by_ns: i64) -> Result<TimeSet, Failure> {
        self.ask(&Call::Time { v: VERSION, unix_ns: unix_ns(), by_ns: Some(by_ns) }, &["time", "adjust"])
    }

    /// Adds 64 bytes of this machine's randomness to the guest's.
    ///
    /// # Errors
    /// [`Failure`]
    pub fn entropy(self) -> Result<(), Failure> {
        let bytes = entropy()?;
        self.ask::<Nothing>(&Call::Entropy { v: VERSION, bytes }, &["entropy"]).map(drop)
    }

    /// The guest's own figures.
    ///
    /// # Errors
    /// [`Failure`]
    pub fn stats(self) -> Result<Stats, Failure> {
        self.ask(&Call::Stats { v: VERSION }, &["stats"])
    }

    /// Has the agent refuse all but `start` from now on, for a machine that is about to be saved. `files` are the absolute
    /// paths of those that each `start` will bring.
    ///
    /// # Errors
    /// [`Failure`]
    pub fn arm(self, files: &[&str]) -> Result<(), Failure> {
        let caps = needed(files.is_empty());
        let files = files.iter().map(|path| (*path).to_owned()).collect();
        self.ask::<Nothing>(&Call::Arm { v: VERSION, files }, caps).map(drop)
    }

    /// Gives the machine its identity; its time and randomness are filled in here, and nothing is run.
    ///
    /// # Errors
    /// [`Failure`]
    pub fn start(self, start: Start) -> Result<(), Failure> {
        let start = Start { v: VERSION, unix_ns: unix_ns(), entropy: entropy()?, exec: None, ..start };
        let caps = needed(start.files.is_empty());
        self.ask::<Nothing>(&Call::Start(Box::new(start)), caps).map(drop)
    }

    /// Who listens in the guest: its own word, to be shown escaped and not acted upon. Also how many were left out.
    ///
    /// # Errors
    /// [`Failure`]
    pub fn listeners(mut self) -> Result<(Vec<Listener>, u32), Failure> {
        self.begin(&Call::ListenList { v: VERSION }, &["listen"])?;
        let (mut flow, mut listed) = (Receiver::default(), listeners::Lines::default());
        loop {
            let frame = self.frame(Stage::Starting)?;
            match (frame.kind, frame.stream) {
                (Kind::Data, stream::OUT) => {
                    flow.take(frame.payload.len())?;
                    listed.take(&frame.payload)?;
                }
                _ => {
                    let reply: Listed = self.answer(&frame)?;
                    return Ok((listed.end()?, reply.left_out));
                }
            }
        }
    }

    /// Runs a program without input to its end.
    ///
    /// # Errors
    /// [`Failure`]. The program's own failure is none: see [`Output::exit`].
    pub fn exec(mut self, program: Program<'_>) -> Result<Output, Failure> {
        let strings = |list: &[&str]| list.iter().map(Into::into).collect();
        let asked = host::Program {
            args: strings(program.args),
            env: strings(program.env),
            user: program.user.into(),
            cwd: program.cwd.into(),
            ..host::Program::default()
        };
        let now = Instant::now();
        let mut exec = Exec::after(&self.hello, self.link, &asked, Limits::EMULATED, now)?;
        exec.receive(&std::mem::take(&mut self.held), now);
        let mut outputs = [(stream::OUT, Vec::new()), (stream::ERR, Vec::new())];
        let mut buffer = vec![0; 64 * 1024];
        loop {
            for (stream, kept) in &mut outputs {
                while !exec.pending(*stream).is_empty() {
                    let pending = exec.pending(*stream);
                    if kept.len() + pending.len() > program.most {
                        return Err(Failure::TooMuch);
                    }
                    kept.extend_from_slice(pending);
                    exec.passed_on(*stream, pending.len());
                }
            }
            while !exec.output().is_empty() {
                // That an answered agent doesn't hear of it any more is no failure.
                match self.io.write(exec.output()) {
                    Ok(n) if n > 0 => exec.sent(n),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    _ if exec.is_over() => break,
                    Ok(_) => return Err(Failure::Lost(Stage::Running)),
                    Err(error) => return Err(error.into()),
                }
            }
            while let Some(event) = exec.next_event() {
                match event {
                    Event::Ended(exit) => {
                        let [(_, stdout), (_, stderr)] = outputs;
                        return Ok(Output { exit, stdout, stderr });
                    }
                    Event::Failed(failure) => return Err(failure),
                    Event::Greeted(_) | Event::Started(_) | Event::Gone | Event::Replied(_) => {}
                }
            }
            match self.io.read(&mut buffer) {
                Ok(0) => exec.closed(),
                Ok(n) => exec.receive(&buffer[..n], Instant::now()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
            exec.tick(Instant::now());
        }
    }

    /// Makes a call that has one answer.
    fn ask<T: DeserializeOwned>(mut self, call: &Call, caps: &[&'static str]) -> Result<T, Failure> {
        self.begin(call, caps)?;
        let frame = self.frame(Stage::Starting)?;
        self.answer(&frame)
    }

    fn begin(&mut self, call: &Call, caps: &[&'static str]) -> Result<(), Failure> {
        if let Some(what) = host::lacks(&self.hello, caps) {
            return Err(Failure::TooOld(what));
        }
        self.link.call(call);
        self.end = Instant::now() + self.patience;
        Ok(self.write()?)
    }

    fn answer<T: DeserializeOwned>(&mut self, frame: &Frame) -> Result<T, Failure> {
        let answer = match frame.kind {
            Kind::Reply => frame.json::<T>()?,
            Kind::Error => return Err(Failure::Refused(frame.json()?)),
            _ => return Err(ProtocolError::OutOfPlace.into()),
        };
        self.link.send(Kind::Bye, 0, &[]);
        // The call is answered; that the agent doesn't hear so any more is no failure.
        let _ = self.write();
        Ok(answer)
    }

    fn write(&mut self) -> io::Result<()> {
        self.io.write_all(self.link.output())?;
        self.link.sent(self.link.output().len());
        Ok(())
    }

    fn frame(&mut self, stage: Stage) -> Result<Frame, Failure> {
        let mut buffer = [0; 16 * 1024];
        loop {
            let now = Instant::now();
            let mut held = self.held.as_slice();
            while !held.is_empty() {
                if let Some(frame) = self.link.take(&mut held, now)? {
                    self.held = held.to_vec();
                    return Ok(frame);
                }
            }
            self.held.clear();
            if self.link.deadline().map_or(self.end, |deadline| deadline.min(self.end)) <= now {
                return Err(Failure::Late(stage));
            }
            match self.io.read(&mut buffer) {
                Ok(0) => return Err(Failure::Lost(stage)),
                Ok(n) => self.held.extend_from_slice(&buffer[..n]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// What an agent has to know for a start, without files or with some.
fn needed(without_files: bool) -> &'static [&'static str] {
    if without_files { &["start"] } else { &["start", "files"] }
}

/// The time, as `start` and `time` want it.
pub fn unix_ns() -> u64 {
    let passed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(passed.as_nanos()).unwrap_or(u64::MAX)
}

/// 64 bytes of this machine's randomness, as `start` and `entropy` want them.
///
/// # Errors
/// Where there is no /dev/urandom.
pub fn entropy() -> io::Result<String> {
    let mut bytes = [0; 64];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What it was sent, piece by piece.
    struct Pieces(Vec<Vec<u8>>);

    impl Write for Pieces {
        fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
            self.0.push(piece.to_vec());
            Ok(piece.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn connect_is_sent_in_one_piece() {
        let mut sent = Pieces(Vec::new());
        ask(&mut sent).unwrap();
        assert_eq!(sent.0, [b"CONNECT 1023\n"]);
    }

    /// An agent that says the same for ever.
    struct Endless(Vec<u8>, usize);

    impl Read for Endless {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            self.1 += into.len();
            assert!(self.1 < 64 << 20, "read without an end");
            for (at, byte) in into.iter_mut().enumerate() {
                *byte = self.0[at % self.0.len()];
            }
            Ok(into.len() / self.0.len() * self.0.len())
        }
    }

    impl Write for Endless {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// An agent that says the first, and then the other at short intervals.
    struct Slow(Vec<u8>, &'static [u8], Instant);

    impl Read for Slow {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            assert!(self.2.elapsed() < Duration::from_secs(20), "waited for without an end");
            if self.0.is_empty() {
                std::thread::sleep(Duration::from_millis(5));
                self.0 = self.1.to_vec();
            }
            let n = self.0.as_slice().read(into)?;
            self.0.drain(..n);
            Ok(n)
        }
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_is_passed_over_is_no_answer_however_slowly_it_comes() {
        const UNKNOWN: &[u8] = &[0, 0, 0, 0, 200, 0];
        const EMPTY: &[u8] = &[0, 0, 0, 0, Kind::Data as u8, stream::OUT];
        let patience = Duration::from_millis(200);
        let slow = |first, again| Client::with(Slow(first, again, Instant::now()), patience);
        assert!(matches!(slow(Vec::new(), UNKNOWN), Err(Failure::Late(Stage::Greeting))));

        let (agent, boot, init) = ("1".to_owned(), String::new(), String::new());
        let mut hello = Vec::new();
        let said = Hello { protocol: [1, 1], agent, boot, init, caps: vec!["listen".into()] };
        crate::protocol::encode_json(&mut hello, Kind::Hello, 0, &said);
        let ping = slow(hello.clone(), UNKNOWN).unwrap().ping();
        assert!(matches!(ping, Err(Failure::Late(Stage::Starting))), "{ping:?}");
        let listeners = slow(hello, EMPTY).unwrap().listeners();
        assert!(matches!(listeners, Err(Failure::Late(Stage::Starting))), "{listeners:?}");
    }

    #[test]
    fn frames_that_mean_nothing_have_an_end() {
        let result = Client::new(Endless(vec![0, 0, 0, 0, 200, 0], 0));
        assert!(matches!(result, Err(Failure::Protocol(ProtocolError::TooMany))));
    }
}
