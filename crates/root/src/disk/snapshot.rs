//! A snapshot of ours as a device to work on.

use super::cow::State;
use super::device::{self, Ours};
use super::{holders, list, patiently, refused};
use crate::fail::Fail;
use crate::host::Host;
use crate::locks::Held;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use sys::dir::{CallError, Facts};
use wire::code::shown;
use wire::name::dm::DmName;

/// What a snapshot is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum For {
    /// To be read, whoever else has it.
    Reading,
    /// To be changed, by nobody else: neither a mount nor a process has it, and no mount comes meanwhile.
    Changing,
}

/// A snapshot that was proven to be ours, open.
#[derive(Debug)]
pub(crate) struct OurDevice {
    /// The device.
    pub(crate) fd: OwnedFd,
    /// Which device it is.
    pub(crate) dev: u64,
    /// Its size in bytes.
    pub(crate) size: u64,
}

/// The name of a snapshot's lock: whoever makes, removes or changes it holds it.
fn lock_name(name: &DmName) -> String {
    format!("dm:{name}")
}

/// Holds a snapshot's lock, for `doing`.
pub(crate) fn hold<'a>(host: &'a Host, name: &DmName, doing: &'static str) -> Result<Held<'a>, Fail> {
    super::hold(host, lock_name(name), &format!("the snapshot {}", shown(name.as_str())), doing)
}

/// Opens a snapshot of ours. To be called under its lock.
///
/// One that is not there, not ours, or held by somebody where it is to be changed is an error that says so.
pub(crate) fn open(host: &Host, name: &DmName, wanted: For) -> Result<OurDevice, Fail> {
    let told = shown(name.as_str());
    let missing = || Fail::new(format!("there is no snapshot {told}: create_dm_snapshot makes it"));
    let control = device::control()?.ok_or_else(missing)?;
    let ours = device::find(host, &control, name)?.ok_or_else(missing)?;
    let Some(parts) = ours.parts else {
        return Err(Fail::new(format!("the snapshot {told} was not finished: create_dm_snapshot makes it anew")));
    };
    let opened = patiently(|| {
        let fd = match node(&ours, wanted) {
            Err(error) if error.errno() == Errno::BUSY => return Ok(None),
            opened => opened.map_err(refused)?,
        };
        // Read behind the opening: one is ours.
        let now = control.find(ours.by()).map_err(refused)?.ok_or_else(missing)?;
        Ok((wanted == For::Reading || now.open_count <= 1).then_some(fd))
    })?;
    let fd = opened.ok_or_else(|| held(name, &ours))?;
    Ok(OurDevice { fd, dev: ours.device.dev, size: parts.sectors * 512 })
}

/// Opens a snapshot for a VM: the device, its number, its size in bytes. One that is to be written is nobody else's, and
/// is mounted by nobody as long as the first value lives.
pub(crate) fn open_drive(host: &Host, name: &DmName, writable: bool) -> Result<(OwnedFd, u64, u64), Fail> {
    let _held = hold(host, name, "launch_firecracker")?;
    let device = open(host, name, if writable { For::Changing } else { For::Reading })?;
    Ok((device.fd, device.dev, device.size))
}

/// How many bytes the store of a snapshot of ours has left. To be called under its lock.
pub(super) fn room(host: &Host, name: &DmName) -> Result<u64, Fail> {
    let told = shown(name.as_str());
    let unknown = || Fail::new(format!("how full the store of snapshot {told} is can't be told"));
    let control = device::control()?.ok_or_else(unknown)?;
    let ours = device::find(host, &control, name)?.ok_or_else(unknown)?;
    match list::state(&control, &ours).ok_or_else(unknown)? {
        State::Fills(used, all) => Ok(all.saturating_sub(used).saturating_mul(512)),
        State::Invalid => Err(Fail::new(format!("the snapshot {told} is invalid, its store was full: make it anew"))),
    }
}

/// Opens the kernel's own node of a device, and sees that it is that device's.
fn node(ours: &Ours, wanted: For) -> Result<OwnedFd, CallError> {
    let path = format!("/dev/{}", kernel_name(ours.device.dev));
    let flags = match wanted {
        For::Reading => OFlags::RDONLY,
        // O_EXCL: what is mounted is refused, and what is open so can't be mounted.
        For::Changing => OFlags::RDWR | OFlags::EXCL,
    };
    let failed = |errno| CallError::new(format!("open({path:?})"), errno);
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let fd = rustix::fs::open(&path, flags, Mode::empty()).map_err(failed)?;
    let facts = Facts::of(&fd)?;
    if facts.kind == FileType::BlockDevice && facts.rdev == ours.device.dev {
        Ok(fd)
    } else {
        Err(failed(Errno::STALE))
    }
}

/// The kernel's name of a dm device.
pub(super) fn kernel_name(dev: u64) -> String {
    format!("dm-{}", rustix::fs::minor(dev))
}

/// The error of one that somebody holds.
pub(super) fn held(name: &DmName, ours: &Ours) -> Fail {
    let holders = holders::of_device(ours.device.dev, &kernel_name(ours.device.dev));
    let who = if holders.is_empty() { "somebody who can't be seen".to_owned() } else { holders::named(&holders) };
    Fail::new(format!("the snapshot {} is in use: {who} has it; end that first", shown(name.as_str())))
}
