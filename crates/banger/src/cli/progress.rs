//! Stages on standard error: one line that changes on a terminal, a line each where that is asked for, nothing elsewhere.
//! Nothing is drawn in the first 300 ms, so what is quick shows nothing.

use super::{documents, output, text};
use crate::api::{HelperCall, Stage, StageState};
use std::io::{IsTerminal, stderr};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const QUIET: Duration = Duration::from_millis(300);
const TICK: Duration = Duration::from_millis(100);

/// How stages are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Style {
    /// A changing line on a terminal, plain lines in CI, else none.
    Auto,
    /// A line for each stage.
    Plain,
    /// A JSON object for each stage.
    Json,
    /// Nothing.
    None,
}

/// The stages of one call.
pub(crate) struct Progress {
    style: Style,
    op_id: String,
    begun: Instant,
    line: Arc<Line>,
    /// Draws, on a terminal.
    drawer: Option<JoinHandle<()>>,
}

/// What is drawn.
#[derive(Default)]
struct Line {
    state: Mutex<Drawn>,
    changed: Condvar,
}

#[derive(Default)]
struct Drawn {
    /// Whose stage it is, which, and since when.
    stage: Option<(String, String, Instant)>,
    /// What the stage says of itself.
    note: String,
    is_there: bool,
    over: bool,
}

impl Progress {
    /// Begins to tell; it ends when it is dropped.
    pub(crate) fn begin(style: Style, op_id: &str) -> Progress {
        let terminal = stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        let style = match style {
            Style::Auto if std::env::var_os("CI").is_some() => Style::Plain,
            Style::Auto if !terminal => Style::None,
            other => other,
        };
        let (begun, line) = (Instant::now(), Arc::<Line>::default());
        let drawn = Arc::clone(&line);
        let drawer = (style == Style::Auto).then(|| std::thread::Builder::new().spawn(move || drawn.draw(begun)));
        Progress { style, op_id: op_id.to_owned(), begun, line, drawer: drawer.and_then(Result::ok) }
    }

    /// Tells of a stage.
    pub(crate) fn stage(&self, stage: &Stage) {
        let (name, about) = (text::line(&stage.name), text::line(&stage.about));
        match (self.style, stage.state) {
            (Style::Auto, StageState::Begun) => self.line.set(Some((about, name, Instant::now()))),
            (Style::Auto, StageState::Note) => self.line.lock().note = text::line(&stage.note),
            (Style::Plain, StageState::Ended) => {
                let (at, note) = (self.begun.elapsed().as_secs_f64(), text::line(&stage.note));
                let line = format!("{about}  {name}  at {at:.1} s  {note}");
                output::ours(&format!("{}\n", line.trim_end()));
            }
            (Style::Json, state) => {
                let (stage, ms, about, note) = (&stage.name, stage.at_us / 1000, &stage.about, &stage.note);
                let told = documents::Stage { op_id: &self.op_id, stage, state, ms, about, note };
                output::ours(&output::document(&told).unwrap_or_default());
            }
            _ => {}
        }
    }
}

/// Tells of a call of bangerd's to the root helper.
pub(crate) fn helper_call(call: &HelperCall) {
    let ms = |us: u64| us as f64 / 1000.0;
    let failed = call.error.as_deref().map_or(String::new(), |code| format!("  {code}"));
    let (method, op_id) = (text::line(&call.method), text::line(&call.op_id));
    let line = format!("helper  {method}  {:.1} ms at {:.1} ms  {op_id}", ms(call.us), ms(call.at_us));
    output::ours(&format!("{line}{}\n", text::line(&failed)));
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.line.lock().over = true;
        self.line.set(None);
        if let Some(drawer) = self.drawer.take() {
            let _ = drawer.join();
        }
    }
}

impl Line {
    fn lock(&self) -> std::sync::MutexGuard<'_, Drawn> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, stage: Option<(String, String, Instant)>) {
        let mut drawn = self.lock();
        if stage.is_none() && std::mem::take(&mut drawn.is_there) {
            output::ours("\r\x1b[K");
        }
        drawn.stage = stage;
        drawn.note.clear();
        self.changed.notify_all();
    }

    fn draw(&self, begun: Instant) {
        let mut drawn = self.lock();
        while !drawn.over {
            if begun.elapsed() >= QUIET
                && let Some((about, stage, since)) = &drawn.stage
            {
                let note = if drawn.note.is_empty() { String::new() } else { format!("  {}", drawn.note) };
                output::ours(&format!("\r{about}  {stage}{note}  {:.1} s\x1b[K", since.elapsed().as_secs_f64()));
                drawn.is_there = true;
            }
            drawn = self.changed.wait_timeout(drawn, TICK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
