//! `vm stats`: guests' own figures.

use super::{Status, link};
use crate::api::vm::Vm;
use crate::cli::problem::Problem;
use crate::cli::reach::{Asked, Reach};
use crate::cli::{documents, output, size, table, text};
use crate::{duration, time};
use agent::protocol::Stats as Figures;
use clap::Args;
use std::collections::HashMap;
use std::thread;
use std::time::Duration;

#[derive(Args)]
pub(crate) struct Stats {
    /// VMs: names, or 4 or more digits of their ids; none: all that run.
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Go on, each time after D [default of D: 2s].
    #[arg(long, value_name = "D", num_args = 0..=1, require_equals = true, default_missing_value = "2s",
          value_parser = duration::parse)]
    watch: Option<Duration>,
    #[command(flatten)]
    pub(super) asked: Asked,
}

const HEADER: [&str; 8] = ["NAME", "CPU", "MEM", "DISK", "NET↓", "NET↑", "LOAD", "UP"];
/// How long the processors are looked at before the first figures: the guest counts in hundredths of a second.
const SAMPLE: Duration = Duration::from_millis(500);
/// To the upper left, and everything away.
const CLEAR: &str = "\x1b[H\x1b[2J";

pub(super) fn stats(stats: &Stats) -> Result<Status, Problem> {
    let names = (!stats.names.is_empty()).then(|| stats.names.clone());
    let mut watched = Watched { names, before: HashMap::new(), status: 0 };
    watched.look(&stats.asked.reach)?;
    thread::sleep(SAMPLE);
    loop {
        let shown = watched.look(&stats.asked.reach)?;
        print(stats, &shown)?;
        let Some(pause) = stats.watch.filter(|_| !watched.is_over()) else { return Ok(watched.status) };
        if output::nobody_reads_within(pause) {
            return Ok(watched.status);
        }
    }
}

/// What is looked at, more than once.
struct Watched {
    /// Those that are named, and have answered so far; `None`: all that run.
    names: Option<Vec<String>>,
    /// The last figures of each VM, by its id.
    before: HashMap<String, Figures>,
    status: Status,
}

/// One VM's figures, and what its processors did since those before.
struct Shown {
    name: String,
    now: Figures,
    /// Of one processor: two that work are 200. `None`: it has started anew in between.
    cpu_percent: Option<f64>,
}

impl Watched {
    /// Asks all of them. Of one that fails that is told once.
    fn look(&mut self, reach: &Reach) -> Result<Vec<Shown>, Problem> {
        let (vms, found) = match &self.names {
            Some(names) if names.is_empty() => return Ok(Vec::new()),
            names => link::named(reach, names.as_deref().unwrap_or_default())?,
        };
        let (answers, status) = link::ask_each(reach, vms, |client| client.stats())?;
        self.status = self.status.max(status).max(found);
        if let Some(names) = &mut self.names {
            *names = answers.iter().map(|(vm, _)| vm.id.clone()).collect();
        }
        let then: HashMap<String, Figures> = answers.iter().map(|(vm, now)| (vm.id.clone(), now.clone())).collect();
        let then = std::mem::replace(&mut self.before, then);
        let show = |(vm, now): (Vm, Figures)| {
            let cpu_percent = then.get(&vm.id).and_then(|then| cpu_percent(then, &now));
            Shown { name: vm.name, now, cpu_percent }
        };
        Ok(answers.into_iter().map(show).collect())
    }

    /// None of those that are named is left.
    fn is_over(&self) -> bool {
        self.names.as_ref().is_some_and(Vec::is_empty)
    }
}

fn cpu_percent(then: &Figures, now: &Figures) -> Option<f64> {
    let passed = now.uptime_ms.checked_sub(then.uptime_ms).filter(|ms| *ms > 0 && now.boot == then.boot)?;
    let busy = now.cpu_busy_ms.checked_sub(then.cpu_busy_ms)?;
    Some((busy as f64 / passed as f64 * 1000.0).round() / 10.0)
}

fn print(stats: &Stats, shown: &[Shown]) -> Result<(), Problem> {
    match (stats.asked.json, stats.watch) {
        (true, None) => output::json(&shown.iter().map(Shown::object).collect::<Vec<_>>()),
        (true, Some(_)) => shown.iter().try_for_each(|one| output::json(&one.object())),
        (false, watch) => {
            let short = output::on_terminal();
            if short && watch.is_some() {
                output::data(CLEAR)?;
            }
            if shown.is_empty() && short {
                output::hint("no VM runs: banger vm start NAME\n");
            }
            table::print(&HEADER, &shown.iter().map(|one| one.row(short)).collect::<Vec<_>>())
        }
    }
}

impl Shown {
    fn memory_used(&self) -> u64 {
        self.now.memory_bytes.saturating_sub(self.now.memory_available_bytes)
    }

    fn load1(&self) -> f64 {
        self.now.load1_milli as f64 / 1000.0
    }

    fn object(&self) -> documents::Figures<'_> {
        let now = &self.now;
        documents::Figures {
            name: &self.name,
            cpu_percent: self.cpu_percent,
            memory_used_bytes: self.memory_used(),
            disk_used_bytes: now.disk_used_bytes,
            net_rx_bytes: now.net_rx_bytes,
            net_tx_bytes: now.net_tx_bytes,
            load1: self.load1(),
            uptime_ms: now.uptime_ms,
        }
    }

    /// For a person, or whole numbers as in the object.
    fn row(&self, short: bool) -> Vec<String> {
        let now = &self.now;
        let bytes = |bytes: u64| if short { size::shown(bytes) } else { bytes.to_string() };
        let unit = if short { "%" } else { "" };
        vec![
            text::line(&self.name),
            self.cpu_percent.map_or("-".into(), |percent| format!("{percent:.1}{unit}")),
            bytes(self.memory_used()),
            bytes(now.disk_used_bytes),
            bytes(now.net_rx_bytes),
            bytes(now.net_tx_bytes),
            format!("{:.2}", self.load1()),
            if short { time::age(now.uptime_ms / 1000) } else { now.uptime_ms.to_string() },
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_counted_between_two_looks() {
        let at = |uptime_ms, cpu_busy_ms, boot: &str| Figures {
            uptime_ms,
            cpu_busy_ms,
            boot: boot.into(),
            ..Figures::default()
        };
        assert_eq!(cpu_percent(&at(1000, 100, "a"), &at(1500, 350, "a")), Some(50.0));
        assert_eq!(cpu_percent(&at(1000, 0, "a"), &at(2000, 1999, "a")), Some(199.9));
        assert_eq!(cpu_percent(&at(1000, 100, "a"), &at(1500, 350, "b")), None, "another boot");
        // What no honest guest says.
        assert_eq!(cpu_percent(&at(1000, 100, "a"), &at(1000, 350, "a")), None);
        assert_eq!(cpu_percent(&at(1000, 100, "a"), &at(1500, 50, "a")), None);
    }
}
