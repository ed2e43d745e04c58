//! A small blocking host side: one call over anything that reads and writes (a VMM's vsock socket after its `OK`).
//!
//! It believes nothing of what comes: lengths, order, credit and sizes are checked, and the call ends at the first
//! frame that is wrong. Silence is the connection's own to limit (`set_read_timeout`); who sends a byte now and then, or
//! what means nothing, is cut off here.

use std::fmt;
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use crate::protocol::{
    Call, Decoder, Down, ErrorBody, Exec, Exit, Frame, GRANT, Grant, Hello, Kind, ProtocolError, Started, VERSION,
    encode, encode_json, encode_strings, stream,
};

/// The most bytes of one line of text from the guest that is shown.
const SHOWN: usize = 200;
/// How long a frame may take from its first byte to its last.
const MIDWAY: Duration = Duration::from_secs(10);
/// The most bytes that come without a frame that means anything: frames that may be skipped, without an end.
const MOST_SKIPPED: usize = 1 << 20;

/// What can go wrong with a call.
#[derive(Debug)]
pub enum Error {
    /// The connection itself.
    Io(io::Error),
    /// The agent doesn't keep to the protocol.
    Protocol(ProtocolError),
    /// It closed before the call was answered.
    Lost,
    /// It speaks no version that we do, or can't do this.
    TooOld(&'static str),
    /// An argument or variable has a NUL, or all of them are more than 64 KiB.
    BadArguments,
    /// The program wrote more than the caller takes.
    TooMuch,
    /// The agent says why not.
    Refused(ErrorBody),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "the guest's agent: {error}"),
            Self::Protocol(error) => write!(f, "the guest's agent sent {error}"),
            Self::Lost => f.write_str("the guest's agent closed the call before it was answered"),
            Self::TooOld(what) => write!(f, "the guest's agent is too old for {what}: restart the VM"),
            Self::BadArguments => f.write_str("arguments: no NUL, and 64 KiB at most for all of them"),
            Self::TooMuch => f.write_str("the program wrote more than is taken here"),
            Self::Refused(body) => {
                let (code, step) = (shown(&body.code), shown(&body.step));
                write!(f, "the guest's agent: {code} ({step}, errno {})", body.errno)
            }
        }
    }
}

impl std::error::Error for Error {}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<ProtocolError> for Error {
    fn from(error: ProtocolError) -> Self {
        Self::Protocol(error)
    }
}

/// A guest's text for a person: printable, and not too long.
fn shown(text: &str) -> String {
    text.chars().take(SHOWN).flat_map(char::escape_default).collect()
}

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

/// One connection, which is one call.
#[derive(Debug)]
pub struct Client<S> {
    io: S,
    decoder: Decoder,
    /// What was read and not decoded yet.
    held: Vec<u8>,
    hello: Hello,
}

impl<S: Read + Write> Client<S> {
    /// Reads the agent's HELLO.
    ///
    /// # Errors
    /// [`Error`]
    pub fn new(io: S) -> Result<Self, Error> {
        let hello =
            Hello { protocol: [0, 0], agent: String::new(), boot: String::new(), init: String::new(), caps: vec![] };
        let mut client = Self { io, decoder: Decoder::new(), held: Vec::new(), hello };
        let frame = client.frame()?;
        if frame.kind != Kind::Hello {
            return Err(ProtocolError::OutOfPlace.into());
        }
        client.hello = frame.json()?;
        let [lowest, highest] = client.hello.protocol;
        if !(lowest..=highest).contains(&VERSION) {
            return Err(Error::TooOld("this program"));
        }
        Ok(client)
    }

    /// What the agent said of itself. It is the guest's word: to be escaped where it is shown.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Waits for an answer.
    ///
    /// # Errors
    /// [`Error`]
    pub fn ping(mut self) -> Result<(), Error> {
        self.ask(&Call::Ping { v: VERSION })?;
        self.reply()
    }

    /// Ends the machine. The answer says that it has begun.
    ///
    /// # Errors
    /// [`Error`]; whether the machine ends is then unknown.
    pub fn down(mut self, how: Down, grace_ms: u32) -> Result<(), Error> {
        self.ask(&Call::Down { v: VERSION, how, grace_ms })?;
        self.reply()
    }

    /// Runs a program without input to its end.
    ///
    /// # Errors
    /// [`Error`]. The program's own failure is none: see [`Output::exit`].
    pub fn exec(mut self, program: Program<'_>) -> Result<Output, Error> {
        if !self.hello.caps.iter().any(|cap| cap == "exec") {
            return Err(Error::TooOld("exec"));
        }
        let args = encode_strings(program.args).ok_or(Error::BadArguments)?;
        let env = encode_strings(program.env).ok_or(Error::BadArguments)?;
        let (user, cwd) = (program.user.into(), program.cwd.into());
        let exec = Exec { v: VERSION, tty: None, stdin: false, user, cwd, hold: false, linger_s: 0 };
        let mut out = Vec::new();
        encode_json(&mut out, Kind::Call, 0, &Call::Exec(exec));
        encode(&mut out, Kind::Args, 0, &args);
        encode(&mut out, Kind::Env, 0, &env);
        self.io.write_all(&out)?;
        let started = self.frame()?;
        match started.kind {
            Kind::Started => drop(started.json::<Started>()?),
            Kind::Error => return Err(Error::Refused(started.json()?)),
            _ => return Err(ProtocolError::OutOfPlace.into()),
        }
        self.outputs(program.most)
    }

    fn outputs(&mut self, most: usize) -> Result<Output, Error> {
        let mut outputs = [Received::default(), Received::default()];
        loop {
            let frame = self.frame()?;
            match (frame.kind, frame.stream) {
                (Kind::Data, stream::OUT | stream::ERR) => {
                    let grant = outputs[usize::from(frame.stream - stream::OUT)].take(&frame.payload, most)?;
                    if let Some(bytes) = grant {
                        let mut out = Vec::new();
                        encode_json(&mut out, Kind::Grant, frame.stream, &Grant { bytes });
                        self.io.write_all(&out)?;
                    }
                }
                (Kind::End, stream::OUT | stream::ERR) => outputs[usize::from(frame.stream - stream::OUT)].end()?,
                (Kind::Exit, _) => {
                    let exit = frame.json()?;
                    self.bye();
                    let [stdout, stderr] = outputs.map(|output| output.bytes);
                    return Ok(Output { exit, stdout, stderr });
                }
                (Kind::Error, _) => return Err(Error::Refused(frame.json()?)),
                _ => return Err(ProtocolError::OutOfPlace.into()),
            }
        }
    }

    fn ask(&mut self, call: &Call) -> Result<(), Error> {
        let mut out = Vec::new();
        encode_json(&mut out, Kind::Call, 0, call);
        Ok(self.io.write_all(&out)?)
    }

    fn reply(&mut self) -> Result<(), Error> {
        let frame = self.frame()?;
        match frame.kind {
            Kind::Reply if frame.payload.first() == Some(&b'{') => {
                self.bye();
                Ok(())
            }
            Kind::Error => Err(Error::Refused(frame.json()?)),
            Kind::Reply => Err(ProtocolError::BadPayload.into()),
            _ => Err(ProtocolError::OutOfPlace.into()),
        }
    }

    /// The call is answered; that the agent doesn't hear so any more is no failure.
    fn bye(&mut self) {
        let mut out = Vec::new();
        encode(&mut out, Kind::Bye, 0, &[]);
        let _ = self.io.write_all(&out);
    }

    fn frame(&mut self) -> Result<Frame, Error> {
        let mut buffer = [0; 16 * 1024];
        let mut skipped = 0;
        let mut since = Instant::now();
        loop {
            while !self.held.is_empty() {
                if !self.decoder.is_midway() {
                    since = Instant::now();
                }
                let (used, frame) = self.decoder.take(&self.held)?;
                self.held.drain(..used);
                if let Some(frame) = frame {
                    return Ok(frame);
                }
                skipped += used;
            }
            if skipped > MOST_SKIPPED {
                return Err(ProtocolError::OutOfPlace.into());
            }
            if self.decoder.is_midway() && since.elapsed() > MIDWAY {
                return Err(io::Error::from(io::ErrorKind::TimedOut).into());
            }
            match self.io.read(&mut buffer) {
                Ok(0) => return Err(Error::Lost),
                Ok(n) => self.held.extend_from_slice(&buffer[..n]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// One of the outputs, as far as it has come.
#[derive(Debug)]
struct Received {
    bytes: Vec<u8>,
    granted: u32,
    owed: u32,
    ended: bool,
}

impl Default for Received {
    fn default() -> Self {
        Self { bytes: Vec::new(), granted: GRANT, owed: 0, ended: false }
    }
}

impl Received {
    /// Keeps bytes; says what is to be granted.
    fn take(&mut self, bytes: &[u8], most: usize) -> Result<Option<u32>, Error> {
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        if self.ended {
            return Err(ProtocolError::OutOfPlace.into());
        }
        self.granted = self.granted.checked_sub(len).ok_or(ProtocolError::Grant)?;
        if self.bytes.len() + bytes.len() > most {
            return Err(Error::TooMuch);
        }
        self.bytes.extend_from_slice(bytes);
        self.owed += len;
        if self.owed < GRANT / 2 {
            return Ok(None);
        }
        let grant = std::mem::take(&mut self.owed);
        self.granted += grant;
        Ok(Some(grant))
    }

    fn end(&mut self) -> Result<(), Error> {
        if std::mem::replace(&mut self.ended, true) { Err(ProtocolError::OutOfPlace.into()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn frames_that_mean_nothing_have_an_end() {
        let result = Client::new(Endless(vec![0, 0, 0, 0, 200, 0], 0));
        assert!(matches!(result, Err(Error::Protocol(ProtocolError::OutOfPlace))));
    }
}
