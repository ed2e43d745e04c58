//! dm devices: which are ours, and what they are made of.

use super::{Inode, loops, refused};
use crate::fail::Fail;
use crate::host::Host;
use rustix::fs::OFlags;
use rustix::io::Errno;
use sys::dir::Facts;
use sys::dm::{Ask, By, Control, Device, Target};
use wire::code::shown;
use wire::name::dm::DmName;

/// Our mark: what the UUID of a device of ours begins with. Behind it stands the file that holds what was changed, so
/// that the kernel itself refuses a second snapshot over it.
const MARK: &str = "BANGER-";
/// The target that a snapshot is.
pub(super) const SNAPSHOT: &str = "snapshot";

/// The UUID of the snapshot that keeps its changes in that file.
pub(super) fn uuid(cow: Inode) -> String {
    format!("{MARK}{:x}-{:x}", cow.dev, cow.ino)
}

/// A dm device that was proven to be ours.
#[derive(Debug)]
pub(super) struct Ours {
    pub(super) device: Device,
    /// What it is made of; `None` before its table is in use.
    pub(super) parts: Option<Parts>,
}

/// What a snapshot is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Parts {
    /// Its size, in sectors of 512 bytes.
    pub(super) sectors: u64,
    /// The device that is never written.
    pub(super) base: u64,
    /// The device that holds what was changed.
    pub(super) cow: u64,
}

impl Parts {
    /// Reads a table; `None` where it is no snapshot's.
    fn of(table: &[Target]) -> Option<Parts> {
        let [only] = table else { return None };
        let mut words = only.text.split_whitespace();
        let (base, cow) = (device_number(words.next()?)?, device_number(words.next()?)?);
        (only.kind == SNAPSHOT && only.start == 0).then_some(Parts { sectors: only.length, base, cow })
    }
}

/// `7:4` as a device.
fn device_number(text: &str) -> Option<u64> {
    let (major, minor) = text.split_once(':')?;
    Some(rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?))
}

impl Ours {
    /// How it is to be named to the kernel: by its mark where it has one, so that nothing else can be meant.
    pub(super) fn by(&self) -> By<'_> {
        if self.device.uuid.is_empty() { By::Name(&self.device.name) } else { By::Uuid(&self.device.uuid) }
    }

    /// What makes it ours.
    pub(super) fn why(&self) -> String {
        match self.device.uuid.as_str() {
            "" => "a snapshot of an older banger's, over two files of the state directory".to_owned(),
            uuid => format!("a dm device whose UUID is {uuid}"),
        }
    }
}

/// Opens the way to device-mapper. `None` where the kernel has none: then nothing of it is there.
pub(super) fn control() -> Result<Option<Control>, Fail> {
    match Control::open() {
        Ok(control) => Ok(Some(control)),
        Err(error) if matches!(error.errno(), Errno::NOENT | Errno::NODEV | Errno::NXIO) => Ok(None),
        Err(error) => Err(Fail::new("device-mapper can't be reached; the helper's log says why").because(error)),
    }
}

/// The snapshot of that name. A device of that name that is not ours is an error.
pub(super) fn find(host: &Host, control: &Control, name: &DmName) -> Result<Option<Ours>, Fail> {
    let Some(device) = control.find(By::Name(name.as_str())).map_err(refused)? else { return Ok(None) };
    let table = control.targets(By::Name(name.as_str()), Ask::Table).map_err(refused)?;
    let parts = Parts::of(&table.unwrap_or_default());
    let is_ours = match device.uuid.as_str() {
        "" => parts.map_or(Ok(false), |parts| is_older(host, parts))?,
        uuid => uuid.starts_with(MARK),
    };
    if is_ours {
        return Ok(Some(Ours { device, parts }));
    }
    Err(Fail::new(format!(
        "there is a dm device {} that is not banger's: choose another name, or remove it with dmsetup",
        shown(name.as_str())
    )))
}

/// All snapshots of ours.
pub(super) fn all(host: &Host, control: &Control) -> Result<Vec<Ours>, Fail> {
    let names = control.names().map_err(refused)?;
    let ours = names.iter().filter_map(|name| DmName::new(name).ok());
    // One that is not ours has such a name: it is none of ours to tell of.
    Ok(ours.filter_map(|name| find(host, control, &name).ok().flatten()).collect())
}

/// What an older banger made has no mark: it is a snapshot over two files of our state directory.
fn is_older(host: &Host, parts: Parts) -> Result<bool, Fail> {
    for dev in [parts.base, parts.cow] {
        match loops::by_device(dev)? {
            Some(found) if is_in_state(host, &found) => {}
            _ => return Ok(false),
        }
    }
    Ok(true)
}

/// Whether the file behind a loop device lies in the state directory: the kernel's name for it is looked up there, and
/// what is found must be that very file.
pub(super) fn is_in_state(host: &Host, found: &loops::Found) -> bool {
    let Some(name) = loops::backing_name(found.number) else { return false };
    let state = host.state.dir();
    let Some(below) = name.strip_prefix(state.path()).and_then(|rest| rest.strip_prefix('/')) else { return false };
    let opened = state.open_at(below, OFlags::PATH, 0).and_then(Facts::of);
    opened.is_ok_and(|facts| Inode::from(&facts) == found.inode())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(kind: &str, text: &str) -> Target {
        Target { start: 0, length: 2048, kind: kind.into(), text: text.into() }
    }

    #[test]
    fn a_snapshots_table() {
        let parts = Parts::of(&[target("snapshot", "7:0 7:13 P 8")]);
        let device = |minor| rustix::fs::makedev(7, minor);
        assert_eq!(parts, Some(Parts { sectors: 2048, base: device(0), cow: device(13) }));
        for other in [target("linear", "7:0 7:1"), target("snapshot", "7:0"), target("snapshot", "a b P 8")] {
            assert_eq!(Parts::of(&[other]), None);
        }
        let one = target("snapshot", "7:0 7:13 P 8");
        assert_eq!(Parts::of(&[one.clone(), one]), None);
    }

    #[test]
    fn a_mark_fits_whatever_the_inode() {
        let longest = uuid(Inode { dev: u64::MAX, ino: u64::MAX });
        assert!(longest.starts_with(MARK) && longest.len() <= sys::dm::LONGEST.1, "{longest}");
    }
}
