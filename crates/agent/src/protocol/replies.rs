//! What the short calls answer: the JSON of REPLY, and of the lines before it.

use serde::{Deserialize, Serialize};

/// REPLY to `time`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TimeSet {
    /// How far the clock was behind the host's, in milliseconds; less than it was by the question's own way here.
    pub behind_ms: i64,
    /// Whether it was set.
    pub stepped: bool,
}

/// REPLY to `stats`: the guest's own figures. All of them since its boot, where nothing else is said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stats {
    /// This boot of the guest: 32 hexadecimal digits.
    pub boot: String,
    /// Milliseconds since it began.
    pub uptime_ms: u64,
    /// A thousand times the load of the last minute.
    pub load1_milli: u64,
    /// Its processors.
    pub cpus: u32,
    /// Milliseconds in which they worked, all together.
    pub cpu_busy_ms: u64,
    /// Its memory, as the kernel counts it.
    pub memory_bytes: u64,
    /// What a program could still have of it.
    pub memory_available_bytes: u64,
    /// The root file system's size.
    pub disk_bytes: u64,
    /// What is used of it.
    pub disk_used_bytes: u64,
    /// Bytes that came over all interfaces but the loopback.
    pub net_rx_bytes: u64,
    /// Bytes that were sent over them.
    pub net_tx_bytes: u64,
}

/// A line of `listen_list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// `tcp` or `udp`; others are for later versions.
    pub proto: String,
    /// The address that it listens on.
    pub address: std::net::IpAddr,
    /// Its port.
    pub port: u16,
    /// The program's name, where one is known.
    pub program: Option<String>,
}

/// REPLY to `listen_list`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listed {
    /// How many lines there were.
    pub listed: u32,
    /// How many there would have been beyond 1,024.
    pub left_out: u32,
}
