//! The machine that the helper finds: its metadata, its configuration, the owner's directories. All of it lies in mounts
//! of the demo's own.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::helper::{Owner, PROGRAMS};
use crate::programs;

/// Where the owner's VMs have their files.
pub(crate) const STATE: &str = "/var/lib/banger";
/// Where the owner's VMs have their sockets.
pub(crate) const RUNTIME: &str = "/run/banger";

/// Has `banger helper init` write the metadata and make the directories, and writes the helper's configuration, which
/// names the demo's programs.
pub(crate) fn prepare(owner: &Owner) -> Result<()> {
    if !Path::new(PROGRAMS).exists() || !is_mount_point(STATE) {
        bail!("the demo changes /etc, /run and /var/lib, so it runs in namespaces of its own\n  fix: make demo");
    }
    let banger = format!("{PROGRAMS}/banger");
    programs::output(&banger, ["helper", "init", "--owner", &owner.name]).context("banger helper init")?;
    fs::write("/etc/banger/root.toml", format!("program_dirs = [{PROGRAMS:?}, \"/usr/local/bin\", \"/usr/bin\"]\n"))?;
    Ok(())
}

fn is_mount_point(path: &str) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts.lines().any(|l| l.split(' ').nth(4) == Some(path))
}
