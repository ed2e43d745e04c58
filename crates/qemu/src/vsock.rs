//! The host's side of a guest's vsock, as Firecracker has it: a Unix socket that takes `CONNECT port` and answers
//! `OK number`, and connections of the guest's that arrive at `<path>_<port>`. Behind it the relay's frames run over
//! one virtio-serial port, since QEMU has no vsock device that a VM could be saved with.
//!
//! One thread and one poll; nothing is buffered beyond the relay's credit, 256 KiB a stream and direction.

mod conn;
mod ready;
mod request;

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use agent::relay::{Event, MAX_STREAMS, Mux, NONCE_LEN, Stream};
use rustix::event::PollFlags;

use crate::boot::random;
use crate::log::Log;
use crate::metrics::Metrics;
use crate::rate::Rate;
use crate::socket::OwnSocket;
use conn::Conn;
use ready::Source;
use request::{Line, Pending};

/// How long a guest may take to answer a `CONNECT`; it may still be booting.
const ANSWER_PATIENCE: Duration = Duration::from_secs(30);
/// How long the socket rests when no descriptor is left for another connection.
const REST: Duration = Duration::from_millis(100);
/// The most lines of the log that guests and clients can cause, and in which time: what they can do again and again
/// must not fill a disk.
const MOST_LINES: (u64, Duration) = (20, Duration::from_secs(60));

/// What the guest's end of the port is like when the relay begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Greeting {
    /// Nobody has opened it yet.
    Booted,
    /// It was open when the VM was saved, and may be in the middle of something.
    Loaded,
}

/// The relay's host end and all that is connected to it.
#[derive(Debug)]
pub(crate) struct Relay {
    mux: Mux,
    port: UnixStream,
    /// A byte for each time that the guest opened the port.
    opened: UnixStream,
    opened_before: bool,
    listener: UnixListener,
    path: PathBuf,
    pending: Vec<Pending>,
    conns: BTreeMap<Stream, Conn>,
    /// Who sent last: the room for the guest is given out in turn.
    turn: Option<Stream>,
    lines: Rate,
    rests_until: Option<Instant>,
    log: Arc<Log>,
    metrics: Arc<Metrics>,
}

impl Relay {
    /// Starts the relay's thread between `socket` and `port`; it ends with QEMU. `opened` tells when the guest opens
    /// its end.
    ///
    /// # Errors
    /// A socket's setting, randomness or the thread.
    pub(crate) fn start(
        socket: &OwnSocket,
        port: UnixStream,
        opened: UnixStream,
        greeting: Greeting,
        log: Arc<Log>,
        metrics: Arc<Metrics>,
    ) -> io::Result<()> {
        let listener = socket.listener().try_clone()?;
        listener.set_nonblocking(true)?;
        port.set_nonblocking(true)?;
        opened.set_nonblocking(true)?;
        let mut relay = Self {
            mux: match greeting {
                Greeting::Booted => Mux::host(nonce()?),
                Greeting::Loaded => Mux::host_resuming(nonce()?),
            },
            port,
            opened,
            opened_before: greeting == Greeting::Loaded,
            listener,
            path: socket.path().to_path_buf(),
            pending: Vec::new(),
            conns: BTreeMap::new(),
            turn: None,
            lines: Rate::new(MOST_LINES.0, MOST_LINES.1),
            rests_until: None,
            log,
            metrics,
        };
        let run = move || {
            if let Err(error) = relay.run() {
                relay.log.error(&format!("vsock: {error}"));
            }
        };
        std::thread::Builder::new().name("vsock".into()).spawn(run).map(drop)
    }

    fn run(&mut self) -> io::Result<()> {
        loop {
            self.write_port()?;
            // Before anybody is read from: what came behind a `CONNECT` line has the room first, or never any.
            self.settle_all();
            for (source, flags) in self.poll()? {
                match source {
                    Source::Port => {
                        if !self.read_port()? {
                            return Ok(());
                        }
                    }
                    Source::Opened => self.note_opened()?,
                    Source::Listener => self.accept(),
                    Source::Pending(at) => self.pending[at].ready = true,
                    Source::Conn(stream) => self.conn_ready(stream, flags),
                }
            }
            self.read_requests();
            self.expire();
        }
    }

    /// Writes to the guest what can be written.
    fn write_port(&mut self) -> io::Result<()> {
        while !self.mux.output().is_empty() {
            match self.port.write(self.mux.output()) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => self.mux.wrote(written),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // QEMU is ending; the next read says so.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                    let left = self.mux.output().len();
                    self.mux.wrote(left);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads once from the guest; `false` where QEMU is gone.
    fn read_port(&mut self) -> io::Result<bool> {
        let mut piece = [0; 64 * 1024];
        let got = match self.port.read(&mut piece) {
            Ok(0) => return Ok(false),
            Ok(got) => got,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return Ok(true),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(false),
            Err(error) => return Err(error),
        };
        let received = self.mux.receive(&piece[..got]);
        while let Some(event) = self.mux.next_event() {
            self.handle(event);
        }
        if let Err(error) = received {
            self.tell(&format!("vsock: the guest's relay is at fault, its connections end: {error}"));
            self.begin_anew()?;
        }
        Ok(true)
    }

    /// A guest that opens its port again has lost what it knew of the streams.
    fn note_opened(&mut self) -> io::Result<()> {
        let mut bytes = [0; 64];
        match self.opened.read(&mut bytes) {
            Ok(0) => {}
            Ok(got) if got > 1 || self.opened_before => {
                self.opened_before = true;
                self.begin_anew()?;
            }
            Ok(_) => self.opened_before = true,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Ends every connection and greets the guest again.
    fn begin_anew(&mut self) -> io::Result<()> {
        self.metrics.conns_removed.fetch_add(self.conns.len() as u64, Relaxed);
        self.conns.clear();
        self.turn = None;
        self.mux = Mux::host_resuming(nonce()?);
        Ok(())
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Synced => self.tell("vsock: the guest's relay is there."),
            // One that the guest has given up may still have its last words to be read, and counts as well.
            Event::Opened { stream, .. } if self.conns.len() >= MAX_STREAMS => self.mux.refuse(stream),
            Event::Opened { stream, port } => match connect(&self.path, port) {
                Ok(socket) => {
                    self.mux.accept(stream);
                    self.add(stream, Conn::from_guest(socket));
                }
                Err(_) => self.mux.refuse(stream),
            },
            Event::Connected(stream) => {
                if let Some(conn) = self.conns.get_mut(&stream) {
                    conn.answered(stream);
                }
            }
            Event::Data(stream, bytes) => {
                if let Some(conn) = self.conns.get_mut(&stream)
                    && !conn.take(&bytes)
                {
                    self.mux.reset(stream);
                    self.remove(stream);
                }
            }
            // What more may be sent is seen by the next poll.
            Event::Credit(_) => {}
            Event::Finished(stream) => {
                if let Some(conn) = self.conns.get_mut(&stream) {
                    conn.guest_finished = true;
                }
            }
            Event::Reset(stream) => {
                if let Some(conn) = self.conns.get_mut(&stream) {
                    conn.reset();
                }
            }
        }
    }

    /// A line of the log about what the guest or a client did.
    fn tell(&mut self, message: &str) {
        if let Some(left_out) = self.lines.admit(1) {
            if left_out > 0 {
                self.log.warn(&format!("vsock: {left_out} lines were left out."));
            }
            self.log.warn(message);
        }
    }

    fn add(&mut self, stream: Stream, conn: Conn) {
        self.metrics.conns_added.fetch_add(1, Relaxed);
        self.conns.insert(stream, conn);
    }

    fn remove(&mut self, stream: Stream) {
        if self.conns.remove(&stream).is_some() {
            self.metrics.conns_removed.fetch_add(1, Relaxed);
        }
    }

    fn accept(&mut self) {
        loop {
            match self.listener.accept() {
                // Above the limit it is closed, as by Firecracker.
                Ok(_) if self.pending.len() + self.conns.len() >= MAX_STREAMS => {
                    self.tell("vsock: connection limit reached; a host's connection is refused.");
                }
                Ok((socket, _)) => {
                    if socket.set_nonblocking(true).is_ok() {
                        self.pending.push(Pending::new(socket));
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    self.tell(&format!("vsock: no connection can be accepted: {error}"));
                    self.rests_until = Some(Instant::now() + REST);
                    return;
                }
            }
        }
    }

    /// Turns whole `CONNECT` lines into streams; what is none is closed without a word, as by Firecracker.
    fn read_requests(&mut self) {
        for mut pending in std::mem::take(&mut self.pending) {
            if !std::mem::take(&mut pending.ready) {
                self.pending.push(pending);
                continue;
            }
            match pending.read() {
                Line::Partial => self.pending.push(pending),
                Line::Bad => {}
                Line::Connect { port, rest } => match self.mux.open(port) {
                    Ok(stream) => {
                        let deadline = Instant::now() + ANSWER_PATIENCE;
                        self.add(stream, Conn::from_host(pending.socket, rest, deadline));
                    }
                    Err(error) => self.tell(&format!("vsock: {error}")),
                },
            }
        }
    }

    fn conn_ready(&mut self, stream: Stream, flags: PollFlags) {
        let Some(conn) = self.conns.get_mut(&stream) else { return };
        match conn.ready(&mut self.mux, stream, flags) {
            Ok(false) => {}
            Ok(true) => self.turn = Some(stream),
            Err(_) => {
                self.mux.reset(stream);
                self.remove(stream);
            }
        }
    }

    fn settle_all(&mut self) {
        let mut done = Vec::new();
        for (stream, conn) in &mut self.conns {
            match conn.settle(&mut self.mux, *stream) {
                Ok(false) => {}
                Ok(true) => done.push(*stream),
                Err(_) => {
                    self.mux.reset(*stream);
                    done.push(*stream);
                }
            }
        }
        for stream in done {
            self.remove(stream);
        }
    }

    fn expire(&mut self) {
        let now = Instant::now();
        self.rests_until = self.rests_until.filter(|until| *until > now);
        self.pending.retain(|pending| pending.deadline > now);
        let late = |conn: &Conn| conn.deadline.is_some_and(|deadline| deadline <= now);
        let late: Vec<Stream> = self.conns.iter().filter(|(_, conn)| late(conn)).map(|(stream, _)| *stream).collect();
        for stream in late {
            self.mux.reset(stream);
            self.remove(stream);
        }
    }
}

fn nonce() -> io::Result<[u8; NONCE_LEN]> {
    let mut nonce = [0; NONCE_LEN];
    random(&mut nonce)?;
    Ok(nonce)
}

/// Connects to `<path>_<port>` without waiting: one that listens and doesn't accept must not stop all others.
fn connect(path: &Path, port: u32) -> io::Result<UnixStream> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
    let mut name = path.as_os_str().to_owned();
    name.push(format!("_{port}"));
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(PathBuf::from(name))?)?;
    Ok(socket.into())
}

#[cfg(test)]
#[path = "vsock_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "vsock/hostile_tests.rs"]
mod hostile_tests;
