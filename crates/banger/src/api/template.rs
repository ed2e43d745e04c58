//! Templates as the daemon shows them: the object of `template list --json` and `template show --json`. Fields are only ever
//! added; what is unknown is `null`, never absent.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A template: a VM that was saved before any command ran in it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Template {
    /// 12 hex digits.
    pub id: String,
    /// The image's name.
    pub image: String,
    /// `sha256:` and 64 hex digits; `null` where the image was given as a file.
    pub digest: Option<String>,
    /// The kernel's name.
    pub kernel: String,
    /// vCPUs.
    pub cpus: u8,
    /// Memory.
    pub memory_bytes: u64,
    /// Whether the image's own init is the first process; else the agent is.
    pub init: bool,
    /// What its state, memory and disk take on the host's disk.
    pub size_bytes: u64,
    /// The VMs whose disks lie on it.
    pub vms: Vec<String>,
    /// RFC 3339, UTC.
    pub created_at: String,
}

/// The result of `template.list`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Templates {
    /// The oldest first.
    pub templates: Vec<Template>,
    /// The most that there may be.
    pub most: u64,
    /// What they may take on the host's disk together.
    pub most_bytes: u64,
    /// Whether they are made unasked.
    pub unasked: bool,
}

impl Templates {
    /// How many there are and what they take, against what they may.
    pub fn total(&self) -> (usize, u64) {
        (self.templates.len(), self.templates.iter().map(|one| one.size_bytes).sum())
    }
}

/// The result of `template.rm`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Removed {
    /// Its id.
    pub id: String,
    /// What the disk has more now.
    pub freed_bytes: u64,
}
