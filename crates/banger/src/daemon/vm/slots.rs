//! One operation on a VM at a time, and how many connections to each guest are open.

use crate::api::Fault;
use crate::daemon::error::exit;
use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Connections that are handed over at once for each VM: what every transport carries (AGENT.md of the guest protocol).
const MAX_CONNECTIONS: usize = 32;

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
}

#[derive(Debug)]
struct Doing {
    what: &'static str,
    /// Somebody wants it given up.
    unwanted: bool,
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
        state.held.insert(id.to_owned(), Doing { what, unwanted: false });
        Ok(Held { slots: Arc::clone(self), id: id.to_owned() })
    }

    /// Asks what is under way to give up.
    pub(crate) fn unwant(&self, id: &str) {
        if let Some(doing) = self.lock().held.get_mut(id) {
            doing.unwanted = true;
        }
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
        Ok(Connection { slots: Arc::clone(self), id: id.to_owned() })
    }
}

impl Held {
    /// Whether somebody wants this given up.
    pub(crate) fn is_unwanted(&self) -> bool {
        self.slots.lock().held.get(&self.id).is_some_and(|doing| doing.unwanted)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.slots.lock().held.remove(&self.id);
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
        let _other = slots.hold("2", "db", "a start", Duration::ZERO).unwrap();
        slots.unwant("1");
        assert!(held.is_unwanted());
        let waiting = Arc::clone(&slots);
        let next = std::thread::spawn(move || waiting.hold("1", "web", "a stop", Duration::from_secs(20)).map(drop));
        drop(held);
        next.join().unwrap().unwrap();
    }

    #[test]
    fn connections_are_counted() {
        let slots = Arc::new(Slots::default());
        let all: Vec<Connection> = (0..MAX_CONNECTIONS).map(|_| slots.connect("1", "web").unwrap()).collect();
        assert_eq!(slots.connect("1", "web").unwrap_err().code, "too_many_calls");
        drop(all);
        assert!(slots.connect("1", "web").is_ok());
        assert!(slots.lock().connections.len() <= 1);
    }
}
