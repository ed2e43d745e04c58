//! What must be true before a launch changes anything: every file can be opened with the owner's rights and is what it
//! is said to be.
//!
//! What is opened here is closed again before the VMM runs, and the VMM opens the paths itself. It does so as the owner:
//! whoever exchanges a file in between gets at nothing that was not his already.

use super::devices::{Device, Neighbours};
use super::jail;
use super::record;
use super::sockets;
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
use wire::vm::{Drive, Jailer, Launch};

/// The least that can hold anything: a sector.
const MIN_DRIVE: u64 = 512;

/// What a launch's checks found.
pub(super) struct Checked {
    pub(super) program: Program,
    /// The jailer's, where a jail is asked for.
    pub(super) jailer: Option<Program>,
    pub(super) kernel: File,
    pub(super) initrd: Option<File>,
    pub(super) drives: Vec<record::Drive>,
    /// The drives' files, in their order.
    pub(super) opened: Vec<Opened>,
    pub(super) socket_dir: Dir,
    pub(super) vsock_dir: Dir,
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
    let socket_dir = sockets::directory(host, &asked.socket, "socket_path")?;
    let vsock_dir = sockets::directory(host, &asked.vsock, "vsock_path")?;
    output(host, &asked.log, "log_path")?;
    output(host, &asked.metrics, "metrics_path")?;
    let kernel = kernel(host, &asked.kernel)?;
    let initrd = asked.initrd.as_ref().map(|path| initrd(host, path)).transpose()?;
    let program = Program::open(asked.program.as_str(), &host.settings.vmm_names)?;
    let drives = asked.drives.iter().map(|each| drive(host, each, others)).collect::<Result<Vec<_>, Fail>>()?;
    let (drives, opened): (Vec<_>, Vec<_>) = drives.into_iter().unzip();
    for (nth, drive) in drives.iter().enumerate() {
        if drives[..nth].iter().any(|other| drive.clashes(other)) {
            return Err(Fail::new("drives: the same file is behind two of them, and one is writable"));
        }
    }
    let jailer = asked.jailer.as_ref().map(|jailer| jailer_program(host, jailer)).transpose()?;
    memory(asked.memory)?;
    Ok(Checked { program, jailer, kernel, initrd, drives, opened, socket_dir, vsock_dir })
}

/// A file that the VMM appends to: where it is there, the owner may write it; where not, it is made later.
fn output(host: &Host, path: &HostPath, field: &str) -> Result<(), Fail> {
    match host.state.open_file(path, Purpose::ReadWrite, &host.owner) {
        Ok(_) => Ok(()),
        Err(unopened) if unopened.is_missing() => {
            let parent = host.state.open_parent(path, &host.owner);
            parent.map(|_| ()).map_err(|unopened| with_field(unopened.into(), field))
        }
        Err(unopened) => Err(with_field(unopened.into(), field)),
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

fn drive(host: &Host, drive: &Drive, others: &Neighbours<'_>) -> Result<(record::Drive, Opened), Fail> {
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
    let purpose = if drive.read_only { Purpose::Read } else { Purpose::ReadWrite };
    let file = open(host, path, purpose, FIELD)?;
    let facts = not_empty(&file, path, FIELD)?;
    if facts.size < MIN_DRIVE {
        return Err(Fail::new(format!("{FIELD}: {} is smaller than a sector", shown(path.as_str()))));
    }
    let record = record::Drive { dev: facts.dev, ino: facts.ino, read_only: drive.read_only };
    Ok((record, Opened::File(file)))
}

fn memory(asked: Mebibytes) -> Result<(), Fail> {
    let unknown = |error: std::io::Error| Fail::new("the machine's memory can't be read").because(error);
    let info = std::fs::read_to_string("/proc/meminfo").map_err(unknown)?;
    let total =
        info.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    let kib: u64 = total.ok_or_else(|| unknown(std::io::ErrorKind::InvalidData.into()))?;
    let machine = kib >> 10;
    if asked.0 > machine {
        return Err(Fail::new(format!("memory_mib: {} is more than the {machine} that this machine has", asked.0)));
    }
    Ok(())
}
