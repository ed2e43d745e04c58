//! The bodies of Firecracker's HTTP API and of its configuration file, as strict types.
//!
//! `banger-qemu` reads them, the helper writes them. Field names, defaults and bounds are those of Firecracker's API
//! description (1.17); an unknown field is refused, as Firecracker does. What holds for every VMM is checked here, what
//! one of them can't do is that one's to refuse.

mod devices;
mod snapshot;
mod text;

use serde::{Deserialize, Serialize};

pub use devices::{
    Balloon, BalloonStats, BalloonStatsUpdate, BalloonUpdate, DriveUpdate, Entropy, NetworkUpdate, RateLimiter, Serial,
    TokenBucket,
};
pub use snapshot::{
    LoadHugePages, MemoryBackend, MemoryBackendType, NetworkOverride, SnapshotCreate, SnapshotLoad, SnapshotType,
    VsockOverride,
};
pub use text::{
    BootArgs, HostDevName, HostPath, InstanceId, Invalid, MAX_BOOT_ARGS, MAX_ID, MAX_PATH, MacAddr, PartUuid,
    ResourceId,
};

/// The version of Firecracker's API that these types describe.
pub const API_VERSION: &str = "1.17.0";
/// Where `banger-qemu` looks for QEMU, in this order; never in `PATH`. What a saved VM is bound to is told by it too.
pub const QEMU_PLACES: [&str; 2] = ["/usr/libexec/banger/qemu-system-x86_64", "/usr/bin/qemu-system-x86_64"];
/// The most virtual CPUs of a VM.
pub const MAX_VCPUS: u8 = 32;

/// `PUT /boot-source`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootSource {
    /// The kernel's image: an ELF file or a bzImage.
    pub kernel_image_path: HostPath,
    /// The initial RAM disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd_path: Option<HostPath>,
    /// The kernel's command line; without it the VMM's default one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_args: Option<BootArgs>,
}

/// Whether a guest's flush reaches the host's disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CacheType {
    /// It does not; a power cut of the host may lose what the guest believes written.
    #[default]
    Unsafe,
    /// It does.
    Writeback,
}

/// How the VMM reads and writes a drive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum IoEngine {
    /// With plain calls.
    #[default]
    Sync,
    /// With io_uring.
    Async,
}

/// `PUT /drives/ID`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drive {
    /// Its id; the same as in the path of the request.
    pub drive_id: ResourceId,
    /// The root partition, where the root drive has partitions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partuuid: Option<PartUuid>,
    /// Whether the guest's root is on it; it is then the guest's first drive.
    pub is_root_device: bool,
    /// What a flush does.
    #[serde(default)]
    pub cache_type: CacheType,
    /// Whether the guest may only read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_read_only: Option<bool>,
    /// The file or block device behind it, in raw format.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_on_host: Option<HostPath>,
    /// A limit on its use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
    /// How it is read and written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_engine: Option<IoEngine>,
    /// A vhost-user back-end's socket, in place of `path_on_host`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<HostPath>,
}

/// `PUT /network-interfaces/ID`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkInterface {
    /// Its id; the same as in the path of the request.
    pub iface_id: ResourceId,
    /// The tap on the host.
    pub host_dev_name: HostDevName,
    /// The guest's address on it; without it the VMM takes one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_mac: Option<MacAddr>,
    /// The MTU that the guest is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// A limit on what the guest gets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiter>,
    /// A limit on what the guest sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiter>,
}

/// `PUT /vsock`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vsock {
    /// Deprecated, without a meaning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock_id: Option<ResourceId>,
    /// The guest's context id.
    #[serde(deserialize_with = "guest_cid")]
    pub guest_cid: u32,
    /// The Unix socket on the host that the VMM makes and listens on.
    pub uds_path: HostPath,
}

fn guest_cid<'de, D: serde::Deserializer<'de>>(input: D) -> Result<u32, D::Error> {
    match u32::deserialize(input)? {
        cid if cid < 3 || cid == u32::MAX => Err(serde::de::Error::custom("guest_cid is from 3 to 4294967294")),
        cid => Ok(cid),
    }
}

/// What backs the guest's memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum HugePages {
    /// Pages of 4 KiB.
    #[default]
    None,
    /// Huge ones where the kernel finds them.
    Transparent,
    /// Reserved pages of 2 MiB.
    #[serde(rename = "2M")]
    Hugetlbfs2M,
}

/// A set of CPU flags by name; deprecated in Firecracker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // Names of Amazon's instance types.
pub enum CpuTemplate {
    C3,
    T2,
    T2S,
    T2CL,
    T2A,
    V1N1,
    #[default]
    None,
}

/// `PUT /machine-config`, and what `GET` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    /// Virtual CPUs, 1 to 32.
    pub vcpu_count: u8,
    /// Memory in MiB.
    pub mem_size_mib: u64,
    /// Whether two virtual CPUs are a core; then their number is 1 or even.
    #[serde(default)]
    pub smt: bool,
    /// The CPU's flags.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_template: Option<CpuTemplate>,
    /// Whether pages that change are tracked.
    #[serde(default)]
    pub track_dirty_pages: bool,
    /// What backs the memory.
    #[serde(default)]
    pub huge_pages: HugePages,
}

impl Default for MachineConfig {
    fn default() -> Self {
        Self {
            vcpu_count: 1,
            mem_size_mib: 128,
            smt: false,
            cpu_template: None,
            track_dirty_pages: false,
            huge_pages: HugePages::None,
        }
    }
}

/// `PATCH /machine-config`: what is absent stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MachineConfigUpdate {
    /// See [`MachineConfig`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vcpu_count: Option<u8>,
    /// See [`MachineConfig`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_size_mib: Option<u64>,
    /// See [`MachineConfig`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub smt: Option<bool>,
    /// See [`MachineConfig`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_template: Option<CpuTemplate>,
    /// See [`MachineConfig`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub track_dirty_pages: Option<bool>,
    /// See [`MachineConfig`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub huge_pages: Option<HugePages>,
}

/// How much is logged; read without regard to case, `Warn` as `Warning`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// What failed.
    Error,
    /// What looks wrong.
    #[serde(rename = "Warning")]
    Warn,
    /// What happens.
    #[default]
    Info,
    /// How it happens.
    Debug,
    /// All.
    Trace,
}

impl TryFrom<String> for LogLevel {
    type Error = Invalid;
    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl std::str::FromStr for LogLevel {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text.to_ascii_lowercase().as_str() {
            "off" => Ok(Self::Off),
            "error" => Ok(Self::Error),
            "warn" | "warning" => Ok(Self::Warn),
            "info" => Ok(Self::Info),
            "debug" => Ok(Self::Debug),
            "trace" => Ok(Self::Trace),
            _ => Err(Invalid::new("the level is one of Off, Error, Warning, Info, Debug and Trace")),
        }
    }
}

/// `PUT /logger`: what is absent stays, but for the level, which becomes `Info`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Logger {
    /// A file or FIFO that lines are appended to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_path: Option<HostPath>,
    /// How much.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<LogLevel>,
    /// Whether a line names its level.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub show_level: Option<bool>,
    /// Whether a line names its origin in the source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub show_log_origin: Option<bool>,
    /// Only lines of this module.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
}

/// `PUT /metrics`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    /// A file or FIFO that a line of JSON is appended to at each flush.
    pub metrics_path: HostPath,
    /// Whether each line names the VM.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub emit_id: bool,
    /// What each line carries beside the numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub properties: Option<std::collections::BTreeMap<String, String>>,
}

/// What `PUT /actions` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ActionType {
    /// Write a line of metrics.
    FlushMetrics,
    /// Boot.
    InstanceStart,
    /// Press Ctrl, Alt and Delete.
    SendCtrlAltDel,
}

/// `PUT /actions`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceAction {
    /// What to do.
    pub action_type: ActionType,
}

/// What `PATCH /vm` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum VmStateChange {
    /// Stop the virtual CPUs.
    Paused,
    /// Let them go on.
    Resumed,
}

/// `PATCH /vm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vm {
    /// What it is to be.
    pub state: VmStateChange,
}

/// A VM's state, as `GET /` tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum VmState {
    /// Not booted.
    #[serde(rename = "Not started")]
    NotStarted,
    /// Its virtual CPUs are stopped.
    Paused,
    /// They run.
    Running,
}

/// What `GET /` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceInfo {
    /// The VM's id.
    pub id: String,
    /// Its state.
    pub state: VmState,
    /// The VMM's version.
    pub vmm_version: String,
    /// The VMM's name.
    pub app_name: String,
}

/// Asks a VMM on a fresh connection to its API whether its VM runs. For who started it by hand and can wait for a
/// plain answer; how long a read may take is the connection's own to limit.
///
/// # Errors
/// The connection's.
pub fn says_running(mut api: impl std::io::Read + std::io::Write) -> std::io::Result<bool> {
    api.write_all(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")?;
    let mut answer = [0; 1024];
    let length = api.read(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..length]).contains("\"Running\""))
}

/// What `GET /version` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// The version of the API.
    pub firecracker_version: String,
}

/// The body of every refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// What is wrong.
    pub fault_message: String,
}

/// A configuration file, and what `GET /vm/config` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// What to boot; absent only in an answer before it was set.
    #[serde(rename = "boot-source", default, skip_serializing_if = "Option::is_none")]
    pub boot_source: Option<BootSource>,
    /// Drives in the order of the guest's names, the root drive before all.
    #[serde(default)]
    pub drives: Vec<Drive>,
    /// CPUs and memory.
    #[serde(rename = "machine-config", default, skip_serializing_if = "Option::is_none")]
    pub machine_config: Option<MachineConfig>,
    /// Network interfaces in the order of the guest's names.
    #[serde(rename = "network-interfaces", default)]
    pub network_interfaces: Vec<NetworkInterface>,
    /// The vsock device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<Vsock>,
    /// The log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logger: Option<Logger>,
    /// The metrics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<Metrics>,
    /// The balloon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balloon: Option<Balloon>,
    /// The source of randomness.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entropy: Option<Entropy>,
    /// Devices and services that only Firecracker has: `null` is accepted, as its own answers hold it.
    #[serde(rename = "cpu-config", default, skip_serializing_if = "Option::is_none")]
    pub cpu_config: Option<Absent>,
    /// See `cpu_config`.
    #[serde(rename = "mmds-config", default, skip_serializing_if = "Option::is_none")]
    pub mmds_config: Option<Absent>,
    /// See `cpu_config`.
    #[serde(rename = "memory-hotplug", default, skip_serializing_if = "Option::is_none")]
    pub memory_hotplug: Option<Absent>,
    /// See `cpu_config`; an empty list is accepted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pmem: Vec<Absent>,
}

/// A part of Firecracker's configuration that has no counterpart here: no text is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Absent {}

impl<'de> Deserialize<'de> for Absent {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(serde::de::Error::custom("cpu-config, mmds-config, memory-hotplug and pmem are not supported"))
    }
}

#[cfg(test)]
#[path = "firecracker_tests.rs"]
mod tests;
