//! The agent's own words on the console, and when each stage was reached.

use std::fmt::Write as _;
use std::sync::Mutex;

use rustix::time::{ClockId, clock_gettime};

enum Stages {
    /// Not known yet whether they are wanted: kept.
    Kept(Vec<(&'static str, u64)>),
    Wanted,
    Unwanted,
}

static STAGES: Mutex<Stages> = Mutex::new(Stages::Kept(Vec::new()));

/// One line of the agent's own.
pub(super) fn say(text: &str) {
    // One write a line, so that it can't be torn by the program's own output. A console that is gone is no reason to end.
    let line = format!("banger-agent: {text}\n");
    let _ = rustix::io::write(rustix::stdio::stderr(), line.as_bytes());
}

/// Notes that a stage was reached, and says so where that is wanted.
pub(super) fn stage(name: &'static str) {
    let now = clock_gettime(ClockId::Boottime);
    let micros = now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1_000;
    let Ok(mut stages) = STAGES.lock() else { return };
    match &mut *stages {
        Stages::Kept(kept) => kept.push((name, micros)),
        Stages::Wanted => say(&line(name, micros)),
        Stages::Unwanted => {}
    }
}

/// Settles whether stages are said.
pub(super) fn want_stages(wanted: bool) {
    let Ok(mut stages) = STAGES.lock() else { return };
    let new = if wanted { Stages::Wanted } else { Stages::Unwanted };
    if let Stages::Kept(kept) = std::mem::replace(&mut *stages, new)
        && wanted
    {
        kept.into_iter().for_each(|(name, micros)| say(&line(name, micros)));
    }
}

fn line(name: &str, micros: u64) -> String {
    let mut text = String::new();
    let _ = write!(text, "{}.{:06} {name}", micros / 1_000_000, micros % 1_000_000);
    text
}
