//! Bodies of the snapshots.

use serde::{Deserialize, Serialize};

use super::{HostDevName, HostPath, ResourceId};

/// How much of the memory is saved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SnapshotType {
    /// What changed since the last one.
    Diff,
    /// All.
    #[default]
    Full,
}

/// `PUT /snapshot/create`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotCreate {
    /// How much.
    #[serde(default)]
    pub snapshot_type: SnapshotType,
    /// The file for the state of the devices.
    pub snapshot_path: HostPath,
    /// The file for the memory.
    pub mem_file_path: HostPath,
}

/// How the memory comes to the VM that is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemoryBackendType {
    /// From a file.
    File,
    /// From a process that answers page faults.
    Uffd,
}

/// Where the memory is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryBackend {
    /// What `backend_path` names.
    pub backend_type: MemoryBackendType,
    /// The file, or the process's socket.
    pub backend_path: HostPath,
}

/// Another tap for an interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkOverride {
    /// Which interface.
    pub iface_id: ResourceId,
    /// Its tap from now on.
    pub host_dev_name: HostDevName,
}

/// Another socket for the vsock device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockOverride {
    /// The socket from now on.
    pub uds_path: HostPath,
}

/// What backs the memory after the load.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LoadHugePages {
    /// As when it was saved.
    #[default]
    Snapshot,
    /// Pages of 4 KiB.
    None,
    /// Huge ones where the kernel finds them.
    Transparent,
    /// Reserved pages of 2 MiB.
    #[serde(rename = "2M")]
    Hugetlbfs2M,
}

/// `PUT /snapshot/load`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotLoad {
    /// The file with the state of the devices.
    pub snapshot_path: HostPath,
    /// The file with the memory; deprecated, and not beside `mem_backend`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mem_file_path: Option<HostPath>,
    /// Where the memory is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mem_backend: Option<MemoryBackend>,
    /// Deprecated name of `track_dirty_pages`.
    #[serde(default)]
    pub enable_diff_snapshots: bool,
    /// Whether pages that change are tracked.
    #[serde(default)]
    pub track_dirty_pages: bool,
    /// Whether the VM runs when it is loaded; else it is paused.
    #[serde(default)]
    pub resume_vm: bool,
    /// Other taps.
    #[serde(default)]
    pub network_overrides: Vec<NetworkOverride>,
    /// Another vsock socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock_override: Option<VsockOverride>,
    /// Whether the guest's clock is moved on by the time since it was saved.
    #[serde(default)]
    pub clock_realtime: bool,
    /// What backs the memory.
    #[serde(default)]
    pub huge_pages: LoadHugePages,
}

impl SnapshotLoad {
    /// The memory's place, whichever way it was told.
    ///
    /// # Errors
    /// It was told in neither way, or in both; Firecracker's words.
    pub fn memory(&self) -> Result<MemoryBackend, &'static str> {
        match (&self.mem_backend, &self.mem_file_path) {
            (Some(backend), None) => Ok(backend.clone()),
            (None, Some(path)) => {
                Ok(MemoryBackend { backend_type: MemoryBackendType::File, backend_path: path.clone() })
            }
            (None, None) => Err("missing field: either `mem_backend` or `mem_file_path` is required"),
            (Some(_), Some(_)) => {
                Err("too many fields: either `mem_backend` or `mem_file_path` exclusively is required")
            }
        }
    }
}
