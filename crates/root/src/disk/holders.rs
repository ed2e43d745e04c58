//! Who holds a file or a device: what an operation must not change under him, and what an error names.

use super::{Inode, loops};
use crate::fail::Fail;
use crate::host::Host;
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use std::collections::HashSet;
use std::fmt;
use std::time::{Duration, Instant};
use sys::dir::Dir;
use wire::code::shown;
use wire::name::dm::LoopNumber;

/// Who asks for these: a launch.
const LAUNCH: &str = "launch_firecracker";
/// How long holders are looked for.
const SEARCH: Duration = Duration::from_secs(2);

/// Somebody who holds something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    /// A VM has it as a drive.
    Vm { vm_id: String, writes: bool },
    /// A loop device is bound to it, and these devices stand on that one.
    Loop { number: LoopNumber, is_read_only: bool, under: Vec<String> },
    /// A device stands on it.
    Device { name: String },
    /// It is mounted.
    Mount { at: String },
    /// A process has it open.
    Process { pid: i32, name: String },
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Holder::Vm { vm_id, writes: true } => write!(f, "VM {vm_id}, which writes it"),
            Holder::Vm { vm_id, writes: false } => write!(f, "VM {vm_id}, which reads it"),
            Holder::Loop { number, under, .. } if under.is_empty() => f.write_str(&number.device()),
            Holder::Loop { number, under, .. } => write!(f, "{} under {}", number.device(), under.join(", ")),
            Holder::Device { name } => write!(f, "the device {name}"),
            Holder::Mount { at } => write!(f, "a mount at {}", shown(at)),
            Holder::Process { pid, name } => write!(f, "process {pid} ({})", shown(name)),
        }
    }
}

/// Holders as an error names them: the first few.
pub(crate) fn named(holders: &[Holder]) -> String {
    const MOST: usize = 4;
    let mut names: Vec<String> = holders.iter().take(MOST).map(ToString::to_string).collect();
    if holders.len() > MOST {
        names.push(format!("{} more", holders.len() - MOST));
    }
    names.join(", ")
}

/// Who holds a file, by its inode: VMs' drives, loop devices. To be asked under the file's lock.
pub(crate) fn of_file(host: &Host, file: Inode) -> Result<Vec<Holder>, Fail> {
    let mut holders = vms(host, file.dev, file.ino);
    holders.extend(loops::on(&[file])?.iter().map(of_loop));
    Ok(holders)
}

/// Refuses a file that a loop device is bound to. Whoever makes a snapshot looks for VMs that have its files, and binds
/// them, under the lock that is taken here: so a VM that claimed the file before this is seen there, or the device here.
pub(crate) fn is_under_no_device(host: &Host, dev: u64, ino: u64) -> Result<(), Fail> {
    let file = Inode { dev, ino };
    let _held = super::hold(host, file.lock_name(), "the file", LAUNCH)?;
    let loops: Vec<_> = loops::on(&[file])?.iter().map(of_loop).collect();
    if loops.is_empty() {
        return Ok(());
    }
    Err(Fail::new(format!("the file is in use: {} has it; end that first", named(&loops))))
}

/// A loop device as a holder of its file.
pub(super) fn of_loop(found: &loops::Found) -> Holder {
    let under = loops::standing_on(&found.name());
    let under = under.into_iter().map(|name| dm_name(&name).unwrap_or(name)).collect();
    Holder::Loop { number: found.number, is_read_only: found.bound.is_read_only, under }
}

/// The VMs that have a drive of that device and inode.
pub(super) fn vms(host: &Host, dev: u64, ino: u64) -> Vec<Holder> {
    let drives = host.vms.with_drive(dev, ino).into_iter();
    drives.map(|(vm_id, writes)| Holder::Vm { vm_id, writes }).collect()
}

/// Who holds the device `dev`, whose node is `/dev/<kernel_name>`: mounts, devices, processes, in every mount namespace.
/// It looks at every process, for an error that names them; the owner's can have mounts and files without number, so
/// not for longer than [`SEARCH`].
pub(crate) fn of_device(dev: u64, kernel_name: &str) -> Vec<Holder> {
    of_device_until(Instant::now() + SEARCH, dev, kernel_name)
}

fn of_device_until(end: Instant, dev: u64, kernel_name: &str) -> Vec<Holder> {
    let mut nodes = vec![format!("/dev/{kernel_name}")];
    nodes.extend(dm_name(kernel_name).map(|name| format!("/dev/mapper/{name}")));
    let mut holders: Vec<Holder> = Vec::new();
    for name in loops::standing_on(kernel_name) {
        holders.push(Holder::Device { name: dm_name(&name).unwrap_or(name) });
    }
    let (mut mounts, mut processes, mut namespaces) = (Vec::new(), Vec::new(), HashSet::new());
    for pid in pids() {
        if Instant::now() >= end {
            break;
        }
        let namespace = rustix::fs::readlink(format!("/proc/{pid}/ns/mnt"), Vec::new()).ok();
        if namespace.is_some_and(|namespace| namespaces.insert(namespace)) {
            mounts.extend(mounted(&read(&format!("/proc/{pid}/mountinfo")), dev, &nodes));
        }
        if has_open(pid, dev) {
            let name = read(&format!("/proc/{pid}/comm")).trim_end().to_owned();
            processes.push(Holder::Process { pid, name });
        }
    }
    mounts.dedup();
    holders.extend(mounts.into_iter().map(|at| Holder::Mount { at }));
    holders.extend(processes);
    holders
}

/// Whether a device is mounted in the helper's own mount namespace.
pub(super) fn is_mounted(dev: u64, kernel_name: &str) -> bool {
    !mounted(&read("/proc/self/mountinfo"), dev, &[format!("/dev/{kernel_name}")]).is_empty()
}

/// The name that a dm device was given, by the kernel's for it: `dm-3`.
pub(super) fn dm_name(kernel_name: &str) -> Option<String> {
    let text = read(&format!("/sys/devices/virtual/block/{kernel_name}/dm/name"));
    let name = text.trim_end();
    (!name.is_empty()).then(|| name.to_owned())
}

/// Where a device is mounted, by a text as proc_pid_mountinfo(5) says: the third field its number, the fifth the place,
/// behind the dash kind and source. A file system that numbers itself (btrfs) is known by its source.
fn mounted(mounts: &str, dev: u64, nodes: &[String]) -> Vec<String> {
    let number = format!("{}:{}", rustix::fs::major(dev), rustix::fs::minor(dev));
    let at = |line: &str| {
        let mut fields = line.split(' ');
        let of_it = fields.nth(2)? == number;
        let at = fields.nth(1)?;
        let source = fields.skip_while(|&field| field != "-").nth(2)?;
        (of_it || nodes.iter().any(|node| node == source)).then(|| at.to_owned())
    };
    mounts.lines().filter_map(at).collect()
}

fn pids() -> Vec<i32> {
    let names = Dir::open("/proc").and_then(|dir| dir.names()).unwrap_or_default();
    names.iter().filter_map(|name| name.parse().ok()).collect()
}

/// Whether a process has the block device open. No file system is asked: one may be a user's own, and never answer.
fn has_open(pid: i32, dev: u64) -> bool {
    let own = std::process::id().cast_signed();
    let dir = format!("/proc/{pid}/fd");
    let Ok(names) = Dir::open(&dir).and_then(|dir| dir.names()) else { return false };
    pid != own
        && names.iter().any(|name| {
            let asked = statx(CWD, format!("{dir}/{name}"), AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE);
            asked.is_ok_and(|facts| {
                let kind = rustix::fs::FileType::from_raw_mode(facts.stx_mode.into());
                kind == rustix::fs::FileType::BlockDevice
                    && rustix::fs::makedev(facts.stx_rdev_major, facts.stx_rdev_minor) == dev
            })
        })
}

fn read(path: &str) -> String {
    // Gone meanwhile, most likely: what it was says nothing any more.
    std::fs::read_to_string(path).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_by_number_and_by_source() {
        let text = "22 1 253:3 / /mnt/a rw shared:1 - ext4 /dev/mapper/fc-rootfs-a rw\n\
                    23 1 0:52 / /mnt/b rw - btrfs /dev/dm-3 rw\n\
                    24 1 253:4 / /mnt/c rw - ext4 /dev/mapper/fc-rootfs-b rw\n";
        let nodes = ["/dev/dm-3".to_owned(), "/dev/mapper/fc-rootfs-a".to_owned()];
        assert_eq!(mounted(text, rustix::fs::makedev(253, 3), &nodes), ["/mnt/a", "/mnt/b"]);
        assert!(mounted("", 1, &nodes).is_empty());
    }

    #[test]
    fn a_search_has_an_end() {
        let root = std::fs::metadata("/proc").unwrap();
        let dev = std::os::unix::fs::MetadataExt::dev(&root);
        let is_mount = |holder: &Holder| matches!(holder, Holder::Mount { .. });
        assert!(of_device(dev, "none").iter().any(is_mount));
        assert!(of_device_until(Instant::now(), dev, "none").is_empty());
    }

    #[test]
    fn names_have_an_end() {
        let many: Vec<Holder> = (0..9).map(|pid| Holder::Process { pid, name: "x\n".into() }).collect();
        let text = named(&many);
        assert!(text.ends_with("5 more") && !text.contains('\n'), "{text}");
    }
}
