//! `make bench`: what each operation costs, as a ratio against what people run today, both in one run, in turn.
//!
//! Absolute figures tell about the machine; the ratios tell about the program. Nothing here is a test.

mod bare;
mod net;
mod others;
mod stats;
mod taps;
mod trip;
mod world;

use anyhow::Result;

fn main() -> Result<()> {
    if !world::enter()? {
        return Ok(());
    }
    world::set_up()?;
    let rounds = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(6);
    trip::measure(rounds)?;
    net::measure(rounds)?;
    taps::measure(rounds)?;
    others::measure(rounds)
}
