//! A snapshot is made: two loop devices, and a dm device over them.
//!
//! Everything made before the dm device ends with the helper: loop devices clear themselves with their last close. A
//! dm device without a table in use is what a killed helper leaves; the next call over its name or its file clears it.

use super::device::{self, Ours, Parts, SNAPSHOT};
use super::{Inode, cleanup, cow, files, holders, loops, node, patiently, refused, snapshot};
use crate::fail::Fail;
use crate::host::Host;
use crate::places::Purpose;
use crate::steps::{self, Steps};
use rustix::io::Errno;
use std::fs::File;
use std::os::fd::AsFd;
use sys::dir::{CallError, Facts};
use sys::dm::{Ask, By, Control, Target};
use sys::loopdev::{Access, Loop};
use wire::code::shown;
use wire::disk::{Handles, NewSnapshot};
use wire::image::Image;
use wire::name::dm::{DmName, LoopNumber};
use wire::path::HostPath;

const METHOD: &str = "create_dm_snapshot";

/// The two files of a snapshot, open with the owner's rights and checked.
struct Files {
    rootfs: File,
    base: Inode,
    sectors: u64,
    store: File,
    cow: Inode,
}

/// Makes a snapshot, or finds that it is there.
pub(crate) fn create(host: &Host, asked: &NewSnapshot) -> Result<Handles, Fail> {
    // A write of the image that was cut off is finished first, and none begins before the loop devices are seen.
    let images = [&asked.rootfs, &asked.cow].map(|path| Image::File(path.clone()));
    let _using = files::prepare(host, &images, METHOD)?;
    let files = Files::open(host, asked)?;
    let _name = snapshot::hold(host, &asked.name, METHOD)?;
    let control = device::control()?.ok_or_else(no_device_mapper)?;
    let there = device::find(host, &control, &asked.name)?;
    if let Some(Ours { device, parts: Some(parts) }) = &there {
        is_the_same(&asked.name, *parts, &files)?;
        is_valid(&control, &asked.name)?;
        node::appear(&asked.name, device.dev)?;
        return handles(&asked.name, *parts);
    }
    if there.is_some_and(|ours| ours.device.is_active) {
        return Err(Fail::new(format!("{} is no snapshot any more, somebody changed it: remove it", asked.name)));
    }
    host.disk.watch();
    let new = New { host, control: &control, name: &asked.name, files: &files, uuid: device::uuid(files.cow) };
    steps::run(METHOD, &host.faults, |steps| new.make(steps))
}

impl Files {
    fn open(host: &Host, asked: &NewSnapshot) -> Result<Files, Fail> {
        let open = |path: &HostPath, purpose| -> Result<(File, Facts), Fail> {
            let file = host.state.open_file(path, purpose, &host.owner)?;
            let facts = Facts::of(&file)
                .map_err(|error| Fail::new(format!("{} can't be looked at", shown(path.as_str()))).because(error))?;
            Ok((file, facts))
        };
        let (rootfs, base) = open(&asked.rootfs, Purpose::Read)?;
        let told = shown(asked.rootfs.as_str());
        if base.size == 0 || base.size % 512 != 0 {
            return Err(Fail::new(format!(
                "rootfs_path: {told} has {} bytes; a device has whole sectors of 512, one at least",
                base.size
            )));
        }
        let (store, cow) = open(&asked.cow, Purpose::ReadWrite)?;
        let told = shown(asked.cow.as_str());
        if cow.uid != host.owner.uid {
            return Err(Fail::new(format!("cow_path: {told} belongs to uid {}, not to the owner", cow.uid)));
        }
        if base.is_same_file(&cow) {
            return Err(Fail::new(format!("cow_path: {told} is the file that rootfs_path names")));
        }
        cow::check(&store, cow.size, asked.cow.as_str())?;
        Ok(Files { rootfs, base: (&base).into(), sectors: base.size / 512, store, cow: (&cow).into() })
    }
}

/// What is made, and of what.
struct New<'a> {
    host: &'a Host,
    control: &'a Control,
    name: &'a DmName,
    files: &'a Files,
    uuid: String,
}

impl<'a> New<'a> {
    fn make(&'a self, steps: &mut Steps<'a>) -> Result<Handles, Fail> {
        // What a killed helper left of the same name has no table in use, but one that was loaded holds the files.
        cleanup::remove_device(self.host, self.control, self.name)?;
        // Open until the dm device holds them.
        let (base, cow) = self.loops(steps)?;
        steps.act("device", || self.device())?;
        steps.undo("dm device", || cleanup::remove_device(self.host, self.control, self.name).map(|_| ()));
        let parts = Parts {
            sectors: self.files.sectors,
            base: base.device().map_err(refused)?,
            cow: cow.device().map_err(refused)?,
        };
        steps.act("table", || self.table(parts))?;
        let live = steps.act("resume", || {
            self.control.resume(By::Uuid(&self.uuid)).map_err(|error| self.failed("made").because(error))
        })?;
        is_valid(self.control, self.name)?;
        self.is_as_asked()?;
        // With the dm device or after it, whoever made it.
        steps.undo("node", || node::vanish(self.name, node::Removed::Before));
        steps.act("node", || node::appear(self.name, live.dev))?;
        Ok(Handles {
            base_loop: Some(LoopNumber(base.number())),
            cow_loop: Some(LoopNumber(cow.number())),
            dm_name: Some(self.name.clone()),
            dm_dev: Some(self.name.clone()),
        })
    }

    /// The loop devices. Once they are bound, whoever looks sees by them that the files are in use: the files' locks
    /// are held until then and no longer.
    fn loops(&self, steps: &mut Steps<'a>) -> Result<(Loop, Loop), Fail> {
        let Files { rootfs, base, store, cow, .. } = self.files;
        let mut names = [base.lock_name(), cow.lock_name()];
        names.sort();
        let hold = |name: &String| super::hold(self.host, name.clone(), "the snapshot's file", METHOD);
        let _held = names.iter().map(hold).collect::<Result<Vec<_>, Fail>>()?;
        let shared = self.free_files()?;
        let base = steps.act("base_loop", || match shared {
            Some(shared) => Ok(shared),
            None => Loop::bind(rootfs.as_fd(), Access::Read).map_err(|error| no_loop(error, "rootfs_path")),
        })?;
        let cow = steps.act("cow_loop", || {
            Loop::bind(store.as_fd(), Access::ReadWrite).map_err(|error| no_loop(error, "cow_path"))
        })?;
        Ok((base, cow))
    }

    /// Sees that nobody has the files in a way that a snapshot can't stand, and gives the loop device of the base where
    /// it has one. What is only about to let go is waited for.
    fn free_files(&self) -> Result<Option<Loop>, Fail> {
        let Files { base, cow, .. } = *self.files;
        let in_use = |field: &str, who: &[holders::Holder]| {
            Fail::new(format!("{field}: the file is in use by {}; end that first", holders::named(who)))
        };
        let writers = holders::vms(self.host, base.dev, base.ino).into_iter();
        let writers: Vec<_> = writers.filter(|vm| matches!(vm, holders::Holder::Vm { writes: true, .. })).collect();
        if !writers.is_empty() {
            return Err(in_use("rootfs_path", &writers));
        }
        let vms = holders::vms(self.host, cow.dev, cow.ino);
        if !vms.is_empty() {
            return Err(in_use("cow_path", &vms));
        }
        if let Some(other) = self.control.find(By::Uuid(&self.uuid)).map_err(refused)? {
            let name = shown(&other.name);
            return Err(Fail::new(format!("cow_path: the file is in use by the snapshot {name}; remove that first")));
        }
        let mut last = None;
        let free = patiently(|| {
            let mut shared = None;
            for found in loops::on(&[base, cow])? {
                let is_cow = found.inode() == cow;
                if !is_cow && found.bound.is_read_only {
                    shared = shared.or_else(|| found.shareable());
                    continue;
                }
                let fail = in_use(if is_cow { "cow_path" } else { "rootfs_path" }, &[holders::of_loop(&found)]);
                if !found.is_ending() {
                    return Err(fail);
                }
                last = Some(fail);
                return Ok(None);
            }
            Ok(Some(shared))
        })?;
        match (free, last) {
            (Some(shared), _) => Ok(shared),
            (None, Some(fail)) => Err(fail),
            (None, None) => Err(self.failed("made")),
        }
    }

    /// The dm device, without a table.
    fn device(&self) -> Result<(), Fail> {
        self.control.create(self.name.as_str(), &self.uuid).map_err(|error| match error.errno() {
            Errno::BUSY => self.failed("made: somebody made one of that name or over that file").because(error),
            _ => self.failed("made").because(error),
        })?;
        let most = self.host.settings.limits.snapshots;
        let counted = self.control.names().map_err(refused)?;
        if counted.iter().filter(|name| DmName::new(name).is_ok()).count() > most {
            cleanup::remove_device(self.host, self.control, self.name)?;
            return Err(Fail::new(format!(
                "there are {most} snapshots of banger's, the limit: remove one, or raise limits.snapshots"
            )));
        }
        Ok(())
    }

    fn table(&self, parts: Parts) -> Result<(), Fail> {
        let number = |dev| format!("{}:{}", rustix::fs::major(dev), rustix::fs::minor(dev));
        let text = format!("{} {} P {}", number(parts.base), number(parts.cow), cow::CHUNK);
        let target = Target { start: 0, length: parts.sectors, kind: SNAPSHOT.to_owned(), text };
        self.control.load(By::Uuid(&self.uuid), &target).map_err(|error| {
            let has_target = self.control.kinds().map_or(true, |kinds| kinds.iter().any(|kind| kind == SNAPSHOT));
            match has_target {
                false => Fail::new(
                    "this kernel's device-mapper has no snapshot target: load it (`modprobe dm-snapshot`), or take a \
                     kernel that has it (CONFIG_DM_SNAPSHOT)",
                ),
                true => self.failed("made; the kernel's log (dmesg) says why"),
            }
            .because(error)
        })
    }

    /// The kernel takes the size of a chunk from the store, which the owner can write behind our look, and has buffers of that size.
    fn is_as_asked(&self) -> Result<(), Fail> {
        let table = self.control.targets(By::Uuid(&self.uuid), Ask::Table).map_err(refused)?.unwrap_or_default();
        match table.first().and_then(|target| cow::chunk(&target.text)) {
            Some(cow::CHUNK) => Ok(()),
            _ => Err(self.failed("made: its store was changed meanwhile, to chunks of another size")),
        }
    }

    fn failed(&self, what: &str) -> Fail {
        Fail::new(format!("the snapshot {} could not be {what}", shown(self.name.as_str())))
    }
}

fn is_the_same(name: &DmName, parts: Parts, files: &Files) -> Result<(), Fail> {
    let behind = |dev| loops::by_device(dev).map(|found| found.map(|found| found.inode()));
    if behind(parts.base)? == Some(files.base) && behind(parts.cow)? == Some(files.cow) {
        return Ok(());
    }
    Err(Fail::new(format!("there is a snapshot {} over other files: remove it first", shown(name.as_str()))))
}

/// A store that is full makes the kernel give up the snapshot, at once or when it is taken up again.
fn is_valid(control: &Control, name: &DmName) -> Result<(), Fail> {
    let status = control.targets(By::Name(name.as_str()), Ask::Status).map_err(refused)?.unwrap_or_default();
    match status.first().and_then(|target| cow::State::read(&target.text)) {
        Some(cow::State::Invalid) => Err(Fail::new(format!(
            "the snapshot {} is invalid: its store was full, and all that was changed is lost. Clean it up, and make \
             it anew with an empty file of more bytes",
            shown(name.as_str())
        ))),
        _ => Ok(()),
    }
}

fn handles(name: &DmName, parts: Parts) -> Result<Handles, Fail> {
    let number = |dev| loops::by_device(dev).map(|found| found.map(|found| found.number));
    Ok(Handles {
        base_loop: number(parts.base)?,
        cow_loop: number(parts.cow)?,
        dm_name: Some(name.clone()),
        dm_dev: Some(name.clone()),
    })
}

fn no_device_mapper() -> Fail {
    Fail::new(
        "this kernel has no device-mapper, or it is not loaded: `modprobe dm-mod dm-snapshot`, or take a kernel that \
         has it (CONFIG_BLK_DEV_DM, CONFIG_DM_SNAPSHOT)",
    )
}

fn no_loop(error: CallError, field: &str) -> Fail {
    let message = match error.errno() {
        Errno::NOENT | Errno::NODEV | Errno::NXIO => {
            "this machine has no loop device to give: `modprobe loop`, and a /dev that the kernel fills (devtmpfs)"
                .to_owned()
        }
        _ => format!("{field}: no loop device can be bound to the file; the helper's log says why"),
    };
    Fail::new(message).because(error)
}
