//! `make bench`: what each operation costs, as a ratio against what people run today, both in one run, in turn.
//!
//! `bench ROUNDS snapshots` measures the snapshot methods, on a kernel that has device-mapper.
//! Absolute figures tell about the machine; the ratios tell about the program. Nothing here is a test.

mod bare;
mod disk;
mod image;
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
    if std::env::args().nth(2).as_deref() == Some("snapshots") {
        return disk::measure(rounds);
    }
    trip::measure(rounds)?;
    net::measure(rounds)?;
    taps::measure(rounds)?;
    others::measure(rounds)?;
    image::measure(rounds)
}
