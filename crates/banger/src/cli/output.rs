//! The two streams: data on standard output, our own words on standard error.

use super::problem::Problem;
use std::io::{self, IsTerminal, Write};

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

/// Writes words of ours. Where nobody can read them there is nobody to tell.
pub(crate) fn ours(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// Whether data goes to a terminal.
pub(crate) fn on_terminal() -> bool {
    io::stdout().is_terminal()
}
