//! The jail: steps in the only order that works.
//!
//! The directory `BASE/NAME/ID/root` is root's until the step before the last, and all above it for ever: nobody can
//! put anything in its way. All is done in a mount namespace of this process's own, so that the machine has no mount of
//! it; what a starter mounted below the directory, in a namespace that it made, is seen inside.

use crate::args::{self, Args};
use crate::program::Program;
use crate::user;
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid, chownat, makedev, mkdirat, mknodat};
use rustix::io::Errno;
use rustix::process::{Pid, umask};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use rustix::time::{ClockId, clock_gettime};
use std::ffi::CString;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt as _;
use sys::dir::{CallError, Dir, Facts};
use sys::fork::{self, Side};
use sys::mount::{self, Forbids, Tree};
use sys::trusted;

/// Of the devices' file system, which holds names and nothing else.
const DEVICES_BYTES: u64 = 64 << 10;
/// The numbers that Linux gives them for ever (devices.txt). One that this kernel lacks can't be opened.
const DEVICES: [(&str, u32, u32); 3] = [("kvm", 10, 232), ("net/tun", 10, 200), ("urandom", 1, 9)];
const MISC_MAJOR: u32 = 10;

/// Makes the jail and becomes the VMM in it, to which `passed` is left. Returns where a child does that, and this process
/// has no more to do.
pub(crate) fn run(args: &Args, passed: &[OwnedFd]) -> Result<(), String> {
    if args.inherit && rustix::process::getpid() != Pid::INIT {
        return Err("--inherit: this process is not the first one of a PID namespace".into());
    }
    umask(Mode::from_raw_mode(0o077));
    let started = microseconds(ClockId::Monotonic);
    if let Some(path) = &args.netns {
        join_netns(path)?;
    }
    mount::own_namespace().map_err(told)?;
    let jail = Jail::make(args, passed, started)?;
    args.limits.apply()?;
    args.cgroup.enter(&args.id)?;
    if args.daemonize && !become_daemon()? {
        return Ok(());
    }
    if args.new_pid_ns {
        return jail.enter_behind_a_fork();
    }
    jail.write_pid(machines_pid())?;
    jail.enter()
}

/// This process's number as the machine's `/proc` has it: in a PID namespace of a starter's it has another one here.
fn machines_pid() -> Pid {
    let told = rustix::fs::readlink("/proc/self", Vec::new()).ok();
    let told = told.and_then(|link| link.to_str().ok()?.parse().ok()).and_then(Pid::from_raw);
    told.unwrap_or_else(rustix::process::getpid)
}

/// A jail whose directory is furnished.
struct Jail<'a> {
    args: &'a Args,
    name: &'a str,
    root: Dir,
    program: Program,
    passed: &'a [OwnedFd],
    started: i64,
}

impl<'a> Jail<'a> {
    fn make(args: &'a Args, passed: &'a [OwnedFd], started: i64) -> Result<Jail<'a>, String> {
        let program = Program::open(&args.exec_file)?;
        let name = args::name_of(&args.exec_file);
        let root = root_dir(args, name)?;
        let jail = Jail { args, name, root, program, passed, started };
        jail.devices()?;
        jail.make_run()?;
        if args.inherit {
            let place = jail.folder("proc", 0o555)?;
            let place = place.open_at(".", OFlags::PATH, 0).map_err(told)?;
            Tree::processes().and_then(|processes| processes.put_on(place)).map_err(told)?;
        }
        // The program itself, not a copy: nobody can write it, and its pages are there once for all VMs.
        let entry = jail.fresh(name, OFlags::RDONLY, 0o444)?;
        let program = Tree::copy(&jail.program.file).map_err(told)?;
        program.restrict(Forbids { writes: true, devices: true, programs: false }).map_err(told)?;
        program.put_on(&entry).map_err(told)?;
        Ok(jail)
    }

    /// A new file in the root.
    fn fresh(&self, name: &str, flags: OFlags, mode: u32) -> Result<OwnedFd, String> {
        self.root.open_at(name, flags | OFlags::CREATE | OFlags::EXCL, mode).map_err(|error| match error.errno() {
            Errno::EXIST => {
                format!("{}/{name} is there already: take the jail that it is of away first", self.root.path())
            }
            _ => error.to_string(),
        })
    }

    /// `/dev`: a file system in memory, so that no device node ever lies on the machine's disk.
    fn devices(&self) -> Result<(), String> {
        let place = self.folder("dev", 0o755)?;
        let devices = Tree::in_memory(DEVICES_BYTES, 0o755, Forbids { programs: true, ..Forbids::default() });
        let devices = devices.map_err(told)?;
        mkdirat(&devices, "net", Mode::from_raw_mode(0o755)).map_err(|errno| format!("mkdirat(dev/net): {errno}"))?;
        // The umask holds for the folder above.
        rustix::fs::chmodat(&devices, "net", Mode::from_raw_mode(0o755), AtFlags::empty())
            .map_err(|errno| format!("fchmodat(dev/net): {errno}"))?;
        let userfaultfd = userfaultfd_minor().map(|minor| ("userfaultfd", MISC_MAJOR, minor));
        for (name, major, minor) in DEVICES.into_iter().chain(userfaultfd) {
            mknodat(&devices, name, FileType::CharacterDevice, Mode::from_raw_mode(0o600), makedev(major, minor))
                .map_err(|errno| format!("mknodat(dev/{name}): {errno}"))?;
            chownat(&devices, name, Some(self.uid()), Some(self.gid()), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|errno| format!("fchownat(dev/{name}): {errno}"))?;
        }
        // For everybody, as it is everywhere. The umask has a say in the node's first mode.
        mknodat(&devices, "null", FileType::CharacterDevice, Mode::from_raw_mode(0o666), makedev(1, 3))
            .map_err(|errno| format!("mknodat(dev/null): {errno}"))?;
        rustix::fs::chmodat(&devices, "null", Mode::from_raw_mode(0o666), AtFlags::empty())
            .map_err(|errno| format!("fchmodat(dev/null): {errno}"))?;
        devices.put_on(&place.open_at(".", OFlags::PATH, 0).map_err(told)?).map_err(told)
    }

    /// `/run`, where Firecracker puts its socket unless told otherwise.
    fn make_run(&self) -> Result<(), String> {
        self.folder("run", 0o700)?.set_owner(self.args.uid, self.args.gid).map_err(told)
    }

    /// A folder in the root, new or prepared by root.
    fn folder(&self, name: &str, mode: u32) -> Result<Dir, String> {
        let there = self.root.enter_or_make(name, mode).map_err(told)?;
        if Facts::of(there.open_at(".", OFlags::PATH, 0).map_err(told)?).map_err(told)?.uid != 0 {
            return Err(format!("{} is not root's: take the jail that it is of away first", there.path()));
        }
        Ok(there)
    }

    fn write_pid(&self, pid: Pid) -> Result<(), String> {
        let name = format!("{}.pid", self.name);
        let file = self.fresh(&name, OFlags::WRONLY, 0o644)?;
        // The umask is the VMM's, not this file's: whoever looks after the VM reads it.
        rustix::fs::fchmod(&file, Mode::from_raw_mode(0o644)).map_err(|errno| format!("fchmod({name}): {errno}"))?;
        write!(File::from(file), "{}", pid.as_raw_nonzero()).map_err(|error| format!("write({name}): {error}"))
    }

    /// Enters in a child that is the first process of a PID namespace. It waits for its pid to be written down: behind
    /// that the directory is another's.
    fn enter_behind_a_fork(&self) -> Result<(), String> {
        let (gate, opener) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|errno| format!("pipe2: {errno}"))?;
        match fork::alone(true).map_err(|error| format!("clone3(CLONE_NEWPID): {error}"))? {
            Side::Parent(child) => {
                drop(gate);
                self.write_pid(child)?;
                File::from(opener).write_all(b"g").map_err(|error| format!("write to the child: {error}"))
            }
            Side::Child => {
                drop(opener);
                let mut word = [0];
                File::from(gate).read_exact(&mut word).map_err(|_| "its pid could not be written down".to_owned())?;
                self.enter()
            }
        }
    }

    /// Enters the root, gives it away, gives up all rights and executes the program: returns with an error or not at all.
    fn enter(&self) -> Result<(), String> {
        let root = Tree::copy_whole(self.root.open_at(".", OFlags::PATH, 0).map_err(told)?).map_err(told)?;
        // The VMM executes nothing that it wrote itself, and opens no device but those of its `/dev`.
        root.restrict(Forbids { programs: true, devices: true, writes: false }).map_err(told)?;
        root.put_on(mount::place(self.root.path()).map_err(told)?).map_err(told)?;
        mount::enter(&root).map_err(told)?;
        let at = format!("/{}", self.name);
        let entry = mount::place(&at).map_err(told)?;
        if !Facts::of(&entry).map_err(told)?.is_same_file(&self.program.facts) {
            return Err(format!("{at} in the jail is not the program that was checked"));
        }
        Dir::open("/").and_then(|root| root.set_owner(self.args.uid, self.args.gid)).map_err(told)?;
        let argv = self.argv(&at)?;
        for fd in self.passed {
            rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())
                .map_err(|errno| format!("fcntl(F_SETFD) of what was passed: {errno}"))?;
        }
        user::become_for_good(self.args.uid, self.args.gid)?;
        let Err(error) = sys::exec::by_descriptor(&entry, &argv);
        Err(format!("{at} can't be executed in its jail: {error}"))
    }

    /// What Firecracker's jailer tells its VMM, then what was asked for.
    fn argv(&self, at: &str) -> Result<Vec<CString>, String> {
        let cpu = microseconds(ClockId::ProcessCPUTime).to_string();
        let ours = [
            at.to_owned(),
            "--id".into(),
            self.args.id.clone(),
            "--start-time-us".into(),
            self.started.to_string(),
            "--start-time-cpu-us".into(),
            cpu.clone(),
            "--parent-cpu-time-us".into(),
            cpu,
        ];
        let words = ours.into_iter().map(String::into_bytes);
        let rest = self.args.rest.iter().map(|word| word.clone().into_vec());
        words.chain(rest).map(|word| CString::new(word).map_err(|_| "an argument has a NUL in it".into())).collect()
    }

    fn uid(&self) -> Uid {
        Uid::from_raw(self.args.uid)
    }

    fn gid(&self) -> Gid {
        Gid::from_raw(self.args.gid)
    }
}

fn told(error: CallError) -> String {
    error.to_string()
}

/// `BASE/NAME/ID/root`, made where it is missing. By whole paths: each directory on the way is root's alone.
fn root_dir(args: &Args, name: &str) -> Result<Dir, String> {
    let mut path = args.base.clone();
    let mut dir = trusted::dir(&path)?;
    for (part, mode) in [(name, 0o711), (args.id.as_str(), 0o711), ("root", 0o700)] {
        path = format!("{path}/{part}");
        match dir.enter_or_make(part, mode) {
            Ok(_) => {}
            // A starter has mounted something on it.
            Err(error) if error.is_crossing() => {}
            Err(error) => return Err(told(error)),
        }
        dir = trusted::dir(&path)?;
    }
    Ok(dir)
}

/// The number of `userfaultfd` among the kernel's devices of many drivers, where it has one.
fn userfaultfd_minor() -> Option<u32> {
    let devices = std::fs::read_to_string("/proc/misc").ok()?;
    devices.lines().find_map(|line| line.trim().strip_suffix(" userfaultfd")?.trim().parse().ok())
}

fn join_netns(path: &str) -> Result<(), String> {
    let file = mount::open_read(path).map_err(|error| format!("--netns: {error}"))?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
        .map_err(|errno| format!("--netns: {path} is no network namespace: setns: {errno}"))
}

/// A session of its own, and `/dev/null` for the three streams. False in a process that has a child for that.
fn become_daemon() -> Result<bool, String> {
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| format!("open(/dev/null): {errno}"))?;
    // A leader of a group makes no session: so a child does; and its own child, which leads none, gets no terminal.
    for is_leader in [true, false] {
        if fork::alone(false).map_err(|error| format!("clone3: {error}"))? != Side::Child {
            return Ok(false);
        }
        if is_leader {
            rustix::process::setsid().map_err(|errno| format!("setsid: {errno}"))?;
        }
    }
    let streams = [rustix::stdio::dup2_stdin, rustix::stdio::dup2_stdout, rustix::stdio::dup2_stderr];
    streams.into_iter().try_for_each(|dup| dup(&null).map_err(|errno| format!("dup2: {errno}"))).map(|()| true)
}

fn microseconds(clock: ClockId) -> i64 {
    let now = clock_gettime(clock);
    now.tv_sec * 1_000_000 + now.tv_nsec / 1000
}
