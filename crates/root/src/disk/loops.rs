//! Loop devices, by what is behind them.

mod ask;

use super::{Inode, refused};
use crate::fail::Fail;
use rustix::fs::Access;
use sys::dir::Dir;
use sys::loopdev::{Bound, Loop};
use wire::name::dm::LoopNumber;

/// Where the kernel tells of its own block devices; no part of it is a link.
const BLOCK: &str = "/sys/devices/virtual/block";

/// A loop device that is bound to a file.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) number: LoopNumber,
    /// Which device it is.
    pub(super) device: u64,
    pub(super) bound: Bound,
    /// Held while somebody decides by it: as long as it is, the binding can't become another.
    pub(super) open: Loop,
}

impl Found {
    /// The file behind it.
    pub(super) fn inode(&self) -> Inode {
        Inode { dev: self.bound.dev, ino: self.bound.ino }
    }

    /// Nothing stands on it and it is not mounted: it clears itself as soon as udev or whoever looks at it closes it.
    pub(super) fn is_ending(&self) -> bool {
        self.bound.is_autoclear && standing_on(&self.name()).is_empty() && !self.is_mounted()
    }

    /// The device, where a snapshot can have it as its base beside others: all of the file, as we bind it, and no mount
    /// has it for itself.
    pub(super) fn shareable(self) -> Option<Loop> {
        let is_as_ours = self.bound.is_whole && self.bound.is_autoclear && !self.is_mounted();
        is_as_ours.then_some(self.open)
    }

    /// Whether it is mounted where the helper sees it.
    pub(super) fn is_mounted(&self) -> bool {
        super::holders::is_mounted(self.device, &self.name())
    }

    /// The kernel's name for it.
    pub(super) fn name(&self) -> String {
        format!("loop{}", self.number.0)
    }
}

/// The loop device of that number. `None` where there is none, or nothing is bound to it.
pub(super) fn find(number: LoopNumber) -> Result<Option<Found>, Fail> {
    match ask::each(vec![number], look)?.pop() {
        Some(found) => Ok(found),
        None => {
            Err(Fail::new(format!("the file system behind {} does not answer: end what serves it", number.device())))
        }
    }
}

/// Every loop device that is bound to one of these files. One whose file system does not answer is bound to none of
/// them: they lie on one that does.
pub(super) fn on(files: &[Inode]) -> Result<Vec<Found>, Fail> {
    // Most often none is bound to anything, and then no thread is needed.
    let bound = numbers()?.into_iter().filter(|number| is_bound(*number)).collect();
    let all = ask::each(bound, look)?.into_iter().flatten();
    Ok(all.filter(|found| files.contains(&found.inode())).collect())
}

fn look(number: LoopNumber) -> Result<Option<Found>, Fail> {
    // Asked first: a device that nothing is bound to is not even opened.
    if !is_bound(number) {
        return Ok(None);
    }
    let Some(open) = Loop::open(number.0).map_err(refused)? else { return Ok(None) };
    let Some(bound) = open.bound().map_err(refused)? else { return Ok(None) };
    let device = open.device().map_err(refused)?;
    Ok(Some(Found { number, device, bound, open }))
}

/// The loop device that is the device `dev`.
pub(super) fn by_device(dev: u64) -> Result<Option<Found>, Fail> {
    const MAJOR: u32 = 7;
    if rustix::fs::major(dev) != MAJOR {
        return Ok(None);
    }
    // Its minor is its number, but where the module was loaded with partitions.
    let likely = find(LoopNumber(rustix::fs::minor(dev)))?.filter(|one| one.device == dev);
    if likely.is_some() {
        return Ok(likely);
    }
    Ok(ask::each(numbers()?, look)?.into_iter().flatten().find(|one| one.device == dev))
}

/// Whether anything is behind a loop device. The kernel's own directory says so: no file's file system is asked.
fn is_bound(number: LoopNumber) -> bool {
    rustix::fs::access(format!("{BLOCK}/loop{}/loop", number.0), Access::EXISTS).is_ok()
}

/// The numbers of all loop devices.
fn numbers() -> Result<Vec<LoopNumber>, Fail> {
    let names = Dir::open(BLOCK).and_then(|dir| dir.names());
    let names = names.map_err(|error| Fail::new("the block devices can't be listed").because(error))?;
    let number = |name: &String| name.strip_prefix("loop")?.parse().ok().map(LoopNumber);
    Ok(names.iter().filter_map(number).collect())
}

/// The names of the devices that stand on the device with that name: `dm-3` on `loop4`.
pub(super) fn standing_on(name: &str) -> Vec<String> {
    // Gone meanwhile: then nothing stands on it.
    Dir::open(&format!("{BLOCK}/{name}/holders")).and_then(|dir| dir.names()).unwrap_or_default()
}

/// What the kernel says was the name of the file behind a loop device: to be shown, or to be looked up and compared.
pub(super) fn backing_name(number: LoopNumber) -> Option<String> {
    let text = std::fs::read_to_string(format!("{BLOCK}/loop{}/loop/backing_file", number.0)).ok()?;
    Some(text.trim_end_matches('\n').to_owned())
}
