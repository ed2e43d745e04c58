//! One operation on a VM at a time, and how many connections to each guest are open.

use crate::api::Fault;
use crate::daemon::error::exit;
use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Connections that are handed over at once for each VM: what every transport carries (AGENT.md of the guest protocol).
const MAX_CONNECTIONS: usize = 32;

/// What a VM is held for while it comes up.
pub(crate) const START: &str = "its start";
/// And while its guest is asked to end for somebody.
pub(crate) const STOPPING: &str = "its stop";

/// What is going on, by VM's id.
#[derive(Debug, Default)]
pub struct Slots {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    held: HashMap<String, Doing>,
    connections: HashMap<String, usize>,
    /// When the last operation or connection of each was over.
    used: HashMap<String, Instant>,
}

#[derive(Debug)]
struct Doing {
    what: &'static str,
    /// Somebody wants it given up.
    unwanted: bool,
    /// It is done, and can't be given up any more.
    done: bool,
}

/// A VM that is this operation's alone until it is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    slots: Arc<Slots>,
    id: String,
}

/// A connection that counts until it is dropped.
#[derive(Debug)]
pub(crate) struct Connection {
    slots: Arc<Slots>,
    id: String,
}

impl Slots {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change is one statement: a thread that panicked left none half made.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the VM for `what`; an operation that is under way is waited for until `limit`.
    ///
    /// # Errors
    /// `busy`, which names what goes on.
    pub(crate) fn hold(
        self: &Arc<Self>,
        id: &str,
        name: &str,
        what: &'static str,
        limit: Duration,
    ) -> Result<Held, Fault> {
        let end = Instant::now() + limit;
        let mut state = self.lock();
        while let Some(doing) = state.held.get(id) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let message = format!("{name} is in the middle of something else: {}", doing.what);
                return Err(Fault::new("busy", exit::STATE, message)
                    .fix("ask again when that is over; banger vm rm -f takes it away now"));
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.held.insert(id.to_owned(), Doing { what, unwanted: false, done: false });
        self.changed.notify_all();
        Ok(Held { slots: Arc::clone(self), id: id.to_owned() })
    }

    /// Asks what is under way to give up; `false` where nothing is, or it is done.
    pub(crate) fn unwant(&self, id: &str) -> bool {
        match self.lock().held.get_mut(id) {
            Some(doing) if !doing.done => {
                doing.unwanted = true;
                true
            }
            _ => false,
        }
    }

    /// Waits for `is_so`, which hears whether a VM is being started or a command runs in one; no longer than `until`.
    pub(crate) fn wait(&self, until: Option<Instant>, is_so: impl Fn(bool) -> bool) {
        let mut state = self.lock();
        while !is_so(state.is_busy()) {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return;
            }
            state = match left {
                Some(left) => self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Has all that wait look again.
    pub(crate) fn wake(&self) {
        // Not between somebody's look and his wait.
        drop(self.lock());
        self.changed.notify_all();
    }

    /// When something was last done with the VM, or a connection to its guest open; `None`: nothing since this daemon's start.
    pub(crate) fn used(&self, id: &str) -> Option<Instant> {
        let state = self.lock();
        if state.held.contains_key(id) { Some(Instant::now()) } else { state.last(id) }
    }

    /// The same for who holds it.
    pub(crate) fn connected(&self, id: &str) -> Option<Instant> {
        self.lock().last(id)
    }

    /// Forgets a VM that is gone.
    pub(crate) fn forget(&self, id: &str) {
        self.lock().used.remove(id);
    }

    /// Whether another VM than that is being started.
    pub(crate) fn starting(&self, id: &str) -> bool {
        self.lock().held.iter().any(|(other, doing)| other != id && doing.what == START)
    }

    /// Whether its guest is asked to end for somebody.
    pub(crate) fn stops(&self, id: &str) -> bool {
        self.lock().held.get(id).is_some_and(|doing| doing.what == STOPPING)
    }

    /// One more connection to the guest.
    ///
    /// # Errors
    /// `too_many_calls`.
    pub(crate) fn connect(self: &Arc<Self>, id: &str, name: &str) -> Result<Connection, Fault> {
        let mut state = self.lock();
        let count = state.connections.entry(id.to_owned()).or_default();
        if *count >= MAX_CONNECTIONS {
            let message = format!("{MAX_CONNECTIONS} commands run in {name} at once, and no more can");
            return Err(Fault::new("too_many_calls", exit::ROOM, message).fix("wait until one of them is over"));
        }
        *count += 1;
        self.changed.notify_all();
        Ok(Connection { slots: Arc::clone(self), id: id.to_owned() })
    }
}

impl State {
    fn last(&self, id: &str) -> Option<Instant> {
        if self.connections.contains_key(id) { Some(Instant::now()) } else { self.used.get(id).copied() }
    }

    fn is_busy(&self) -> bool {
        !self.connections.is_empty() || self.held.values().any(|doing| doing.what == START)
    }
}

impl Held {
    /// Whether somebody wants this given up.
    pub(crate) fn is_unwanted(&self) -> bool {
        self.slots.lock().held.get(&self.id).is_some_and(|doing| doing.unwanted)
    }

    /// It is done, and nobody can have it given up any more; `false` where somebody has.
    pub(crate) fn is_done(&self) -> bool {
        let mut state = self.slots.lock();
        let Some(doing) = state.held.get_mut(&self.id) else { return false };
        doing.done = !doing.unwanted;
        doing.done
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut state = self.slots.lock();
        state.held.remove(&self.id);
        state.used.insert(self.id.clone(), Instant::now());
        drop(state);
        self.slots.changed.notify_all();
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut state = self.slots.lock();
        if let Some(count) = state.connections.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                state.connections.remove(&self.id);
                state.used.insert(self.id.clone(), Instant::now());
                self.slots.changed.notify_all();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_and_the_next_when_it_is_over() {
        let slots = Arc::new(Slots::default());
        let held = slots.hold("1", "web", "a start", Duration::ZERO).unwrap();
        let fault = slots.hold("1", "web", "a stop", Duration::from_millis(10)).unwrap_err();
        assert!(fault.code == "busy" && fault.message.contains("a start"), "{fault:?}");
        let other = slots.hold("2", "db", "a start", Duration::ZERO).unwrap();
        assert!(slots.unwant("1") && held.is_unwanted() && !held.is_done() && !slots.unwant("3"));
        assert!(other.is_done() && !slots.unwant("2") && !other.is_unwanted());
        let waiting = Arc::clone(&slots);
        let next = std::thread::spawn(move || waiting.hold("1", "web", "a stop", Duration::from_secs(20)).map(drop));
        drop(held);
        next.join().unwrap().unwrap();
    }

    #[test]
    fn who_gives_way_hears_of_starts_and_commands() {
        let slots = Arc::new(Slots::default());
        let soon = || Some(Instant::now() + Duration::from_millis(10));
        let _other = slots.hold("1", "db", "a stop", Duration::ZERO).unwrap();
        slots.wait(None, |is_busy| !is_busy);
        let waiting = Arc::clone(&slots);
        let heard = std::thread::spawn(move || waiting.wait(None, |is_busy| is_busy));
        let start = slots.hold("2", "web", START, Duration::ZERO).unwrap();
        heard.join().unwrap();
        assert!(slots.starting("1") && !slots.starting("2"));
        let begun = Instant::now();
        slots.wait(soon(), |is_busy| !is_busy);
        assert!(begun.elapsed() >= Duration::from_millis(10), "it is not over");
        let command = slots.connect("2", "web").unwrap();
        drop(start);
        assert!(slots.lock().is_busy());
        let waiting = Arc::clone(&slots);
        let quiet = std::thread::spawn(move || waiting.wait(None, |is_busy| !is_busy));
        drop(command);
        quiet.join().unwrap();
    }

    #[test]
    fn connections_are_counted() {
        let slots = Arc::new(Slots::default());
        let all: Vec<Connection> = (0..MAX_CONNECTIONS).map(|_| slots.connect("1", "web").unwrap()).collect();
        assert_eq!(slots.connect("1", "web").unwrap_err().code, "too_many_calls");
        assert!(slots.used("1") > slots.used("2"));
        let held = slots.hold("1", "web", "a stop", Duration::ZERO).unwrap();
        drop(all);
        let over = slots.connected("1").unwrap();
        std::thread::sleep(Duration::from_millis(2));
        assert!(slots.connected("1") == Some(over) && slots.used("1") > Some(over), "what holds it is no connection");
        drop(held);
        let used = slots.used("1").unwrap();
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(slots.used("1"), Some(used), "its last connection is over");
        assert!(slots.connect("1", "web").is_ok());
        assert!(slots.lock().connections.len() <= 1);
        slots.forget("1");
        assert!(slots.used("1").is_none());
    }
}
