//! How much of something may happen in a time, where somebody who isn't trusted can make it happen again and again.

use std::time::{Duration, Instant};

/// So much in each span of time; what is beyond is counted.
#[derive(Debug)]
pub(crate) struct Rate {
    most: u64,
    span: Duration,
    since: Instant,
    used: u64,
    left_out: u64,
}

impl Rate {
    pub(crate) fn new(most: u64, span: Duration) -> Self {
        Self { most, span, since: Instant::now(), used: 0, left_out: 0 }
    }

    /// Takes `amount`. `None` where that is too much now; else how much was left out since the last time.
    pub(crate) fn admit(&mut self, amount: u64) -> Option<u64> {
        if self.since.elapsed() >= self.span {
            self.since = Instant::now();
            self.used = 0;
        }
        if self.used + amount > self.most {
            self.left_out += amount;
            return None;
        }
        self.used += amount;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::Rate;
    use std::time::Duration;

    #[test]
    fn what_is_beyond_is_left_out_until_the_next_span() {
        let mut rate = Rate::new(3, Duration::from_millis(100));
        assert_eq!([rate.admit(2), rate.admit(2), rate.admit(1), rate.admit(1)], [Some(0), None, Some(2), None]);
        std::thread::sleep(Duration::from_millis(110));
        assert_eq!(rate.admit(3), Some(1));
    }
}
