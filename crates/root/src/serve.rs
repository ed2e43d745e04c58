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
use crate::{ops, watch};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{SendFlags, SocketFlags, accept_with, send};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use watch::{Event, Watch};
use wire::frame::{Decoder, Envelope, Frame};
use wire::{Code, Reply, Request, reply};

/// Threads that stay when there is nothing to do.
const KEPT: usize = 2;
/// How long another one stays.
const IDLE: Duration = Duration::from_secs(10);
/// An operation's stack. Its buffers are on the heap.
const STACK: usize = 512 << 10;

/// The server. One for the process, until it ends.
pub(crate) struct Server {
    host: Host,
    listener: Listener,
    watch: Watch,
    connections: Places,
    workers: Places,
    requests: Bytes,
    replies: Bytes,
    /// Connections that wait, by their token.
    waiting: Mutex<HashMap<u64, Conn>>,
    /// Requests that wait for a worker.
    queue: Mutex<VecDeque<Job>>,
    at_door: AtomicUsize,
    stopping: AtomicBool,
}

/// A whole request and whom to answer.
struct Job {
    conn: Conn,
    frame: Frame,
    /// Its bytes, until it is answered.
    _charge: Charge,
}

/// How a request is told in the log.
struct Told<'a> {
    method: &'a str,
    op_id: &'a str,
    since: Instant,
    cause: Cause,
}

impl Server {
    pub(crate) fn new(host: Host, listener: Listener) -> Result<&'static Server, String> {
        let watch = Watch::new(&listener).map_err(|errno| format!("epoll: {errno}"))?;
        let limits = &host.settings.limits;
        // It lives as long as the process: threads and what they hold refer to it.
        Ok(Box::leak(Box::new(Server {
            connections: Places::new(limits.connections),
            workers: Places::new(limits.workers),
            requests: Bytes::new(limits.request_bytes_together),
            replies: Bytes::new(limits.reply_bytes_together),
            waiting: Mutex::default(),
            queue: Mutex::default(),
            at_door: AtomicUsize::new(0),
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
            // Who connected before the name went, and was not seen yet.
            while let Ok(stream) = self.accept() {
                self.welcome(stream);
            }
        }
        let asking: Vec<Conn> = self.take_waiting(|conn| matches!(conn.state, State::Reading(..)));
        for conn in asking {
            self.refuse_stopping(conn);
        }
        let end = Instant::now() + self.host.settings.limits.stop_time();
        while self.workers.taken() > 0 || !self.queue().is_empty() || !self.waiting().is_empty() {
            if Instant::now() > end {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        true
    }

    fn another_at_door(&'static self) -> io::Result<()> {
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
            let event = self.watch.next(IDLE);
            match event {
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
        if matches!(conn.state, State::Writing(..)) {
            return self.send_on(conn);
        }
        match conn.receive() {
            Received::Part if self.stopping.load(Ordering::SeqCst) => self.refuse_stopping(conn),
            Received::Part => self.wait_for(conn),
            Received::Whole(frame, charge) => self.admit(Job { conn, frame, _charge: charge }),
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
            State::Writing(..) => watch::Wants::Room,
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

    /// A request that nobody works on: it is answered and told at once.
    fn refuse(&'static self, conn: Conn, fail: &Fail) {
        let cause = if fail.code == Code::OperationFailed { Cause::Request } else { Cause::Stranger };
        self.tell_failed(&Told { method: "", op_id: "", since: conn.since, cause }, fail);
        self.answer(conn, reply::failure(fail.code, &fail.message, ""));
    }

    fn refuse_stopping(&'static self, conn: Conn) {
        self.refuse(conn, &stopping());
    }

    /// A whole request: done now by this thread, or by the next one that is free, or refused.
    fn admit(&'static self, job: Job) {
        if self.stopping.load(Ordering::SeqCst) {
            return self.refuse_job(job, &stopping());
        }
        let Some(place) = self.workers.take(job.conn.peer) else {
            return self.enqueue(job);
        };
        if self.at_door.fetch_sub(1, Ordering::AcqRel) == 1
            && let Err(error) = self.another_at_door()
        {
            let text = error.to_string();
            self.host.log.own(Level::Error, "no thread for the door", &[("message", Value::Text(&text, 256))]);
        }
        self.work(job);
        while let Some(job) = self.next_job() {
            self.work(job);
        }
        drop(place);
        self.at_door.fetch_add(1, Ordering::AcqRel);
        // One may have been put there after the last look and before the place was free.
        if let Some(job) = self.next_job() {
            self.admit(job);
        }
    }

    fn next_job(&self) -> Option<Job> {
        self.queue().pop_front()
    }

    fn enqueue(&'static self, job: Job) {
        let most = self.host.settings.limits.queued;
        let mut queue = self.queue();
        if queue.len() < most {
            queue.push_back(job);
            drop(queue);
            // Whoever was the last to work may have looked a moment ago.
            if self.workers.taken() == 0
                && let Some(job) = self.next_job()
            {
                self.admit(job);
            }
            return;
        }
        drop(queue);
        self.refuse_job(job, &limit("queued", most, "requests wait for a worker"));
    }

    fn refuse_job(&'static self, job: Job, fail: &Fail) {
        let Job { conn, frame, .. } = job;
        let line = match frame.envelope() {
            Ok(envelope) => self.failed(&Told::of(&envelope, conn.since), fail),
            Err(refusal) => return self.refuse(conn, &refusal.into()),
        };
        self.answer(conn, line);
    }

    /// Does a request and answers it.
    fn work(&'static self, job: Job) {
        let Job { conn, frame, _charge } = job;
        let line = match frame.envelope() {
            Ok(envelope) => self.operate(&envelope),
            Err(refusal) => return self.refuse(conn, &refusal.into()),
        };
        drop(frame);
        self.answer(conn, line);
    }

    fn operate(&self, envelope: &Envelope<'_>) -> Vec<u8> {
        let told = Told::of(envelope, Instant::now());
        let log = &self.host.log;
        if log.writes(Level::Debug) {
            log.line(told.cause, Level::Debug, "helper rpc", &told.who());
        }
        let done = Request::parse(envelope, &self.host.settings.roots)
            .map_err(Fail::from)
            .and_then(|request| ops::run(&self.host, &request))
            .and_then(|done: Reply| reply::success(&done, self.host.settings.limits.reply_bytes).map_err(Fail::from));
        match done {
            Ok(line) => {
                let [method, op_id] = told.who();
                let fields = [method, op_id, ("duration_ms", Value::Number(told.millis()))];
                log.line(told.cause, Level::Info, "helper rpc completed", &fields);
                line
            }
            Err(fail) => self.failed(&told, &fail),
        }
    }

    /// Tells a failure in the log and gives the line that tells it to the client.
    fn failed(&self, told: &Told<'_>, fail: &Fail) -> Vec<u8> {
        self.tell_failed(told, fail);
        reply::failure(fail.code, &fail.message, told.op_id)
    }

    fn tell_failed(&self, told: &Told<'_>, fail: &Fail) {
        let [method, op_id] = told.who();
        let mut fields = vec![
            method,
            op_id,
            ("duration_ms", Value::Number(told.millis())),
            ("code", Value::Text(fail.code.as_str(), 32)),
            ("message", Value::Text(&fail.message, 1024)),
        ];
        if !fail.causes.is_empty() {
            fields.push(("cause", Value::List(&fail.causes, 2000)));
        }
        self.host.log.line(told.cause, Level::Error, "helper rpc failed", &fields);
    }

    /// Sends the reply, and waits for its reader without a thread where he is slow.
    fn answer(&'static self, mut conn: Conn, line: Vec<u8>) {
        conn.deadline = Instant::now() + self.host.settings.limits.reply_time();
        conn.state = State::Writing(line, 0, self.replies.charge());
        self.send_on(conn);
    }

    fn send_on(&'static self, mut conn: Conn) {
        if conn.send() == Sent::Done {
            return;
        }
        if let State::Writing(line, gone, charge) = &mut conn.state
            && !charge.grow(line.len() - *gone)
        {
            // The peer has the beginning of a line already, so all that can be told him is the end.
            let text =
                format!("limits.reply_bytes_together ({}) is reached", self.host.settings.limits.reply_bytes_together);
            let fields = [("message", Value::Text(&text, 256))];
            self.host.log.line(Cause::Request, Level::Warn, "reply given up", &fields);
            return;
        }
        self.wait_for(conn);
    }

    /// Ends what has taken too long.
    fn sweep(&'static self) {
        let now = Instant::now();
        let late = self.take_waiting(|conn| conn.deadline <= now);
        self.watch.tick(!self.waiting().is_empty());
        let limits = &self.host.settings.limits;
        for conn in late {
            if matches!(conn.state, State::Writing(..)) {
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

    fn queue(&self) -> MutexGuard<'_, VecDeque<Job>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<'a> Told<'a> {
    fn of(envelope: &'a Envelope<'_>, since: Instant) -> Told<'a> {
        Told { method: &envelope.method, op_id: &envelope.op_id, since, cause: Cause::Request }
    }

    fn who(&self) -> [(&'static str, Value<'a>); 2] {
        [("method", Value::Text(self.method, 256)), ("op_id", Value::Text(self.op_id, 256))]
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

fn limit(name: &str, most: usize, what: &str) -> Fail {
    Fail::new(format!("{most} {what}, and more are not taken (limits.{name}); try again"))
}

fn stopping() -> Fail {
    Fail::new("the helper is stopping; try again when it runs again")
}
