//! A rate limiter's buckets in the terms of QEMU, which has a rate and, beside it, how much may come at once.

use serde_json::{Value, json};
use wire::firecracker::{RateLimiter, TokenBucket};

/// The largest rate that QEMU takes.
const MOST: u64 = 1_000_000_000_000_000;

/// The arguments of `block_set_io_throttle` for a device.
pub(crate) fn arguments(device: &str, limiter: Option<&RateLimiter>) -> Value {
    let buckets = limiter.copied().unwrap_or_default();
    let (bps, bps_max) = rate(buckets.bandwidth);
    let (iops, iops_max) = rate(buckets.ops);
    json!({
        "id": device,
        "bps": bps, "bps_rd": 0, "bps_wr": 0,
        "iops": iops, "iops_rd": 0, "iops_wr": 0,
        "bps_max": bps_max, "iops_max": iops_max,
    })
}

/// Tokens a second, and how many at once (0: a tenth of a second's). QEMU has no burst that is given once and holds
/// at least a second's tokens where it is told a number, so a burst is part of the bucket for good and a bucket that is
/// full again sooner than in a tenth of a second becomes one of a tenth.
fn rate(bucket: Option<TokenBucket>) -> (u64, u64) {
    let Some(bucket) = bucket.filter(TokenBucket::limits) else { return (0, 0) };
    let each = u128::from(bucket.size) * 1000 / u128::from(bucket.refill_time);
    let each = u64::try_from(each).unwrap_or(MOST).clamp(1, MOST);
    let whole = bucket.size.saturating_add(bucket.one_time_burst.unwrap_or(0)).min(MOST);
    (each, if whole >= each { whole } else { 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_becomes_a_rate_and_what_may_come_at_once() {
        let bucket = |size, burst, ms| rate(Some(TokenBucket { size, one_time_burst: burst, refill_time: ms }));
        assert_eq!(bucket(1000, None, 1000), (1000, 1000));
        assert_eq!(bucket(1000, None, 2000), (500, 1000));
        assert_eq!(bucket(1000, Some(500), 1000), (1000, 1500));
        assert_eq!(bucket(1000, None, 100), (10_000, 0));
        assert_eq!(bucket(1, None, u64::MAX), (1, 1));
        assert_eq!(bucket(u64::MAX, Some(u64::MAX), 1), (MOST, MOST));
        assert_eq!([bucket(0, None, 5), bucket(5, None, 0), rate(None)], [(0, 0); 3]);
    }
}
