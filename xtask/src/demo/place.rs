//! The machine that the helper finds: its metadata, its configuration, the owner's directories. All of it lies in mounts of
//! the demo's own.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::helper::{Owner, PROGRAMS};
use crate::programs;

/// Where the owner's VMs have their files.
pub(crate) const STATE: &str = "/var/lib/banger";
/// Where the owner's VMs have their sockets.
pub(crate) const RUNTIME: &str = "/run/banger";

/// Writes what `banger helper init` writes, and the helper's configuration, which names the demo's programs.
pub(crate) fn prepare(owner: &Owner) -> Result<()> {
    if !Path::new(PROGRAMS).exists() || !is_mount_point(STATE) {
        bail!("the demo changes /etc, /run and /var/lib, so it runs in namespaces of its own\n  fix: make demo");
    }
    fs::create_dir_all("/etc/banger")?;
    let now = programs::output("date", ["--utc", "+%Y-%m-%dT%H:%M:%SZ"])?;
    let meta = format!(
        "owner_user = {:?}\nowner_uid = {}\nowner_gid = {}\nowner_home = \"/nonexistent\"\nversion = {:?}\ncommit = \"\"\n\
         built_at = {now:?}\ninstalled_at = {now:?}\n",
        owner.name,
        owner.uid,
        owner.gid,
        env!("CARGO_PKG_VERSION"),
        now = now.trim(),
    );
    fs::write("/etc/banger/install.toml", meta).context("can't write install.toml")?;
    fs::write("/etc/banger/root.toml", format!("program_dirs = [{PROGRAMS:?}, \"/usr/local/bin\", \"/usr/bin\"]\n"))?;
    fs::create_dir_all(RUNTIME)?;
    for directory in [RUNTIME, STATE, &format!("{STATE}/images")] {
        owner.owns(Path::new(directory))?;
    }
    for image in fs::read_dir(format!("{STATE}/images"))? {
        owner.owns(&image?.path())?;
    }
    Ok(())
}

fn is_mount_point(path: &str) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts.lines().any(|l| l.split(' ').nth(4) == Some(path))
}
