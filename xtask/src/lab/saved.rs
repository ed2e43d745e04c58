//! The saved machine: booted once, kept in the cache, restored for each run.
//!
//! Memory, state and disk layer are one set and belong to one QEMU, one CPU, one clock rate: all that is in its key or
//! beside it. What doesn't fit any more is made anew; where that fails too, a run boots a machine for itself.

use std::fs::{self, File};
use std::io::{Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::children;
use super::image::{self, Image};
use super::machine::{self, Disk, KERNEL_WORDS, Machine, Memory, Nested, Parts, QEMU, Start};
use crate::cache::{Cache, key, mebibytes, remove};
use crate::programs;

/// Raised when the machine is saved in another way than before.
const RECIPE: &[u8] = b"1";
/// How long a boot may take, on a busy machine.
const BOOT_LIMIT: Duration = Duration::from_secs(180);
/// How long a restored machine may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// The clocks of machine and guest part by no more than this share, in parts of 100,000.
const TSC_TOLERANCE: u64 = 50;

/// What a saved machine must fit.
pub(super) struct Wanted<'a> {
    pub(super) image: &'a Image,
    pub(super) nested: Nested,
    pub(super) tsc_khz: u64,
}

impl Wanted<'_> {
    fn name(&self) -> Result<String> {
        let qemu = fs::metadata(find_program(QEMU)?)?;
        let qemu = format!("{} {} {}", qemu.len(), qemu.mtime(), qemu.mtime_nsec());
        let cpu = fs::read_to_string("/proc/cpuinfo")?;
        let cpu: String =
            cpu.lines().filter(|l| l.starts_with("flags") || l.starts_with("model name")).take(2).collect();
        let hardware = machine::hardware(self.nested).join(" ");
        let texts = [&qemu, &cpu, &hardware, KERNEL_WORDS, &self.image.stamp].map(|t| t.as_bytes());
        let word = if self.nested == Nested::Yes { "nested" } else { "plain" };
        Ok(format!("lab-saved-{word}-{}", key([RECIPE, &self.image.initrd[..]].into_iter().chain(texts))))
    }

    fn fits(&self, at: &Path) -> bool {
        let Some(khz) = fs::read_to_string(at.join("tsc")).ok().and_then(|t| t.parse::<u64>().ok()) else {
            return false;
        };
        khz.abs_diff(self.tsc_khz) <= self.tsc_khz * TSC_TOLERANCE / 100_000
    }
}

fn find_program(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|d| d.join(name)).find(|p| p.is_file());
    found.with_context(|| format!("there is no {name} here\n  fix: apt-get install qemu-system-x86"))
}

/// A machine that answers: restored, or booted where no saved one can be had.
pub(super) fn machine(cache: &Path, wanted: &Wanted<'_>, second_disk: Option<&File>) -> Result<Machine> {
    let at = cache.join(wanted.name()?);
    if wanted.fits(&at) {
        match restore(&at, wanted.nested, second_disk) {
            Ok(machine) => return Ok(machine),
            Err(e) => eprintln!("lab: the saved machine can't be restored ({e:#}); making another"),
        }
        children::check()?;
        remove_broken(&at)?;
    }
    match make(wanted).and_then(|at| restore(&at, wanted.nested, second_disk)) {
        Ok(machine) => return Ok(machine),
        Err(e) => {
            children::check()?;
            eprintln!("lab: no machine can be saved here ({e:#}); booting one for this run");
        }
    }
    boot(wanted, Memory::Own, Disk::Image(&wanted.image.root), second_disk)
}

/// Another run may be about to restore it, and fails as this one did.
fn remove_broken(at: &Path) -> Result<()> {
    let _locked = Cache::open()?;
    remove(at)
}

fn restore(at: &Path, nested: Nested, second_disk: Option<&File>) -> Result<Machine> {
    let (state, memory, layer) = (File::open(at.join("state"))?, at.join("memory"), at.join("disk.qcow2"));
    let mut machine = Machine::start(&Parts {
        nested,
        memory: Memory::From(&memory),
        disk: Disk::SavedLayer(&layer),
        second_disk,
        start: Start::Restore { state: &state },
    })?;
    match machine.session.wake(ANSWER_LIMIT) {
        Ok(()) => Ok(machine),
        Err(e) => Err(machine.ended_by(e)),
    }
}

/// Boots, saves, and tries once; whole or not at all.
fn make(wanted: &Wanted<'_>) -> Result<PathBuf> {
    let cache = Cache::open()?;
    let name = wanted.name()?;
    let misfit = !wanted.fits(&cache.directory().join(&name));
    let entry = cache.entry(&name, misfit, |at| {
        eprintln!("lab: booting a machine once, to be restored from then on");
        fs::create_dir(at)?;
        save(wanted, at)?;
        drop(restore(at, wanted.nested, None).context("the machine that was just saved can't be restored")?);
        Ok(fs::write(at.join("tsc"), wanted.tsc_khz.to_string())?)
    })?;
    if let Some(time) = entry.made_in {
        let files = ["memory", "state", "disk.qcow2"].map(|f| image::blocks(&entry.path.join(f)));
        let size: u64 = files.into_iter().sum::<Result<u64>>()?;
        eprintln!("lab: saved {} in {:.0} s", mebibytes(size), time.as_secs_f64());
    }
    cache.keep_newest("lab-saved-plain-", 1)?;
    cache.keep_newest("lab-saved-nested-", 1)?;
    Ok(entry.path)
}

fn save(wanted: &Wanted<'_>, at: &Path) -> Result<()> {
    let (layer, memory) = (at.join("disk.qcow2"), at.join("memory"));
    let mut layered = Command::new("qemu-img");
    layered.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]).arg(&wanted.image.root).arg(&layer);
    programs::run(&mut layered)?;
    let mut machine = boot(wanted, Memory::Into(&memory), Disk::Layer(&layer), None)?;
    // Less to be kept, and the page cache of a boot is of no use to a test.
    machine.session.must(&["sh", "-c", "sync; echo 3 > /proc/sys/vm/drop_caches"])?;
    let state = at.join("state");
    machine.qmp.save(state.to_str().context("the cache's path is no text")?)?;
    // Its last words to the disk layer.
    machine.qmp.ask("quit", serde_json::json!({}))?;
    machine.wait(ANSWER_LIMIT)
}

/// Boots to where systemd says that all is running.
fn boot(wanted: &Wanted<'_>, memory: Memory<'_>, disk: Disk<'_>, second_disk: Option<&File>) -> Result<Machine> {
    let mut initrd = machine::unnamed("banger-lab-initrd")?;
    initrd.write_all(&wanted.image.initrd)?;
    initrd.rewind()?;
    let start = Start::Boot { image: wanted.image, initrd: &initrd, tsc_khz: wanted.tsc_khz };
    let begun = Instant::now();
    let mut machine = Machine::start(&Parts { nested: wanted.nested, memory, disk, second_disk, start })?;
    let mut up = machine.session.wake(BOOT_LIMIT);
    if up.is_ok() {
        up = machine.session.must(&["systemctl", "is-system-running", "--wait"]);
    }
    if up.is_ok() && wanted.nested == Nested::Yes {
        up = machine.session.must(&["modprobe", "kvm-amd"]);
    }
    if let Err(e) = up {
        children::check()?;
        let console = machine.end().shown();
        bail!("the lab doesn't come up in {:.0} s: {e:#}\n{console}", begun.elapsed().as_secs_f64());
    }
    Ok(machine)
}
