//! The log: one JSON object a line on standard error, in which no client can write a line of its own.
//!
//! A line is at most [`LONGEST`] bytes and goes out in one `write`. A reader of ours that stands still can't hold up
//! an operation: where the line would have to wait it is dropped, and the next one that goes out says how many were.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::net::{SendFlags, send};
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use wire::time::Utc;

/// The longest line, its newline counted. A pipe takes that much in one piece.
pub(crate) const LONGEST: usize = 4096;

/// How important a line is; what lies below the configured level is not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// Every request, when it comes.
    Debug,
    /// What was done.
    Info,
    /// What somebody should look at.
    Warn,
    /// What failed.
    Error,
}

impl Level {
    /// The level of that name, in any case.
    pub(crate) fn parse(text: &str) -> Option<Level> {
        match text.to_ascii_lowercase().as_str() {
            "debug" => Some(Level::Debug),
            "info" => Some(Level::Info),
            "warn" | "warning" => Some(Level::Warn),
            "error" => Some(Level::Error),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Level::Debug => "DEBUG",
            Level::Info => "INFO",
            Level::Warn => "WARN",
            Level::Error => "ERROR",
        }
    }
}

/// Who can make the helper write this line: each has a share of his own, so one can't use up the other's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The helper itself. Always written.
    Own,
    /// A request of the owner's or of root's.
    Request,
    /// Bytes that are no request, or a peer that may not ask.
    Stranger,
}

/// A value in a line.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Value<'a> {
    /// Text, escaped and cut after so many bytes.
    Text(&'a str, usize),
    /// A number.
    Number(u64),
    /// Texts, together cut after so many bytes.
    List(&'a [String], usize),
}

/// The log.
#[derive(Debug)]
pub(crate) struct Log {
    level: Level,
    sink: Sink,
    out: Mutex<Out>,
}

#[derive(Debug)]
struct Out {
    requests: Share,
    strangers: Share,
    dropped: u64,
    /// The line before went out in part: the next one begins with a newline.
    torn: bool,
}

impl Log {
    /// A log on standard error. `lines_per_second` bounds what requests can make it write, a tenth of it what
    /// strangers can; four seconds' worth may come at once.
    pub(crate) fn new(level: Level, lines_per_second: u32) -> Log {
        let strangers = Share::new(lines_per_second.div_ceil(10));
        let out = Out { requests: Share::new(lines_per_second), strangers, dropped: 0, torn: false };
        Log { level, sink: Sink::of_stderr(), out: Mutex::new(out) }
    }

    /// Whether lines of that level are written.
    pub(crate) fn writes(&self, level: Level) -> bool {
        level >= self.level
    }

    /// Something that the helper did or found by itself.
    pub(crate) fn own(&self, level: Level, message: &str, fields: &[(&str, Value<'_>)]) {
        self.line(Cause::Own, level, message, fields);
    }

    /// Writes a line.
    pub(crate) fn line(&self, cause: Cause, level: Level, message: &str, fields: &[(&str, Value<'_>)]) {
        if !self.writes(level) {
            return;
        }
        let line = render(SystemTime::now(), level, message, fields);
        // Numbers alone in there, whole at each moment.
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        let may = match cause {
            Cause::Own => true,
            Cause::Request => out.requests.take(),
            Cause::Stranger => out.strangers.take(),
        };
        if !may {
            out.dropped += 1;
            return;
        }
        if out.dropped > 0 {
            let count = [("lines", Value::Number(out.dropped))];
            if out.put(&self.sink, render(SystemTime::now(), Level::Warn, "log lines dropped", &count)) {
                out.dropped = 0;
            }
        }
        if !out.put(&self.sink, line) {
            out.dropped += 1;
        }
    }
}

impl Out {
    /// Writes the line where that needs no waiting. False where it was dropped.
    fn put(&mut self, sink: &Sink, mut line: String) -> bool {
        // None is longer, by the bounds of its fields; one that were could be written in two pieces.
        if line.len() > LONGEST {
            return false;
        }
        if self.torn {
            line.insert(0, '\n');
        }
        let written = sink.write(line.as_bytes());
        // A full disk, a terminal with little room.
        self.torn = if written == 0 { self.torn } else { written < line.len() };
        written == line.len()
    }
}

/// Standard error, so that a write to it does not wait, whoever else writes to the same thing.
#[derive(Debug)]
enum Sink {
    /// A pipe or a terminal, opened once more: `O_NONBLOCK` on what was inherited would be our starter's too.
    Own(OwnedFd),
    /// A socket: each call says that it does not wait.
    Socket,
    /// What never makes a writer wait, a file.
    Other,
}

impl Sink {
    fn of_stderr() -> Sink {
        let kind = rustix::fs::fstat(std::io::stderr()).map(|stat| FileType::from_raw_mode(stat.st_mode));
        match kind {
            Ok(FileType::Socket) => Sink::Socket,
            Ok(FileType::Fifo | FileType::CharacterDevice) => {
                let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
                // Where there is no /proc, or the terminal is gone, as it is.
                rustix::fs::open("/proc/self/fd/2", flags, Mode::empty()).map_or(Sink::Other, Sink::Own)
            }
            _ => Sink::Other,
        }
    }

    /// How many of the bytes went out.
    fn write(&self, bytes: &[u8]) -> usize {
        let stderr = std::io::stderr();
        let written = match self {
            Sink::Own(own) => rustix::io::write(own, bytes),
            Sink::Socket => send(&stderr, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL),
            Sink::Other if can_take(stderr.as_fd()) => rustix::io::write(&stderr, bytes),
            Sink::Other => Ok(0),
        };
        written.unwrap_or(0)
    }
}

fn can_take(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::OUT)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(poll(&mut fds, Some(&at_once)), Ok(1)) && fds[0].revents().contains(PollFlags::OUT)
}

/// Lines that may still be written: so many a second, some seconds' worth saved up.
#[derive(Debug)]
struct Share {
    per_second: u32,
    left: f64,
    since: Instant,
}

impl Share {
    const SAVED_SECONDS: f64 = 4.0;

    fn new(per_second: u32) -> Share {
        Share { per_second, left: f64::from(per_second) * Share::SAVED_SECONDS, since: Instant::now() }
    }

    fn take(&mut self) -> bool {
        let now = Instant::now();
        let rate = f64::from(self.per_second);
        let grown = self.left + now.duration_since(self.since).as_secs_f64() * rate;
        self.left = grown.min(rate * Share::SAVED_SECONDS);
        self.since = now;
        let may = self.left >= 1.0;
        if may {
            self.left -= 1.0;
        }
        may
    }
}

fn render(now: SystemTime, level: Level, message: &str, fields: &[(&str, Value<'_>)]) -> String {
    let mut line = String::with_capacity(256);
    // Into a string: can't fail.
    let _ = write!(line, "{{\"time\":\"{}\",\"level\":\"{}\",\"msg\":", Rfc3339(now), level.name());
    text(&mut line, message, 256);
    for (key, value) in fields {
        let _ = write!(line, ",\"{key}\":");
        match value {
            Value::Text(value, most) => text(&mut line, value, *most),
            Value::Number(number) => {
                let _ = write!(line, "{number}");
            }
            Value::List(values, most) => list(&mut line, values, *most),
        }
    }
    line.push_str("}\n");
    line
}

fn list(line: &mut String, values: &[String], most: usize) {
    let end = line.len() + most;
    line.push('[');
    for (index, value) in values.iter().enumerate() {
        if line.len() + 16 > end {
            line.push_str(",\"…\"");
            break;
        }
        if index > 0 {
            line.push(',');
        }
        text(line, value, end - line.len());
    }
    line.push(']');
}

/// Appends `value` as a JSON string whose inside has at most `most` bytes and no character that a terminal or an
/// editor acts on.
fn text(line: &mut String, value: &str, most: usize) {
    line.push('"');
    let end = line.len() + most;
    for c in value.chars() {
        let before = line.len();
        match c {
            '"' => line.push_str("\\\""),
            '\\' => line.push_str("\\\\"),
            '\n' => line.push_str("\\n"),
            '\t' => line.push_str("\\t"),
            c if acts(c) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(line, "\\u{unit:04x}");
                }
            }
            c => line.push(c),
        }
        if line.len() > end {
            line.truncate(before);
            line.push('…');
            break;
        }
    }
    line.push('"');
}

/// Controls, and what moves, joins or hides other text where it is shown.
fn acts(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(c, '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// A time as RFC 3339 writes it, UTC, to the millisecond.
struct Rfc3339(SystemTime);

impl std::fmt::Display for Rfc3339 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let since = self.0.duration_since(UNIX_EPOCH).unwrap_or_default();
        write!(f, "{}.{:03}Z", Utc::since_epoch(since), since.subsec_millis())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(seconds: u64, millis: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(seconds * 1000 + millis)
    }

    #[test]
    fn times() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.007Z"),
            (951_782_400, "2000-02-29T00:00:00.007Z"),
            (1_764_028_799, "2025-11-24T23:59:59.007Z"),
            (4_107_542_400, "2100-03-01T00:00:00.007Z"),
        ] {
            assert_eq!(Rfc3339(at(seconds, 7)).to_string(), text);
        }
    }

    #[test]
    fn a_line_is_json_whatever_is_in_it() {
        let hostile = "a\u{1b}]0;x\u{7}\n\u{85}\u{202e}\u{2028}\u{e0041}\"\\é";
        let causes = [hostile.repeat(300), hostile.to_owned()];
        let fields = [
            ("method", Value::Text(hostile, 256)),
            ("op_id", Value::Text(&causes[0], 256)),
            ("duration_ms", Value::Number(7)),
            ("message", Value::Text(&causes[0], 1024)),
            ("cause", Value::List(&causes, 2048)),
        ];
        let line = render(at(0, 0), Level::Error, "helper rpc failed", &fields);
        assert!(line.len() <= LONGEST, "{}", line.len());
        assert!(line.ends_with("}\n") && line.matches('\n').count() == 1);
        assert!(!line.trim_end().chars().any(acts));
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            (&value["level"], &value["method"], &value["duration_ms"]),
            (&"ERROR".into(), &hostile.into(), &7.into())
        );
        assert!(value["op_id"].as_str().unwrap().ends_with('…'));
        assert!(value["cause"].is_array());
    }

    #[test]
    fn lists_keep_their_bound() {
        for length in [0, 1, 10, 100, 5000] {
            for most in [64, 256, 2048] {
                let values = vec!["x".repeat(length); 50];
                let line = render(at(0, 0), Level::Info, "m", &[("cause", Value::List(&values, most))]);
                assert!(line.len() < 150 + most, "{length} {most}: {}", line.len());
                serde_json::from_str::<serde_json::Value>(&line).unwrap();
            }
        }
    }

    #[test]
    fn a_share_runs_out_and_grows_again() {
        let mut share = Share::new(50);
        assert_eq!((0..1000).filter(|_| share.take()).count(), 200);
        std::thread::sleep(Duration::from_millis(60));
        assert!(share.take());
    }
}
