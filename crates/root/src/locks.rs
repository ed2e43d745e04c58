//! One lock for each object: who works on `tap:tap-fc-1` waits for nobody but others on it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The objects that somebody works on now, by name.
#[derive(Debug, Default)]
pub(crate) struct Locks {
    held: Mutex<HashMap<String, Work>>,
    freed: Condvar,
    /// Who waits: where nobody does, nobody is told.
    waiting: AtomicUsize,
}

/// What holds an object, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Work {
    pub(crate) doing: &'static str,
    pub(crate) since: Instant,
}

impl Work {
    /// That work, beginning now.
    pub(crate) fn now(doing: &'static str) -> Work {
        Work { doing, since: Instant::now() }
    }
}

/// As an error tells it: `fsck_snapshot, for 75 s`.
impl std::fmt::Display for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, for {} s", self.doing, self.since.elapsed().as_secs())
    }
}

/// An object is held until this is dropped.
#[derive(Debug)]
pub(crate) struct Held<'a> {
    locks: &'a Locks,
    name: String,
}

impl Locks {
    /// Waits until nobody holds `name`, then holds it. Who needs two takes them in the order of their names.
    pub(crate) fn hold(&self, name: impl Into<String>) -> Held<'_> {
        let name = name.into();
        let mut held = self.held();
        while held.contains_key(&name) {
            self.waiting.fetch_add(1, Ordering::Relaxed);
            held = self.freed.wait(held).unwrap_or_else(PoisonError::into_inner);
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
        held.insert(name.clone(), Work::now("a short call"));
        Held { locks: self, name }
    }

    /// Waits at most so long for `name`, then gives what holds it: for objects whose work may take minutes.
    pub(crate) fn hold_within(&self, name: String, at_most: Duration, doing: &'static str) -> Result<Held<'_>, Work> {
        let until = Instant::now() + at_most;
        let mut held = self.held();
        while let Some(work) = held.get(&name).copied() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(work);
            }
            self.waiting.fetch_add(1, Ordering::Relaxed);
            held = self.freed.wait_timeout(held, left).unwrap_or_else(PoisonError::into_inner).0;
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
        held.insert(name.clone(), Work::now(doing));
        Ok(Held { locks: self, name })
    }

    // A table of names is whole at each moment, so a panic elsewhere does not spoil it.
    fn held(&self) -> MutexGuard<'_, HashMap<String, Work>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut held = self.locks.held();
        held.remove(&self.name);
        // Counted with the table in hand: who is not counted yet finds the name free.
        let is_awaited = self.locks.waiting.load(Ordering::Relaxed) > 0;
        drop(held);
        if is_awaited {
            self.locks.freed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    #[test]
    fn the_same_object_waits_and_another_does_not() {
        let locks = Locks::default();
        let first = locks.hold("tap:tap-fc-1");
        std::thread::scope(|scope| {
            let (say, said) = mpsc::channel();
            scope.spawn(|| {
                let other = locks.hold("tap:tap-fc-2");
                say.send("other").unwrap();
                let _same = locks.hold("tap:tap-fc-1");
                say.send("same").unwrap();
                drop((other, say));
            });
            assert_eq!(said.recv_timeout(Duration::from_secs(5)), Ok("other"));
            assert!(said.recv_timeout(Duration::from_millis(50)).is_err());
            drop(first);
            assert_eq!(said.recv_timeout(Duration::from_secs(5)), Ok("same"));
        });
    }

    #[test]
    fn a_wait_has_an_end_that_says_what_runs() {
        let (locks, short) = (Locks::default(), Duration::from_millis(20));
        let first = locks.hold_within("dm:a".into(), short, "fsck_snapshot").unwrap();
        let busy = locks.hold_within("dm:a".into(), short, "remove_dm_snapshot").unwrap_err();
        assert_eq!(busy.to_string(), "fsck_snapshot, for 0 s");
        drop(first);
        drop(locks.hold_within("dm:a".into(), short, "remove_dm_snapshot").unwrap());
        assert!(locks.held().is_empty());
    }
}
