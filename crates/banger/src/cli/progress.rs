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
/// What is over within this time is not late, whatever is usual.
const LATE: Duration = Duration::from_secs(1);

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
    stage: Option<Current>,
    over: bool,
}

/// The stage that goes on.
struct Current {
    /// Whose it is.
    about: String,
    name: String,
    since: Instant,
    /// How long it usually takes.
    usual: Option<Duration>,
    /// What it says of itself.
    note: String,
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
            (Style::Auto, StageState::Begun) => {
                let usual = stage.usual_us.map(Duration::from_micros);
                let note = String::new();
                self.line.set(Some(Current { about, name, since: Instant::now(), usual, note }));
            }
            (Style::Auto, StageState::Note) => {
                if let Some(current) = &mut self.line.lock().stage {
                    current.note = text::line(&stage.note);
                }
            }
            (Style::Plain, StageState::Ended) => {
                let (at, note) = (self.begun.elapsed().as_secs_f64(), text::line(&stage.note));
                let line = format!("{about}  {name}  at {at:.1} s  {note}");
                output::ours(&format!("{}\n", line.trim_end()));
            }
            (Style::Json, state) => {
                let (op_id, usual_ms) = (&self.op_id, stage.usual_us.map(|us| us / 1000));
                let (stage, ms, about, note) = (&stage.name, stage.at_us / 1000, &stage.about, &stage.note);
                let told = documents::Stage { op_id, stage, state, ms, about, note, usual_ms };
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

    fn set(&self, stage: Option<Current>) {
        let mut drawn = self.lock();
        if stage.is_none() {
            output::ours("");
        }
        drawn.stage = stage;
        self.changed.notify_all();
    }

    fn draw(&self, begun: Instant) {
        let mut drawn = self.lock();
        while !drawn.over {
            if begun.elapsed() >= QUIET
                && let Some(current) = &drawn.stage
            {
                output::draw(&current.line(current.since.elapsed(), room()));
            }
            drawn = self.changed.wait_timeout(drawn, TICK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// How much of a line a terminal has room for, so that it stays one.
fn room() -> usize {
    let size = rustix::termios::tcgetwinsize(stderr()).ok().map(|size| usize::from(size.ws_col));
    size.filter(|width| *width > 1).map_or(usize::MAX, |width| width - 1)
}

impl Current {
    /// Its line after that time. What is not usual any more says where the guest's own words are.
    fn line(&self, took: Duration, room: usize) -> String {
        let Current { about, name, note, .. } = self;
        let note = if note.is_empty() { String::new() } else { format!("  {note}") };
        let head = format!("{about}  {name}{note}  {:.1} s", took.as_secs_f64());
        let usually = self.usual.map_or(String::new(), |usual| match usual.as_millis() {
            ms @ ..100 => format!("  (usually {ms} ms)"),
            _ => format!("  (usually {:.1})", usual.as_secs_f64()),
        });
        let is_late = |usual: Duration| name == "boot" && took > (2 * usual).max(LATE);
        if self.usual.is_none_or(|usual| !is_late(usual)) {
            return cut(&format!("{head}{usually}"), room);
        }
        let hint = format!("  banger vm logs -f {about} shows the console");
        let all = [format!("{head}{usually}{hint}"), format!("{head}{hint}")];
        all.iter().find(|line| line.chars().count() <= room).map_or_else(|| cut(&all[1], room), Clone::clone)
    }
}

fn cut(line: &str, room: usize) -> String {
    line.chars().take(room).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_is_usual_and_where_to_look_when_it_is_not() {
        let current = |name: &str, usual, note: &str| Current {
            about: "calm-otter".into(),
            name: name.into(),
            since: Instant::now(),
            usual: Some(usual).filter(|ms| *ms > 0).map(Duration::from_millis),
            note: note.into(),
        };
        let hint = "banger vm logs -f calm-otter shows the console";
        for (name, usual, took, room, want) in [
            ("boot", 0, 1200, 200, "calm-otter  boot  1.2 s".to_owned()),
            ("boot", 1600, 1200, 200, "calm-otter  boot  1.2 s  (usually 1.6)".into()),
            ("boot", 40, 900, 200, "calm-otter  boot  0.9 s  (usually 40 ms)".into()),
            ("boot", 1600, 3200, 200, "calm-otter  boot  3.2 s  (usually 1.6)".into()),
            ("boot", 1600, 3300, 200, format!("calm-otter  boot  3.3 s  (usually 1.6)  {hint}")),
            ("boot", 1600, 3300, 79, format!("calm-otter  boot  3.3 s  {hint}")),
            ("boot", 1600, 3300, 31, "calm-otter  boot  3.3 s  banger".into()),
            ("disk", 1600, 9000, 200, "calm-otter  disk  9.0 s  (usually 1.6)".into()),
        ] {
            assert_eq!(current(name, usual, "").line(Duration::from_millis(took), room), want, "{usual} {took} {room}");
        }
        assert_eq!(current("fetch", 0, "3 of 9").line(Duration::ZERO, 20), "calm-otter  fetch  3");
    }
}
