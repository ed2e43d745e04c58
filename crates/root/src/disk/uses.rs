//! Who works with which image now: many who leave it as it is, or one who changes it.

use super::Inode;
use crate::fail::Fail;
use crate::locks::Work;
use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use sys::dir::Facts;
use wire::name::dm::DmName;

/// An image.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    /// A file.
    File(Inode),
    /// A snapshot, by its name.
    Snapshot(String),
}

impl Key {
    /// The key of a file.
    pub(crate) fn of_file(facts: &Facts) -> Key {
        Key::File(facts.into())
    }

    /// The key of a snapshot.
    pub(crate) fn of_snapshot(name: &DmName) -> Key {
        Key::Snapshot(name.to_string())
    }
}

/// Images in use by operations of this helper.
#[derive(Debug, Default)]
pub(crate) struct Uses {
    table: Mutex<HashMap<Key, (Use, Work)>>,
    changed: Condvar,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Shared(usize),
    Alone,
}

/// A use. It ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Using<'a> {
    uses: &'a Uses,
    key: Key,
}

impl Uses {
    /// Waits until nobody changes the image, at most so long; then nobody does until this is dropped.
    pub(crate) fn share(&self, key: Key, at_most: Duration, doing: &'static str) -> Result<Using<'_>, Fail> {
        self.hold(key, at_most, doing, |now| match now {
            None => Some(Use::Shared(1)),
            Some(Use::Shared(count)) => Some(Use::Shared(count + 1)),
            Some(Use::Alone) => None,
        })
    }

    /// Waits until nobody else uses the image, at most so long; then nobody does until this is dropped.
    pub(crate) fn alone(&self, key: Key, at_most: Duration, doing: &'static str) -> Result<Using<'_>, Fail> {
        self.hold(key, at_most, doing, |now| now.is_none().then_some(Use::Alone))
    }

    fn hold(
        &self,
        key: Key,
        at_most: Duration,
        doing: &'static str,
        next: impl Fn(Option<Use>) -> Option<Use>,
    ) -> Result<Using<'_>, Fail> {
        let until = Instant::now() + at_most;
        let mut table = self.table();
        loop {
            let now = table.get(&key).copied();
            if let Some(using) = next(now.map(|(using, _)| using)) {
                table.insert(key.clone(), (using, Work::now(doing)));
                return Ok(Using { uses: self, key });
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let seconds = at_most.as_secs();
                let what = now.map_or_else(|| "another request".to_owned(), |(_, work)| work.to_string());
                return Err(Fail::new(format!(
                    "the image is in use by {what}; waited {seconds} s (limits.image_seconds), try again"
                )));
            }
            table = self.changed.wait_timeout(table, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    // The table is whole at each moment, so a panic elsewhere does not spoil it.
    fn table(&self) -> MutexGuard<'_, HashMap<Key, (Use, Work)>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Using<'_> {
    fn drop(&mut self) {
        let mut table = self.uses.table();
        match table.get_mut(&self.key) {
            Some((Use::Shared(count), _)) if *count > 1 => *count -= 1,
            _ => drop(table.remove(&self.key)),
        }
        self.uses.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(10);

    #[test]
    fn many_look_and_one_changes() {
        let uses = Uses::default();
        let (one, other) = (Key::File(Inode { dev: 1, ino: 1 }), Key::Snapshot("fc-rootfs-a".into()));
        let (one, other) = (|| one.clone(), || other.clone());
        let looks = [uses.share(one(), SHORT, "read").unwrap(), uses.share(one(), SHORT, "read").unwrap()];
        assert!(uses.alone(one(), SHORT, "read").unwrap_err().message.contains("in use by read, for 0 s"));
        let elsewhere = uses.alone(other(), SHORT, "read").unwrap();
        std::thread::scope(|scope| {
            let changes = scope.spawn(|| uses.alone(one(), LONG, "write").map(|_| ()));
            drop(looks);
            changes.join().unwrap().unwrap();
        });
        assert!(uses.share(other(), SHORT, "read").is_err());
        drop(elsewhere);
        drop(uses.share(other(), SHORT, "read").unwrap());
        assert!(uses.table().is_empty());
    }
}
