//! A whole request: admitted or refused, done, told in the log, answered.

use crate::conn::Conn;
use crate::fail::Fail;
use crate::gate::{Charge, Peer, Taken};
use crate::log::{Cause, Level, Value};
use crate::ops;
use crate::serve::Server;
use std::sync::atomic::Ordering;
use std::time::Instant;
use wire::frame::{Envelope, Frame};
use wire::{Code, Reply, Request, reply};

/// A whole request and whom to answer.
pub(crate) struct Job {
    pub(crate) conn: Conn,
    pub(crate) frame: Frame,
    /// Its bytes, until it is answered.
    pub(crate) charge: Charge,
}

/// How a request is told in the log.
pub(crate) struct Told<'a> {
    pub(crate) method: &'a str,
    pub(crate) op_id: &'a str,
    pub(crate) since: Instant,
    pub(crate) cause: Cause,
}

impl Server {
    /// A whole request: done now by this thread, or by the next one that is free, or refused.
    pub(crate) fn admit(&'static self, job: Job) {
        if self.stopping.load(Ordering::SeqCst) {
            return self.refuse_job(job, &stopping());
        }
        match self.workers.take(job.conn.peer) {
            Some(place) => self.work_on(place, job),
            None => self.enqueue(job),
        }
        // One may have been queued between somebody's last look and the moment when his place was free.
        while let Some((place, job)) = self.next_with_place() {
            self.work_on(place, job);
        }
    }

    /// Leaves the door, does this request and those that may have a place behind it, and comes back.
    fn work_on(&'static self, place: Taken, job: Job) {
        if self.at_door.fetch_sub(1, Ordering::AcqRel) == 1
            && let Err(error) = self.another_at_door()
        {
            let text = error.to_string();
            self.host.log.own(Level::Error, "no thread for the door", &[("message", Value::Text(&text, 256))]);
        }
        let mut next = Some((place, job));
        while let Some((place, job)) = next {
            self.work(job);
            // A place is given back and asked for again: root's own is not to be had for what the owner queued.
            drop(place);
            next = self.next_with_place();
        }
        self.at_door.fetch_add(1, Ordering::AcqRel);
    }

    /// The first request that waits and may have a place: root's passes the owner's where only root's is free.
    fn next_with_place(&'static self) -> Option<(Taken, Job)> {
        let mut queue = self.queue();
        let first = queue.front()?.conn.peer;
        if let Some(place) = self.workers.take(first) {
            return queue.pop_front().map(|job| (place, job));
        }
        let roots = queue.iter().position(|job| job.conn.peer == Peer::Root)?;
        let place = self.workers.take(Peer::Root)?;
        queue.remove(roots).map(|job| (place, job))
    }

    fn enqueue(&'static self, job: Job) {
        let most = self.host.settings.limits.queued;
        let mut queue = self.queue();
        if queue.len() < most {
            return queue.push_back(job);
        }
        drop(queue);
        self.refuse_job(job, &limit("queued", most, "requests wait for a worker"));
    }

    fn refuse_job(&'static self, job: Job, fail: &Fail) {
        let Job { conn, frame, .. } = job;
        let mut held = self.replies.charge();
        let line = match frame.envelope() {
            Ok(envelope) => self.failed(&Told::of(&envelope, conn.since), fail, &mut held),
            Err(refusal) => return self.refuse(conn, &refusal.into()),
        };
        self.answer_holding(conn, line, held);
    }

    /// Does a request and answers it.
    fn work(&'static self, job: Job) {
        let Job { conn, frame, charge } = job;
        let mut held = self.replies.charge();
        let line = match frame.envelope() {
            Ok(Envelope { method, op_id, .. }) => {
                let (method, op_id) = (method.into_owned(), op_id.into_owned());
                self.operate(frame, &method, &op_id, &mut held)
            }
            Err(refusal) => return self.refuse(conn, &refusal.into()),
        };
        drop(charge);
        self.answer_holding(conn, line, held);
        self.host.net.hear_news();
    }

    /// Does what a request says, which is used up by it.
    fn operate(&self, frame: Frame, method: &str, op_id: &str, held: &mut Charge) -> Vec<u8> {
        let told = Told { method, op_id, since: Instant::now(), cause: Cause::Request };
        let log = &self.host.log;
        if log.writes(Level::Debug) {
            log.line(told.cause, Level::Debug, "helper rpc", &told.who());
        }
        let done = Request::of(frame, &self.host.settings.roots)
            .map_err(Fail::from)
            .and_then(|request| ops::run(self.host, &request, held))
            .and_then(|done| self.success(&done, held));
        match done {
            Ok(line) => {
                let [method, op_id] = told.who();
                let fields = [method, op_id, ("duration_ms", Value::Number(told.millis()))];
                log.line(told.cause, Level::Info, "helper rpc completed", &fields);
                line
            }
            Err(fail) => self.failed(&told, &fail, held),
        }
    }

    /// The line of a success, where replies have room for it.
    fn success(&self, done: &Reply, held: &mut Charge) -> Result<Vec<u8>, Fail> {
        let limits = &self.host.settings.limits;
        let line = reply::success(done, limits.reply_bytes)?;
        if held.grow(line.len()) {
            return Ok(line);
        }
        Err(limit("reply_bytes_together", limits.reply_bytes_together, "bytes of replies wait for their readers"))
    }

    /// Tells a failure in the log and gives the line that tells it to the client. An `op_id` is repeated where replies
    /// have room for it: it may be as long as a request, and six times that in a reply.
    fn failed(&self, told: &Told<'_>, fail: &Fail, held: &mut Charge) -> Vec<u8> {
        self.tell_failed(told, fail);
        let length = reply::failure_len(fail.code, &fail.message, told.op_id);
        let fits = length <= self.host.settings.limits.reply_bytes && held.grow(length);
        reply::failure(fail.code, &fail.message, if fits { told.op_id } else { "" })
    }

    pub(crate) fn tell_failed(&self, told: &Told<'_>, fail: &Fail) {
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

    /// A request that nobody works on: it is answered and told at once.
    pub(crate) fn refuse(&'static self, conn: Conn, fail: &Fail) {
        let cause = if fail.code == Code::OperationFailed { Cause::Request } else { Cause::Stranger };
        self.tell_failed(&Told { method: "", op_id: "", since: conn.since, cause }, fail);
        self.answer(conn, reply::failure(fail.code, &fail.message, ""));
    }

    pub(crate) fn refuse_stopping(&'static self, conn: Conn) {
        self.refuse(conn, &stopping());
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

/// A limit that is reached, by its name.
pub(crate) fn limit(name: &str, most: usize, what: &str) -> Fail {
    Fail::new(format!("{most} {what}, and more are not taken (limits.{name}); try again"))
}

fn stopping() -> Fail {
    Fail::new("the helper is stopping; try again when it runs again")
}
