//! A VM's own disk: a snapshot of its image where the kernel has device-mapper, a reflink where the file system has
//! them, a sparse copy elsewhere.

use super::places::Places;
use super::work::Work;
use crate::api::Fault;
use crate::daemon::Daemon;
use crate::daemon::error::exit;
use crate::daemon::image::template::Files;
use crate::daemon::store::vms::Vm;
use crate::image::store::taken;
use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use wire::disk::NewSnapshot;
use wire::path::Root;

/// By device-mapper.
pub(crate) const SNAPSHOT: &str = "dm-snapshot";
const REFLINK: &str = "reflink";
/// Over a template's disk.
pub(crate) const LAYER: &str = "layer";
/// Of what is no hole.
pub(crate) const COPY: &str = "copy";

/// How a disk is made of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// By device-mapper.
    Snapshot,
    /// A copy that shares blocks until they are written.
    Reflink,
    /// A copy of what is no hole.
    Copy,
}

impl Method {
    /// As it is shown and stored.
    pub fn name(self) -> &'static str {
        match self {
            Method::Snapshot => SNAPSHOT,
            Method::Reflink => REFLINK,
            Method::Copy => COPY,
        }
    }
}

/// What a snapshot's store needs beside the blocks that were changed: its own tables are a 256th of it.
const STORE_EXTRA: u64 = 64 << 20;

/// What a disk is made of, and a snapshot lies on: the image, or the disk of the template that the VM went on from.
pub(crate) fn origin(daemon: &Daemon, vm: &Vm) -> PathBuf {
    vm.template.as_ref().map_or_else(|| vm.base.root.clone(), |id| Files::of(daemon, id).disk())
}

/// Makes the disk of `from`, which nobody writes any more; how it was made. What a cut-off try left is made anew.
pub(crate) fn make(work: &Work<'_>, vm: &Vm, from: &Path) -> Result<&'static str, Fault> {
    let places = work.places(vm);
    let (is_longer, wanted) = (is_longer(vm)?, work.daemon.settings.disk);
    match wanted {
        Some(Method::Snapshot) if is_longer => return Err(not_longer()),
        Some(Method::Snapshot) => return snapshot(work, vm, from, true).map(|()| SNAPSHOT),
        // A snapshot is as long as its image.
        None if has_device_mapper() && !is_longer => match snapshot(work, vm, from, true) {
            Ok(()) => return Ok(SNAPSHOT),
            // The kernel has it after all: then this is a failure, and no reason to copy gigabytes.
            Err(fault) if is_listed() => return Err(fault),
            Err(_) => remove_file(&places.cow())?,
        },
        _ => {}
    }
    let to = places.disk();
    remove_file(&to)?;
    let failed = |error: io::Error| match wanted {
        Some(Method::Reflink) => no_reflinks(&error),
        _ => Fault::file(&format!("copying {} to", from.display()), &to, &error),
    };
    let method = match wanted != Some(Method::Reflink) && work.daemon.ahead.take_disk(from, &to) {
        true => COPY,
        false => {
            let copy = || copy_by(wanted, from, &to).inspect_err(|_| drop(fs::remove_file(&to)));
            work.daemon.aside.with_room(copy).map_err(failed)?
        }
    };
    if is_longer {
        // The agent makes the file system as long, whenever it boots.
        OpenOptions::new().write(true).open(&to).and_then(|file| file.set_len(vm.base.bytes)).map_err(failed)?;
    }
    Ok(method)
}

/// The method that [`make`] tries first.
pub(crate) fn first(work: &Work<'_>, vm: &Vm) -> Result<&'static str, Fault> {
    let (is_longer, wanted) = (is_longer(vm)?, work.daemon.settings.disk);
    match wanted {
        Some(Method::Snapshot) if is_longer => return Err(not_longer()),
        None if has_device_mapper() && !is_longer => return Ok(SNAPSHOT),
        Some(method @ (Method::Snapshot | Method::Copy)) => return Ok(method.name()),
        _ => {}
    }
    // Into a file without a name, which goes with its descriptor.
    let clones = || -> io::Result<()> {
        let source = File::open(&vm.base.root)?;
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        let target = rustix::fs::open(&work.daemon.settings.state, flags, Mode::from(0o600))?;
        Ok(rustix::fs::ioctl_ficlone(&target, &source)?)
    };
    match (clones(), wanted) {
        (Ok(()), _) => Ok(REFLINK),
        (Err(error), Some(_)) => Err(no_reflinks(&error)),
        (Err(_), None) => Ok(COPY),
    }
}

fn not_longer() -> Fault {
    let what = "disk_method = \"dm-snapshot\" is configured, and a snapshot is as long as its image";
    Fault::new("no_disk_method", exit::MACHINE, what).fix("without --disk; or disk_method = \"auto\"")
}

fn no_reflinks(error: &io::Error) -> Fault {
    let what =
        "disk_method = \"reflink\" is configured, and images and disks don't lie on one file system that has them";
    Fault::new("no_disk_method", exit::MACHINE, what).why(error).fix("disk_method = \"auto\"; or XFS or Btrfs")
}

/// Whether the disk is to be longer than its image.
pub(crate) fn is_longer(vm: &Vm) -> Result<bool, Fault> {
    let image = fs::metadata(&vm.base.root).map_err(|error| Fault::file("reading", &vm.base.root, &error))?;
    Ok(vm.base.bytes > image.len())
}

/// For a person: how the disk of a VM that goes on from a template was made.
pub(crate) fn made_of(vm: &Vm, template: &str) -> String {
    match vm.disk_method.as_deref() {
        Some(method @ (LAYER | SNAPSHOT)) => format!("{method} on template {template}"),
        method => format!("{} of template {template}", method.unwrap_or_default()),
    }
}

/// Makes the device of a snapshot over `from`; the store of changes is kept where it is not `new`.
pub(crate) fn snapshot(work: &Work<'_>, vm: &Vm, from: &Path, new: bool) -> Result<(), Fault> {
    let places = work.places(vm);
    let cow = places.cow();
    if new {
        let made = remove_file(&cow).and_then(|()| {
            let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&cow);
            // Sparse: it takes what is written.
            file.and_then(|file| file.set_len(vm.base.bytes + vm.base.bytes / 128 + STORE_EXTRA))
                .map_err(|error| Fault::file("making", &cow, &error))
        });
        made?;
    }
    let rootfs = places.host(from, Root::State)?;
    let request = NewSnapshot { rootfs, cow: places.host(&cow, Root::State)?, name: places.snapshot()? };
    work.helper().create_dm_snapshot(&request).map_err(|error| work.refused("the disk's snapshot", error))?;
    Ok(())
}

/// Gives back the room of a disk whose making failed. What can't be removed now is when it is made anew.
pub(crate) fn discard(places: &Places<'_>) {
    let _ = remove(places);
}

/// Removes its files, of whichever kind it is.
pub(crate) fn remove(places: &Places<'_>) -> Result<(), Fault> {
    [places.disk(), places.cow(), places.layer()].iter().try_for_each(|path| remove_file(path))
}

/// What the disk takes, in bytes.
pub(crate) fn used(places: &Places<'_>) -> Option<u64> {
    [places.disk(), places.cow(), places.layer()].into_iter().find_map(|path| taken(&path).ok())
}

fn has_device_mapper() -> bool {
    is_listed() || Path::new("/dev/mapper/control").exists()
}

/// Whether the module is in the kernel; the node in `/dev` may be there for one that isn't.
fn is_listed() -> bool {
    let devices = fs::read_to_string("/proc/misc").unwrap_or_default();
    devices.lines().any(|line| line.split_whitespace().nth(1) == Some("device-mapper"))
}

/// Removes a file; one that is not there is gone.
pub(crate) fn remove_file(path: &Path) -> Result<(), Fault> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Fault::file("removing", path, &error)),
        _ => Ok(()),
    }
}

/// Copies an image, or a VM's disk, to a new file: a reflink, or what of it is no hole; how.
pub(crate) fn copy(from: &Path, to: &Path) -> io::Result<&'static str> {
    copy_by(None, from, to)
}

/// The same, in the way that is wanted.
fn copy_by(wanted: Option<Method>, from: &Path, to: &Path) -> io::Result<&'static str> {
    let source = File::open(from)?;
    let target = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    if wanted != Some(Method::Copy) {
        match rustix::fs::ioctl_ficlone(&target, &source) {
            Ok(()) => return Ok(REFLINK),
            Err(errno) if wanted.is_some() => return Err(errno.into()),
            Err(_) => {}
        }
    }
    let length = source.metadata()?.len();
    target.set_len(length)?;
    // What is a hole stays one.
    each_data(&source, length, |data, end| {
        // Room is asked for first: a disk that is full says so now, and not in the middle of the guest's work.
        let _ = rustix::fs::fallocate(&target, FallocateFlags::KEEP_SIZE, data, end - data);
        copy_range(&source, &target, data, end)
    })?;
    Ok(COPY)
}

/// Makes holes where a file has nothing but zeros, if its file system has them: it holds the same, and takes less.
pub(crate) fn dig(path: &Path) -> io::Result<()> {
    const PIECE: u64 = 64 << 10;
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut bytes = vec![0; PIECE as usize];
    each_data(&file, file.metadata()?.len(), |data, end| {
        for at in (data..end).step_by(PIECE as usize) {
            let piece = &mut bytes[..PIECE.min(end - at) as usize];
            file.read_exact_at(piece, at)?;
            if piece.iter().all(|byte| *byte == 0) {
                let dug = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                match rustix::fs::fallocate(&file, dug, at, piece.len() as u64) {
                    Err(Errno::OPNOTSUPP) => return Ok(()),
                    done => done?,
                }
            }
        }
        Ok(())
    })
}

/// Begin and end of each piece of a file that is no hole.
fn each_data(file: &File, length: u64, mut act: impl FnMut(u64, u64) -> io::Result<()>) -> io::Result<()> {
    let mut at = 0;
    while at < length {
        let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(Errno::NXIO) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        let end = rustix::fs::seek(file, SeekFrom::Hole(data))?.min(length);
        act(data, end)?;
        at = end;
    }
    Ok(())
}

fn copy_range(source: &File, target: &File, mut at: u64, end: u64) -> io::Result<()> {
    let mut into = at;
    while at < end {
        let length = usize::try_from(end - at).unwrap_or(1 << 30).min(1 << 30);
        match rustix::fs::copy_file_range(source, Some(&mut at), target, Some(&mut into), length) {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the image became shorter")),
            Ok(_) | Err(Errno::INTR) => {}
            // Two file systems, or one that can't.
            Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::NOSYS) => return copy_bytes(source, target, at, end),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// The same, through memory.
fn copy_bytes(source: &File, target: &File, mut at: u64, end: u64) -> io::Result<()> {
    let mut bytes = vec![0; 1 << 20];
    while at < end {
        let most = usize::try_from(end - at).unwrap_or(bytes.len()).min(bytes.len());
        source.read_exact_at(&mut bytes[..most], at)?;
        target.write_all_at(&bytes[..most], at)?;
        at += most as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_copy_is_the_same_and_as_sparse() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("a"), dir.path().join("b"));
        let file = File::create(&from).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(&[7; 70_000], 5 << 20).unwrap();
        file.write_all_at(b"end", (64 << 20) - 3).unwrap();
        let how = copy(&from, &to).unwrap();
        assert!([REFLINK, COPY].contains(&how));
        assert!(fs::read(&from).unwrap() == fs::read(&to).unwrap());
        let facts = fs::metadata(&to).unwrap();
        assert!(facts.blocks() * 512 < 1 << 20, "{} blocks", facts.blocks());
        assert_eq!(facts.mode() & 0o777, 0o600);
        assert!(copy(&from, &to).is_err(), "what is there is not written over");
    }

    #[test]
    fn a_copy_is_made_in_the_way_that_is_wanted_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&from, [7; 9000]).unwrap();
        assert_eq!(copy_by(Some(Method::Copy), &from, &to).unwrap(), COPY, "reflinks or not");
        assert!(fs::read(&from).unwrap() == fs::read(&to).unwrap());
        fs::remove_file(&to).unwrap();
        let usual = copy(&from, &to).unwrap();
        fs::remove_file(&to).unwrap();
        match copy_by(Some(Method::Reflink), &from, &to) {
            Ok(how) => assert_eq!((how, usual), (REFLINK, REFLINK)),
            Err(_) => assert_eq!(usual, COPY),
        }
    }

    #[test]
    fn what_is_zeros_becomes_a_hole_and_the_rest_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let mut bytes = vec![0; 8 << 20];
        bytes[3 << 20] = 1;
        bytes.extend([0; 1000]);
        fs::write(&path, &bytes).unwrap();
        let blocks = || fs::metadata(&path).unwrap().blocks() * 512;
        assert!(blocks() >= 8 << 20);
        dig(&path).unwrap();
        assert!(blocks() <= 256 << 10, "{}", blocks());
        assert!(fs::read(&path).unwrap() == bytes);
        dig(&path).unwrap();
        assert!(fs::read(&path).unwrap() == bytes);
    }

    #[test]
    fn what_a_vm_is_made_of_is_said() {
        let vm = crate::daemon::store::vms::tests::planned(2);
        let said = |method: &str| made_of(&Vm { disk_method: Some(method.into()), ..vm.clone() }, "a1");
        assert_eq!(
            [LAYER, SNAPSHOT, COPY].map(said),
            ["layer on template a1", "dm-snapshot on template a1", "copy of template a1"]
        );
    }

    #[test]
    fn a_copy_through_memory_is_the_same_and_as_sparse() {
        // A file system of another kind.
        let Ok(dir) = tempfile::tempdir_in("/dev/shm") else { return };
        let here = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("a"), here.path().join("b"));
        let file = File::create(&from).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(&[7; 3_000_000], 5 << 20).unwrap();
        file.write_all_at(b"end", (64 << 20) - 3).unwrap();
        copy(&from, &to).unwrap();
        assert!(fs::read(&from).unwrap() == fs::read(&to).unwrap());
        assert!(fs::metadata(&to).unwrap().blocks() * 512 < 4 << 20);
        fs::remove_file(&to).unwrap();
        let target = File::create(&to).unwrap();
        target.set_len(64 << 20).unwrap();
        copy_bytes(&File::open(&from).unwrap(), &target, 5 << 20, 9 << 20).unwrap();
        assert!(fs::read(&from).unwrap()[..9 << 20] == fs::read(&to).unwrap()[..9 << 20]);
        assert!(copy_bytes(&File::open(&from).unwrap(), &target, 63 << 20, 65 << 20).is_err(), "it became shorter");
    }
}
