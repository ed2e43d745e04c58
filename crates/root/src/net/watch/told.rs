//! What the log says of repairs: the same thing of the same program once a minute, with how often it was.

use crate::fail::Fail;
use crate::host::Host;
use crate::log::{Level, Value};
use std::time::{Duration, Instant};

/// How long the same is not said again.
const AGAIN: Duration = Duration::from_secs(60);
/// So much is kept in mind.
const MOST: usize = 64;

/// What was said.
#[derive(Debug, Default)]
pub(super) struct Told(Vec<Said>);

#[derive(Debug)]
struct Said {
    what: String,
    at: Instant,
    /// How often it was not said since.
    silent: u64,
}

impl Told {
    /// Counts it, and gives how often it was since it was said last where it is to be said now.
    fn times(&mut self, what: &str, now: Instant) -> Option<u64> {
        if let Some(said) = self.0.iter_mut().find(|said| said.what == what) {
            if now.duration_since(said.at) < AGAIN {
                said.silent += 1;
                return None;
            }
            let times = said.silent + 1;
            (said.at, said.silent) = (now, 0);
            return Some(times);
        }
        if self.0.len() == MOST {
            self.0.remove(0);
        }
        self.0.push(Said { what: what.to_owned(), at: now, silent: 0 });
        Some(1)
    }

    /// Something was put back.
    pub(super) fn repaired(&mut self, host: &Host, by: &str, what: &[String], after: Duration) {
        let Some(times) = self.times(&format!("{by} {}", what.join(" ")), Instant::now()) else { return };
        let fields = [
            ("by", Value::Text(by, 64)),
            ("what", Value::List(what, 256)),
            ("after_us", Value::Number(after.as_micros() as u64)),
            ("times", Value::Number(times)),
        ];
        host.log.own(Level::Info, "put back what another changed", &fields);
    }

    /// Something could not be put back.
    pub(super) fn failed(&mut self, host: &Host, fail: &Fail) {
        let Some(times) = self.times(&format!("{} {}", fail.message, fail.causes.join(" ")), Instant::now()) else {
            return;
        };
        let fields = [
            ("message", Value::Text(&fail.message, 256)),
            ("causes", Value::List(&fail.causes, 512)),
            ("times", Value::Number(times)),
        ];
        host.log.own(Level::Warn, "rules could not be put back", &fields);
    }

    /// Somebody takes rules away again and again.
    pub(super) fn fights(&mut self, host: &Host, by: &str) {
        let Some(times) = self.times(&format!("{by} fights"), Instant::now()) else { return };
        let text = "another program takes banger's rules away again and again: left alone for 10 s at a time";
        host.log.own(Level::Warn, text, &[("by", Value::Text(by, 64)), ("times", Value::Number(times))]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_said_once_a_minute() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut told = Told::default();
        assert_eq!((told.times("a", at(0)), told.times("a", at(1)), told.times("b", at(1))), (Some(1), None, Some(1)));
        assert_eq!((told.times("a", at(59)), told.times("a", at(60)), told.times("a", at(61))), (None, Some(3), None));
        for nth in 0..1000 {
            told.times(&nth.to_string(), at(62));
        }
        assert_eq!(told.0.len(), MOST);
    }
}
