//! Times of two ways of doing one thing, taken in turn, and their ratio with its spread.

use std::time::{Duration, Instant};

/// Times of one way, in the order they were taken.
#[derive(Default)]
pub(crate) struct Times(Vec<Duration>);

impl Times {
    /// Times that were taken elsewhere.
    pub(crate) fn of(times: Vec<Duration>) -> Times {
        Times(times)
    }

    /// Runs `act` once and keeps how long it took.
    pub(crate) fn take<T>(&mut self, act: impl FnOnce() -> T) -> T {
        let begin = Instant::now();
        let done = act();
        self.0.push(begin.elapsed());
        done
    }

    /// The value below which `part` of all lie; 0.5 is the median.
    pub(crate) fn at(&self, part: f64) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let index = ((sorted.len().saturating_sub(1)) as f64 * part).round() as usize;
        sorted.get(index).copied().unwrap_or_default()
    }

    /// The medians of `n` slices in time: how much the machine's load moved them.
    fn slices(&self, n: usize) -> Vec<f64> {
        let length = self.0.len().div_ceil(n).max(1);
        self.0.chunks(length).map(|slice| Times(slice.to_vec()).at(0.5).as_secs_f64()).collect()
    }
}

/// One line: what, ours, theirs, how many times faster ours is, and between what in the run's slices.
pub(crate) fn compare(what: &str, ours: &Times, theirs: &Times, against: &str) {
    let ratio = |a: Duration, b: Duration| a.as_secs_f64() / b.as_secs_f64().max(1e-9);
    let slices: Vec<f64> = ours.slices(6).iter().zip(theirs.slices(6)).map(|(o, t)| t / o.max(1e-9)).collect();
    let low = slices.iter().copied().fold(f64::INFINITY, f64::min);
    let high = slices.iter().copied().fold(0.0, f64::max);
    println!(
        "| {what} | {} | {} | {against} | **{:.2}** | {low:.2} to {high:.2} | {:.2} |",
        ms(ours),
        ms(theirs),
        ratio(theirs.at(0.5), ours.at(0.5)),
        ratio(theirs.at(0.1), ours.at(0.1)),
    );
}

/// Median and fastest tenth, in milliseconds.
pub(crate) fn ms(times: &Times) -> String {
    format!("{:.3} ({:.3})", times.at(0.5).as_secs_f64() * 1e3, times.at(0.1).as_secs_f64() * 1e3)
}

/// The table's head.
pub(crate) fn head(title: &str) {
    println!("\n### {title}\n");
    println!(
        "| what | ours, ms: median (fastest tenth) | theirs | against | times faster | between, in six slices | fastest tenths |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
}
