//! `/dev/mapper/<name>`: there when a snapshot is, gone when it is.
//!
//! udev makes it, as a link to the kernel's own node, and takes it away. Where udev does not run, or not in time, the
//! helper makes the very same link: a udev that comes later finds what it would have made.

use super::patiently;
use super::snapshot::kernel_name;
use crate::fail::Fail;
use rustix::fs::{Access, FileType, OFlags, access, stat};
use sys::dir::{CallError, Dir, Facts, take};
use wire::code::shown;
use wire::name::dm::DmName;

const DIR: &str = "/dev/mapper";
/// Where udev listens while it runs.
const UDEV: &str = "/run/udev/control";

/// The node of the device `dev` is there, and is that device's.
pub(super) fn appear(name: &DmName, dev: u64) -> Result<(), Fail> {
    let is_there = || Ok(leads_to(&name.device(), dev).then_some(()));
    if udev_runs() && patiently(is_there)?.is_some() || leads_to(&name.device(), dev) {
        return Ok(());
    }
    make(name, dev)
}

/// Whether a device has just been removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Removed {
    Now,
    Before,
}

/// There is no device of that name any more: neither is its node.
pub(super) fn vanish(name: &DmName, removed: Removed) -> Result<(), Fail> {
    let failed = |error| failed(name, "removed").because(error);
    let dir = match Dir::open(DIR) {
        Err(error) if error.is_missing() => return Ok(()),
        opened => opened.map_err(failed)?,
    };
    let is_gone = || match dir.entry(name.as_str()) {
        Err(error) if error.is_missing() => Ok(Some(())),
        other => other.map(|_| None).map_err(failed),
    };
    // udev takes it away behind whatever else it was about to do with the device: then nothing brings it back.
    if removed == Removed::Now && udev_runs() && patiently(is_gone)?.is_some() {
        return Ok(());
    }
    clear(&dir, name).map_err(failed)
}

fn udev_runs() -> bool {
    access(UDEV, Access::EXISTS).is_ok()
}

fn leads_to(path: &str, dev: u64) -> bool {
    stat(path).map(Facts::from).is_ok_and(|facts| facts.kind == FileType::BlockDevice && facts.rdev == dev)
}

fn make(name: &DmName, dev: u64) -> Result<(), Fail> {
    let kernel_name = kernel_name(dev);
    if !leads_to(&format!("/dev/{kernel_name}"), dev) {
        return Err(Fail::new(format!(
            "/dev/{kernel_name} is not there, the node of the snapshot {}: the helper needs a /dev that the kernel \
             fills (devtmpfs)",
            shown(name.as_str())
        )));
    }
    let failed = |error| failed(name, "made").because(error);
    let dir = Dir::open(DIR).map_err(failed)?;
    clear(&dir, name).map_err(failed)?;
    match dir.symlink(&format!("../{kernel_name}"), name.as_str()) {
        // udev came in between.
        Err(_) if leads_to(&name.device(), dev) => Ok(()),
        made => made.map_err(failed),
    }
}

/// Removes a link or a node of that name; anything else was made by nobody who makes nodes, and stays.
fn clear(dir: &Dir, name: &DmName) -> Result<(), CallError> {
    match dir.entry(name.as_str()) {
        Err(error) if error.is_missing() => Ok(()),
        Ok(facts) if !matches!(facts.kind, FileType::Symlink | FileType::BlockDevice) => {
            Err(CallError::new(format!("{} as a node", name.device()), rustix::io::Errno::EXIST))
        }
        Ok(facts) if facts.kind == FileType::BlockDevice => {
            // udev or dmsetup may take it away in this moment, or put a link in its place.
            if let Ok(node) = dir.open_at(name.as_str(), OFlags::PATH, 0) {
                // Who kept hold of it can't open it when another device has its number: the kernel does so with its own.
                take(&node, 0, 0, 0)?;
            }
            dir.unlink(name.as_str()).map(|_| ())
        }
        other => other.and_then(|_| dir.unlink(name.as_str())).map(|_| ()),
    }
}

fn failed(name: &DmName, what: &str) -> Fail {
    Fail::new(format!("{} could not be {what}", name.device()))
}
