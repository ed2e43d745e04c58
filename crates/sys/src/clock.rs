//! `clock_adjtime(2)`: the wall clock moved by so much, by one call.

use std::io;

const SECOND: i64 = 1_000_000_000;

/// Moves the wall clock by so many nanoseconds. Between reading and setting it, as two calls, a busy machine's would lose time.
///
/// # Errors
/// The kernel's: `EPERM`, and `EINVAL` where it can't tell a time like that.
pub fn step(by_ns: i64) -> io::Result<()> {
    // SAFETY: an all-zero `timex` is a valid value: it asks for nothing.
    let mut step: libc::timex = unsafe { std::mem::zeroed() };
    step.modes = libc::ADJ_SETOFFSET | libc::ADJ_NANO;
    step.time.tv_sec = by_ns.div_euclid(SECOND);
    // Nanoseconds, since ADJ_NANO says so; never below zero.
    step.time.tv_usec = by_ns.rem_euclid(SECOND);
    // SAFETY: `step` is ours and initialised; the kernel writes no more than it.
    if unsafe { libc::clock_adjtime(libc::CLOCK_REALTIME, &raw mut step) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_time_that_cannot_be_told_is_refused() {
        for by_ns in [i64::MIN, i64::MAX] {
            assert_eq!(super::step(by_ns).expect_err("no such time").raw_os_error(), Some(libc::EINVAL));
        }
    }
}
