//! How long each stage took, as bars and as JSON.

use crate::api::{Stage, StageState};
use crate::cli::{documents, text};
use std::time::Instant;

/// How wide the longest bar is.
const WIDTH: usize = 24;
/// What is not the guest's own before its first output, warm, in milliseconds: the guest's are its boot, and all from the
/// moment that the command's connection is there.
const BUDGET_MS: u64 = 150;

/// The stages of one run.
pub(super) struct Timings {
    begun: Instant,
    stages: Vec<Took>,
    /// When the command could begin, when its first output came, when it was over; in microseconds.
    attached: Option<u64>,
    first_byte: Option<u64>,
    ended: Option<u64>,
}

struct Took {
    name: String,
    start_us: u64,
    us: Option<u64>,
    note: String,
}

impl Took {
    fn shown(&self) -> documents::Took<'_> {
        let by = if is_guests(&self.name) { "guest" } else { "banger" };
        documents::Took { name: &self.name, start_us: self.start_us, us: self.us, by, note: &self.note }
    }
}

impl Timings {
    pub(super) fn begin() -> Timings {
        Timings { begun: Instant::now(), stages: Vec::new(), attached: None, first_byte: None, ended: None }
    }

    /// A stage, as the daemon told it.
    pub(super) fn stage(&mut self, stage: &Stage) {
        match stage.state {
            StageState::Begun => {
                let name = stage.name.clone();
                self.stages.push(Took { name, start_us: stage.at_us, us: None, note: String::new() });
            }
            StageState::Note => {}
            StageState::Ended => {
                if let Some(took) = self.stages.iter_mut().rev().find(|took| took.name == stage.name) {
                    took.us = Some(stage.at_us.saturating_sub(took.start_us));
                    took.note.clone_from(&stage.note);
                }
            }
        }
    }

    pub(super) fn attached(&mut self) {
        self.attached = Some(self.now());
    }

    pub(super) fn first_byte(&mut self) {
        let now = self.now();
        self.first_byte.get_or_insert(now);
    }

    pub(super) fn ended(&mut self) {
        self.ended = Some(self.now());
        if let (Some(start_us), Some(end)) = (self.attached, self.ended) {
            let us = Some(end.saturating_sub(start_us));
            self.stages.push(Took { name: "run".into(), start_us, us, note: String::new() });
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn took(&self, name: &str) -> Option<u64> {
        self.stages.iter().find(|took| took.name == name)?.us
    }

    /// Until the first output, or the end where there was none; and how much of that was not the guest's.
    fn first_output(&self) -> Option<(u64, u64)> {
        let first = self.first_byte.or(self.ended)?;
        let before = self.attached.map_or(first, |attached| attached.min(first));
        Some((first, before.saturating_sub(self.took("boot").unwrap_or(0))))
    }

    /// The object of `--timings --json`.
    pub(super) fn value(&self) -> documents::Timings<'_> {
        let (first_output_us, own_us) = self.first_output().unzip();
        let stages = self.stages.iter().map(Took::shown).collect();
        documents::Timings { stages, first_output_us, own_us, down_us: self.took("down") }
    }

    /// A line a stage, and one for all.
    pub(super) fn bars(&self) -> String {
        let utf8 =
            ["LC_ALL", "LC_CTYPE", "LANG"].iter().find_map(|name| std::env::var(name).ok().filter(|v| !v.is_empty()));
        self.bars_in(utf8.is_some_and(|name| name.to_ascii_uppercase().replace('-', "").contains("UTF8")))
    }

    fn bars_in(&self, utf8: bool) -> String {
        let longest = self.stages.iter().filter_map(|took| took.us).max().unwrap_or(1).max(1);
        let mut out = String::new();
        for took in &self.stages {
            let Some(us) = took.us else { continue };
            let eighths =
                usize::try_from(u128::from(us) * (WIDTH as u128) * 8 / u128::from(longest)).unwrap_or(0).max(1);
            let bar = if utf8 { bar(eighths) } else { "#".repeat(eighths.div_ceil(8)) };
            let own = if is_guests(&took.name) { "   (the guest's own)" } else { "" };
            let line = format!("{:<7} {bar:<WIDTH$} {:>7} ms  {}{own}", took.name, ms(us), text::line(&took.note));
            out.push_str(line.trim_end());
            out.push('\n');
        }
        if let Some((first, own)) = self.first_output() {
            let down = self.took("down").map_or(String::new(), |us| format!("   down {} ms", ms(us)));
            let (first, own) = (ms(first), ms(own));
            out.push_str(&format!(
                "first output after {first} ms, {own} ms of them banger's (budget {BUDGET_MS}){down}\n"
            ));
        }
        out
    }
}

/// Whose stage it is.
fn is_guests(name: &str) -> bool {
    ["boot", "run"].contains(&name)
}

/// Microseconds as milliseconds, rounded.
fn ms(us: u64) -> u64 {
    (us + 500) / 1000
}

fn bar(eighths: usize) -> String {
    let rest = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"][eighths % 8];
    format!("{}{rest}", "█".repeat(eighths / 8))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn stage(name: &str, state: StageState, at_us: u64) -> Stage {
        Stage { name: name.into(), state, at_us, about: "web".into(), note: "a note".into(), usual_us: None }
    }

    #[test]
    fn bars_and_json() {
        let mut timings = Timings::begin();
        for (name, from, to) in [("plan", 0, 3_000), ("boot", 3_000, 803_000)] {
            timings.stage(&stage(name, StageState::Begun, from));
            timings.stage(&stage(name, StageState::Ended, to));
        }
        timings.stage(&stage("down", StageState::Begun, 900_000));
        timings.attached = Some(840_000);
        timings.first_byte = Some(850_000);
        let bars = timings.bars_in(true);
        let lines: Vec<&str> = bars.lines().collect();
        assert_eq!(lines[0], format!("plan    ▏{}       3 ms  a note", " ".repeat(23)));
        assert_eq!(lines[1], format!("boot    {}     800 ms  a note   (the guest's own)", "█".repeat(24)));
        assert_eq!(lines[2], "first output after 850 ms, 40 ms of them banger's (budget 150)");
        assert!(timings.bars_in(false).is_ascii());
        let value = serde_json::to_value(timings.value()).unwrap();
        assert_eq!((&value["first_output_us"], &value["own_us"]), (&json!(850_000), &json!(40_000)));
        assert_eq!(
            value["stages"][1],
            json!({"name": "boot", "start_us": 3000, "us": 800_000, "by": "guest", "note": "a note"})
        );
        assert_eq!((&value["stages"][2]["us"], &value["down_us"]), (&Value::Null, &Value::Null), "never ended");
    }
}
