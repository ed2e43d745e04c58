//! QEMU's monitor: one command after the other, answers told apart from events, both read for as long as QEMU lives.

use std::io::{BufRead as _, BufReader, IoSlice, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde::Deserialize;

/// A command: its name, its arguments, a descriptor that becomes QEMU's too.
pub(crate) type Command<'a> = (&'a str, serde_json::Value, Option<BorrowedFd<'a>>);

/// The command that has to be the first.
pub(crate) const AGREE: &str = "qmp_capabilities";

/// How long a command may take, once the machine is made.
const ANSWER: Duration = Duration::from_secs(10);
/// The longest line that is read.
const MAX_LINE: u64 = 1 << 20;

/// Why a command did not come back with success.
#[derive(Debug)]
pub(crate) enum QmpError {
    /// QEMU is gone.
    Gone,
    /// No answer in time.
    Silent,
    /// QEMU says no.
    Refused(String),
}

impl std::fmt::Display for QmpError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Gone => f.write_str("QEMU is gone"),
            Self::Silent => f.write_str("QEMU does not answer"),
            Self::Refused(why) => write!(f, "QEMU: {why}"),
        }
    }
}

/// A connection that has been greeted.
#[derive(Debug)]
pub(crate) struct Qmp {
    socket: UnixStream,
    answers: Receiver<Message>,
    next: u64,
    version: String,
    /// How long the next answer may take.
    patience: Duration,
}

/// What QEMU says first.
#[derive(Debug, Deserialize)]
struct Greeting {
    version: Version,
}

#[derive(Debug, Deserialize)]
struct Version {
    qemu: Numbers,
    #[serde(default)]
    package: String,
}

#[derive(Debug, Deserialize)]
struct Numbers {
    major: u64,
    minor: u64,
    micro: u64,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { qemu: Numbers { major, minor, micro }, package } = self;
        write!(f, "{major}.{minor}.{micro} {package}")
    }
}

#[derive(Debug, Deserialize)]
struct Message {
    #[serde(rename = "QMP")]
    greeting: Option<Greeting>,
    id: Option<u64>,
    #[serde(rename = "return")]
    answer: Option<serde_json::Value>,
    error: Option<Refusal>,
    event: Option<String>,
    data: Option<serde_json::Value>,
}

impl Message {
    /// Whether it tells that the guest has opened a port of its serial device.
    fn tells_open_port(&self) -> bool {
        let open = self.data.as_ref().and_then(|data| data["open"].as_bool());
        self.event.as_deref() == Some("VSERPORT_CHANGE") && open == Some(true)
    }
}

#[derive(Debug, Deserialize)]
struct Refusal {
    desc: String,
}

impl Qmp {
    /// Waits for QEMU's greeting. It may still fail to make its machine: it takes commands when that is made, [`AGREE`] before all
    /// others, whose answer has `patience` too. `opened` gets a byte each time that the guest opens its port.
    ///
    /// # Errors
    /// QEMU ended, or said nothing for `patience`.
    pub(crate) fn greet(
        socket: UnixStream,
        mut opened: Option<UnixStream>,
        patience: Duration,
    ) -> Result<Self, QmpError> {
        socket.set_write_timeout(Some(patience)).map_err(|_| QmpError::Gone)?;
        let input = socket.try_clone().map_err(|_| QmpError::Gone)?;
        let (sender, answers) = channel();
        let reader = move || {
            let mut input = BufReader::new(input);
            let mut line = Vec::new();
            loop {
                line.clear();
                match (&mut input).take(MAX_LINE).read_until(b'\n', &mut line) {
                    Ok(1..) => {}
                    _ => return,
                }
                // Events must be read too, or they pile up in QEMU.
                let Ok(message) = serde_json::from_slice::<Message>(&line) else { continue };
                if let Some(opened) = &mut opened
                    && message.tells_open_port()
                {
                    // A relay that is gone needs no word.
                    let _ = opened.write(&[1]);
                }
                let wanted = message.greeting.is_some() || message.id.is_some();
                if wanted && sender.send(message).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new().name("qmp".into()).spawn(reader).map_err(|_| QmpError::Gone)?;
        let mut qmp = Self { socket, answers, next: 1, version: String::new(), patience };
        let first = qmp.receive(patience)?;
        let greeting = first.greeting.ok_or_else(|| QmpError::Refused("it does not greet".to_owned()))?;
        qmp.version = greeting.version.to_string();
        Ok(qmp)
    }

    /// QEMU's version and package, in one text.
    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// Runs one command.
    ///
    /// # Errors
    /// [`QmpError`]
    pub(crate) fn run(&mut self, command: &serde_json::Value) -> Result<serde_json::Value, QmpError> {
        self.run_with(command, None)
    }

    /// Runs one command, and sends a descriptor along, which becomes QEMU's too.
    ///
    /// # Errors
    /// [`QmpError`]
    pub(crate) fn run_with(
        &mut self,
        command: &serde_json::Value,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<serde_json::Value, QmpError> {
        let id = self.send(command, fd)?;
        self.answer(id)
    }

    /// Sends commands in a row, and waits for their answers then: QEMU runs one after the other, whatever became of the one before.
    ///
    /// # Errors
    /// Of the first that failed: its name, and [`QmpError`].
    pub(crate) fn run_in_a_row(&mut self, commands: &[Command<'_>]) -> Result<(), String> {
        let mut sent = Vec::new();
        for (name, arguments, fd) in commands {
            let id = self.send(&serde_json::json!({"execute": name, "arguments": arguments}), *fd);
            sent.push((name, id.map_err(|error| format!("{name}: {error}"))?));
        }
        sent.into_iter()
            .try_for_each(|(name, id)| self.answer(id).map(drop).map_err(|error| format!("{name}: {error}")))
    }

    fn send(&mut self, command: &serde_json::Value, fd: Option<BorrowedFd<'_>>) -> Result<u64, QmpError> {
        let id = self.next;
        self.next += 1;
        let mut command = command.clone();
        command["id"] = id.into();
        let line = format!("{command}\n");
        let sent = match fd {
            Some(fd) => self.send_with(line.as_bytes(), fd).map_err(|_| QmpError::Gone)?,
            None => 0,
        };
        self.socket.write_all(&line.as_bytes()[sent..]).map_err(|_| QmpError::Gone)?;
        Ok(id)
    }

    fn answer(&mut self, id: u64) -> Result<serde_json::Value, QmpError> {
        let patience = std::mem::replace(&mut self.patience, ANSWER);
        loop {
            let message = self.receive(patience)?;
            // An answer that came too late for the command before is no answer to this one.
            if message.id == Some(id) {
                return match (message.answer, message.error) {
                    (_, Some(refusal)) => Err(QmpError::Refused(refusal.desc)),
                    (answer, None) => Ok(answer.unwrap_or_default()),
                };
            }
        }
    }

    /// Sends the beginning of `bytes` with a descriptor, and tells how many of them.
    fn send_with(&self, bytes: &[u8], fd: BorrowedFd<'_>) -> std::io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut along = SendAncillaryBuffer::new(&mut space);
        let fds = [fd];
        if !along.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(std::io::ErrorKind::OutOfMemory.into());
        }
        Ok(rustix::net::sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut along, SendFlags::NOSIGNAL)?)
    }

    fn receive(&self, patience: Duration) -> Result<Message, QmpError> {
        self.answers.recv_timeout(patience).map_err(|error| match error {
            std::sync::mpsc::RecvTimeoutError::Timeout => QmpError::Silent,
            std::sync::mpsc::RecvTimeoutError::Disconnected => QmpError::Gone,
        })
    }
}
