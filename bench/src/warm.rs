//! `banger vm run -- true` that goes on from a template, or as one that waits in the pool, against a boot of the same VM, against
//! QEMU started by hand on the same kernel, initial RAM disk and image, and against virtme-ng where it is, all in turns: until the
//! command's first output, and for ours by stages. Then eight at once, and what memory eight idle ones take.

use crate::run::{COLD, Daemon, EACH, MEMORY, Taken, banger, made_ahead, with_daemon};
use crate::stats::{Times, compare, head, ms};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const STATE: &str = "/var/lib/banger";
const KERNEL_ARGS: &str = "console=ttyS0 reboot=k panic=-1 loglevel=1 cryptomgr.notests random.trust_cpu=on";
/// What a guest's command says first.
const WORD: &str = "bench-first-word";
/// A kernel for virtme-ng, which takes half a minute for each run: so few rounds have one.
const VIRTME_KERNEL: &str = "BANGER_BENCH_VIRTME_KERNEL";
const VIRTME_ROUNDS: usize = 2;
/// How many at once.
const MANY: usize = 8;
/// The goals: until the first output, and of that banger's; of many at once the median and the slowest; bytes for each.
const FIRST: (u64, u64) = (300, 60);
const AT_ONCE: (u64, u64) = (1600, 2000);
const PSS_MB: u64 = 45;
/// So many wait in the pool; the next one is asked for so long after the last, and one is there within that time.
const POOL: u8 = 2;
const FILLING: Duration = Duration::from_secs(2);
const FILLED: Duration = Duration::from_secs(60);
/// Each idle VM has this time to come to rest.
const REST: Duration = Duration::from_secs(5);

/// Measures all of it.
pub(crate) fn measure(rounds: usize) -> Result<()> {
    with_daemon("going on from a template", "ROOT", |daemon| {
        let built = banger(&["template", "build", "--memory", MEMORY, "--quiet"]).output()?;
        ensure!(built.status.success(), "banger template build: {}", String::from_utf8_lossy(&built.stderr));
        in_turns(rounds, daemon)?;
        at_once(rounds)?;
        idle()
    })
}

fn in_turns(rounds: usize, daemon: &mut Daemon) -> Result<()> {
    let khz = sys::tsc::Sample::take();
    thread::sleep(Duration::from_millis(200));
    let khz = khz.khz_since().context("the time stamp counter's rate can't be measured")?;
    let mut theirs = virtme();
    let (mut warm, mut pooled, mut cold) = (Vec::new(), Vec::new(), Vec::new());
    let (mut bare, mut virtme) = (Times::default(), Times::default());
    // The first of each finds cold caches.
    for round in 0..=rounds {
        for _ in 0..EACH {
            made_ahead();
            warm.push(one_warm()?);
        }
        made_ahead();
        cold.push(Taken::one(COLD)?);
        drop(bare.take(|| first_word(bare_qemu(khz)))?);
        if let Some(kernel) = theirs.as_ref().filter(|_| round <= VIRTME_ROUNDS) {
            // What goes on behind it would go on beside the next.
            match virtme.take(|| first_word(virtme_ng(kernel))) {
                Ok(running) => running.waited()?,
                Err(error) => {
                    println!("not measured: virtme-ng; {error}");
                    theirs = None;
                }
            }
        }
        daemon.keep(POOL)?;
        for _ in 0..EACH {
            pooled.push(one_pooled()?);
        }
        daemon.keep(0)?;
        if round == 0 {
            (warm, pooled, cold) = (Vec::new(), Vec::new(), Vec::new());
            (bare, virtme) = (Times::default(), Times::default());
        }
    }
    let first = |taken: &[Taken]| Times::of(taken.iter().map(|one| one.at("first_output_us")).collect());
    head("A new VM's first output");
    compare("from a template", &first(&warm), &first(&cold), "`banger vm run --cold`");
    compare("from a template", &first(&warm), &bare, "QEMU by hand, same kernel, initial RAM disk, image");
    compare("from the pool", &first(&pooled), &first(&cold), "`banger vm run --cold`");
    compare("from the pool", &first(&pooled), &first(&warm), "from a template");
    if theirs.is_some() {
        compare("from a template", &first(&warm), &virtme, "virtme-ng, a kernel of Debian's, this machine's files");
        compare("a boot", &first(&cold), &virtme, "virtme-ng");
    }
    compare("a boot", &first(&cold), &bare, "QEMU by hand");
    stages(&warm, &cold);
    let times = |of: &dyn Fn(&Taken) -> Duration| Times::of(warm.iter().map(of).collect()).at(0.5);
    verdict("the first output from a template", times(&|one| one.at("first_output_us")), FIRST.0);
    verdict("what of that is banger's", times(&|one| one.at("own_us")), FIRST.1);
    Ok(())
}

fn one_warm() -> Result<Taken> {
    let taken = Taken::one(&[])?;
    ensure!(taken.note("boot").starts_with("no boot"), "it booted: {}", taken.note("disk"));
    Ok(taken)
}

/// The first that was waiting when it was asked for: others are made one after the other.
fn one_pooled() -> Result<Taken> {
    let end = Instant::now() + FILLED;
    loop {
        thread::sleep(FILLING);
        let taken = one_warm()?;
        if taken.note("disk").starts_with("pool") {
            return Ok(taken);
        }
        ensure!(Instant::now() < end, "none waits in the pool: {}", taken.note("disk"));
    }
}

/// Each stage's medians, as long as they took.
fn stages(warm: &[Taken], cold: &[Taken]) {
    println!("\n| stage | whose | from a template, ms | | a boot, ms |");
    println!("| --- | --- | --- | --- | --- |");
    for name in ["plan", "wire", "disk", "launch", "boot", "run", "down"] {
        let times = |taken: &[Taken]| Times::of(taken.iter().map(|one| one.stage(name).0).collect());
        let (ours, boot) = (times(warm), times(cold));
        let whose = warm.first().map_or("", |one| one.stage(name).1);
        let bar = "▇".repeat((ours.at(0.5).as_millis() / 10) as usize);
        println!("| {name} | {whose} | {} | {bar} | {} |", ms(&ours), ms(&boot));
    }
    println!("\n{}", warm.last().map_or("", |one| one.note("boot")));
}

fn verdict(what: &str, took: Duration, goal_ms: u64) {
    let met = if took <= Duration::from_millis(goal_ms) { "met" } else { "not met" };
    println!("{what}: {} ms, the goal of {goal_ms} ms is {met}", took.as_millis());
}

/// QEMU with the arguments that a person would give it, over the image that stays as it is.
fn bare_qemu(khz: u64) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-M", "microvm,acpi=on,pit=off,pic=off,rtc=on,isa-serial=on", "-accel", "tcg,thread=multi"]);
    command.args(["-smp", "1", "-cpu", "max", "-m", MEMORY, "-nodefaults", "-no-user-config", "-display", "none"]);
    command.args(["-no-reboot", "-serial", "stdio", "-kernel", &format!("{STATE}/vmlinux")]);
    let line = format!("{KERNEL_ARGS} root=/dev/vda rw tsc_early_khz={khz} banger.run=\"echo {WORD}\"");
    command.args(["-initrd", &format!("{STATE}/initrd"), "-append", &line]);
    command.args(["-drive", &format!("id=d0,file={STATE}/root.ext4,format=raw,if=none,snapshot=on")]);
    command.args(["-device", "virtio-blk-device,drive=d0"]);
    command
}

/// The kernel that virtme-ng is given, with its modules in the tree around it; `None`, and said so, where none is named or
/// virtme-ng is not here.
fn virtme() -> Option<PathBuf> {
    let kernel = std::env::var_os(VIRTME_KERNEL).map(PathBuf::from);
    let is_here = Command::new("vng").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    match (is_here.is_ok_and(|status| status.success()), kernel) {
        (true, Some(kernel)) => return Some(kernel),
        (true, None) => println!("not measured: virtme-ng; {VIRTME_KERNEL} names no kernel for it (scripts/virtme)"),
        (false, _) => println!("not measured: virtme-ng; there is no vng in PATH (scripts/virtme)"),
    }
    None
}

/// virtme-ng, emulated as the QEMU by hand is, and else with what it does where nothing is asked for.
fn virtme_ng(kernel: &Path) -> Command {
    let mut command = Command::new("vng");
    command.arg("--run").arg(kernel).args(["--memory", MEMORY, "--cpus", "1", "--disable-kvm"]);
    command.args(["--exec", &format!("echo {WORD}")]);
    command
}

/// Until it has said its word.
fn first_word(mut command: Command) -> Result<Ended> {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut child = Ended(child.with_context(|| format!("{command:?}"))?);
    let mut out = BufReader::new(child.0.stdout.take().context("no output")?);
    // A console's lines may hold anything.
    let mut line = Vec::new();
    while out.read_until(b'\n', &mut line)? > 0 {
        if line.windows(WORD.len()).any(|found| found == WORD.as_bytes()) {
            child.0.stdout = Some(out.into_inner());
            return Ok(child);
        }
        line.clear();
    }
    bail!("{command:?} never said {WORD}")
}

/// Ended when this is dropped.
struct Ended(Child);

impl Ended {
    /// Waits for its own end instead.
    fn waited(mut self) -> Result<()> {
        if let Some(mut out) = self.0.stdout.take() {
            std::io::copy(&mut out, &mut std::io::sink())?;
        }
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        // One that ended by itself can't be killed, and needn't be.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn at_once(rounds: usize) -> Result<()> {
    let mut first = Vec::new();
    for _ in 0..rounds {
        made_ahead();
        let taken: Result<Vec<Taken>> = thread::scope(|scope| {
            let runs: Vec<_> = (0..MANY).map(|_| scope.spawn(one_warm)).collect();
            runs.into_iter().map(|run| run.join().unwrap_or_else(|_| bail!("a run panicked"))).collect()
        });
        first.extend(taken?.iter().map(|one| one.at("first_output_us")));
    }
    let times = Times::of(first);
    println!("\n### {MANY} at once\n");
    verdict("the median first output", times.at(0.5), AT_ONCE.0);
    verdict("the last first output", times.at(1.0), AT_ONCE.1);
    Ok(())
}

/// What eight idle VMs take: of each page as much as its sharers leave it. Each has one program, which sleeps.
fn idle() -> Result<()> {
    let mut runs = Vec::new();
    for _ in 0..MANY {
        runs.push(Ended(banger(&["vm", "run", "--memory", MEMORY, "--", "sleep", "1000"]).spawn()?));
    }
    let end = Instant::now() + Duration::from_secs(60);
    while states()?.iter().filter(|state| *state == "running").count() < MANY {
        ensure!(Instant::now() < end, "not all VMs run: {:?}", states()?);
        thread::sleep(Duration::from_millis(50));
    }
    thread::sleep(REST);
    let mut pss = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let of = |file: &str| fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        if of("comm").starts_with("qemu-system") {
            // One that has ended and is not buried yet has no memory.
            let rollup = of("smaps_rollup");
            let Some(line) = rollup.lines().find_map(|line| line.strip_prefix("Pss:")) else { continue };
            pss.push(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024 / 1_000_000);
        }
    }
    ensure!(pss.len() == MANY, "{} VMMs run", pss.len());
    pss.sort_unstable();
    let most = pss[MANY - 1];
    let met = if most < PSS_MB { "met" } else { "not met" };
    println!("memory of each, idle: {pss:?} MB (PSS); the goal of less than {PSS_MB} MB is {met}");
    // Its VMs go with each caller; the daemon sees that at once.
    drop(runs);
    let end = Instant::now() + Duration::from_secs(30);
    while !states()?.is_empty() {
        ensure!(Instant::now() < end, "VMs are left");
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// What state each VM is in.
fn states() -> Result<Vec<String>> {
    let out = banger(&["vm", "list", "--json"]).output()?;
    ensure!(out.status.success(), "banger vm list: {}", String::from_utf8_lossy(&out.stderr));
    let told: Vec<Value> = serde_json::from_slice(&out.stdout)?;
    Ok(told.iter().filter_map(|vm| vm["state"].as_str().map(str::to_owned)).collect())
}
