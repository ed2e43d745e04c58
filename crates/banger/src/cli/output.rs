//! The two streams: data on standard output, our own words on standard error.

use super::manner::{self, Paint};
use super::problem::Problem;
use super::{fields, text};
use crate::daemon::serve::timespec;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Whether failures are told as JSON.
static JSON: AtomicBool = AtomicBool::new(false);

/// Whether a line is drawn on the terminal that has no end.
static DRAWN: AtomicBool = AtomicBool::new(false);

/// Writes data. A reader that has gone away had enough: that is no failure.
pub(crate) fn data(text: &str) -> Result<(), Problem> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Problem::new("output", "the result could not be written to standard output").why(error))
        }
        _ => Ok(()),
    }
}

/// Waits so long, but no longer than anybody reads standard output: whether nobody does any more.
pub(crate) fn nobody_reads_within(pause: Duration) -> bool {
    let stdout = io::stdout();
    let until = Instant::now() + pause;
    loop {
        let left = timespec(until.saturating_duration_since(Instant::now()));
        let mut fds = [PollFd::new(&stdout, PollFlags::empty())];
        match poll(&mut fds, Some(&left)) {
            Ok(0) => return false,
            Ok(_) => return fds[0].revents().intersects(PollFlags::ERR | PollFlags::HUP),
            Err(Errno::INTR) => {}
            Err(_) => {
                std::thread::sleep(until.saturating_duration_since(Instant::now()));
                return false;
            }
        }
    }
}

/// Writes words of ours. Where nobody can read them there is nobody to tell. What [`draw`] drew goes.
pub(crate) fn ours(text: &str) {
    let mut err = io::stderr().lock();
    if DRAWN.swap(false, Ordering::Relaxed) {
        let _ = err.write_all(b"\r\x1b[K");
    }
    let _ = err.write_all(text.as_bytes());
}

/// Draws a line on the terminal in the place of the one that was drawn before; the next words of ours take its place.
pub(crate) fn draw(line: &str) {
    let mut err = io::stderr().lock();
    DRAWN.store(true, Ordering::Relaxed);
    let _ = err.write_all(format!("\r{line}\x1b[K").as_bytes());
}

/// What can be skipped: not said where little is to be said.
pub(crate) fn hint(text: &str) {
    if !manner::is_quiet() {
        ours(text);
    }
}

/// Words of others' among them, on one line.
pub(crate) fn warning(text: &str) {
    ours(&format!("{} {}\n", manner::beside(Paint::Yellow, "warning:"), text::line(text)));
}

/// Has failures told as JSON, one object a line, from now on.
pub(crate) fn failures_as_json() {
    JSON.store(true, Ordering::Relaxed);
}

/// Tells of a failure on standard error; the process ends with `exit`, or goes on with what else there is to do.
pub(crate) fn failure(problem: &Problem, exit: u8) {
    if JSON.load(Ordering::Relaxed) {
        return ours(&format!("{}\n", problem.json(exit)));
    }
    let text = problem.to_string();
    let (head, rest) = text.split_at(text.find(':').unwrap_or(0));
    ours(&format!("{}{rest}", manner::beside(Paint::Red, head)));
}

/// Whether data goes to a terminal.
pub(crate) fn on_terminal() -> bool {
    io::stdout().is_terminal()
}

/// How wide standard output's terminal is; without an end where nobody knows.
pub(crate) fn width() -> usize {
    let said = || std::env::var("COLUMNS").ok()?.parse().ok();
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok().map(|size| usize::from(size.ws_col));
    size.filter(|width| *width > 0).or_else(said).unwrap_or(usize::MAX)
}

/// Writes a command's JSON document, with the fields that were asked for, and no character in it that a terminal acts upon.
pub(crate) fn json<T: serde::Serialize + ?Sized>(value: &T) -> Result<(), Problem> {
    data(&of_command(value)?)
}

/// The same on standard error, where standard output is another's.
pub(crate) fn json_beside<T: serde::Serialize + ?Sized>(value: &T) -> Result<(), Problem> {
    ours(&of_command(value)?);
    Ok(())
}

/// The document of [`json`], with its newline, for who writes it himself.
pub(crate) fn of_command<T: serde::Serialize + ?Sized>(value: &T) -> Result<String, Problem> {
    if !fields::are_chosen() {
        return document(value);
    }
    let value = serde_json::to_value(value)
        .map_err(|error| Problem::new("output", "the result can't be written as JSON").why(error))?;
    document(&fields::chosen(value))
}

/// A document, with its newline.
pub(crate) fn document<T: serde::Serialize + ?Sized>(value: &T) -> Result<String, Problem> {
    let document = serde_json::to_string(value)
        .map_err(|error| Problem::new("output", "the result can't be written as JSON").why(error))?;
    Ok(format!("{}\n", text::json(&document)))
}
