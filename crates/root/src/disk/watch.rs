//! Warns of snapshots whose stores fill up: a full one loses all its data. One thread, while there is a snapshot.
//!
//! The kernel says nothing before the store is full, so it is asked, every ten seconds: docs/decisions.

use super::{cow, device, list};
use crate::host::Host;
use crate::log::{Level, Value};
use std::collections::HashMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How often the stores are looked at.
const EVERY: Duration = Duration::from_secs(10);
/// From here on it is warned of, in percent.
const MUCH: u64 = 80;

/// What the methods keep between calls.
#[derive(Default)]
pub(crate) struct Disk {
    host: OnceLock<&'static Host>,
    runs: AtomicBool,
}

impl Disk {
    /// A snapshot is there, or comes: from now on somebody looks.
    pub(super) fn watch(&self) {
        let Some(&host) = self.host.get() else { return };
        if self.runs.swap(true, Ordering::AcqRel) {
            return;
        }
        let thread = std::thread::Builder::new().name("snapshots".into()).stack_size(128 << 10);
        if let Err(error) = thread.spawn(move || watch(host)) {
            self.runs.store(false, Ordering::Release);
            let text = error.to_string();
            host.log.own(Level::Warn, "snapshots are not watched", &[("cause", Value::Text(&text, 256))]);
        }
    }
}

/// The helper starts: snapshots can be watched from now on, and are where there are some.
pub(crate) fn arm(host: &'static Host) {
    let _ = host.disk.host.set(host);
    if states(host).is_some_and(|states| !states.is_empty()) {
        host.disk.watch();
    }
}

fn watch(host: &'static Host) {
    let mut told = HashMap::new();
    loop {
        std::thread::sleep(EVERY);
        let Some(states) = states(host) else { continue };
        if states.is_empty() {
            host.disk.runs.store(false, Ordering::Release);
            // One may have come in between and seen this thread.
            let is_over = self::states(host).is_none_or(|states| states.is_empty());
            if is_over || host.disk.runs.swap(true, Ordering::AcqRel) {
                return;
            }
        }
        told.retain(|name, _| states.contains_key(name));
        for (name, state) in states {
            let level = match state {
                cow::State::Invalid => Level::Error,
                _ if state.percent() >= MUCH => Level::Warn,
                cow::State::Fills(..) => continue,
            };
            if told.insert(name.clone(), level) != Some(level) {
                tell(host, &name, state, level);
            }
        }
    }
}

fn tell(host: &Host, name: &str, state: cow::State, level: Level) {
    let message = match state {
        cow::State::Fills(..) => "a snapshot's store fills up; once it is full all that was changed is lost",
        cow::State::Invalid => "a snapshot is invalid: its store was full, and all that was changed is lost",
    };
    let fields = [("name", Value::Text(name, 128)), ("percent", Value::Number(state.percent()))];
    host.log.own(level, message, &fields);
}

/// How full each snapshot is. `None` where the kernel can't be asked now.
fn states(host: &Host) -> Option<HashMap<String, cow::State>> {
    let Some(control) = device::control().ok()? else { return Some(HashMap::new()) };
    let all = device::all(host, &control).ok()?.into_iter();
    Some(all.filter_map(|ours| Some((ours.device.name.clone(), list::state(&control, &ours)?))).collect())
}
