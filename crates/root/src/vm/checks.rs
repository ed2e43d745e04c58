//! What must be true before a launch changes anything: every file can be opened with the owner's rights and is what it
//! is said to be.
//!
//! What is opened here is closed again before the VMM runs, and the VMM opens the paths itself. It does so as the owner:
//! whoever exchanges a file in between gets at nothing that was not his already.

use super::devices::{Device, Neighbours};
use super::record;
use super::sockets;
use super::{contents, jail, layer};
use crate::fail::Fail;
use crate::host::Host;
use crate::places::Purpose;
use crate::program::Program;
use std::fs::File;
use sys::dir::{Dir, Facts};
use wire::code::shown;
use wire::image::Image;
use wire::path::HostPath;
use wire::units::Mebibytes;
use wire::vm::{Drive, Jailer, Launch, Saved, Start};

/// The least that can hold anything: a sector.
const MIN_DRIVE: u64 = 512;

/// What a launch's checks found.
pub(super) struct Checked {
    pub(super) program: Program,
    /// The jailer's, where a jail is asked for.
    pub(super) jailer: Option<Program>,
    /// What the guest begins with.
    pub(super) start: OpenStart,
    /// The drives in their order, and behind them what else of the VM's no other VM may write.
    pub(super) drives: Vec<record::Drive>,
    /// The drives' files, in their order.
    pub(super) opened: Vec<Opened>,
    pub(super) socket_dir: Dir,
    pub(super) vsock_dir: Dir,
}

/// A guest's beginning, open.
pub(super) enum OpenStart {
    /// A kernel and its initial RAM disk.
    Boot { kernel: File, initrd: Option<File> },
    /// A saved VM.
    Restore(OpenSaved),
}

/// A saved VM, open.
pub(super) struct OpenSaved {
    pub(super) state: File,
    pub(super) memory: File,
    /// The root drive's layer, to be written.
    pub(super) layer: Option<OpenLayer>,
}

/// A root drive's layer, empty yet.
pub(super) struct OpenLayer {
    pub(super) file: File,
    /// Bytes of the drive.
    pub(super) size: u64,
}

/// What is behind a drive, open.
pub(super) enum Opened {
    /// A file of the owner's.
    File(File),
    /// A snapshot.
    Device(Device),
}

/// Checks a launch in the existing helper's order; what that one doesn't check comes last.
pub(super) fn all(host: &Host, asked: &Launch, others: &Neighbours<'_>) -> Result<Checked, Fail> {
    let (socket_dir, vsock_dir, outputs, mut start, saved) = host.as_owner(|| {
        let socket_dir = sockets::directory(host, &asked.socket, "socket_path")?;
        let vsock_dir = sockets::directory(host, &asked.vsock, "vsock_path")?;
        let log = (output(host, &asked.log, "log_path")?, "log_path");
        let metrics = (output(host, &asked.metrics, "metrics_path")?, "metrics_path");
        let (start, saved) = open_start(host, asked)?;
        Ok((socket_dir, vsock_dir, [log, metrics], start, saved))
    })?;
    let program = Program::open(asked.program.as_str(), &host.settings.vmm_names)?;
    let is_layered = matches!(&asked.start, Start::Restore(Saved { layer: Some(_), .. }));
    let drives = asked.drives.iter().map(|each| drive(host, each, is_layered && each.is_root, others));
    let drives = drives.collect::<Result<Vec<_>, Fail>>()?;
    let (mut drives, opened): (Vec<_>, Vec<_>) = drives.into_iter().unzip();
    drives.extend(saved);
    if let (Start::Restore(Saved { layer: Some(path), .. }), OpenStart::Restore(saved)) = (&asked.start, &mut start) {
        let (layer, record) = layer(host, asked, path, &opened)?;
        saved.layer = Some(layer);
        drives.push(record);
    }
    for (nth, drive) in drives.iter().enumerate() {
        if drives[..nth].iter().any(|other| drive.clashes(other)) {
            return Err(Fail::new("drives: the same file is behind two of them, and one is writable"));
        }
    }
    let jailer = asked.jailer.as_ref().map(|jailer| jailer_program(host, jailer)).transpose()?;
    memory(asked.memory)?;
    for (output, field) in outputs {
        is_nothing_else(output, field, &start, &drives)?;
    }
    Ok(Checked { program, jailer, start, drives, opened, socket_dir, vsock_dir })
}

/// What the guest begins with, and of a saved VM's what no other VM may write.
fn open_start(host: &Host, asked: &Launch) -> Result<(OpenStart, Vec<record::Drive>), Fail> {
    match &asked.start {
        Start::Boot(boot) => {
            let kernel = kernel(host, &boot.kernel)?;
            let initrd = boot.initrd.as_ref().map(|path| initrd(host, path)).transpose()?;
            Ok((OpenStart::Boot { kernel, initrd }, Vec::new()))
        }
        Start::Restore(saved) => {
            let (opened, records) = self::saved(host, saved, asked.memory)?;
            Ok((OpenStart::Restore(opened), records))
        }
    }
}

/// A saved VM's state and memory: the owner's, and nobody else's to write. Beside them what a record says of the two: as
/// long as the VM runs no other one writes them.
fn saved(host: &Host, saved: &Saved, memory: Mebibytes) -> Result<(OpenSaved, Vec<record::Drive>), Fail> {
    let opened = |path: &HostPath, field: &str| {
        let file = open(host, path, Purpose::Read, field)?;
        let facts = not_empty(&file, path, field)?;
        owners_alone(host, &facts, path, field)?;
        Ok::<_, Fail>((file, facts.size, record::Drive { dev: facts.dev, ino: facts.ino, read_only: true }))
    };
    let (state, _, state_record) = opened(&saved.state, "snapshot.state_path")?;
    let (file, size, memory_record) = opened(&saved.memory, "snapshot.mem_path")?;
    if size != memory.0 << 20 {
        let path = shown(saved.memory.as_str());
        return Err(Fail::new(format!(
            "snapshot.mem_path: {path} has {size} bytes, and memory_mib says {} MiB",
            memory.0
        )));
    }
    Ok((OpenSaved { state, memory: file, layer: None }, vec![state_record, memory_record]))
}

fn owners_alone(host: &Host, facts: &Facts, path: &HostPath, field: &str) -> Result<(), Fail> {
    if facts.uid == host.owner.uid && facts.mode & 0o022 == 0 {
        return Ok(());
    }
    let path = shown(path.as_str());
    Err(Fail::new(format!("{field}: {path} must be the owner's and writable by nobody else: chmod go-w it")))
}

/// The root drive's layer, which must be empty.
fn layer(host: &Host, asked: &Launch, path: &HostPath, opened: &[Opened]) -> Result<(OpenLayer, record::Drive), Fail> {
    const FIELD: &str = "snapshot.layer_path";
    if !contents::is_qemus(&asked.program) {
        return Err(Fail::new(format!("{FIELD}: Firecracker knows no layers: give it a root drive of its own")));
    }
    let root = asked.drives.iter().zip(opened).find(|(drive, _)| drive.is_root && !drive.read_only);
    let Some((_, Opened::File(base))) = root else {
        return Err(Fail::new(format!("{FIELD}: the root drive can't be written, so it needs none")));
    };
    let looked = |error| Fail::new(format!("{FIELD}: can't be looked at")).because(error);
    let size = Facts::of(base).map_err(looked)?.size;
    let file = open(host, path, Purpose::ReadWrite, FIELD)?;
    layer::check(&file, path, size)?;
    let facts = Facts::of(&file).map_err(looked)?;
    owners_alone(host, &facts, path, FIELD)?;
    Ok((OpenLayer { file, size }, record::Drive { dev: facts.dev, ino: facts.ino, read_only: false }))
}

/// A file that the VMM appends to: where it is there, the owner may write it; where not, it is made later.
fn output(host: &Host, path: &HostPath, field: &str) -> Result<Option<File>, Fail> {
    match host.state.open_file(path, Purpose::ReadWrite, &host.owner) {
        Ok(file) => Ok(Some(file)),
        Err(unopened) if unopened.is_missing() => {
            let parent = host.state.open_parent(path, &host.owner);
            parent.map(|_| None).map_err(|unopened| with_field(unopened.into(), field))
        }
        Err(unopened) => Err(with_field(unopened.into(), field)),
    }
}

/// Refuses what is appended to where the guest begins with it or has it as a drive.
fn is_nothing_else(output: Option<File>, field: &str, start: &OpenStart, drives: &[record::Drive]) -> Result<(), Fail> {
    let looked = |error| Fail::new(format!("{field}: can't be looked at")).because(error);
    let file = |file: &File| Facts::of(file).map(|facts| (facts.dev, facts.ino)).map_err(looked);
    let Some(output) = output.map(|output| file(&output)).transpose()? else { return Ok(()) };
    let mut others: Vec<_> = drives.iter().map(|drive| (drive.dev, drive.ino)).collect();
    if let OpenStart::Boot { kernel, initrd } = start {
        others.push(file(kernel)?);
        others.extend(initrd.as_ref().map(file).transpose()?);
    }
    match others.contains(&output) {
        true => Err(Fail::new(format!("{field}: it is a drive of the VM's, or what its guest begins with"))),
        false => Ok(()),
    }
}

/// The field's name before the message, once.
pub(super) fn with_field(mut fail: Fail, field: &str) -> Fail {
    if !fail.message.starts_with(field) {
        fail.message = format!("{field}: {}", fail.message);
    }
    fail
}

fn open(host: &Host, path: &HostPath, purpose: Purpose, field: &str) -> Result<File, Fail> {
    host.state.open_file(path, purpose, &host.owner).map_err(|unopened| with_field(unopened.into(), field))
}

/// A kernel, by its first bytes: an ELF file, or a bzImage (`HdrS` in the header of the x86 boot protocol).
fn kernel(host: &Host, path: &HostPath) -> Result<File, Fail> {
    const FIELD: &str = "kernel_image_path";
    const HEADER_AT: usize = 0x202;
    let file = open(host, path, Purpose::Read, FIELD)?;
    let mut start = [0u8; HEADER_AT + 4];
    let length = rustix::io::pread(&file, &mut start, 0)
        .map_err(|errno| Fail::new(format!("{FIELD}: can't be read")).because(format!("pread: {errno}")))?;
    let start = &start[..length];
    if start.starts_with(b"\x7fELF") || start.get(HEADER_AT..) == Some(b"HdrS") {
        return Ok(file);
    }
    let told = shown(path.as_str());
    Err(Fail::new(format!("{FIELD}: {told} is no kernel: it begins neither as an ELF file nor as a bzImage")))
}

fn not_empty(file: &File, path: &HostPath, field: &str) -> Result<Facts, Fail> {
    let facts = Facts::of(file).map_err(|error| Fail::new(format!("{field}: can't be looked at")).because(error))?;
    if facts.size == 0 {
        return Err(Fail::new(format!("{field}: {} is empty", shown(path.as_str()))));
    }
    Ok(facts)
}

fn initrd(host: &Host, path: &HostPath) -> Result<File, Fail> {
    let file = host.state.open_file(path, Purpose::Read, &host.owner)?;
    not_empty(&file, path, "initrd_path").map(|_| file)
}

/// The jailer's program, and whether the jail can be where it is asked for.
fn jailer_program(host: &Host, jailer: &Jailer) -> Result<Program, Fail> {
    let named = |fail| with_field(fail, "jailer");
    let program = Program::open(jailer.program.as_str(), &host.settings.jailer_names).map_err(named)?;
    jail::check(host, jailer).map_err(named)?;
    Ok(program)
}

/// `is_base`: a layer takes what is written to it, and it must stay as it is.
fn drive(host: &Host, drive: &Drive, is_base: bool, others: &Neighbours<'_>) -> Result<(record::Drive, Opened), Fail> {
    const FIELD: &str = "drives";
    let path = match &drive.image {
        Image::File(path) => path,
        Image::Snapshot(name) => {
            let device = (others.open_snapshot)(name, !drive.read_only).map_err(|fail| with_field(fail, FIELD))?;
            if device.size < MIN_DRIVE {
                return Err(Fail::new(format!("{FIELD}: {} is smaller than a sector", shown(&name.device()))));
            }
            // A device has no inode of its own: its number is enough.
            let record = record::Drive { dev: device.number, ino: 0, read_only: drive.read_only };
            return Ok((record, Opened::Device(device)));
        }
    };
    let read_only = drive.read_only || is_base;
    let purpose = if read_only { Purpose::Read } else { Purpose::ReadWrite };
    let file = open(host, path, purpose, FIELD)?;
    let facts = not_empty(&file, path, FIELD)?;
    if facts.size < MIN_DRIVE {
        return Err(Fail::new(format!("{FIELD}: {} is smaller than a sector", shown(path.as_str()))));
    }
    if is_base {
        owners_alone(host, &facts, path, FIELD)?;
    }
    let record = record::Drive { dev: facts.dev, ino: facts.ino, read_only };
    Ok((record, Opened::File(file)))
}

fn memory(asked: Mebibytes) -> Result<(), Fail> {
    let info = rustix::system::sysinfo();
    let machine = (info.totalram * u64::from(info.mem_unit)) >> 20;
    if asked.0 > machine {
        return Err(Fail::new(format!("memory_mib: {} is more than the {machine} that this machine has", asked.0)));
    }
    Ok(())
}
