//! The methods of VMs and their processes: what their parameters say, and what they mean.

mod restore;
mod says;

pub(crate) use restore::restore_firecracker;
pub(crate) use says::{LaunchSays, RestoreSays};

use crate::code::{Code, Refusal, shown};
use crate::image::Image;
use crate::name::link::TapName;
use crate::name::signal::Signal;
use crate::name::vm_id::{DriveId, VmId};
use crate::params::{self, zero};
use crate::path::{ChrootPath, HostPath, ProgramPath, Root, Roots};
use crate::units::Mebibytes;
use says::{DriveSays, JailerSays};
use serde::{Deserialize, Serialize};

/// The most vCPUs, Firecracker's own bound.
pub const MAX_VCPUS: u8 = 32;
/// The longest kernel command line that is taken.
pub const MAX_KERNEL_ARGS: usize = 2048;
/// The first CID that a guest may have; 0 to 2 mean the hypervisor, loopback and the host.
pub const FIRST_CID: u32 = 3;
/// The most drives of one VM.
pub const MAX_DRIVES: usize = 16;

const FAILED: Code = Code::OperationFailed;

/// A VM to be launched. All paths are as the request has them; none is opened yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// The VMM's program.
    pub program: ProgramPath,
    /// The VM.
    pub vm_id: VmId,
    /// Where the API socket is to be.
    pub socket: HostPath,
    /// The log.
    pub log: HostPath,
    /// The metrics.
    pub metrics: HostPath,
    /// How its guest begins.
    pub start: Start,
    /// The drives; exactly one is the root.
    pub drives: Vec<Drive>,
    /// The tap.
    pub tap: TapName,
    /// Where the vsock's Unix socket is to be.
    pub vsock: HostPath,
    /// The guest's CID.
    pub cid: u32,
    /// vCPUs, 1 to [`MAX_VCPUS`].
    pub vcpus: u8,
    /// Memory, at least 1 MiB; what the machine has is the operation's to ask.
    pub memory: Mebibytes,
    /// The jail, where one is asked for.
    pub jailer: Option<Jailer>,
}

/// How a guest begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// With a kernel.
    Boot(Boot),
    /// With a saved state.
    Restore(Saved),
}

/// What is booted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot {
    /// The kernel.
    pub kernel: HostPath,
    /// The initial RAM disk.
    pub initrd: Option<HostPath>,
    /// The kernel's arguments: printable ASCII.
    pub kernel_args: String,
}

/// A saved VM: what a VMM wrote for `PUT /snapshot/create`, and what its disk is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// The state of the devices.
    pub state: HostPath,
    /// The memory, as many bytes as the VM has.
    pub memory: HostPath,
    /// An empty file for what the guest writes to its root drive, whose own file is only read then. `None`: the root
    /// drive is the VM's own.
    pub layer: Option<HostPath>,
}

/// A drive of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drive {
    /// Its id, and its name in a chroot.
    pub id: DriveId,
    /// What is behind it.
    pub image: Image,
    /// Whether the guest may write it.
    pub read_only: bool,
    /// Whether it is the root.
    pub is_root: bool,
}

/// The jail of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Jailer {
    /// The jailer's program.
    pub program: ProgramPath,
    /// The directory that holds `firecracker/<vm_id>/root`.
    pub chroot_base: HostPath,
    /// The VMM's user; the operation compares it with the owner's.
    pub uid: i64,
    /// The VMM's group.
    pub gid: i64,
}

/// Which VMM is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// A name, looked for in the configuration's directories.
    Name(String),
    /// A path.
    Path(ProgramPath),
}

/// A socket whose access is to be put right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketAccess {
    /// The socket.
    pub path: HostPath,
    /// What the error calls it; already fit to be shown.
    pub label: String,
}

/// A process to be signalled. The pid is judged before the signal, so the signal's refusal waits here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kill {
    /// The process.
    pub pid: Pid,
    /// What it is sent.
    pub signal: Result<Signal, Refusal>,
}

/// A question about a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// The process; `None` where the number can't be one.
    pub pid: Option<Pid>,
    /// The API socket that it should have; empty asks about the pid alone.
    pub api_sock: String,
}

/// A process id, 1 to 2^31-1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pid(pub i32);

impl Pid {
    /// The process of that number, where a process can have it.
    pub fn new(number: i64) -> Option<Pid> {
        i32::try_from(number).ok().filter(|&pid| pid > 0).map(Pid)
    }
}

impl std::fmt::Display for Pid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Checks a launch in the existing helper's order; what it doesn't check comes last.
pub(crate) fn launch_firecracker(text: Option<&str>, roots: &Roots) -> Result<Launch, Refusal> {
    let says = params::read::<LaunchSays>(text)?;
    says.check(roots, || {
        let below = |text: &str, field| HostPath::new(text, &[Root::State], roots, FAILED, field);
        let kernel = below(&says.kernel_image_path, "kernel_image_path")?;
        let initrd = match says.initrd_path.trim() {
            "" => None,
            _ => Some(below(&says.initrd_path, "initrd_path")?),
        };
        Ok(Start::Boot(Boot { kernel, initrd, kernel_args: says.kernel_args.clone() }))
    })
}

fn drives(says: &[DriveSays], roots: &Roots) -> Result<Vec<Drive>, Refusal> {
    let refuse = |message: String| Refusal::new(FAILED, "drives", message);
    if says.len() > MAX_DRIVES {
        return Err(refuse(format!("{} drives are more than {MAX_DRIVES}", says.len())));
    }
    let mut drives: Vec<Drive> = Vec::with_capacity(says.len());
    for drive in says {
        let image = Image::new(&drive.path, roots, FAILED, "drives")
            .map_err(|_| refuse(format!("path {} is outside banger-managed directories", shown(&drive.path))))?;
        if matches!(image, Image::Snapshot(_)) && !drive.is_root {
            return Err(refuse(format!("only the root drive may be a snapshot, and {} is not it", shown(&drive.path))));
        }
        let id = if drive.id.is_empty() { DriveId::from_path(&drive.path) } else { DriveId::new(&drive.id) };
        let id = id.map_err(|e| e.refuse(FAILED, "drives"))?;
        if drives.iter().any(|other| other.id.for_firecracker() == id.for_firecracker()) {
            return Err(refuse(format!("two drives are called {}", shown(id.as_str()))));
        }
        drives.push(Drive { id, image, read_only: drive.read_only, is_root: drive.is_root });
    }
    match drives.iter().filter(|drive| drive.is_root).count() {
        1 => Ok(drives),
        0 => Err(refuse("no drive is the root (IsRoot)".into())),
        _ => Err(refuse("more than one drive is the root (IsRoot)".into())),
    }
}

fn jailer(says: &JailerSays, roots: &Roots) -> Result<Jailer, Refusal> {
    Ok(Jailer {
        program: ProgramPath::new(&says.binary).map_err(|e| e.refuse(FAILED, "jailer.binary"))?,
        chroot_base: HostPath::new(
            &says.chroot_base_dir,
            &[Root::State, Root::Runtime],
            roots,
            FAILED,
            "jailer.chroot_base_dir",
        )?,
        uid: says.uid,
        gid: says.gid,
    })
}

fn kernel_args(text: &str) -> Result<(), Refusal> {
    let refuse = |message: &str| Err(Refusal::new(FAILED, "kernel_args", message));
    if text.len() > MAX_KERNEL_ARGS {
        return refuse("longer than 2048 characters");
    }
    if !text.bytes().all(|b| (0x20..0x7f).contains(&b)) {
        return refuse("must be printable ASCII, on one line");
    }
    Ok(())
}

fn cid(cid: u32) -> Result<u32, Refusal> {
    match cid {
        FIRST_CID..=0xffff_fffe => Ok(cid),
        _ => Err(Refusal::new(FAILED, "vsock_cid", format!("{cid} is not in 3 to 4294967294"))),
    }
}

fn vcpus(count: i64) -> Result<u8, Refusal> {
    u8::try_from(count)
        .ok()
        .filter(|count| (1..=MAX_VCPUS).contains(count))
        .ok_or_else(|| Refusal::new(FAILED, "vcpu_count", format!("{count} is not in 1 to {MAX_VCPUS}")))
}

fn memory(mib: i64) -> Result<Mebibytes, Refusal> {
    match u64::try_from(mib) {
        // 2^40 MiB is beyond any machine, and its bytes still fit 64 bits.
        Ok(mib @ 1..=0x100_0000_0000) => Ok(Mebibytes(mib)),
        _ => Err(Refusal::new(FAILED, "memory_mib", format!("{mib} is not a size of memory in MiB, 1 and up"))),
    }
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub(crate) struct ResolveSays {
    #[serde(deserialize_with = "zero")]
    pub(crate) requested: String,
}

pub(crate) fn resolve_firecracker_binary(text: Option<&str>) -> Result<Wanted, Refusal> {
    let says = params::read::<ResolveSays>(text)?;
    match says.requested.trim() {
        "" => Ok(Wanted::Name("firecracker".into())),
        path if path.starts_with('/') => {
            ProgramPath::new(path).map(Wanted::Path).map_err(|e| e.refuse(FAILED, "requested"))
        }
        name if crate::name::is_plain(name) && name.len() <= 64 && !name.starts_with('.') => {
            Ok(Wanted::Name(name.to_owned()))
        }
        other => Err(Refusal::new(
            FAILED,
            "requested",
            format!("{} is neither a program's name nor an absolute path", shown(other)),
        )),
    }
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub(crate) struct SocketAccessSays {
    #[serde(deserialize_with = "zero")]
    pub(crate) socket_path: String,
    #[serde(deserialize_with = "zero")]
    pub(crate) label: String,
}

pub(crate) fn ensure_socket_access(text: Option<&str>, roots: &Roots) -> Result<SocketAccess, Refusal> {
    let says = params::read::<SocketAccessSays>(text)?;
    let path = HostPath::new(&says.socket_path, &[Root::Runtime], roots, Code::InvalidPath, "socket_path")?;
    let label = if says.label.trim().is_empty() { "socket".to_owned() } else { shown(&says.label) };
    Ok(SocketAccess { path, label })
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub(crate) struct FindSays {
    #[serde(deserialize_with = "zero")]
    pub(crate) api_sock: String,
}

pub(crate) fn find_firecracker_pid(text: Option<&str>) -> Result<String, Refusal> {
    let says = params::read::<FindSays>(text)?;
    if says.api_sock.is_empty() {
        return Err(Refusal::new(FAILED, "api_sock", "no socket was named, so no VM is meant"));
    }
    Ok(says.api_sock)
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub(crate) struct PidSays {
    #[serde(deserialize_with = "zero")]
    pub(crate) pid: i64,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub(crate) struct SignalSays {
    #[serde(deserialize_with = "zero")]
    pub(crate) pid: i64,
    #[serde(deserialize_with = "zero")]
    pub(crate) signal: String,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub(crate) struct RunningSays {
    #[serde(deserialize_with = "zero")]
    pub(crate) pid: i64,
    #[serde(deserialize_with = "zero")]
    pub(crate) api_sock: String,
}

pub(crate) fn kill_process(text: Option<&str>) -> Result<Pid, Refusal> {
    pid(params::read::<PidSays>(text)?.pid)
}

pub(crate) fn signal_process(text: Option<&str>) -> Result<Kill, Refusal> {
    let says = params::read::<SignalSays>(text)?;
    Ok(Kill { pid: pid(says.pid)?, signal: Signal::new(&says.signal).map_err(|e| e.refuse(FAILED, "signal")) })
}

pub(crate) fn process_running(text: Option<&str>) -> Result<Running, Refusal> {
    let says = params::read::<RunningSays>(text)?;
    Ok(Running { pid: Pid::new(says.pid), api_sock: says.api_sock })
}

fn pid(number: i64) -> Result<Pid, Refusal> {
    Pid::new(number).ok_or_else(|| Refusal::new(Code::InvalidPid, "pid", format!("pid {number} is invalid")))
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub(crate) struct ChrootSays {
    #[serde(deserialize_with = "zero")]
    pub(crate) chroot_root: String,
}

pub(crate) fn cleanup_jailer_chroot(text: Option<&str>, roots: &Roots) -> Result<ChrootPath, Refusal> {
    ChrootPath::new(&params::read::<ChrootSays>(text)?.chroot_root, roots)
}
