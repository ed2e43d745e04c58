//! Snapshots are taken away: the dm device, its node, the loop devices.

use super::device::{self, Ours};
use super::node::{self, Removed};
use super::snapshot::{self, held};
use super::{Inode, holders, loops, patiently, refused};
use crate::fail::Fail;
use crate::host::Host;
use crate::steps::{self, Steps};
use rustix::io::Errno;
use sys::dm::Control;
use wire::disk::Handles;
use wire::name::dm::{DmName, LoopNumber};

/// Takes a snapshot's dm device away. Its loop devices clear themselves.
pub(crate) fn remove(host: &Host, name: &DmName) -> Result<(), Fail> {
    let _name = snapshot::hold(host, name, "remove_dm_snapshot")?;
    let control = device::control()?;
    if let Some(control) = &control {
        device::find(host, control, name)?;
    }
    steps::run("remove_dm_snapshot", &host.faults, |steps| take_away(host, steps, control.as_ref(), name))
}

/// Takes away whatever of the four is given: all of it is proven to be ours before anything is changed.
pub(crate) fn cleanup(host: &Host, handles: &Handles) -> Result<(), Fail> {
    let mut names: Vec<&DmName> = handles.dm_name.iter().chain(&handles.dm_dev).collect();
    names.sort();
    names.dedup();
    let held = |name: &&DmName| snapshot::hold(host, name, "cleanup_dm_snapshot");
    let _names = names.iter().map(held).collect::<Result<Vec<_>, Fail>>()?;
    let control = device::control()?;
    if let Some(control) = &control {
        names.iter().try_for_each(|name| device::find(host, control, name).map(|_| ()))?;
    }
    let prove = |number: Option<LoopNumber>| match number {
        Some(number) => OurLoop::find(host, control.as_ref(), number),
        None => Ok(None),
    };
    let (cow, base) = (prove(handles.cow_loop)?, prove(handles.base_loop)?);
    steps::run("cleanup_dm_snapshot", &host.faults, |steps| {
        names.iter().try_for_each(|name| take_away(host, steps, control.as_ref(), name))?;
        steps.act("cow_loop", || cow.map_or(Ok(()), |cow| cow.let_go(Shared::No)))?;
        steps.act("base_loop", || base.map_or(Ok(()), |base| base.let_go(Shared::Yes)))
    })
}

/// A device that is gone needs no undo: asked for again, the rest goes too.
fn take_away(host: &Host, steps: &mut Steps<'_>, control: Option<&Control>, name: &DmName) -> Result<(), Fail> {
    let removed = steps.act("snapshot", || match control {
        Some(control) => remove_device(host, control, name),
        None => Ok(Removed::Before),
    })?;
    steps.act("node", || node::vanish(name, removed))
}

/// Removes the dm device of that name, where it is ours; the mark is read in the moment of each attempt. While somebody
/// has it open it is tried again: the kernel lets go late after a VMM has died.
pub(super) fn remove_device(host: &Host, control: &Control, name: &DmName) -> Result<Removed, Fail> {
    let mut last: Option<Ours> = None;
    let done = patiently(|| {
        let Some(ours) = device::find(host, control, name)? else {
            return Ok(Some(if last.is_some() { Removed::Now } else { Removed::Before }));
        };
        match control.remove(ours.by()) {
            Ok(_) => Ok(Some(Removed::Now)),
            Err(error) if error.errno() == Errno::BUSY => {
                last = Some(ours);
                Ok(None)
            }
            Err(error) => Err(Fail::new(format!("the snapshot {name} could not be removed")).because(error)),
        }
    })?;
    match (done, last) {
        (Some(removed), _) => Ok(removed),
        (None, Some(ours)) => Err(held(name, &ours)),
        (None, None) => Ok(Removed::Before),
    }
}

/// Whether others may go on with a loop device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shared {
    Yes,
    No,
}

/// A loop device over a file of ours.
#[derive(Clone, Copy, Debug)]
struct OurLoop {
    number: LoopNumber,
    file: Inode,
}

impl OurLoop {
    /// Proves that a loop device is ours: a snapshot of ours stands on it, or its file lies in the state directory.
    /// `None` where nothing is bound to it.
    fn find(host: &Host, control: Option<&Control>, number: LoopNumber) -> Result<Option<OurLoop>, Fail> {
        let Some(found) = loops::find(number)? else { return Ok(None) };
        let is_under_ours = |kernel_name: &String| {
            let name = holders::dm_name(kernel_name).and_then(|name| DmName::new(&name).ok());
            let ours = name.zip(control).and_then(|(name, control)| device::find(host, control, &name).ok().flatten());
            let parts = ours.and_then(|ours| ours.parts);
            parts.is_some_and(|parts| [parts.base, parts.cow].contains(&found.device))
        };
        if loops::standing_on(&found.name()).iter().any(is_under_ours) || device::is_in_state(host, &found) {
            return Ok(Some(OurLoop { number, file: found.inode() }));
        }
        Err(Fail::new(format!("{} is bound to a file that is not banger's: it stays as it is", number.device())))
    }

    /// Ends the binding, and waits until it is ended: udev may look at the device. Where another snapshot stands on it,
    /// or it is bound to another file by now, it is that one's and stays.
    ///
    /// While it is open here it can't come to be another's, and ending a binding that others have open only makes it end
    /// with their last close.
    fn let_go(self, shared: Shared) -> Result<(), Fail> {
        let is_ours = |found: &loops::Found| found.inode() == self.file;
        let gone = patiently(|| {
            let Some(found) = loops::find(self.number)?.filter(is_ours) else { return Ok(Some(())) };
            found.open.clear().map_err(refused)?;
            let stays = !loops::standing_on(&found.name()).is_empty() || shared == Shared::Yes && found.is_mounted();
            drop(found);
            Ok((stays || !loops::find(self.number)?.is_some_and(|found| is_ours(&found))).then_some(()))
        })?;
        if gone.is_some() || shared == Shared::Yes {
            return Ok(());
        }
        let Some(found) = loops::find(self.number)?.filter(is_ours) else { return Ok(()) };
        let holders = holders::of_device(found.device, &found.name());
        let who = if holders.is_empty() { "somebody who can't be seen".into() } else { holders::named(&holders) };
        Err(Fail::new(format!("{} stays bound: {who} has it; end that first", self.number.device())))
    }
}
