//! The guest's clock, which the host sets: a machine that was paused, saved or emulated is late.

use agent::protocol::{ErrorBody, TimeSet};
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

use super::call::failed;

/// Less than this is left to whatever else keeps the guest's time.
const TOLERATED_NS: i128 = 500_000_000;

/// Moves the clock by so much, or steps it where it is off by more than half a second.
///
/// # Errors
/// The ERROR that answers.
pub(super) fn correct(unix_ns: u64, by_ns: Option<i64>) -> Result<TimeSet, ErrorBody> {
    let behind = i128::from(unix_ns) - now();
    let stepped = by_ns.is_some() || behind.abs() > TOLERATED_NS;
    match by_ns {
        Some(by) => {
            sys::clock::step(by).map_err(|error| failed("failed", "clock", error.raw_os_error().unwrap_or(0)))?
        }
        None if stepped => set(unix_ns)?,
        None => {}
    }
    Ok(TimeSet { behind_ms: i64::try_from(behind / 1_000_000).unwrap_or(i64::MAX), stepped })
}

/// When something came, by a clock that nobody sets.
#[derive(Debug, Clone, Copy)]
pub(super) struct Came(u64);

impl Came {
    pub(super) fn now() -> Self {
        Self(monotonic())
    }

    /// A time that was true then.
    pub(super) fn with(self, unix_ns: u64) -> Told {
        Told { unix_ns, since: self.0 }
    }
}

/// A time that was true at another.
#[derive(Debug, Clone, Copy)]
pub(super) struct Told {
    unix_ns: u64,
    since: u64,
}

impl Told {
    /// Sets the clock, whatever it says, to what that time has become.
    ///
    /// # Errors
    /// The ERROR that answers.
    pub(super) fn set(self) -> Result<(), ErrorBody> {
        set(self.unix_ns.saturating_add(monotonic().saturating_sub(self.since)))
    }
}

fn set(unix_ns: u64) -> Result<(), ErrorBody> {
    let seconds = i64::try_from(unix_ns / 1_000_000_000).unwrap_or(i64::MAX);
    let time = Timespec { tv_sec: seconds, tv_nsec: (unix_ns % 1_000_000_000) as i64 };
    clock_settime(ClockId::Realtime, time).map_err(|error| failed("failed", "clock", error.raw_os_error()))
}

fn now() -> i128 {
    let now = clock_gettime(ClockId::Realtime);
    i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec)
}

fn monotonic() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
