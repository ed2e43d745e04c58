//! When each stage was reached, as bars.

use std::time::{Duration, Instant};

const WIDTH: usize = 40;

/// Stages since a first moment.
pub(crate) struct Timeline {
    start: Instant,
    stages: Vec<(&'static str, Duration)>,
}

impl Timeline {
    /// Begins now.
    pub(crate) fn start() -> Self {
        Self { start: Instant::now(), stages: Vec::new() }
    }

    /// This stage is reached now.
    pub(crate) fn reached(&mut self, stage: &'static str) {
        self.reached_at(stage, Instant::now());
    }

    /// This stage was reached then.
    pub(crate) fn reached_at(&mut self, stage: &'static str, then: Instant) {
        self.stages.push((stage, then.saturating_duration_since(self.start)));
        self.stages.sort_by_key(|(_, at)| *at);
    }

    /// One line a stage: its time since the start, and a bar that begins where the stage before ended.
    pub(crate) fn lines(&self) -> Vec<String> {
        let whole = self.stages.last().map_or(0.0, |(_, at)| at.as_secs_f64()).max(0.001);
        let column = |at: &Duration| (at.as_secs_f64() / whole * WIDTH as f64).round() as usize;
        let mut from = 0;
        let line = |(stage, at): &(&str, Duration)| {
            let to = column(at);
            let bar = format!("{}{}", " ".repeat(from), "▇".repeat((to - from).max(1)));
            from = to;
            format!("{stage:40} {:7.3} s  {bar}", at.as_secs_f64())
        };
        self.stages.iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_follow_one_another() {
        let mut timeline = Timeline::start();
        for (stage, ms) in [("b", 2000), ("a", 1000), ("c", 2001)] {
            timeline.reached_at(stage, timeline.start + Duration::from_millis(ms));
        }
        let bars: Vec<String> = timeline.lines().iter().map(|l| l[52..].trim_end().replace('▇', "x")).collect();
        assert_eq!(bars[0], "x".repeat(20));
        assert_eq!(bars[1], " ".repeat(20) + &"x".repeat(20));
        assert_eq!(bars[2], " ".repeat(40) + "x");
        assert!(timeline.lines()[0].starts_with("a ") && timeline.lines()[0].contains("1.000 s"));
    }
}
