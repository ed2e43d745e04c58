//! The rate of the CPU's time stamp counter, measured: under QEMU's emulation a guest reads the host's counter, and its
//! kernel has no other clock to measure it with.

use std::time::Duration;

/// A reading of the counter and of the clock at the same instant.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    ticks: u64,
    nanos: u64,
}

/// The shortest time between two samples that gives the rate to within some 0.002 %, as good as a quartz: both readings
/// of each sample are within some 40 ns.
pub const SHORTEST: Duration = Duration::from_millis(2);

impl Sample {
    /// Reads both, a few times, and keeps the reading in which the two were closest together: a pause between them
    /// would be taken for time of the counter.
    pub fn take() -> Self {
        let mut best = Self { ticks: 0, nanos: 0 };
        let mut narrowest = u64::MAX;
        for _ in 0..32 {
            let before = rdtsc();
            let nanos = raw_nanos();
            let after = rdtsc();
            let width = after.saturating_sub(before);
            if width < narrowest {
                narrowest = width;
                best = Self { ticks: before + width / 2, nanos };
            }
        }
        best
    }

    /// The counter's rate in kHz since this sample. Sleeps what is missing to [`SHORTEST`].
    ///
    /// Nothing where the counter did not run forward, or ran at no rate that a CPU has (0.1 to 20 GHz).
    pub fn khz_since(self) -> Option<u64> {
        let elapsed = Duration::from_nanos(raw_nanos().saturating_sub(self.nanos));
        if let Some(missing) = SHORTEST.checked_sub(elapsed) {
            std::thread::sleep(missing);
        }
        let now = Self::take();
        let ticks = now.ticks.checked_sub(self.ticks)?;
        let nanos = now.nanos.checked_sub(self.nanos)?;
        let khz = u64::try_from(u128::from(ticks) * 1_000_000 / u128::from(nanos.max(1))).ok()?;
        (100_000..=20_000_000).contains(&khz).then_some(khz)
    }
}

fn raw_nanos() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicRaw);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

#[cfg(target_arch = "x86_64")]
fn rdtsc() -> u64 {
    // SAFETY: every x86-64 CPU has the instruction; it reads a register and touches no memory.
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[cfg(not(target_arch = "x86_64"))]
fn rdtsc() -> u64 {
    0
}

#[cfg(test)]
mod tests {
    use super::Sample;

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn two_measurements_agree() {
        let start = Sample::take();
        let first = start.khz_since().expect("a rate");
        std::thread::sleep(std::time::Duration::from_millis(50));
        let second = start.khz_since().expect("a rate");
        // A hundredth is what a busy machine may cost the short one; a wrong unit is out by a thousand.
        assert!(first.abs_diff(second) < second / 100, "{first} kHz, then {second} kHz");
    }
}
