//! `banger vm run -- true`, of a daemon that has run one: each stage as `--timings` tells it, whose it is, and the whole
//! from the command's start to its end. With what is made ahead, which each run is given the time for.
//!
//! The guest's files are named by BANGER_TEST_KERNEL, _INITRD and _ROOT, as for the tests.

use crate::launch;
use crate::stats::{Times, ms};
use crate::world::{Helper, OWNER, beside, connects, in_place};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const BIN: &str = "/run/bin";
const CONFIG: &str = "/run/run.toml";
/// The owner's configuration.
const OWNERS: &str = "/run/owners.toml";
const SOCKET: &str = "/run/banger/bangerd.sock";
/// Where copies of an image are made ahead, and how many.
const AHEAD: &str = "/var/lib/banger/ahead";
const COPIES: usize = 2;
/// The guest's files, as they are called here: its root file system, which one is asked for, its kernel and initial RAM disk.
const ROOT: &str = "root.ext4";
const KERNEL: &str = "vmlinux";
const INITRD: &str = "initrd";
const SIGTERM: i32 = 15;
/// The memory of all VMs here.
pub(crate) const MEMORY: &str = "512M";
/// A boot, whatever there is.
pub(crate) const COLD: &[&str] = &["--cold"];
/// Runs in a round.
pub(crate) const EACH: usize = 2;
/// What is not the guest's, before its first output, in milliseconds.
const GOAL: u32 = 150;

/// Measures all of it, with the images on the disk that this program was built on.
pub(crate) fn measure(rounds: usize) -> Result<()> {
    with_daemon("banger vm run", "ROOT", |_| {
        // The first one finds nothing made, and no cache.
        Taken::one(COLD)?;
        let mut taken = Vec::new();
        for _ in 0..rounds * EACH {
            made_ahead();
            taken.push(Taken::one(COLD)?);
        }
        tell(&taken);
        Ok(())
    })
}

/// Does something with an owner's daemon that has the guest's files, where they are named; BANGER_TEST_`root` is the root file
/// system.
pub(crate) fn with_daemon(what: &str, root: &str, act: impl Fn(&mut Daemon) -> Result<()>) -> Result<()> {
    let named = |(name, file)| Some((PathBuf::from(std::env::var_os(format!("BANGER_TEST_{name}"))?), file));
    let wanted = [(root, ROOT), ("KERNEL", KERNEL), ("INITRD", INITRD)];
    let Some(files) = wanted.into_iter().map(named).collect::<Option<Vec<_>>>() else {
        println!("not measured: {what}; BANGER_TEST_KERNEL, _INITRD and _{root} name no guest (xtask guest)");
        return Ok(());
    };
    let disk = beside("bangerd-root")?.with_file_name("bench-run");
    fs::create_dir_all(&disk)?;
    let done = in_place(&disk, || on(&files, &act));
    fs::remove_dir_all(disk)?;
    done
}

fn on(files: &[(PathBuf, &str)], act: impl Fn(&mut Daemon) -> Result<()>) -> Result<()> {
    launch::programs()?;
    launch::open_tun()?;
    for name in ["banger", "bangerd", "banger-image"] {
        fs::copy(beside(name)?, Path::new(BIN).join(name))?;
    }
    fs::write(CONFIG, format!("program_dirs = [{BIN:?}, \"/usr/bin\"]\n"))?;
    for (from, name) in files {
        let to = Path::new("/var/lib/banger").join(name);
        let copied = Command::new("cp").arg("--sparse=always").arg(from).arg(&to).status()?;
        ensure!(copied.success(), "{} can't be copied", from.display());
        chown(&to, Some(OWNER), Some(OWNER))?;
    }
    let _helper = Helper::start(Some(CONFIG))?;
    fs::write(OWNERS, format!("[vm_defaults]\nmemory_mib = {}\n", MEMORY.trim_end_matches('M')))?;
    act(&mut Daemon::start(0)?)
}

/// `banger` as the owner.
pub(crate) fn banger(arguments: &[&str]) -> Command {
    let mut command = Command::new(format!("{BIN}/banger"));
    command.args(arguments).uid(OWNER).gid(OWNER).current_dir("/").stdin(Stdio::null());
    command
}

/// The owner's daemon, ended when this is dropped.
pub(crate) struct Daemon(Child);

impl Daemon {
    /// One that keeps so many VMs ready, in the place of this one.
    pub(crate) fn keep(&mut self, ready: u8) -> Result<()> {
        // Those that wait go with it.
        sys::pidfd::open(self.0.id().try_into()?)?.send_signal(SIGTERM)?;
        self.0.wait()?;
        *self = Daemon::start(ready)?;
        Ok(())
    }

    fn start(ready: u8) -> Result<Daemon> {
        let mut command = Command::new(format!("{BIN}/bangerd"));
        command.env("BANGER_CONFIG", OWNERS).args(["--warm-pool", &ready.to_string()]);
        command.args(["--names", "127.0.0.1:0", "--log-level", "error", "--templates", "off", "--image-files"]);
        command.args([ROOT, KERNEL, INITRD].map(|name| format!("/var/lib/banger/{name}")));
        let child = command.uid(OWNER).gid(OWNER).stdin(Stdio::null()).spawn()?;
        let mut daemon = Daemon(child);
        connects(SOCKET, &mut daemon.0)?;
        Ok(daemon)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until copies are there; where the machine needs none, a moment.
pub(crate) fn made_ahead() {
    let begin = Instant::now();
    let there = || {
        let entries = fs::read_dir(AHEAD).into_iter().flatten().flatten();
        entries.filter(|entry| entry.file_name() != "draft").count()
    };
    while there() < COPIES && begin.elapsed() < Duration::from_secs(3) {
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// One run.
pub(crate) struct Taken {
    pub(crate) whole: Duration,
    timings: Value,
}

impl Taken {
    /// With these arguments beside what all have.
    pub(crate) fn one(more: &[&str]) -> Result<Taken> {
        let all = [&["vm", "run", "--memory", MEMORY, "--timings", "--json"], more, &["--", "true"]].concat();
        let begin = Instant::now();
        let out = banger(&all).output()?;
        let whole = begin.elapsed();
        let said = String::from_utf8_lossy(&out.stderr);
        ensure!(out.status.success(), "banger vm run: {said}");
        let timings = said.find('{').map(|at| &said[at..]).context("banger vm run told no times")?;
        Ok(Taken { whole, timings: serde_json::from_str(timings)? })
    }

    pub(crate) fn at(&self, key: &str) -> Duration {
        Duration::from_micros(self.timings[key].as_u64().unwrap_or(0))
    }

    /// A stage's time, and whose it is.
    pub(crate) fn stage(&self, name: &str) -> (Duration, &str) {
        let stage = self.told(name);
        (Duration::from_micros(stage["us"].as_u64().unwrap_or(0)), stage["by"].as_str().unwrap_or_default())
    }

    /// What the daemon says of a stage.
    pub(crate) fn note(&self, name: &str) -> &str {
        self.told(name)["note"].as_str().unwrap_or_default()
    }

    fn told(&self, name: &str) -> &Value {
        let stages = self.timings["stages"].as_array().into_iter().flatten();
        stages.into_iter().find(|stage| stage["name"] == name).unwrap_or(&Value::Null)
    }
}

fn tell(taken: &[Taken]) {
    println!("\n### banger vm run\n");
    println!("| what | whose | ms: median (fastest tenth) |");
    println!("| --- | --- | --- |");
    let times = |of: &dyn Fn(&Taken) -> Duration| Times::of(taken.iter().map(of).collect());
    let row = |what: &str, whose: &str, times: &Times| println!("| {what} | {whose} | {} |", ms(times));
    for name in ["plan", "wire", "disk", "launch", "boot", "run", "down"] {
        let whose = taken.first().map_or("", |one| one.stage(name).1);
        row(name, whose, &times(&|one| one.stage(name).0));
    }
    row("to the first output", "both", &times(&|one| one.at("first_output_us")));
    let own = times(&|one| one.at("own_us"));
    row("of that", "banger", &own);
    row("from start to end", "both", &times(&|one| one.whole));
    let verdict = if own.at(0.5) < Duration::from_millis(GOAL.into()) { "met" } else { "not met" };
    println!("\nthe goal, {GOAL} ms of banger's own before the first output, is {verdict} by the median");
}
