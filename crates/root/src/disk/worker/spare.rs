//! A worker that waits for its job: it is started and without rights before anybody asks, since that takes longer than
//! most of what is asked.
//!
//! There is one at the most, and none until a worker was needed. It serves one request as any other one does, and it is
//! ended when nobody has asked for a while.

use super::Worker;
use crate::host::Host;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

/// How long one waits.
const IDLE: Duration = Duration::from_secs(60);
/// How long a start is waited for.
const START: Duration = Duration::from_secs(1);
const STACK: usize = 128 << 10;

/// The worker that waits.
#[derive(Default)]
pub(in crate::disk) struct Spares {
    host: OnceLock<&'static Host>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Whether there is the thread that starts them. It stays: they end with it, also while they work.
    runs: bool,
    /// Whether somebody was served since it looked.
    wanted: bool,
    /// Whether one is being started.
    starts: bool,
    ready: Option<Worker<'static>>,
}

impl Spares {
    /// The helper starts: from now on there may be one.
    pub(in crate::disk) fn arm(&self, host: &'static Host) {
        let _ = self.host.set(host);
    }

    /// The one that waits. One that is being started is there sooner than another would be.
    pub(super) fn take(&self) -> Option<Worker<'static>> {
        let (state, _) = self
            .changed
            .wait_timeout_while(self.state(), START, |state| state.starts)
            .unwrap_or_else(PoisonError::into_inner);
        { state }.ready.take()
    }

    /// Sees to it that there will be one.
    pub(super) fn want(&self) {
        let Some(&host) = self.host.get() else { return };
        let mut state = self.state();
        state.wanted = true;
        if !state.runs {
            let thread = std::thread::Builder::new().name("spare-worker".into()).stack_size(STACK);
            // Without it each request starts its own.
            state.runs = thread.spawn(move || host.images.workers.spares.keep(host)).is_ok();
        }
        self.changed.notify_all();
    }

    fn keep(&self, host: &'static Host) {
        let mut state = self.state();
        loop {
            if std::mem::take(&mut state.wanted) {
                if state.ready.is_none() {
                    state.starts = true;
                    drop(state);
                    // Where that fails, it fails again for who asks next, and he is told why.
                    let started = Worker::start(host).ok();
                    state = self.state();
                    state.ready = started;
                    state.starts = false;
                    self.changed.notify_all();
                }
            } else if state.ready.is_none() {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            } else {
                let (then, time) = self.changed.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
                state = then;
                if time.timed_out() && !state.wanted {
                    let ended = state.ready.take();
                    drop(state);
                    drop(ended);
                    state = self.state();
                }
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
