//! Bodies of the devices that can be limited or changed while the VM runs.

use serde::{Deserialize, Serialize};

use super::{HostPath, ResourceId};

/// One bucket of a rate limiter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenBucket {
    /// Tokens that it holds.
    pub size: u64,
    /// Tokens beside them that can be used once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_time_burst: Option<u64>,
    /// Milliseconds in which it is full again.
    pub refill_time: u64,
}

/// A limit of bytes and of operations; absent: none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimiter {
    /// Bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<TokenBucket>,
    /// Operations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ops: Option<TokenBucket>,
}

impl TokenBucket {
    /// Whether it limits anything: one of size 0 or without refill time does not, as in Firecracker.
    pub fn limits(&self) -> bool {
        self.size != 0 && self.refill_time != 0
    }
}

impl RateLimiter {
    /// Whether one of its buckets limits anything.
    pub fn limits(&self) -> bool {
        [self.bandwidth, self.ops].iter().flatten().any(TokenBucket::limits)
    }

    /// This one changed by `update`: a bucket that is absent there stays as it is here.
    #[must_use]
    pub fn updated(self, update: Self) -> Self {
        Self { bandwidth: update.bandwidth.or(self.bandwidth), ops: update.ops.or(self.ops) }
    }
}

/// `PATCH /drives/ID`: what is absent stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriveUpdate {
    /// Which drive; the same as in the path of the request.
    pub drive_id: ResourceId,
    /// The new file or block device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_on_host: Option<HostPath>,
    /// The new limit; a bucket that is absent stays as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

/// `PATCH /network-interfaces/ID`: what is absent stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkUpdate {
    /// Which interface; the same as in the path of the request.
    pub iface_id: ResourceId,
    /// The new limit on what the guest gets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiter>,
    /// The new limit on what the guest sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiter>,
}

/// `PUT /balloon`, and what `GET` answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Balloon {
    /// How much memory it is to take from the guest, in MiB.
    pub amount_mib: u32,
    /// Whether the guest takes memory back from it before it kills a process for want of any.
    pub deflate_on_oom: bool,
    /// Seconds between two reports of the guest's; 0: none are made.
    #[serde(default)]
    pub stats_polling_interval_s: u16,
    /// Whether the guest is asked which of its pages are free.
    #[serde(default)]
    pub free_page_hinting: bool,
    /// Whether the guest tells on its own which of its pages are free.
    #[serde(default)]
    pub free_page_reporting: bool,
}

/// `PATCH /balloon`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonUpdate {
    /// See [`Balloon`].
    pub amount_mib: u32,
}

/// `PATCH /balloon/statistics`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonStatsUpdate {
    /// See [`Balloon`].
    pub stats_polling_interval_s: u16,
}

/// What `GET /balloon/statistics` answers. What the guest has not told is absent; bytes where no unit is said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // The optional ones have the names of the virtio specification.
pub struct BalloonStats {
    /// Pages of 4 KiB that the balloon is to hold.
    pub target_pages: u32,
    /// Those that it holds.
    pub actual_pages: u32,
    /// `target_pages` in MiB.
    pub target_mib: u32,
    /// `actual_pages` in MiB.
    pub actual_mib: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_in: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_out: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub major_faults: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minor_faults: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub free_memory: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_memory: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub available_memory: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_caches: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hugetlb_allocations: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hugetlb_failures: Option<u64>,
}

/// `PUT /entropy`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entropy {
    /// A limit on what the guest draws.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

/// `PUT /serial`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Serial {
    /// The file or FIFO that the console's output goes to, in place of standard output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial_out_path: Option<HostPath>,
    /// A limit on the output, in bytes; what is beyond it is dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<TokenBucket>,
}
