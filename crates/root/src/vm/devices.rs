//! Block devices as drives. Outside a jail the VMM opens a snapshot's node itself, as the owner: for that the node
//! becomes his. He gets nothing by it that was not his: behind it are his own image, read-only, and his own store.

use super::sockets::give;
use crate::fail::Fail;
use crate::host::Host;
use crate::steps::Steps;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};
use sys::dir::{CallError, Facts, take};
use wire::code::shown;
use wire::name::dm::DmName;

/// A snapshot of the helper's, open: as long as it is, nobody mounts it where it is to be written.
#[derive(Debug)]
pub(crate) struct Device {
    /// The device: what keeps others from it.
    pub(crate) _held: OwnedFd,
    /// Its number.
    pub(crate) number: u64,
    /// Its size in bytes.
    pub(crate) size: u64,
}

/// What a launch asks of those who know about networks and disks.
pub(crate) struct Neighbours<'a> {
    /// Opens a snapshot, to be written or only read.
    pub(crate) open_snapshot: &'a dyn Fn(&DmName, bool) -> Result<Device, Fail>,
    /// Refuses a file, by device and inode, that is under a block device: asked when the VM has claimed it, to write it.
    pub(crate) is_free: &'a dyn Fn(u64, u64) -> Result<(), Fail>,
    /// Called when the tap is this VM's alone and nothing has used it yet: what the network learned of the VM before on
    /// that tap is to be forgotten.
    pub(crate) fresh_port: &'a dyn Fn() -> Result<(), Fail>,
}

/// Gives a snapshot's nodes to the owner, as long as the launch does not fail: the kernel's and, where no udevd makes a
/// link of it, the one below `/dev/mapper`.
pub(super) fn open_to_owner<'a>(
    host: &'a Host,
    steps: &mut Steps<'a>,
    name: &DmName,
    device: &Device,
) -> Result<(), Fail> {
    let failed = |error: CallError| {
        Fail::new(format!("drives: {} can't be given to the owner", shown(&name.device()))).because(error)
    };
    let kernels = format!("/dev/dm-{}", rustix::fs::minor(device.number));
    for path in [kernels, name.device()] {
        let Some((node, before)) = node(&path, device.number).map_err(failed)? else { continue };
        let again = node.try_clone().map_err(|error| Fail::new("drives: a descriptor").because(error))?;
        steps.undo("device", move || take(&again, before.uid, before.gid, before.mode).map_err(failed_back));
        steps.act("device", || give(node.as_fd(), &host.owner).map_err(failed))?;
    }
    Ok(())
}

fn failed_back(error: CallError) -> Fail {
    Fail::new("a device's node can't be taken back").because(error)
}

/// The node at `path`, where it is that device's; a link is not followed.
fn node(path: &str, number: u64) -> Result<Option<(OwnedFd, Facts)>, CallError> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let node = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(node) => node,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(CallError::new(format!("open({path:?}, O_PATH)"), errno)),
    };
    let facts = Facts::of(&node)?;
    Ok((facts.kind == FileType::BlockDevice && facts.rdev == number).then_some((node, facts)))
}
