//! What this daemon's end waits for: calls that go on, and what is done unasked and must not be cut off.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Calls at once; each has a thread.
pub(crate) const MOST: usize = 256;

/// How many go on.
#[derive(Debug, Default)]
pub struct Calls {
    count: Mutex<Count>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Count {
    all: usize,
    /// Of these, calls whose caller has a connection to a guest, of which nothing passes through here.
    handed_over: usize,
    is_over: bool,
}

/// One that goes on until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    calls: Arc<Calls>,
    /// There are no more than may be at once.
    pub(crate) is_one_of_them: bool,
}

/// A call that is not waited for until this is dropped.
#[derive(Debug)]
pub(crate) struct HandedOver<'a>(&'a Calls);

impl Calls {
    fn lock(&self) -> MutexGuard<'_, Count> {
        // Each change is one statement: a thread that panicked left none half made.
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more; `None` once the end has begun.
    pub(crate) fn take(self: &Arc<Self>) -> Option<Place> {
        let mut count = self.lock();
        if count.is_over {
            return None;
        }
        count.all += 1;
        Some(Place { calls: Arc::clone(self), is_one_of_them: count.all <= MOST })
    }

    /// One of them has nothing more to do than to wait for its caller.
    pub(crate) fn hand_over(&self) -> HandedOver<'_> {
        self.lock().handed_over += 1;
        self.changed.notify_all();
        HandedOver(self)
    }

    /// The end has begun: none is taken any more.
    pub(crate) fn close(&self) {
        self.lock().is_over = true;
    }

    /// Waits until nothing is left but what was handed over.
    pub(crate) fn wait(&self) {
        let is_more = |count: &mut Count| count.all > count.handed_over;
        drop(self.changed.wait_while(self.lock(), is_more));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.calls.lock().all -= 1;
        self.calls.changed.notify_all();
    }
}

impl Drop for HandedOver<'_> {
    fn drop(&mut self) {
        self.0.lock().handed_over -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    #[test]
    fn what_was_handed_over_is_not_waited_for_and_the_rest_is() {
        let calls = Arc::new(Calls::default());
        let [start, command] = [(); 2].map(|()| calls.take().unwrap());
        assert!(start.is_one_of_them);
        let handed_over = calls.hand_over();
        calls.close();
        assert!(calls.take().is_none(), "the end has begun");
        let waited_for = |last: Place, why: &str| {
            let (over, is_over) = channel();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    calls.wait();
                    over.send(()).unwrap();
                });
                assert!(is_over.recv_timeout(Duration::from_millis(50)).is_err(), "{why}");
                drop(last);
                is_over.recv_timeout(Duration::from_secs(60)).unwrap();
            });
        };
        waited_for(start, "a start goes on");
        // What comes behind the connection's end is a call's again.
        drop(handed_over);
        waited_for(command, "its VM is taken away");
    }

    #[test]
    fn one_too_many_knows_it() {
        let calls = Arc::new(Calls::default());
        let mut all: Vec<Place> = (0..MOST).map(|_| calls.take().unwrap()).collect();
        assert!(all.iter().all(|place| place.is_one_of_them) && !calls.take().unwrap().is_one_of_them);
        all.pop();
        assert!(calls.take().unwrap().is_one_of_them);
    }
}
