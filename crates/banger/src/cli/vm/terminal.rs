//! The terminal here: raw while a guest's terminal is shown on it, and set back on every way out, a panic too.

use agent::protocol::TtySize;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use std::io::{stderr, stdin, stdout};
use std::sync::{Mutex, PoisonError};

/// What it was before it was made raw.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Raw until it is dropped.
pub(crate) struct Raw;

/// Makes the terminal of standard input raw; `None` where it is none.
pub(crate) fn raw() -> Option<Raw> {
    let before = tcgetattr(stdin()).ok()?;
    let mut raw = before.clone();
    raw.make_raw();
    *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
    let set = tcsetattr(stdin(), OptionalActions::Flush, &raw);
    if set.is_err() {
        restore();
    }
    set.ok().map(|()| Raw)
}

/// Sets it back, where it was changed.
pub(crate) fn restore() {
    let before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(before) = before {
        // A terminal that is gone needs nothing any more.
        let _ = tcsetattr(stdin(), OptionalActions::Drain, &before);
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

/// Its size; without a terminal what COLUMNS and LINES say, or 80 by 24.
pub(super) fn size() -> TtySize {
    let sizes = [tcgetwinsize(stdout()), tcgetwinsize(stdin()), tcgetwinsize(stderr())];
    let found = sizes.into_iter().flatten().find(|size| size.ws_row > 0 && size.ws_col > 0);
    let said = |name: &str, usual| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual);
    match found {
        Some(size) => TtySize { rows: size.ws_row, cols: size.ws_col },
        None => TtySize { rows: said("LINES", 24), cols: said("COLUMNS", 80) },
    }
}
