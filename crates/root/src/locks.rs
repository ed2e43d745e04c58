//! One lock for each object: who works on `tap:tap-fc-1` waits for nobody but others on it.

use std::collections::HashSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The objects that somebody works on now, by name.
#[derive(Debug, Default)]
pub(crate) struct Locks {
    held: Mutex<HashSet<String>>,
    freed: Condvar,
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
        while held.contains(&name) {
            held = self.freed.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
        held.insert(name.clone());
        Held { locks: self, name }
    }

    // A set of names is whole at each moment, so a panic elsewhere does not spoil it.
    fn held(&self) -> MutexGuard<'_, HashSet<String>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.locks.held().remove(&self.name);
        self.locks.freed.notify_all();
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
}
