//! The part inside: places of its own, the helper, the daemon, and the VM.

use super::{Inside, PROGRAMS, code_of};
use crate::cli::output::ours;
use crate::cli::problem::Problem;
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, mount, mount_bind};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Root's own, in the `/run` of the namespace.
const HOME: &str = "/run/banger-try";
const STATE: &str = "/var/lib/banger";
const RUNTIME: &str = "/run/banger";
const HELPER: &str = "/run/banger-root/bangerd-root.sock";
const DAEMON: &str = "/run/banger/bangerd.sock";
/// The first of the subordinate users of an account that exists in there alone: above what systemd gives to containers.
const SUBORDINATE: u32 = 1_900_000_000;
/// How long either of them may take to listen, and to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs the inner part; its exit status is the command's.
pub(crate) fn run(wanted: &Inside) -> Result<u8, Problem> {
    // The outer part has signals blocked, and children inherit that.
    sys::sigwait::block(&[])
        .map(drop)
        .map_err(failed("unblocking signals"))
        .and_then(|()| places(wanted))
        .and_then(|()| with_daemons(wanted))
}

fn failed(what: &str) -> impl Fn(io::Error) -> Problem + '_ {
    move |error| Problem::new("no_namespace", format!("{what} failed inside the namespaces of banger try")).why(error)
}

/// A `/run` that nobody else sees, banger's programs where only root can write, the state in its place.
fn places(wanted: &Inside) -> Result<(), Problem> {
    // Not `nosuid`: what the helper starts must lie where root's files are root's.
    mount("banger-try", "/run", "tmpfs", MountFlags::NODEV, c"mode=0755")
        .map_err(io::Error::from)
        .map_err(failed("mounting /run"))?;
    let bin = Path::new(HOME).join("bin");
    fs::create_dir_all(&bin).map_err(failed("making /run/banger-try"))?;
    for name in PROGRAMS {
        let to = bin.join(name);
        let copied = fs::copy(wanted.programs.join(name), &to)
            .and_then(|_| chown(&to, Some(0), Some(0)))
            .and_then(|()| fs::set_permissions(&to, fs::Permissions::from_mode(0o755)));
        copied.map_err(failed("copying the programs"))?;
    }
    fs::create_dir(RUNTIME)
        .and_then(|()| chown(RUNTIME, Some(wanted.uid), Some(wanted.gid)))
        .map_err(failed(RUNTIME))?;
    bind_state(wanted)?;
    account(wanted)?;
    tun()?;
    let meta = format!(
        "owner_user = {0:?}\nowner_uid = {1}\nowner_gid = {2}\nowner_home = \"/nonexistent\"\nversion = {3:?}\ncommit = \"try\"\n",
        wanted.user,
        wanted.uid,
        wanted.gid,
        env!("CARGO_PKG_VERSION"),
    );
    let config = format!("program_dirs = [{:?}, \"/usr/bin\", \"/usr/local/bin\"]\n", bin.display());
    write(&format!("{HOME}/install.toml"), &meta)?;
    write(&format!("{HOME}/root.toml"), &config)
}

fn write(path: &str, text: &str) -> Result<(), Problem> {
    fs::write(path, text).map_err(failed(path))
}

/// The owner writes above it, so it is taken by descriptor, and must be a directory of his.
fn bind_state(wanted: &Inside) -> Result<(), Problem> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::open(&wanted.state, flags, Mode::empty()).map_err(io::Error::from);
    let opened = opened.map_err(failed("opening the cache"))?;
    let facts = rustix::fs::fstat(&opened).map_err(io::Error::from).map_err(failed("opening the cache"))?;
    if facts.st_uid != wanted.uid {
        let whose = format!("{} belongs to uid {}", wanted.state.display(), facts.st_uid);
        return Err(Problem::new("no_cache", "the cache is somebody else's")
            .why(whose)
            .fix("--cache DIR names another"));
    }
    fs::create_dir_all(STATE).map_err(failed(STATE))?;
    let by_descriptor = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&opened));
    mount_bind(by_descriptor.as_str(), STATE).map_err(io::Error::from).map_err(failed("binding the cache"))
}

/// An account for the owner, where the machine has none of that name, with subordinate users, whose an image's files are
/// while it is made.
fn account(wanted: &Inside) -> Result<(), Problem> {
    let subordinate = format!("{}:{}:65536\n", wanted.user, SUBORDINATE);
    for (file, line) in [
        ("passwd", format!("{0}:x:{1}:{2}::/nonexistent:/usr/sbin/nologin\n", wanted.user, wanted.uid, wanted.gid)),
        ("group", format!("{}:x:{}:\n", wanted.user, wanted.gid)),
        ("subuid", subordinate.clone()),
        ("subgid", subordinate),
    ] {
        let path = format!("/etc/{file}");
        let text = match fs::read_to_string(&path) {
            // A machine without subordinate users has no program that gives them out either.
            Err(error) if error.kind() == io::ErrorKind::NotFound && file.starts_with("sub") => continue,
            text => text.map_err(failed(&path))?,
        };
        if text.lines().any(|line| line.split(':').next() == Some(wanted.user.as_str())) {
            continue;
        }
        let own = format!("{HOME}/{file}");
        write(&own, &(text + &line))?;
        mount_bind(own.as_str(), path.as_str()).map_err(io::Error::from).map_err(failed(&path))?;
    }
    Ok(())
}

/// Where no udev has opened the tap device to all users, a VMM could not open its own tap.
fn tun() -> Result<(), Problem> {
    const TUN: &str = "/dev/net/tun";
    let Ok(facts) = fs::metadata(TUN) else { return Ok(()) };
    if facts.mode() & 0o006 == 0o006 {
        return Ok(());
    }
    // Not in /run, which has no devices.
    let home = "/run/banger-try/dev";
    let failed = failed(TUN);
    fs::create_dir(home).map_err(&failed)?;
    mount("banger-try", home, "tmpfs", MountFlags::NOSUID | MountFlags::NOEXEC, c"mode=0700,size=64k")
        .map_err(io::Error::from)
        .map_err(&failed)?;
    let node = format!("{home}/tun");
    let character = rustix::fs::FileType::CharacterDevice;
    rustix::fs::mknodat(rustix::fs::CWD, node.as_str(), character, Mode::from(0o666), facts.rdev())
        .map_err(io::Error::from)
        .map_err(&failed)?;
    fs::set_permissions(&node, fs::Permissions::from_mode(0o666)).map_err(&failed)?;
    mount_bind(node.as_str(), TUN).map_err(io::Error::from).map_err(&failed)
}

fn with_daemons(wanted: &Inside) -> Result<u8, Problem> {
    let bin = PathBuf::from(HOME).join("bin");
    let network = Network::make(wanted);
    let mut helper = match &network {
        Some(network) => {
            let mut enter = Command::new("nsenter");
            enter.arg(format!("--net={}", network.path()));
            enter
        }
        None => {
            let mut unshare = Command::new("unshare");
            unshare.arg("--net");
            unshare
        }
    };
    helper.args(["--", "sh", "-c", "ip link set lo up && exec \"$0\" \"$@\""]).arg(bin.join("bangerd-root"));
    helper.args(["--install-meta", "/run/banger-try/install.toml", "--config", "/run/banger-try/root.toml"]);
    let mut helper = Daemon::start("bangerd-root", helper, HELPER)?;
    let _way_out = way_out(wanted, network.as_ref());
    let mut daemon = Command::new(bin.join("bangerd"));
    // The port of names is an installed daemon's. There is no VM after this one, but a trial: its disk is ready
    // by then. A template would be made while the trial is over already.
    daemon.uid(wanted.uid).gid(wanted.gid).env("HOME", STATE);
    daemon.args(["--names", "127.0.0.1:0", "--taps-ahead", "0", "--disks-ahead", "1", "--templates", "off"]);
    let mut daemon = Daemon::start("bangerd", daemon, DAEMON)?;
    let mut run = Command::new(bin.join("banger"));
    run.uid(wanted.uid).gid(wanted.gid).args(["vm", "run"]).args(&wanted.run);
    let status = run.status().map_err(failed("starting banger vm run"))?;
    daemon.stop();
    helper.stop();
    Ok(code_of(status))
}

/// A network namespace in a user namespace of the owner's: so a program without rights can give it a way out.
struct Network(Daemon);

impl Network {
    /// Makes it, where the machine lets its users have such namespaces.
    fn make(wanted: &Inside) -> Option<Network> {
        let mut holder = Command::new("unshare");
        holder.args(["--user", "--net", "--", "sleep", "infinity"]).uid(wanted.uid).gid(wanted.gid);
        holder.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        let network = Network(Daemon { name: "sleep", child: holder.spawn().ok()? });
        let ours = fs::read_link("/proc/self/ns/net").ok()?;
        let end = Instant::now() + PATIENCE;
        // It has its own once it has become the program that holds it.
        while Instant::now() < end && fs::read_link(network.path()).ok()? == ours {
            std::thread::sleep(Duration::from_millis(1));
        }
        (fs::read_link(network.path()).ok()? != ours).then_some(network)
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.0.child.id())
    }
}

/// The helper's network gets the machine's own way out.
fn way_out(wanted: &Inside, network: Option<&Network>) -> Option<Daemon> {
    let none = |why: &str| {
        ours(&format!("the VM has no way out of this machine: {why}\n"));
        None
    };
    let Some(network) = network else { return none("users may not make namespaces here") };
    let holder = network.0.child.id();
    if !drops_invalid(network) {
        ours("the VM's connections may stall: there is no program nft (sudo apt-get install nftables)\n");
    }
    let mut pasta = Command::new("pasta");
    pasta.uid(wanted.uid).gid(wanted.gid).args(["--foreground", "--quiet", "--config-net", "--no-map-gw"]);
    pasta.args(["-t", "none", "-u", "none", "-T", "none", "-U", "none"]);
    pasta.args(["--userns", &format!("/proc/{holder}/ns/user"), "--netns", &network.path()]);
    pasta.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    match pasta.spawn() {
        Ok(child) => Some(Daemon { name: "pasta", child }),
        Err(_) => none("there is no program pasta (sudo apt-get install passt)"),
    }
}

/// Has what belongs to no connection dropped. Debian 12's pasta sends segments without any flag: nobody's in the eyes of the
/// kernel's NAT, which so gives them to the namespace itself, whose answer, a reset, ends the guest's connection.
fn drops_invalid(network: &Network) -> bool {
    const RULES: &str =
        "table inet banger-try { chain input { type filter hook input priority 0; ct state invalid drop; }; }";
    let mut nft = Command::new("nsenter");
    nft.arg(format!("--net={}", network.path())).args(["--", "nft", RULES]).stdin(Stdio::null());
    nft.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// A process of ours, ended with this one.
struct Daemon {
    name: &'static str,
    child: Child,
}

impl Daemon {
    /// Starts it and waits until it listens. Its words go to a file of root's, shown where it fails.
    fn start(name: &'static str, mut command: Command, socket: &str) -> Result<Daemon, Problem> {
        let log = format!("{HOME}/{name}.log");
        let file = fs::File::create(&log).map_err(failed(&log))?;
        let again = file.try_clone().map_err(failed(&log))?;
        // Ctrl-C is for the command: these end when it has undone what it began.
        command.stdin(Stdio::null()).stdout(file).stderr(again).process_group(0);
        let child = command.spawn().map_err(failed(name))?;
        let mut daemon = Daemon { name, child };
        let end = Instant::now() + PATIENCE;
        while UnixStream::connect(socket).is_err() {
            let ended = daemon.child.try_wait().ok().flatten();
            if ended.is_some() || Instant::now() > end {
                let words = fs::read_to_string(&log).unwrap_or_default();
                let last: Vec<&str> = words.lines().rev().take(3).collect();
                return Err(Problem::new("no_daemon", format!("{name} does not listen")).why(last.join("; ")));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(daemon)
    }

    fn stop(&mut self) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let end = Instant::now() + PATIENCE;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > end {
                ours(&format!("{} did not end by itself\n", self.name));
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
