//! The door: threads that wait for connections, each of which reads a request and does it itself.
//!
//! There is always a thread at the door. One that goes to work makes sure of it first, so a connection is never handed
//! from thread to thread, an idle one costs a descriptor and some bytes, and an idle helper has two threads.

use crate::conn::{Conn, Received, Sent, State};
use crate::fail::Fail;
use crate::gate::{Bytes, Charge, Peer, Places};
use crate::host::Host;
use crate::listen::Listener;
use crate::log::{Cause, Level, Value};
use crate::watch;
use crate::work::{Job, Told, limit};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{SendFlags, SocketFlags, accept_with, send};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use watch::{Event, Watch};
use wire::frame::Decoder;
use wire::{Code, reply};

/// Threads that stay when there is nothing to do.
const KEPT: usize = 2;
/// How long another one stays.
const IDLE: Duration = Duration::from_secs(10);
/// An operation's stack. Its buffers are on the heap.
const STACK: usize = 512 << 10;

/// The server. One for the process, until it ends.
pub(crate) struct Server {
    pub(crate) host: &'static Host,
    listener: Listener,
    watch: Watch,
    connections: Places,
    pub(crate) workers: Places,
    pub(crate) requests: Bytes,
    pub(crate) replies: Bytes,
    /// Connections that wait, by their token.
    waiting: Mutex<HashMap<u64, Conn>>,
    /// Requests that wait for a worker.
    pub(crate) queue: Mutex<VecDeque<Job>>,
    pub(crate) at_door: AtomicUsize,
    /// Threads that may hold a connection which has no place yet.
    accepting: AtomicUsize,
    pub(crate) stopping: AtomicBool,
}

impl Server {
    pub(crate) fn new(host: &'static Host, listener: Listener) -> Result<&'static Server, String> {
        let watch = Watch::new(&listener).map_err(|errno| format!("epoll: {errno}"))?;
        let limits = &host.settings.limits;
        // As its host, for the process.
        Ok(Box::leak(Box::new(Server {
            connections: Places::new(limits.connections),
            workers: Places::new(limits.workers),
            requests: Bytes::new(limits.request_bytes_together),
            replies: Bytes::new(limits.reply_bytes_together),
            waiting: Mutex::default(),
            queue: Mutex::default(),
            at_door: AtomicUsize::new(0),
            accepting: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            host,
            listener,
            watch,
        })))
    }

    /// Begins to serve.
    pub(crate) fn open(&'static self) -> Result<(), String> {
        self.another_at_door().map_err(|error| format!("starting a thread: {error}"))
    }

    /// Whether somebody is at the door: the watchdog is told so.
    pub(crate) fn is_alive(&self) -> bool {
        self.at_door.load(Ordering::Acquire) > 0
    }

    /// The log.
    pub(crate) fn log(&self) -> &crate::log::Log {
        &self.host.log
    }

    /// Ends: the socket goes, new requests are refused, running operations get their time. True where all ended.
    pub(crate) fn stop(&'static self) -> bool {
        self.stopping.store(true, Ordering::SeqCst);
        self.watch.forget(&self.listener);
        if let Err(error) = self.listener.remove() {
            self.host.log.own(Level::Warn, "socket not removed", &[("message", Value::Text(&error, 1024))]);
        }
        if self.listener.ends_with_us() {
            // Who connected before that, and was not seen yet: no more than the socket's backlog.
            while let Ok(stream) = self.accept() {
                self.welcome(stream);
            }
        }
        let end = Instant::now() + self.host.settings.limits.stop_time();
        loop {
            // Again and again: a thread may have put one back that it took before it was told.
            for conn in self.take_waiting(|conn| matches!(conn.state, State::Reading(..))) {
                self.refuse_stopping(conn);
            }
            // Read, worked on, queued, answered, or in a thread's hands between these: each holds its place. One that
            // is being accepted has none yet, so this is asked first.
            if self.accepting.load(Ordering::SeqCst) == 0 && self.connections.taken() == 0 {
                return true;
            }
            if Instant::now() > end {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub(crate) fn another_at_door(&'static self) -> io::Result<()> {
        // Counted before it runs, so that two don't start one each for the same gap.
        self.at_door.fetch_add(1, Ordering::AcqRel);
        let started = std::thread::Builder::new().name("door".into()).stack_size(STACK).spawn(|| self.door());
        if started.is_err() {
            self.at_door.fetch_sub(1, Ordering::AcqRel);
        }
        started.map(drop)
    }

    fn door(&'static self) {
        let mut idle_since = Instant::now();
        loop {
            let spare = self.at_door.load(Ordering::Acquire) > KEPT;
            match self.watch.next(spare.then_some(IDLE)) {
                Event::Nothing => {
                    if idle_since.elapsed() >= IDLE && self.may_leave() {
                        return;
                    }
                    continue;
                }
                Event::Listener => self.accept_one(),
                Event::Tick => self.sweep(),
                Event::Conn(token) => {
                    let conn = self.waiting().remove(&token);
                    if let Some(conn) = conn {
                        self.go_on(conn);
                    }
                }
            }
            idle_since = Instant::now();
        }
    }

    /// Takes this thread off the door's count where enough others are there.
    fn may_leave(&self) -> bool {
        let leave = |count| (count > KEPT).then_some(count - 1);
        self.at_door.fetch_update(Ordering::AcqRel, Ordering::Acquire, leave).is_ok()
    }

    fn accept(&self) -> Result<OwnedFd, Errno> {
        accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
    }

    fn accept_one(&'static self) {
        self.accepting.fetch_add(1, Ordering::SeqCst);
        let accepted = self.accept();
        match &accepted {
            Ok(_) | Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => {}
            Err(errno) => {
                let text = format!("accept4: {errno}");
                self.host.log.line(
                    Cause::Stranger,
                    Level::Error,
                    "accept failed",
                    &[("message", Value::Text(&text, 256))],
                );
                // Out of descriptors or memory: asking again at once would only burn time.
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        if !self.stopping.load(Ordering::SeqCst) {
            self.watch.again_listener(&self.listener);
        }
        if let Ok(stream) = accepted {
            self.welcome(stream);
        }
        self.accepting.fetch_sub(1, Ordering::SeqCst);
    }

    /// Who is it? Before a byte of his is read.
    fn welcome(&'static self, stream: OwnedFd) {
        let now = Instant::now();
        let told = Told { method: "", op_id: "", since: now, cause: Cause::Stranger };
        let owner = self.host.owner.uid;
        let peer = match sys::sandbox::peer_uid(&stream) {
            Ok(0) => Peer::Root,
            Ok(uid) if uid == owner => Peer::Owner,
            Ok(uid) => {
                let message = format!("uid {uid} is not allowed to use the root helper");
                return self.turn_away(&stream, &told, &Fail::new(message).code(Code::Unauthorized));
            }
            Err(error) => {
                let fail = Fail::new("who connected could not be told").code(Code::Unauthorized).because(error);
                return self.turn_away(&stream, &told, &fail);
            }
        };
        let limits = &self.host.settings.limits;
        let Some(place) = self.connections.take(peer) else {
            let fail = limit("connections", limits.connections, "connections are open");
            return self.turn_away(&stream, &told, &fail);
        };
        let state = State::Reading(Decoder::new(limits.request_bytes), self.requests.charge());
        self.go_on(Conn::new(stream, peer, place, now, now + limits.request_time(), state));
    }

    /// Answers somebody of whom nothing was read. A fresh socket's buffer takes the line whole.
    fn turn_away(&self, stream: &OwnedFd, told: &Told<'_>, fail: &Fail) {
        self.tell_failed(told, fail);
        let line = reply::failure(fail.code, &fail.message, "");
        let _ = send(stream, &line, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    }

    /// Goes on with a connection as far as that needs no waiting.
    fn go_on(&'static self, mut conn: Conn) {
        if matches!(conn.state, State::Writing { .. }) {
            return self.send_on(conn);
        }
        match conn.receive() {
            Received::Part if self.stopping.load(Ordering::SeqCst) => self.refuse_stopping(conn),
            Received::Part => self.wait_for(conn),
            Received::Whole(frame, charge) => self.admit(Job { conn, frame, charge }),
            Received::Refused(refusal) => self.refuse(conn, &refusal.into()),
            Received::NoRoom => {
                let most = self.host.settings.limits.request_bytes_together;
                self.refuse(conn, &limit("request_bytes_together", most, "bytes of requests are here"));
            }
            Received::Broken => {}
        }
    }

    fn wait_for(&'static self, mut conn: Conn) {
        let wants = match conn.state {
            State::Writing { .. } => watch::Wants::Room,
            _ => watch::Wants::Bytes,
        };
        let watched = std::mem::replace(&mut conn.watched, true);
        // It must be found by whoever gets its event, so it is put there before it is watched.
        let mut waiting = self.waiting();
        let token = watch::token(&conn);
        let kept = waiting.entry(token).insert_entry(conn);
        if self.watch.conn(kept.get(), wants, watched).is_err() {
            kept.remove();
        }
        self.watch.tick(!waiting.is_empty());
    }

    /// Sends a short reply.
    pub(crate) fn answer(&'static self, conn: Conn, line: Vec<u8>) {
        self.answer_holding(conn, line, self.replies.charge());
    }

    /// Sends the reply, and waits for its reader without a thread where he is slow.
    pub(crate) fn answer_holding(&'static self, mut conn: Conn, line: Vec<u8>, held: Charge) {
        conn.deadline = Instant::now() + self.host.settings.limits.reply_time();
        conn.state = State::Writing { reply: line, sent: 0, _held: held };
        self.send_on(conn);
    }

    fn send_on(&'static self, mut conn: Conn) {
        if conn.send() == Sent::Part {
            self.wait_for(conn);
        }
    }

    /// Ends what has taken too long.
    fn sweep(&'static self) {
        let now = Instant::now();
        let late = self.take_waiting(|conn| conn.deadline <= now);
        self.watch.tick(!self.waiting().is_empty());
        let limits = &self.host.settings.limits;
        for conn in late {
            if matches!(conn.state, State::Writing { .. }) {
                let text = format!("nobody read it within {:?} (limits.reply_seconds)", limits.reply_time());
                let fields = [("message", Value::Text(&text, 256))];
                self.host.log.line(Cause::Request, Level::Warn, "reply given up", &fields);
            } else {
                let time = limits.request_time();
                let message = format!("no whole request came within {time:?} (limits.request_seconds)");
                self.refuse(conn, &Fail::new(message).code(Code::BadRequest));
            }
        }
    }

    fn take_waiting(&self, which: impl Fn(&Conn) -> bool) -> Vec<Conn> {
        self.waiting().extract_if(|_, conn| which(conn)).map(|(_, conn)| conn).collect()
    }

    // Both are whole at each moment, so a panic elsewhere does not spoil them.
    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, Conn>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn queue(&self) -> MutexGuard<'_, VecDeque<Job>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
