//! The host's half of a call to the agent, which believes the guest nothing.
//!
//! [`Exec`] is one exec without any I/O: bytes of the connection in; events and the program's output out. [`Driver`] runs
//! one over a connected socket and the caller's own three descriptors, [`dial`] makes a connection, [`put`] and [`get`] copy files. [`control`] is how other threads send signals and
//! window sizes into it.
//!
//! A length is checked before a byte of it is kept, credit and order with every frame, and each wait for the guest has a
//! limit. One call holds at most 256 KiB of each output, one frame and what waits to be sent: below 1 MiB.

mod control;
mod copy;
mod driver;
mod exec;
mod link;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::time::Duration;

pub use control::{Control, Order, Orders, control};
pub use copy::{CopyFailure, get, get_archive, put, put_archive};
pub use driver::{Driver, Ended, Note, dial};
pub use exec::{Event, Exec};
pub use link::Link;
pub(crate) use link::{greeted, lacks};

use crate::protocol::{ErrorBody, ProtocolError, TtySize};

/// The most characters of a text of the guest's that are shown.
const SHOWN: usize = 200;

/// A program to run in the guest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Program {
    /// The program and its arguments; none: the user's login shell.
    pub args: Vec<OsString>,
    /// `KEY=value`. What every program expects is filled in by the agent: `HOME USER SHELL PATH`.
    pub env: Vec<OsString>,
    /// A user of the guest's, by name or number.
    pub user: String,
    /// An absolute path in the guest; empty: the user's home.
    pub cwd: String,
    /// A terminal of this size; `None`: three pipes.
    pub tty: Option<TtySize>,
    /// Whether input will be sent; if not, the program's is empty.
    pub stdin: bool,
    /// Wait for the end of the output, not only of the program.
    pub hold: bool,
    /// How many seconds the guest keeps the call without a host.
    pub linger_s: u32,
}

/// How long the guest may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// From the connection to HELLO.
    pub greeting: Duration,
    /// From CALL to its first answer.
    pub answer: Duration,
}

impl Limits {
    /// For a guest on the processor itself.
    pub const HARDWARE: Self = Self { greeting: Duration::from_secs(2), answer: Duration::from_secs(10) };
    /// For a guest whose processor is emulated.
    pub const EMULATED: Self = Self { greeting: Duration::from_secs(30), answer: Duration::from_secs(30) };
}

/// How far a call had come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Connected, and no HELLO yet.
    Greeting,
    /// Asked, and not answered.
    Starting,
    /// Its program runs, or its data are under way.
    Running,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Greeting => "before it said anything",
            Self::Starting => "before it answered",
            Self::Running => "in the middle of the call",
        })
    }
}

/// Why a call has no result. None of these is ever the program's own end.
#[derive(Debug)]
pub enum Failure {
    /// The connection ended. What the program did by then is unknown.
    Lost(Stage),
    /// The guest took longer than it may.
    Late(Stage),
    /// The agent says why not.
    Refused(ErrorBody),
    /// The agent doesn't keep to the protocol.
    Protocol(ProtocolError),
    /// It speaks no version that we do, or can't do this.
    TooOld(&'static str),
    /// A NUL in an argument or variable, more than 64 KiB of either, or a user or directory of more than 1,024 bytes.
    BadArguments,
    /// The program wrote more than the caller takes.
    TooMuch,
    /// The caller gave it up ([`Control::abandon`]).
    Abandoned,
    /// Something of our own.
    Io(io::Error),
}

impl Failure {
    /// The exit status that a shell would give: 127 for a program that isn't there, 126 for one that can't be run, 125 for
    /// all else.
    pub fn status(&self) -> u8 {
        match self {
            Self::Refused(body) if body.code == "not_found" => 127,
            Self::Refused(body) if body.code == "not_executable" => 126,
            _ => 125,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost(stage) => write!(f, "the guest's agent was lost {stage}"),
            Self::Late(stage) => write!(f, "the guest's agent took too long {stage}"),
            Self::Refused(body) => {
                let (code, step) = (shown(&body.code), shown(&body.step));
                write!(f, "the guest's agent: {code} ({step}")?;
                match body.errno {
                    0 => f.write_str(")"),
                    errno => write!(f, ": {})", io::Error::from_raw_os_error(errno)),
                }
            }
            Self::Protocol(error) => write!(f, "the guest's agent sent {error}"),
            Self::TooOld(what) => write!(f, "the guest's agent is too old for {what}: restart the VM"),
            Self::BadArguments => f.write_str("arguments and variables have no NUL, and each take 64 KiB at most"),
            Self::TooMuch => f.write_str("the program wrote more than is taken here"),
            Self::Abandoned => f.write_str("the call was given up"),
            Self::Io(error) => write!(f, "the call to the guest's agent: {error}"),
        }
    }
}

impl std::error::Error for Failure {}

impl From<ProtocolError> for Failure {
    fn from(error: ProtocolError) -> Self {
        Self::Protocol(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<rustix::io::Errno> for Failure {
    fn from(error: rustix::io::Errno) -> Self {
        Self::Io(error.into())
    }
}

/// A guest's text for a person: printable, and not too long.
pub(crate) fn shown(text: &str) -> String {
    text.chars().take(SHOWN).flat_map(char::escape_default).collect()
}
