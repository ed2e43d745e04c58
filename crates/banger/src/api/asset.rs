//! Images and kernels as the daemon shows them: the objects of `image list --json` and `kernel list --json`. Fields are
//! only ever added; what is unknown is `null`, never absent.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An image or a kernel.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Asset {
    /// Its name.
    pub name: String,
    /// `sha256:` and 64 hexadecimal digits.
    pub digest: String,
    /// What it takes on the disk.
    pub size_bytes: u64,
    /// How much of that another name has too.
    pub shared_bytes: u64,
    /// A kernel's, as `uname -r` says it.
    pub version: Option<String>,
    /// Where it is from.
    pub source: String,
    /// The VMs that were made of it.
    pub vms: Vec<String>,
    /// RFC 3339, UTC.
    pub created_at: String,
}

/// The result of `image.list` and `kernel.list`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Assets {
    /// By name.
    pub assets: Vec<Asset>,
}

/// The result of `image.rm` and `kernel.rm`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Removed {
    /// Its name.
    pub name: String,
    /// What the disk has more now.
    pub freed_bytes: u64,
}

/// The result of `image.about`: what who makes an image has to know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct About {
    /// The state directory.
    pub state: String,
    /// The name of the image that a VM is made of where none is named.
    pub default_image: String,
    /// Whether that is here.
    pub has_image: bool,
    /// Whether a kernel is here.
    pub has_kernel: bool,
}
