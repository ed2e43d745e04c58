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

use anyhow::Result;

/// A part's name and what measures it, in so many rounds.
type Part = (&'static str, fn(usize) -> Result<()>);

fn main() -> Result<()> {
    if !world::enter()? {
        return Ok(());
    }
    world::set_up()?;
    let rounds = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(6);
    // One part alone, where it is named.
    let part = std::env::args().nth(2);
    if part.as_deref() == Some("snapshots") {
        return disk::measure(rounds);
    }
    let parts: [Part; 12] = [
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
    for (_, measure) in parts.into_iter().filter(|(name, _)| part.as_deref().is_none_or(|part| part == *name)) {
        measure(rounds)?;
    }
    Ok(())
}
