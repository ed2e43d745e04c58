//! A control group for each VM: what it may use is bounded, and what it forked ends with it.
//!
//! It lies in `banger` at the top of the hierarchy and not in the helper's own group: a VM outlives the helper, and a
//! service manager starts no helper into a group whose children have controllers. The second version where it has the
//! controllers, the first one otherwise. A machine where neither can be written (a container without delegation) has
//! VMs without one; the log says so at the launch.

use crate::fail::Fail;
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};
use sys::cgroup::{Mounts, read, write};
use sys::dir::{CallError, Dir};
use sys::pidfd::{self, PidFd};
use sys::spawn::{self, Groups, Held, Plan};
use wire::name::vm_id::VmId;

/// The group above all VMs'.
const PARENT: &str = "banger";
/// How long what was killed gets to leave its group: it frees its memory first, where a hundred do at once.
const LEAVE_TIME: Duration = Duration::from_secs(30);
/// How long who was killed is waited for before a group is looked at again.
const END_TIME: Duration = Duration::from_secs(1);
/// How long a group gets to stand still. A process that waits for a disk takes its time; it is killed all the same.
const FREEZE_TIME: Duration = Duration::from_millis(100);
/// What a VMM needs beside its guest's memory and its page tables (an eighth is more than they take).
const VMM_MIB: u64 = 640;
/// QEMU without KVM keeps up to 1 GiB of translated code, whatever the guest's size.
const TRANSLATED_MIB: u64 = 1024;
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
    /// Its processes and threads.
    pub(super) processes: usize,
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
            ("pids.max", self.processes.to_string()),
            ("cpu.weight", (WEIGHT * self.vcpus).min(10_000).to_string()),
        ]
    }

    /// The files of a controller's group of the first version.
    fn of_controller(self, controller: &str) -> Vec<(&'static str, String)> {
        match controller {
            "memory" => vec![("memory.limit_in_bytes", self.bytes().to_string())],
            "pids" => vec![("pids.max", self.processes.to_string())],
            "cpu" => vec![("cpu.shares", (SHARES * self.vcpus).to_string())],
            _ => Vec::new(),
        }
    }
}

/// Controllers that are used, the first one most wanted.
const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];
/// What stops all of a group at once: in the second version every group can be, in the first it is a controller.
const FREEZER: &str = "freezer";

/// Where control groups are on this machine: one place, or one for each controller.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Hierarchies {
    Unified(String),
    Each(Vec<(&'static str, String)>),
}

impl Hierarchies {
    fn find() -> Option<Hierarchies> {
        let mounts = Mounts::read().ok()?;
        if let Some(at) = mounts.unified() {
            let offered = Dir::open(&at).ok().and_then(|dir| read(&dir, "cgroup.controllers").ok()).unwrap_or_default();
            if CONTROLLERS[..2].iter().all(|wanted| offered.split_whitespace().any(|one| one == *wanted)) {
                return Some(Hierarchies::Unified(at));
            }
        }
        let of = |controller: &&'static str| mounts.of_controller(controller).map(|at| (*controller, at));
        // The freezer first: when its group has gone, nobody is left in the others.
        let each: Vec<_> = [FREEZER].iter().chain(&CONTROLLERS).filter_map(of).collect();
        (!each.is_empty()).then_some(Hierarchies::Each(each))
    }

    fn places(&self) -> Vec<&str> {
        match self {
            Hierarchies::Unified(at) => vec![at],
            Hierarchies::Each(each) => each.iter().map(|(_, at)| at.as_str()).collect(),
        }
    }
}

/// The name of a VM's new group: no other VM's, of another helper on this machine neither.
pub(super) fn name(vm_id: &VmId) -> String {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    format!("{vm_id}.{}.{}", std::process::id(), now.tv_sec * 1_000_000_000 + now.tv_nsec)
}

/// A VM's group. Its VMM is in it before it runs.
pub(super) enum Group {
    Unified(Dir),
    /// One in each controller's hierarchy.
    Each(Vec<(&'static str, Dir)>),
}

impl Group {
    /// Makes the group `name`, which nobody has.
    pub(super) fn make(name: &str) -> Result<Group, Fail> {
        let failed = |error: String| Fail::new("the VM gets no control group").because(error);
        let hierarchies = Hierarchies::find().ok_or_else(|| failed("no hierarchy is mounted".into()))?;
        let made = match &hierarchies {
            Hierarchies::Unified(at) => make_unified(at, name).map(Group::Unified),
            Hierarchies::Each(each) => {
                let one = |(controller, at): &(&'static str, String)| {
                    let parent = Dir::open(at)?.enter_or_make(PARENT, 0o755)?;
                    Ok((*controller, parent.make_dir(name, 0o755)?))
                };
                each.iter().map(one).collect::<Result<_, CallError>>().map(Group::Each)
            }
        };
        made.map_err(|error| failed(error.to_string()))
    }

    /// Bounds what is in it.
    pub(super) fn bound(&self, bounds: Bounds) -> Result<(), Fail> {
        let done = match self {
            Group::Unified(group) => bounds.unified().into_iter().try_for_each(|(file, value)| {
                match write(group, file, &value) {
                    // A machine without swap has no such file.
                    Err(error) if error.is_missing() && file == "memory.swap.max" => Ok(()),
                    other => other,
                }
            }),
            Group::Each(each) => each.iter().try_for_each(|(controller, group)| {
                bounds.of_controller(controller).into_iter().try_for_each(|(file, value)| set(group, file, &value))
            }),
        };
        done.map_err(|error| Fail::new("the VM's control group has not all of its bounds").because(error))
    }

    /// Forks the child of `plan` into it.
    pub(super) fn hold(&self, plan: &Plan<'_>) -> Result<Held, String> {
        let tasks = match self {
            Group::Unified(_) => Vec::new(),
            Group::Each(each) => {
                let tasks = each.iter().map(|(_, group)| group.open_at("tasks", OFlags::WRONLY, 0));
                tasks.collect::<Result<Vec<OwnedFd>, CallError>>().map_err(|error| error.to_string())?
            }
        };
        let tasks: Vec<_> = tasks.iter().map(AsFd::as_fd).collect();
        let groups = match self {
            Group::Unified(group) => Groups::Unified(group.as_fd()),
            Group::Each(_) => Groups::Each(&tasks),
        };
        spawn::hold(&Plan { groups, ..*plan }).map_err(|error| error.to_string())
    }
}

fn make_unified(at: &str, name: &str) -> Result<Dir, CallError> {
    let top = Dir::open(at)?;
    let parent = top.enter_or_make(PARENT, 0o755)?;
    for dir in [&top, &parent] {
        for controller in CONTROLLERS {
            // Refused where processes are beside the groups (a container's own top): the bound's file is missing then.
            let _ = write(dir, "cgroup.subtree_control", &format!("+{controller}"));
        }
    }
    parent.make_dir(name, 0o755)
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
    // Before anything is killed: what forks without end forks no more, also where nothing freezes it.
    for group in parents.iter().filter_map(|parent| parent.dir(name).ok()) {
        set(&group, "pids.max", "0").map_err(failed)?;
    }
    parents.iter().try_for_each(|parent| remove_from(parent, name, until)).map_err(failed)
}

fn remove_from(parent: &Dir, name: &str, until: Instant) -> Result<(), CallError> {
    let mut pause = Duration::from_micros(200);
    // Who ends already, as QEMU does with its front-end, has only to be waited for: it would not stand still any more.
    let mut is_whole = false;
    loop {
        match parent.remove_dir(name) {
            Err(error) if error.errno() == Errno::BUSY && Instant::now() < until => {}
            other => return other.map(|_| ()),
        }
        match parent.dir(name).and_then(|group| if is_whole { kill(&group) } else { kill_each(&group) }) {
            Ok(killed) => wait_ends(&killed, until.min(Instant::now() + END_TIME)),
            Err(error) if !error.is_missing() => return Err(error),
            Err(_) => {}
        }
        is_whole = true;
        #[allow(
            clippy::disallowed_methods,
            reason = "the kernel tells nobody that a group of the first version is empty"
        )]
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// Waits for the ends of those that were killed.
fn wait_ends(killed: &[PidFd], until: Instant) {
    for process in killed {
        process.wait_end(until.saturating_duration_since(Instant::now()));
    }
}

/// Kills every process of a group: by the kernel at once, or, where it can't, each that is in it while all stand still.
fn kill(group: &Dir) -> Result<Vec<PidFd>, CallError> {
    match write(group, "cgroup.kill", "1") {
        Ok(()) => open_each(group),
        Err(error) if error.is_missing() => kill_frozen(group),
        Err(error) => Err(error),
    }
}

/// How a group is stopped: the file that says so, its two values, and where it tells that all stand still.
struct Freezer {
    file: &'static str,
    stop: &'static str,
    go: &'static str,
    state: &'static str,
    stands: &'static str,
}

const FREEZERS: [Freezer; 2] = [
    Freezer { file: "cgroup.freeze", stop: "1", go: "0", state: "cgroup.events", stands: "frozen 1" },
    Freezer { file: "freezer.state", stop: "FROZEN", go: "THAWED", state: "freezer.state", stands: "FROZEN" },
];

/// Kills each process of a group. What stands still forks nothing; who is killed by then dies when all may go on. A group
/// that a helper's death leaves standing is the next one's to end.
fn kill_frozen(group: &Dir) -> Result<Vec<PidFd>, CallError> {
    let frozen = freeze(group)?;
    let killed = kill_each(group);
    frozen.map_or(Ok(()), |freezer| write(group, freezer.file, freezer.go)).and(killed)
}

/// Has all of a group stand still, or most, where one takes too long. `None` where this group can't be stopped.
fn freeze(group: &Dir) -> Result<Option<&'static Freezer>, CallError> {
    for freezer in &FREEZERS {
        match write(group, freezer.file, freezer.stop) {
            Err(error) if error.is_missing() => continue,
            stopped => stopped?,
        }
        let until = Instant::now() + FREEZE_TIME;
        while !read(group, freezer.state)?.lines().any(|line| line == freezer.stands) && Instant::now() < until {
            #[allow(clippy::disallowed_methods, reason = "the kernel tells nobody that a group stands still")]
            std::thread::sleep(Duration::from_micros(200));
        }
        return Ok(Some(freezer));
    }
    Ok(None)
}

/// Kills those that are in a group now.
fn kill_each(group: &Dir) -> Result<Vec<PidFd>, CallError> {
    let members = open_each(group)?;
    for process in &members {
        let _ = process.send_signal(libc::SIGKILL);
    }
    Ok(members)
}

/// Those that are in a group now. One that has gone meanwhile is what was wanted.
fn open_each(group: &Dir) -> Result<Vec<PidFd>, CallError> {
    let members = || -> Result<Vec<i32>, CallError> {
        Ok(read(group, "cgroup.procs")?.lines().filter_map(|line| line.parse().ok()).collect())
    };
    // A number can be taken again in between: so all are opened, and looked for in the group once more.
    let opened: Vec<_> = members()?.into_iter().filter_map(|pid| pidfd::open(pid).ok()).collect();
    let still: HashSet<i32> = members()?.into_iter().collect();
    Ok(opened.into_iter().filter(|process| still.contains(&process.pid())).collect())
}

/// A bound; one that this kernel doesn't know is not there to be set.
fn set(group: &Dir, file: &str, value: &str) -> Result<(), CallError> {
    match write(group, file, value) {
        Err(error) if error.is_missing() => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_leave_the_vmm_room() {
        let bounds = Bounds { mib: 256, vcpus: 2, processes: 1024, translates: false };
        assert_eq!(bounds.bytes(), (256 + 32 + 640) << 20);
        assert_eq!(Bounds { translates: true, ..bounds }.bytes(), (256 + 32 + 640 + 1024) << 20);
        assert!(bounds.unified().contains(&("cpu.weight", "200".into())));
    }

    fn held(group: &Group, program: &str, argv: &[&std::ffi::CStr]) -> Held {
        let program = std::fs::File::open(program).unwrap();
        let null = std::fs::File::options().read(true).write(true).open("/dev/null").unwrap();
        let argv: Vec<std::ffi::CString> = argv.iter().map(|word| (*word).to_owned()).collect();
        let plan = Plan {
            program: program.as_fd(),
            is_script: false,
            argv: &argv,
            user: None,
            input: null.as_fd(),
            output: null.as_fd(),
            passed: null.as_fd(),
            open_files: 64,
            oom_score_adj: c"0",
            new_pid_namespace: false,
            groups: Groups::Same,
        };
        group.hold(&plan).unwrap()
    }

    /// What is one process at each moment and another one at the next: whoever reads a list of them comes too late. No
    /// bound for processes hinders it here.
    #[test]
    fn a_process_that_forks_away_is_caught_where_it_is_frozen() {
        const CHAIN: &std::ffi::CStr = c"$until = time + 20; while (time < $until) { exit if fork }";
        let mounts = Mounts::read().unwrap();
        let places = [(mounts.unified(), "cgroup.freeze"), (mounts.of_controller(FREEZER), "freezer.state")];
        let places: Vec<_> = places.into_iter().filter_map(|(at, file)| Some((at?, file))).collect();
        assert!(!places.is_empty(), "no control groups here");
        for (at, file) in places {
            let name = name(&VmId::new("chain").unwrap());
            let parent = Dir::open(&at).unwrap().enter_or_make(PARENT, 0o755).unwrap();
            let dir = parent.make_dir(&name, 0o755).unwrap();
            let group = match file {
                "cgroup.freeze" => Group::Unified(parent.dir(&name).unwrap()),
                _ => Group::Each(vec![(FREEZER, parent.dir(&name).unwrap())]),
            };
            let held = held(&group, "/usr/bin/perl", &[c"perl", c"-e", CHAIN]);
            let first = format!("{}\n", held.pid());
            let first_ended = held.release(Duration::from_secs(10)).unwrap();
            let members = || read(&dir, "cgroup.procs").unwrap();
            let until = Instant::now() + Duration::from_secs(10);
            while members() == first && Instant::now() < until {
                std::thread::yield_now();
            }
            // As a helper leaves it that is killed here.
            freeze(&dir).unwrap();
            let standing = members();
            for _ in 0..2000 {
                assert_eq!(members(), standing, "{file}");
            }
            kill_frozen(&dir).unwrap();
            let killed = Instant::now();
            while !members().is_empty() {
                assert!(killed.elapsed() < Duration::from_secs(10), "{file}: {} is there still", members().trim());
                std::thread::yield_now();
            }
            let ended = rustix::process::WaitId::PidFd(first_ended.as_fd());
            rustix::process::waitid(ended, rustix::process::WaitIdOptions::EXITED).unwrap();
            remove_from(&parent, &name, Instant::now() + LEAVE_TIME).unwrap();
        }
    }

    #[test]
    fn a_process_is_forked_into_a_group_and_goes_with_it() {
        let name = name(&VmId::new("test").unwrap());
        let group = Group::make(&name).unwrap();
        group.bound(Bounds { mib: 64, vcpus: 1, processes: 1024, translates: false }).unwrap();
        assert!(Group::make(&name).is_err(), "its name is its own");
        let held = held(&group, "/bin/sleep", &[c"sleep", c"600"]);
        let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", held.pid())).unwrap();
        let is_in = |line: &&str| line.ends_with(&format!("/banger/{name}"));
        assert_eq!(
            groups.lines().filter(is_in).count(),
            if let Group::Each(each) = &group { each.len() } else { 1 },
            "{groups}"
        );
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        assert!(!own.contains(&name), "{own}");
        let sleep = held.release(Duration::from_secs(10)).unwrap();
        remove(&name).unwrap();
        let ended = rustix::process::WaitId::PidFd(sleep.as_fd());
        let status = rustix::process::waitid(ended, rustix::process::WaitIdOptions::EXITED).unwrap().unwrap();
        assert_eq!(status.terminating_signal(), Some(libc::SIGKILL));
        remove(&name).unwrap();
    }
}
