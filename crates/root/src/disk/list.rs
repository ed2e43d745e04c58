//! What of ours is in the kernel, for `priv.list_resources`.

use super::{cow, device, loops};
use crate::fail::Fail;
use crate::host::Host;
use sys::dm::{Ask, Control};
use wire::reply::{Resources, SnapshotFound, SnapshotState};

/// Fills in `snapshots`.
pub(crate) fn list(host: &Host, found: &mut Resources) -> Result<(), Fail> {
    let Some(control) = device::control()? else { return Ok(()) };
    found.snapshots = device::all(host, &control)?.iter().map(|ours| told(&control, ours)).collect();
    found.snapshots.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(())
}

fn told(control: &Control, ours: &device::Ours) -> SnapshotFound {
    let mut told = SnapshotFound {
        name: ours.device.name.clone(),
        state: SnapshotState::Unfinished,
        in_use: ours.device.open_count > 0,
        why: ours.why(),
        ..SnapshotFound::default()
    };
    // What is gone since a moment ago is told without its parts.
    let Some(parts) = ours.parts else { return told };
    let found = |dev| loops::by_device(dev).ok().flatten();
    let file = |found: &loops::Found| (found.number.device(), loops::backing_name(found.number).unwrap_or_default());
    (told.base_loop, told.rootfs) = found(parts.base).as_ref().map(file).unwrap_or_default();
    (told.cow_loop, told.cow) = found(parts.cow).as_ref().map(file).unwrap_or_default();
    (told.state, told.used_bytes, told.cow_bytes) = match state(control, ours) {
        Some(cow::State::Fills(used, all)) => (SnapshotState::Ready, used * 512, all * 512),
        Some(cow::State::Invalid) => (SnapshotState::Invalid, 0, 0),
        None => (SnapshotState::Unfinished, 0, 0),
    };
    told
}

/// How full a snapshot's store is.
pub(super) fn state(control: &Control, ours: &device::Ours) -> Option<cow::State> {
    let status = control.targets(ours.by(), Ask::Status).ok()??;
    cow::State::read(&status.first()?.text)
}
