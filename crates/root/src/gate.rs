//! What is bounded, counted: connections, operations, bytes. A place or a charge is given back when it is dropped.

use std::sync::atomic::{AtomicUsize, Ordering};

/// So many at once, and one more for root.
#[derive(Debug)]
pub(crate) struct Places {
    taken: AtomicUsize,
    most: usize,
}

/// A place that is taken.
#[derive(Debug)]
pub(crate) struct Taken(&'static Places);

/// Who asks for a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// Uid 0.
    Root,
    /// The owner.
    Owner,
}

impl Places {
    pub(crate) fn new(most: usize) -> Places {
        Places { taken: AtomicUsize::new(0), most }
    }

    /// Takes a place, where there is one for that peer.
    pub(crate) fn take(&'static self, peer: Peer) -> Option<Taken> {
        let most = self.most + usize::from(peer == Peer::Root);
        let take = |taken| (taken < most).then_some(taken + 1);
        self.taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, take).ok().map(|_| Taken(self))
    }

    /// How many are taken.
    pub(crate) fn taken(&self) -> usize {
        self.taken.load(Ordering::Acquire)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::AcqRel);
    }
}

/// So many bytes at once.
#[derive(Debug)]
pub(crate) struct Bytes {
    used: AtomicUsize,
    most: usize,
}

/// Bytes that somebody holds.
#[derive(Debug)]
pub(crate) struct Charge {
    of: &'static Bytes,
    bytes: usize,
}

impl Bytes {
    /// What anyone may hold uncounted: a usual request, a usual reply.
    const FREE: usize = 64 << 10;

    pub(crate) fn new(most: usize) -> Bytes {
        Bytes { used: AtomicUsize::new(0), most }
    }

    /// A charge of nothing yet.
    pub(crate) fn charge(&'static self) -> Charge {
        Charge { of: self, bytes: 0 }
    }
}

impl Charge {
    /// Makes it a charge of `bytes`, where there is room.
    pub(crate) fn grow(&mut self, bytes: usize) -> bool {
        let more = if bytes <= Bytes::FREE { 0 } else { bytes.saturating_sub(self.bytes) };
        if more == 0 {
            return true;
        }
        let most = self.of.most;
        let add = |used: usize| used.checked_add(more).filter(|&used| used <= most);
        let grown = self.of.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, add).is_ok();
        if grown {
            self.bytes += more;
        }
        grown
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.of.used.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_place_is_kept_for_root() {
        let places: &'static Places = Box::leak(Box::new(Places::new(2)));
        let held: Vec<_> = (0..3).map(|_| places.take(Peer::Owner)).collect();
        assert!(held[1].is_some() && held[2].is_none());
        let root = places.take(Peer::Root);
        assert!(root.is_some() && places.take(Peer::Root).is_none());
        drop((held, root));
        assert_eq!(places.taken(), 0);
    }

    #[test]
    fn bytes_come_back() {
        let bytes: &'static Bytes = Box::leak(Box::new(Bytes::new(300 << 10)));
        let (mut one, mut two) = (bytes.charge(), bytes.charge());
        assert!(one.grow(10) && one.grow(200 << 10) && one.grow(200 << 10));
        assert!(two.grow(64 << 10) && !two.grow(200 << 10));
        drop(one);
        assert!(two.grow(200 << 10));
        drop(two);
        assert_eq!(bytes.used.load(Ordering::Relaxed), 0);
    }
}
