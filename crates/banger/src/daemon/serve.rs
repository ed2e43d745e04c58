//! The daemon's socket: who may call, how many at once, and one call from its line to its end.

use super::calls::{self, Place};
use super::error::exit;
use super::store::vms::Process;
use super::{Daemon, log, ops, trace};
use crate::api::conn::Conn;
use crate::api::vm::Changed;
use crate::api::{Attached, Call, Event, Fault, Stage, StageState, Word};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::socket_peercred;
use serde::Serialize;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use sys::pidfd;

/// A request is whole within this time.
const REQUEST: Duration = Duration::from_secs(10);
/// A caller that does not read for so long is gone.
const UNREAD: Duration = Duration::from_secs(10);
/// When accepting fails for want of descriptors or memory, others may give some back.
const PAUSE: Duration = Duration::from_millis(50);

/// Serves calls until the socket can't be used any more; why. `InvalidInput`: it was shut.
pub fn until_shut(daemon: &Arc<Daemon>, listener: &UnixListener) -> io::Error {
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput) => return error,
            Err(error) => {
                log::fault("accept", "", &Fault::new("accept", exit::FAILED, error.to_string()));
                std::thread::sleep(PAUSE);
                continue;
            }
        };
        let Some(place) = daemon.calls.take() else { continue };
        let daemon = Arc::clone(daemon);
        let started = std::thread::Builder::new().name("call".into()).spawn(move || call(&daemon, stream, place));
        if let Err(error) = started {
            log::fault("accept", "", &Fault::new("no_thread", exit::ROOM, error.to_string()));
        }
    }
}

fn call(daemon: &Arc<Daemon>, stream: UnixStream, place: Place) {
    let mut caller = Caller::new(stream);
    let begun = Instant::now();
    let (what, done) = match admit(&mut caller, &place).and_then(|()| read(&mut caller)) {
        Ok(call) => {
            caller.op_id = if call.op_id.is_empty() { new_op_id() } else { call.op_id };
            if call.trace {
                trace::begin(begun);
            }
            let what = ops::name(&call.request);
            (what, ops::run(daemon, &mut caller, call.request))
        }
        Err(fault) => ("", Err(fault)),
    };
    let event = match done {
        Ok(value) => {
            log::done(what, &caller.op_id, begun.elapsed());
            Event::Done(value)
        }
        Err(mut fault) => {
            fault.op_id = caller.op_id.as_str().into();
            log::fault(what, &caller.op_id, &fault);
            Event::Error(fault)
        }
    };
    caller.finish(&event);
    drop(place);
}

/// The owner, and root.
fn admit(caller: &mut Caller, place: &Place) -> Result<(), Fault> {
    let peer = socket_peercred(caller.conn.stream()).map_err(|errno| Fault::bug(io::Error::from(errno)))?;
    if !peer.uid.is_root() && peer.uid != rustix::process::geteuid() {
        return Err(Fault::new("unauthorized", exit::MACHINE, "this is another user's bangerd"));
    }
    if !place.is_one_of_them {
        return Err(Fault::new("busy", exit::ROOM, format!("bangerd serves {} calls at once", calls::MOST))
            .fix("wait until some of them are over"));
    }
    Ok(())
}

fn read(caller: &mut Caller) -> Result<Call, Fault> {
    let wrong =
        |why: String| Fault::new("bad_request", exit::USAGE, "bangerd was sent something that is no request").why(why);
    let line = caller.conn.line().map_err(|error| wrong(error.to_string()))?;
    let line = line.ok_or_else(|| wrong("nothing came".into()))?;
    Call::parse(&line).map_err(|error| {
        wrong(error.to_string()).fix("banger and bangerd are of different versions? banger version shows both")
    })
}

/// An id for a call that brought none.
pub fn new_op_id() -> String {
    let mut bytes = [0; 4];
    // The time is as good where the kernel has no randomness yet: the id only has to be told from others in a log.
    if rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::NONBLOCK).is_err() {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        bytes = now.subsec_nanos().to_be_bytes();
    }
    format!("op-{:08x}", u32::from_be_bytes(bytes))
}

/// Who called, as an operation sees it.
pub struct Caller {
    conn: Conn,
    op_id: String,
    begun: Instant,
    /// Nobody reads any more, so nothing is written either.
    gone: bool,
    /// It has had its answer; where the operation is not over, that goes on without it. Held while it is sent anything.
    released: Arc<Mutex<bool>>,
    /// The stage with whose end it has its answer.
    until: Option<&'static str>,
}

/// What a wait ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// The time is over.
    Time,
    /// The caller wants all of it undone.
    Cancel,
    /// The caller's command is over.
    Finished,
    /// The caller is gone.
    Gone,
    /// The descriptor of that number can be read.
    Ready(usize),
}

impl Caller {
    pub(crate) fn new(stream: UnixStream) -> Caller {
        let limits = stream.set_read_timeout(Some(REQUEST)).and_then(|()| stream.set_write_timeout(Some(UNREAD)));
        let conn = Conn::new(stream);
        Caller {
            conn,
            op_id: String::new(),
            begun: Instant::now(),
            gone: limits.is_err(),
            released: Arc::default(),
            until: None,
        }
    }

    /// Who asks for what the daemon does unasked, until the stream that comes with him is closed. What he is told nobody reads.
    pub(crate) fn nobody() -> io::Result<(Caller, UnixStream)> {
        let (ours, theirs) = UnixStream::pair()?;
        Ok((Caller { op_id: new_op_id(), ..Caller::new(ours) }, theirs))
    }

    /// The operation's id.
    pub fn op_id(&self) -> &str {
        &self.op_id
    }

    /// Who called, as a process; `None` where it has ended already.
    pub fn process(&self) -> Option<Process> {
        let pid = socket_peercred(self.conn.stream()).ok()?.pid.as_raw_nonzero().get();
        pidfd::start_time(pid).ok().map(|start| Process { pid, start })
    }

    /// Tells of a stage; `about` names the VM or image.
    pub fn stage(&mut self, name: &str, state: StageState, about: &str, note: impl Into<String>) {
        let at_us = us(self.begun);
        let (name, about, note) = (name.to_owned(), about.to_owned(), note.into());
        let is_last = state == StageState::Ended && self.until == Some(name.as_str());
        self.send(&Event::Stage(Stage { name, state, at_us, about, note, usual_us: None }), None);
        if is_last {
            self.release(&goes_on(self.begun));
        }
    }

    /// Tells of a stage's beginning, and of how long it usually takes.
    pub fn stage_usually(&mut self, name: &str, about: &str, usual_us: Option<u64>) {
        let (name, about, note) = (name.to_owned(), about.to_owned(), String::new());
        let stage = Stage { name, state: StageState::Begun, at_us: us(self.begun), about, note, usual_us };
        self.send(&Event::Stage(stage), None);
    }

    /// Has it answered with that stage's end, as [`Caller::release`] does.
    pub fn until(&mut self, stage: &'static str) {
        self.until = Some(stage);
    }

    /// Has it answered after that time at the latest, as [`Caller::release`] does.
    pub fn within(&mut self, limit: Duration) {
        let (released, begun) = (Arc::clone(&self.released), self.begun);
        let later = self.conn.stream().try_clone().and_then(|stream| {
            std::thread::Builder::new().name("answer".into()).spawn(move || {
                std::thread::sleep(limit);
                answer(&Conn::new(stream), &released, &goes_on(begun));
            })
        });
        if later.is_err() {
            self.release(&goes_on(begun));
        }
    }

    /// Hands a descriptor over.
    pub fn hand_over(&mut self, attached: Attached, descriptor: BorrowedFd<'_>) {
        self.send(&Event::Attached(attached), Some(descriptor));
    }

    /// Answers now; what the operation does from here on is nobody's to see or to cancel.
    pub fn release(&mut self, result: &impl Serialize) {
        self.tell_traced();
        answer(&self.conn, &self.released, result);
    }

    /// The answer of an operation that is over, where it has had none.
    fn finish(&mut self, event: &Event) {
        self.tell_traced();
        let mut released = lock(&self.released);
        if !std::mem::replace(&mut *released, true) && !self.gone {
            // One that is gone needs none.
            let _ = self.conn.send(event, None);
        }
    }

    fn has_answer(&self) -> bool {
        *lock(&self.released)
    }

    /// What the caller gives to read; it comes right behind the request.
    ///
    /// # Errors
    /// Nothing came, or something else.
    pub fn input(&mut self) -> Result<OwnedFd, Fault> {
        let wrong = |why: String| Fault::new("bad_request", exit::USAGE, "nothing came that could be read").why(why);
        let line = self.conn.line().map_err(|error| wrong(error.to_string()))?.unwrap_or_default();
        let word: Word = serde_json::from_slice(&line).map_err(|error| wrong(error.to_string()))?;
        match (word, self.conn.descriptor()) {
            (Word::Input {}, Some(input)) => Ok(input),
            (word, _) => Err(wrong(format!("{word:?}"))),
        }
    }

    /// What the caller said meanwhile, without waiting; [`Woken::Time`] for nothing.
    pub fn heard(&mut self) -> Woken {
        if self.has_answer() {
            return Woken::Time;
        }
        if self.gone {
            return Woken::Gone;
        }
        match self.conn.line_now() {
            Ok(None) => Woken::Time,
            Ok(Some(line)) => match serde_json::from_slice(&line) {
                Ok(Word::Cancel {}) => Woken::Cancel,
                Ok(Word::Finished {}) => Woken::Finished,
                // Who asked for it takes it by `input`.
                Ok(Word::Input {}) => self.lost(),
                // Who says anything else is not one whom we understand.
                Err(_) => self.lost(),
            },
            Err(_) => self.lost(),
        }
    }

    /// Waits for the caller and for any of `others` to be readable, until the time is over; `None` waits for ever.
    pub fn wait(&mut self, others: &[BorrowedFd<'_>], until: Option<Instant>) -> Woken {
        loop {
            match self.heard() {
                Woken::Time => {}
                // A caller that is gone makes no noise any more; who goes on without it says so by not asking again.
                other => return other,
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            let timeout = left.map(timespec);
            let conn = self.conn.as_fd();
            // The end of one that has had its answer is no news.
            let own = usize::from(!self.has_answer());
            let all = std::iter::once(&conn).take(own).chain(others);
            let mut fds: Vec<PollFd<'_>> = all.map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
            match poll(&mut fds, timeout.as_ref()) {
                Ok(0) => return Woken::Time,
                Ok(_) => {
                    let ready = fds[own..].iter().position(|fd| !fd.revents().is_empty());
                    if let Some(ready) = ready {
                        return Woken::Ready(ready);
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return self.lost(),
            }
        }
    }

    /// Stops with `interrupted` where the caller wants so or is gone.
    ///
    /// # Errors
    /// `interrupted`.
    pub fn go_on(&mut self) -> Result<(), Fault> {
        match self.heard() {
            Woken::Cancel | Woken::Gone => Err(Fault::interrupted(&[])),
            _ => Ok(()),
        }
    }

    /// Nothing comes from it any more; after its answer, which another thread may have given it just now, nothing has to.
    fn lost(&mut self) -> Woken {
        if self.has_answer() {
            return Woken::Time;
        }
        self.gone = true;
        Woken::Gone
    }

    fn send(&mut self, event: &Event, descriptor: Option<BorrowedFd<'_>>) {
        self.tell_traced();
        self.send_now(event, descriptor);
    }

    fn tell_traced(&mut self) {
        for call in trace::take() {
            self.send_now(&Event::Helper(call), None);
        }
    }

    fn send_now(&mut self, event: &Event, descriptor: Option<BorrowedFd<'_>>) {
        let released = lock(&self.released);
        if !*released && !self.gone && self.conn.send(event, descriptor).is_err() {
            self.gone = true;
        }
    }
}

/// What a caller is told of a start that goes on.
fn goes_on(begun: Instant) -> Changed {
    Changed { changed: true, ms: us(begun) / 1000, ..Changed::default() }
}

fn lock(released: &Mutex<bool>) -> MutexGuard<'_, bool> {
    // A thread that panicked has sent what it sent.
    released.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The one answer.
fn answer(conn: &Conn, released: &Mutex<bool>, result: &impl Serialize) {
    let mut released = lock(released);
    if std::mem::replace(&mut *released, true) {
        return;
    }
    let event = match serde_json::to_value(result) {
        Ok(value) => Event::Done(value),
        Err(error) => Event::Error(Fault::bug(error)),
    };
    // One that is gone needs none; one that is there waits for it alone.
    let _ = conn.send(&event, None);
    let _ = conn.stream().shutdown(Shutdown::Both);
}

fn us(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

pub(crate) fn timespec(time: Duration) -> Timespec {
    Timespec { tv_sec: time.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: time.subsec_nanos().into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn words_are_heard_and_an_end_is_one() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (other, _kept) = UnixStream::pair().unwrap();
        let mut caller = Caller::new(ours);
        let soon = || Some(Instant::now() + Duration::from_millis(20));
        assert_eq!(caller.wait(&[other.as_fd()], soon()), Woken::Time);
        theirs.write_all(b"{\"finished\":{}}\n{\"cancel\":{}}\n").unwrap();
        assert_eq!(caller.wait(&[], None), Woken::Finished);
        assert_eq!(caller.go_on().unwrap_err().code, "interrupted");
        drop(theirs);
        assert_eq!(caller.wait(&[], None), Woken::Gone);
        // What it isn't told any more is no failure.
        caller.stage("plan", StageState::Begun, "web", "");
        assert_eq!(caller.heard(), Woken::Gone);
    }

    #[test]
    fn one_that_has_had_its_answer_cancels_nothing() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (other, mut far) = UnixStream::pair().unwrap();
        let mut caller = Caller::new(ours);
        caller.release(&7);
        caller.stage("boot", StageState::Ended, "web", "");
        let mut read = String::new();
        std::io::Read::read_to_string(&mut { theirs }, &mut read).unwrap();
        assert_eq!(read, "{\"done\":7}\n");
        assert!(caller.go_on().is_ok());
        assert_eq!(caller.wait(&[other.as_fd()], Some(Instant::now())), Woken::Time);
        far.write_all(b"x").unwrap();
        assert_eq!(caller.wait(&[other.as_fd()], None), Woken::Ready(0));
    }

    #[test]
    fn one_that_waits_no_longer_is_answered_once() {
        let read = |theirs: UnixStream| {
            let mut read = String::new();
            std::io::Read::read_to_string(&mut { theirs }, &mut read).unwrap();
            read
        };
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (other, mut far) = UnixStream::pair().unwrap();
        let mut caller = Caller::new(ours);
        caller.within(Duration::from_millis(20));
        // The operation is in the middle of something all the while.
        assert!(read(theirs).contains("\"changed\":true"));
        caller.stage("disk", StageState::Begun, "web", "");
        assert!(caller.go_on().is_ok(), "it goes on");
        caller.finish(&Event::Error(Fault::new("late", 1, "nobody hears it")));
        far.write_all(b"x").unwrap();
        assert_eq!(caller.wait(&[other.as_fd()], None), Woken::Ready(0));

        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut caller = Caller::new(ours);
        // Far above what this thread takes until then.
        caller.within(Duration::from_secs(5));
        caller.finish(&Event::Error(Fault::new("early", 1, "it failed")));
        drop(caller);
        // The end comes when the other thread has had its time.
        let read = read(theirs);
        assert!(read.contains("early") && read.lines().count() == 1, "{read}");
    }

    #[test]
    fn an_answer_from_the_side_cancels_nothing_and_cuts_no_line_in_two() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut caller = Caller::new(ours);
        caller.within(Duration::from_millis(20));
        let reader = std::thread::spawn(move || {
            // The answer's time comes in the middle of a line that nobody reads yet.
            std::thread::sleep(Duration::from_millis(100));
            let mut read = String::new();
            std::io::Read::read_to_string(&mut { theirs }, &mut read).unwrap();
            read
        });
        caller.stage("disk", StageState::Begun, "web", "x".repeat(900 << 10));
        let read = reader.join().unwrap();
        let lines: Vec<serde_json::Value> = read.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(lines.last().unwrap()["done"]["changed"] == true, "{} lines", lines.len());
        // Its end was seen just before it was known that it has had its answer.
        assert_eq!((caller.lost(), caller.heard()), (Woken::Time, Woken::Time));
    }

    #[test]
    fn a_descriptor_that_can_be_read_wakes() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let (other, mut far) = UnixStream::pair().unwrap();
        far.write_all(b"x").unwrap();
        assert_eq!(Caller::new(ours).wait(&[other.as_fd()], None), Woken::Ready(0));
    }
}
