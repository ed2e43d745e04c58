//! `make bench`: what each operation costs, as a ratio against what people run today, both in one run, in turn.
//!
//! `bench ROUNDS snapshots` measures the snapshot methods, on a kernel that has device-mapper.
//! Absolute figures tell about the machine; the ratios tell about the program. Nothing here is a test.

mod bare;
mod by_hand;
mod disk;
mod image;
mod launch;
mod nat;
mod net;
mod others;
mod run;
mod scale;
mod stats;
mod taps;
mod today;
mod trip;
mod warm;
mod warm_init;
mod world;

use anyhow::{Context, Result, ensure};
use std::process::Command;

/// A part's name and what measures it, in so many rounds.
type Part = (&'static str, fn(usize) -> Result<()>);

const PARTS: [Part; 12] = [
    ("trip", trip::measure),
    ("net", net::measure),
    ("nat", nat::measure),
    ("taps", taps::measure),
    ("others", others::measure),
    ("image", image::measure),
    ("scale", scale::measure),
    ("launch", launch::measure),
    ("run", run::measure),
    ("warm", warm::measure),
    ("warm-init", warm_init::measure),
    ("today", today::measure),
];
/// The one that needs another kernel's device-mapper: `scripts/bench` runs it in the lab.
const SNAPSHOTS: Part = ("snapshots", disk::measure);

fn main() -> Result<()> {
    let rounds = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(6);
    let Some(part) = std::env::args().nth(2) else { return all(rounds) };
    let known = || PARTS.into_iter().chain([SNAPSHOTS]);
    let names = || known().map(|(name, _)| name).collect::<Vec<_>>().join(", ");
    let found = known().find(|(name, _)| *name == part);
    let (_, measure) = found.with_context(|| format!("there is no part {part:?}; there are {}", names()))?;
    if !world::enter()? {
        return Ok(());
    }
    world::set_up()?;
    measure(rounds)
}

/// One after the other, each in a world of its own: what one leaves there is in no other's way.
fn all(rounds: usize) -> Result<()> {
    for (part, _) in PARTS {
        let status = Command::new(std::env::current_exe()?).args([rounds.to_string().as_str(), part]).status()?;
        ensure!(status.success(), "{part}: the measurement failed");
    }
    Ok(())
}
