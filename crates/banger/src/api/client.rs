//! The caller's side: a call, its events, and what can go wrong with the connection.

use super::conn::Conn;
use super::{Attached, Call, Event, Fault, HelperCall, Stage, Word};
use crate::daemon::error::exit;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::io::{self, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

static TELL: OnceLock<fn(&HelperCall)> = OnceLock::new();

/// Has calls to the root helper told to `tell`, where a [`Call`] asks for them.
pub fn tell_helper_calls(tell: fn(&HelperCall)) {
    let _ = TELL.set(tell);
}

/// A call that is under way.
pub struct Running {
    conn: Conn,
    op_id: String,
}

/// What came next.
pub enum Next {
    /// A stage.
    Stage(Stage),
    /// A descriptor.
    Attached(Attached, OwnedFd),
    /// The end, with the result.
    Done(Value),
}

/// Connects and asks.
///
/// # Errors
/// `daemon_down` where nobody listens, and what else the socket says.
pub fn begin(socket: &Path, call: &Call) -> Result<Running, Fault> {
    let at = socket.display();
    let mut stream = UnixStream::connect(socket).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            Fault::new("daemon_down", exit::MACHINE, format!("bangerd doesn't answer on {at}"))
                .why(error)
                .fix("bangerd &     where its unit is installed: sudo systemctl start bangerd")
        }
        io::ErrorKind::PermissionDenied => {
            Fault::new("not_the_owner", exit::MACHINE, format!("{at} is another user's")).why(error)
        }
        io::ErrorKind::InvalidInput => Fault::new("usage", exit::USAGE, format!("{at} can't be a socket's path")),
        _ => Fault::new("daemon_down", exit::MACHINE, format!("bangerd can't be reached on {at}")).why(error),
    })?;
    let mut line = call.to_line().map_err(Fault::bug)?;
    line.push('\n');
    // A daemon that refuses the caller answers without reading: its answer says more than our broken pipe.
    let _ = stream.write_all(line.as_bytes());
    Ok(Running { conn: Conn::new(stream), op_id: call.op_id.clone() })
}

/// Asks, tells `each` of the stages, and gives the result.
///
/// # Errors
/// The daemon's, and the connection's.
pub fn ask<T: DeserializeOwned>(socket: &Path, call: &Call, each: impl FnMut(Stage)) -> Result<T, Fault> {
    ask_with(socket, call, &[], each)
}

/// The same, of a request that reads `inputs`.
///
/// # Errors
/// As [`ask`].
pub fn ask_with<T: DeserializeOwned>(
    socket: &Path,
    call: &Call,
    inputs: &[BorrowedFd<'_>],
    mut each: impl FnMut(Stage),
) -> Result<T, Fault> {
    let mut running = begin(socket, call)?;
    for input in inputs {
        // A daemon that refuses the request answers without reading: its answer says more than our broken pipe.
        let _ = running.conn.send(&Word::Input {}, Some(*input));
    }
    loop {
        match running.event()? {
            Next::Stage(stage) => each(stage),
            Next::Attached(..) => {}
            Next::Done(value) => return serde_json::from_value(value).map_err(|error| running.lost(error)),
        }
    }
}

impl Running {
    /// The next event; waits for it.
    ///
    /// # Errors
    /// The daemon's, which ends the call; `daemon_lost` where the connection ends before.
    pub fn event(&mut self) -> Result<Next, Fault> {
        loop {
            let line = self.conn.line();
            if let Some(next) = self.read(line)? {
                return Ok(next);
            }
        }
    }

    /// What a line says; `None` where it is told already.
    fn read(&mut self, line: io::Result<Option<Vec<u8>>>) -> Result<Option<Next>, Fault> {
        let line = line.map_err(|error| self.lost(error))?;
        let line = line.ok_or_else(|| self.lost("the connection ended before the call did"))?;
        Ok(Some(match serde_json::from_slice(&line).map_err(|error| self.lost(error))? {
            Event::Stage(stage) => Next::Stage(stage),
            Event::Attached(attached) => match self.conn.descriptor() {
                Some(descriptor) => Next::Attached(attached, descriptor),
                None => return Err(self.lost("no descriptor came with it")),
            },
            Event::Helper(call) => {
                TELL.get().iter().for_each(|tell| tell(&call));
                return Ok(None);
            }
            Event::Done(value) => Next::Done(value),
            Event::Error(fault) => return Err(fault),
        }))
    }

    /// The next event, where it comes within that time; `None` where none does.
    pub fn event_within(&mut self, limit: Duration) -> Option<Result<Next, Fault>> {
        let until = Instant::now() + limit;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            // Zero would mean for ever.
            self.conn.stream().set_read_timeout(Some(left.max(Duration::from_millis(1)))).ok()?;
            let line = self.conn.line();
            self.conn.stream().set_read_timeout(None).ok()?;
            match line {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                line => match self.read(line) {
                    Ok(None) => {}
                    Ok(Some(next)) => return Some(Ok(next)),
                    Err(fault) => return Some(Err(fault)),
                },
            }
        }
    }

    /// Says a word. A daemon that is gone hears none: [`Running::event`] says so.
    pub fn say(&self, word: Word) {
        let _ = self.conn.send(&word, None);
    }

    /// A way to say words while another thread waits for events.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn voice(&self) -> io::Result<Voice> {
        self.conn.stream().try_clone().map(|stream| Voice(Conn::new(stream)))
    }

    fn lost(&self, why: impl std::fmt::Display) -> Fault {
        let mut fault = Fault::new("daemon_lost", exit::FAILED, "bangerd went away in the middle of the call");
        fault.op_id = self.op_id.as_str().into();
        fault.why(why).fix("banger vm list shows what became of it")
    }
}

/// Says words on a call's connection.
pub struct Voice(Conn);

impl Voice {
    /// Says one, as [`Running::say`].
    pub fn say(&self, word: Word) {
        let _ = self.0.send(&word, None);
    }
}
