//! A control group for each VM: what it may use is bounded, and what it forked ends with it.
//!
//! It lies in `banger` at the top of the hierarchy and not in the helper's own group: a VM outlives the helper, and a
//! service manager starts no helper into a group whose children have controllers. The second version where it has the
//! controllers, the first one otherwise. A machine where neither can be written (a container without delegation) has
//! VMs without one; the log says so at the launch.

use super::record::Record;
use crate::fail::Fail;
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::collections::HashSet;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};
use sys::dir::{CallError, Dir};
use sys::pidfd;

/// The group above all VMs'.
const PARENT: &str = "banger";
/// How long what was killed gets to leave its group.
const LEAVE_TIME: Duration = Duration::from_secs(5);
/// What a VMM needs beside its guest's memory and its page tables (an eighth is more than they take).
const VMM_MIB: u64 = 640;
/// QEMU without KVM keeps up to 1 GiB of translated code, whatever the guest's size.
const TRANSLATED_MIB: u64 = 1024;
/// Threads for devices, connections, drives; Firecracker has a dozen, QEMU some hundred.
const PIDS: u64 = 1024;
/// The weight of one vCPU: what a process has that nobody weighs.
const WEIGHT: u64 = 100;
const SHARES: u64 = 1024;

/// What a VM may use.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Its memory.
    pub(super) mib: u64,
    /// Its CPUs.
    pub(super) vcpus: u64,
    /// Whether its VMM may have to translate the guest's code.
    pub(super) translates: bool,
}

impl Bounds {
    fn bytes(self) -> u64 {
        let translated = if self.translates { TRANSLATED_MIB } else { 0 };
        (self.mib + self.mib / 8 + VMM_MIB + translated) << 20
    }

    /// The files of a group of the second version.
    fn unified(self) -> [(&'static str, String); 4] {
        [
            ("memory.max", self.bytes().to_string()),
            ("memory.swap.max", "max".to_owned()),
            ("pids.max", PIDS.to_string()),
            ("cpu.weight", (WEIGHT * self.vcpus).min(10_000).to_string()),
        ]
    }

    /// The files of a controller's group of the first version.
    fn of_controller(self, controller: &str) -> Vec<(&'static str, String)> {
        match controller {
            "memory" => vec![("memory.limit_in_bytes", self.bytes().to_string())],
            "pids" => vec![("pids.max", PIDS.to_string())],
            "cpu" => vec![("cpu.shares", (SHARES * self.vcpus).to_string())],
            _ => Vec::new(),
        }
    }
}

/// Controllers that are used, the first one most wanted.
const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];

/// Where control groups are on this machine: one place, or one for each controller.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Hierarchies {
    Unified(String),
    Each(Vec<(&'static str, String)>),
}

impl Hierarchies {
    fn find() -> Option<Hierarchies> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
        if let Some(at) = mount(&mounts, |kind, _| kind == "cgroup2") {
            let offered = Dir::open(&at).ok().and_then(|dir| read(&dir, "cgroup.controllers").ok()).unwrap_or_default();
            if CONTROLLERS[..2].iter().all(|wanted| offered.split_whitespace().any(|one| one == *wanted)) {
                return Some(Hierarchies::Unified(at));
            }
        }
        let of = |controller: &&'static str| {
            let has = |kind: &str, options: &str| kind == "cgroup" && options.split(',').any(|one| one == *controller);
            mount(&mounts, has).map(|at| (*controller, at))
        };
        let each: Vec<_> = CONTROLLERS.iter().filter_map(of).collect();
        (!each.is_empty()).then_some(Hierarchies::Each(each))
    }

    fn places(&self) -> Vec<&str> {
        match self {
            Hierarchies::Unified(at) => vec![at],
            Hierarchies::Each(each) => each.iter().map(|(_, at)| at.as_str()).collect(),
        }
    }
}

/// The name of a VM's group: no other VM's, of another helper on this machine neither.
pub(super) fn name(record: &Record) -> String {
    format!("{}.{}.{}", record.vm_id, record.process.pid, record.process.start_time)
}

/// Makes the group `name` of a VM and moves the process into it.
pub(super) fn enter(name: &str, pid: i32, bounds: Bounds) -> Result<(), Fail> {
    let failed = |error: String| Fail::new("the VM gets no control group").because(error);
    let hierarchies = Hierarchies::find().ok_or_else(|| failed("no hierarchy is mounted".into()))?;
    let entered = match &hierarchies {
        Hierarchies::Unified(at) => enter_unified(at, name, pid, bounds),
        Hierarchies::Each(each) => {
            each.iter().try_for_each(|(controller, at)| enter_one(controller, at, name, pid, bounds))
        }
    };
    entered.map_err(|error| failed(error.to_string()))
}

fn enter_unified(at: &str, name: &str, pid: i32, bounds: Bounds) -> Result<(), CallError> {
    let top = Dir::open(at)?;
    let parent = make(&top, PARENT)?;
    for dir in [&top, &parent] {
        for controller in CONTROLLERS {
            // Refused where processes are beside the groups (a container's own top): the bound's file is missing then.
            let _ = write(dir, "cgroup.subtree_control", &format!("+{controller}"));
        }
    }
    let group = make(&parent, name)?;
    // First: what a VMM forks is to end with it, bounded or not.
    write(&group, "cgroup.procs", &pid.to_string())?;
    for (file, value) in bounds.unified() {
        match write(&group, file, &value) {
            // A machine without swap has no such file.
            Err(error) if error.is_missing() && file == "memory.swap.max" => {}
            other => other?,
        }
    }
    Ok(())
}

fn enter_one(controller: &str, at: &str, name: &str, pid: i32, bounds: Bounds) -> Result<(), CallError> {
    let group = make(&make(&Dir::open(at)?, PARENT)?, name)?;
    for (file, value) in bounds.of_controller(controller) {
        set(&group, file, &value)?;
    }
    write(&group, "cgroup.procs", &pid.to_string())
}

/// Ends what is still in a VM's group, and takes the group away. Success where there is none.
pub(super) fn remove(name: &str) -> Result<(), Fail> {
    let Some(hierarchies) = Hierarchies::find() else { return Ok(()) };
    let failed = |error: CallError| Fail::new("the VM's control group can't be removed").because(error);
    let until = Instant::now() + LEAVE_TIME;
    let mut parents = Vec::new();
    for at in hierarchies.places() {
        match Dir::open(at).and_then(|top| top.dir(PARENT)) {
            Ok(parent) => parents.push(parent),
            Err(error) if error.is_missing() => {}
            Err(error) => return Err(failed(error)),
        }
    }
    // Before anything is killed: what forks without end forks no more.
    for group in parents.iter().filter_map(|parent| parent.dir(name).ok()) {
        set(&group, "pids.max", "0").map_err(failed)?;
    }
    parents.iter().try_for_each(|parent| remove_from(parent, name, until)).map_err(failed)
}

fn remove_from(parent: &Dir, name: &str, until: Instant) -> Result<(), CallError> {
    let mut pause = Duration::from_micros(200);
    loop {
        match parent.remove_dir(name) {
            Err(error) if error.errno() == Errno::BUSY && Instant::now() < until => {}
            other => return other.map(|_| ()),
        }
        match parent.dir(name).and_then(|group| kill(&group)) {
            Err(error) if !error.is_missing() => return Err(error),
            _ => {}
        }
        #[allow(
            clippy::disallowed_methods,
            reason = "the kernel tells nobody that a group of the first version is empty"
        )]
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// Kills every process of a group: by the kernel at once, or, where it can't, each that is in it.
fn kill(group: &Dir) -> Result<(), CallError> {
    match write(group, "cgroup.kill", "1") {
        Err(error) if error.is_missing() => {}
        other => return other,
    }
    let members = || -> Result<Vec<i32>, CallError> {
        Ok(read(group, "cgroup.procs")?.lines().filter_map(|line| line.parse().ok()).collect())
    };
    // One that has gone meanwhile is what was wanted. A number can be taken again in between: so all are opened, and
    // looked for in the group once more.
    let opened: Vec<_> = members()?.into_iter().filter_map(|pid| Some((pid, pidfd::open(pid).ok()?))).collect();
    let still: HashSet<i32> = members()?.into_iter().collect();
    for (_, process) in opened.iter().filter(|(pid, _)| still.contains(pid)) {
        let _ = process.send_signal(libc::SIGKILL);
    }
    Ok(())
}

fn make(above: &Dir, name: &str) -> Result<Dir, CallError> {
    match above.dir(name) {
        Err(error) if error.is_missing() => {}
        other => return other,
    }
    match above.make_dir(name, 0o755) {
        Err(error) if error.errno() == Errno::EXIST => above.dir(name),
        other => other,
    }
}

/// A bound; one that this kernel doesn't know is not there to be set.
fn set(group: &Dir, file: &str, value: &str) -> Result<(), CallError> {
    match write(group, file, value) {
        Err(error) if error.is_missing() => Ok(()),
        other => other,
    }
}

fn write(dir: &Dir, file: &str, value: &str) -> Result<(), CallError> {
    let open = dir.open_at(file, OFlags::WRONLY, 0)?;
    File::from(open).write_all(value.as_bytes()).map_err(|error| told(dir, "write", file, &error))
}

fn read(dir: &Dir, file: &str) -> Result<String, CallError> {
    let mut text = String::new();
    let open = dir.open_at(file, OFlags::RDONLY, 0)?;
    File::from(open).take(1 << 20).read_to_string(&mut text).map_err(|error| told(dir, "read", file, &error))?;
    Ok(text)
}

fn told(dir: &Dir, call: &str, file: &str, error: &std::io::Error) -> CallError {
    let errno = error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error);
    CallError::new(format!("{call}({}/{file})", dir.path()), errno)
}

/// Where the first mount is that `fits` its file system and its super block's options; proc_pid_mountinfo(5).
fn mount(mounts: &str, fits: impl Fn(&str, &str) -> bool) -> Option<String> {
    mounts.lines().find_map(|line| {
        let (mount, system) = line.split_once(" - ")?;
        let mut system = system.split(' ');
        let (kind, options) = (system.next()?, system.nth(1)?);
        fits(kind, options).then(|| mount.split(' ').nth(4).map(str::to_owned))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_found_by_the_kernels_table() {
        let mounts = "31 29 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                      32 29 0:28 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n";
        assert_eq!(mount(mounts, |kind, _| kind == "cgroup2").unwrap(), "/sys/fs/cgroup/unified");
        assert_eq!(mount(mounts, |_, options| options.contains("memory")).unwrap(), "/sys/fs/cgroup/memory");
    }

    #[test]
    fn bounds_leave_the_vmm_room() {
        let bounds = Bounds { mib: 256, vcpus: 2, translates: false };
        assert_eq!(bounds.bytes(), (256 + 32 + 640) << 20);
        assert_eq!(Bounds { translates: true, ..bounds }.bytes(), (256 + 32 + 640 + 1024) << 20);
        assert!(bounds.unified().contains(&("cpu.weight", "200".into())));
    }

    #[test]
    fn a_process_enters_and_goes_with_its_group() {
        let name = format!("test-{}", std::process::id());
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        enter(&name, child.id().cast_signed(), Bounds { mib: 64, vcpus: 1, translates: false }).unwrap();
        let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", child.id())).unwrap();
        assert!(groups.contains(&format!("/banger/{name}")), "{groups}");
        remove(&name).unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&child.wait().unwrap()), Some(libc::SIGKILL));
        remove(&name).unwrap();
    }
}
