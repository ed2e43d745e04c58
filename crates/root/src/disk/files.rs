//! Files inside images: read and written by a worker that can't write the image, its changes put in their places here.

use super::images::Images;
use super::journal::{Image as ImageFile, Log};
use super::snapshot::{self, For};
use super::uses::{Key, Using};
use super::worker::{self, Begun, Job};
use super::{Inode, cow, holders};
use crate::fail::Fail;
use crate::gate::Charge;
use crate::host::Host;
use crate::places::Purpose;
use crate::steps::{self, Steps};
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};
use sys::dir::{CallError, Facts};
use wire::code::shown;
use wire::image::{Image, NewFile, Read, Write};
use wire::name::dm::DmName;
use wire::path::HostPath;
use wire::worker::MAX_READ;
use wire::worker::ask;
use wire::worker::log::Change;
use wire::worker::reply::Reply;

const READ: &str = "read_ext4_file";
const WRITE: &str = "write_ext4_files";
/// A worker that has begun within this time did not wait for others.
const SOON: Duration = Duration::from_millis(100);

/// Reads a file inside an image, whole. `room` is charged with the reply before the file gets memory here.
pub(crate) fn read(host: &Host, asked: &Read, room: &mut Charge) -> Result<Vec<u8>, Fail> {
    let (image, _using) = open_to_read(host, &asked.image)?;
    let worker = worker::begin(host)?;
    let request = request(&ask::read(&asked.path))?;
    let out = worker::bounded_file("read", MAX_READ)?;
    let job = Job { image: image.as_fd(), request: &request, out: &out };
    // The worker's turn is held until its output is gone: so many of these are in memory and no more.
    let (reply, _turn) = worker.ask(&job)?;
    let size = match reply {
        Reply::Read { size } => size,
        Reply::Refused { why, text } => return Err(worker::refused(why, &text)),
        Reply::Written { .. } => return Err(worker::nonsense("a read was answered as a write")),
    };
    let length = usize::try_from(size).map_err(worker::nonsense)?;
    // Four characters for three bytes, and what stands around them.
    if !room.grow(length.div_ceil(3).saturating_mul(4).saturating_add(64)) {
        let most = host.settings.limits.reply_bytes_together;
        return Err(Fail::new(format!(
            "{most} bytes of replies wait for their readers, and more are not taken (limits.reply_bytes_together); \
             try again"
        )));
    }
    let mut data = vec![0; length];
    out.read_exact_at(&mut data, 0).map_err(worker::nonsense)?;
    Ok(data)
}

/// Writes files inside an image: on a file all of them or none.
pub(crate) fn write(host: &Host, asked: &Write) -> Result<(), Fail> {
    match &asked.image {
        Image::File(path) => write_file(host, path, &asked.files),
        Image::Snapshot(name) => write_snapshot(host, name, &asked.files),
    }
}

fn write_file(host: &Host, path: &HostPath, files: &[NewFile]) -> Result<(), Fail> {
    let image = ImageFile::open(host, path)?;
    let inode = Inode::from(&image.facts);
    let _using = host.images.uses.alone(Key::File(inode), host.settings.limits.image_time(), WRITE)?;
    let _held = super::hold(host, inode.lock_name(), "the image", WRITE)?;
    host.images.journal.finish(host, &image)?;
    if files.is_empty() {
        return Ok(());
    }
    is_nobodys(host, inode)?;
    let asked = Instant::now();
    let worker = worker::begin(host)?;
    // Others may have had all turns for a minute.
    if asked.elapsed() > SOON {
        is_nobodys(host, inode)?;
    }
    // Opened again for the worker, for reading alone: and seen to be the same.
    let readable = host.state.open_file(path, Purpose::Read, &host.owner)?;
    let facts = Facts::of(&readable).map_err(worker::nonsense)?;
    if !facts.is_same_file(&image.facts) || facts.size != image.facts.size {
        return Err(Fail::new("the image was exchanged or changed its size meanwhile; try again"));
    }
    let journal = &host.images.journal;
    steps::run(WRITE, &host.faults, |steps| {
        let request = steps.act("request", || request(&ask::write(files)))?;
        let log = steps.act("log", || journal.begin(host, &image))?;
        let name = log.name.clone();
        steps.undo("log", move || journal.abandon(&name));
        match ask_to_write(worker, steps, &readable, &request, &log)? {
            0 => journal.abandon(&log.name),
            length => {
                let proposal = log.proposal(length, image.facts.size, files)?;
                journal.carry_out(steps, &image, &log, proposal, files)
            }
        }
    })
}

fn is_nobodys(host: &Host, inode: Inode) -> Result<(), Fail> {
    let holders = holders::of_file(host, inode)?;
    if holders.is_empty() {
        return Ok(());
    }
    Err(Fail::new(format!("the image is in use: {} has it; end that first", holders::named(&holders))))
}

/// A snapshot is made anew where a write of it fails, so its changes are put in their places at once.
fn write_snapshot(host: &Host, name: &DmName, files: &[NewFile]) -> Result<(), Fail> {
    let _using = host.images.uses.alone(Key::of_snapshot(name), host.settings.limits.image_time(), WRITE)?;
    let _held = snapshot::hold(host, name, WRITE)?;
    let device = snapshot::open(host, name, For::Changing)?;
    if files.is_empty() {
        return Ok(());
    }
    let worker = worker::begin(host)?;
    let readable = again_for_reading(&device.fd)?;
    let half = |cause: std::io::Error| {
        let told = shown(name.as_str());
        Fail::new(format!("the snapshot {told} is half written: remove it and make it anew")).because(cause)
    };
    steps::run(WRITE, &host.faults, |steps| {
        let request = steps.act("request", || request(&ask::write(files)))?;
        let log = steps.act("log", || host.images.journal.unnamed())?;
        let length = ask_to_write(worker, steps, &readable, &request, &log)?;
        if length == 0 {
            return Ok(());
        }
        let changes = log.proposal(length, device.size, files)?.changes;
        steps.act("room", || has_room(host, name, &changes))?;
        let device = File::from(device.fd);
        steps.act("apply", || log.put_into(&device, &changes, files).map_err(half))?;
        steps.act("sync", || device.sync_data().map_err(half))
    })
}

/// The store can take the changes, whichever of them it has already: one that is full loses all that it keeps.
fn has_room(host: &Host, name: &DmName, changes: &[Change]) -> Result<(), Fail> {
    let (needed, left) = (cow::most(changes), snapshot::room(host, name)?);
    if needed <= left {
        return Ok(());
    }
    Err(Fail::new(format!(
        "the store of snapshot {} has room for {left} bytes, and the write may take {needed}: nothing was written. A \
         store that is full loses all that was changed; make the snapshot with a larger file",
        shown(name.as_str())
    )))
}

/// The same device, by its descriptor and not by a name, for reading alone.
fn again_for_reading(device: &OwnedFd) -> Result<File, Fail> {
    let path = format!("/proc/self/fd/{}", device.as_raw_fd());
    rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map(File::from).map_err(|errno| {
        Fail::new("the snapshot can't be opened for the worker")
            .because(CallError::new("open of the descriptor", errno))
    })
}

/// The length of the log that the worker wrote; 0 where nothing is to be changed.
fn ask_to_write(
    worker: Begun<'_>,
    steps: &mut Steps<'_>,
    image: &File,
    request: &File,
    out: &Log,
) -> Result<u64, Fail> {
    let job = Job { image: image.as_fd(), request, out: &out.file };
    let (reply, _turn) = steps.act("worker", || worker.ask(&job))?;
    match reply {
        Reply::Written { log: length, .. } => {
            let have = Facts::of(&out.file).map_err(worker::nonsense)?.size;
            if length != 0 && length != have {
                return Err(worker::nonsense(format!("a log of {length} bytes is said to be there, {have} are")));
            }
            Ok(length)
        }
        Reply::Refused { why, text } => Err(worker::refused(why, &text)),
        Reply::Read { .. } => Err(worker::nonsense("a write was answered as a read")),
    }
}

/// The request, sealed.
fn request(text: &[u8]) -> Result<File, Fail> {
    let mut request = worker::memory_file("request")?;
    request.write_all(text).map_err(|error| Fail::new("the request can't be handed on").because(error))?;
    worker::seal(&request)?;
    Ok(request)
}

/// Opens an image for the worker. Nobody changes it, as far as this helper does, until the second value is dropped.
fn open_to_read<'a>(host: &'a Host, image: &Image) -> Result<(File, Using<'a>), Fail> {
    match image {
        Image::File(path) => {
            let file = host.state.open_file(path, Purpose::Read, &host.owner)?;
            let using = finished(host, path, &file, READ)?;
            Ok((file, using))
        }
        Image::Snapshot(name) => {
            let using = host.images.uses.share(Key::of_snapshot(name), host.settings.limits.image_time(), READ)?;
            let _held = snapshot::hold(host, name, READ)?;
            let device = snapshot::open(host, name, For::Reading)?;
            Ok((File::from(device.fd), using))
        }
    }
}

/// Shares an image file, once a write of it that was cut off is finished. `file` is that file, opened for anything.
fn finished<'a>(host: &'a Host, path: &HostPath, file: impl AsFd, doing: &'static str) -> Result<Using<'a>, Fail> {
    let unknown = |error: CallError| Fail::new("the image can't be looked at").because(error);
    let facts = Facts::of(&file).map_err(unknown)?;
    let (key, time) = (Key::of_file(&facts), host.settings.limits.image_time());
    let Images { uses, journal, .. } = &host.images;
    loop {
        let using = uses.share(key.clone(), time, doing)?;
        if !journal.has_log_of(&file).map_err(unknown)? {
            return Ok(using);
        }
        drop(using);
        let _alone = uses.alone(key.clone(), time, doing)?;
        // Another file that has its name by now is not this request's to change.
        let image = ImageFile::open(host, path)?;
        if !image.facts.is_same_file(&facts) {
            return Err(Fail::new("the image was exchanged meanwhile; try again"));
        }
        journal.finish(host, &image)?;
    }
}

/// Sees to it that no image of these is being written or checked, and none has a write that is to be finished. So it
/// stays until what is returned is dropped.
pub(crate) fn prepare<'a>(host: &'a Host, images: &[Image], doing: &'static str) -> Result<Vec<Using<'a>>, Fail> {
    let (mut using, mut keys) = (Vec::new(), Vec::new());
    for image in images {
        let (key, file) = match image {
            Image::Snapshot(name) => (Key::of_snapshot(name), None),
            // What can't be opened is the caller's to say, in his words.
            Image::File(path) => match host.state.look(path, &host.owner) {
                Ok((file, facts)) => (Key::of_file(&facts), Some((path, file))),
                Err(_) => continue,
            },
        };
        if keys.contains(&key) {
            continue;
        }
        keys.push(key.clone());
        using.push(match file {
            Some((path, file)) => finished(host, path, &file, doing)?,
            None => host.images.uses.share(key, host.settings.limits.image_time(), doing)?,
        });
    }
    Ok(using)
}
