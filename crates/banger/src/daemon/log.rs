//! The daemon's log: a JSON object a line on standard error, as the helper's. Nothing of a guest's is written here.

use crate::api::Fault;
use crate::time::rfc3339;
use clap::ValueEnum;
use serde_json::json;
use std::io::Write;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, SystemTime};

/// How grave a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Level {
    /// All.
    Debug,
    /// Calls that succeeded, too.
    Info,
    /// What a person should look at.
    Warn,
    /// What failed.
    Error,
}

static LEAST: AtomicU8 = AtomicU8::new(Level::Info as u8);

/// Writes lines of that level and graver ones only, from now on.
pub fn from(level: Level) {
    LEAST.store(level as u8, Ordering::Relaxed);
}

/// A call that succeeded.
pub fn done(op: &str, op_id: &str, took: Duration) {
    let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    line(
        Level::Info,
        &json!({"time": rfc3339(SystemTime::now()), "level": "INFO", "msg": "call completed",
        "op": op, "op_id": op_id, "duration_ms": ms}),
    );
}

/// A call that failed.
pub fn fault(op: &str, op_id: &str, fault: &Fault) {
    line(
        Level::Error,
        &json!({"time": rfc3339(SystemTime::now()), "level": "ERROR", "msg": "call failed",
        "op": op, "op_id": op_id, "code": fault.code, "message": fault.message, "why": fault.why, "stage": fault.stage}),
    );
}

/// Something that nobody asked for.
pub fn say(level: &str, text: &str, about: &str) {
    let grave = Level::from_str(level, true).unwrap_or(Level::Error);
    line(grave, &json!({"time": rfc3339(SystemTime::now()), "level": level, "msg": text, "vm": about}));
}

fn line(level: Level, object: &serde_json::Value) {
    if (level as u8) < LEAST.load(Ordering::Relaxed) {
        return;
    }
    // One write, so that lines of several threads don't mix; where nobody reads, there is nobody to tell.
    let _ = std::io::stderr().lock().write_all(format!("{object}\n").as_bytes());
}
