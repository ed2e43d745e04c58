//! From the launch request to the guest program's first word, against a bare QEMU that is started by hand on the same kernel,
//! initrd and image and with the same devices, in turns, in one run.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::chown;
use rustix::process::Uid;

use super::console::Console;
use super::helper::{Connect, Owner};
use super::place::STATE;
use super::vm::{self, Caller, TAP};
use super::{FIRST_WORD, WORD};
use crate::programs;

/// What a launch may take of a bare QEMU's time.
const MOST: f64 = 1.3;
const BARE_CONSOLE: &str = "/run/banger-demo/bare-console";

/// Runs both in turns and fails where the ratio of the medians is above [`MOST`].
pub(crate) fn run<F: Connect>(caller: &Caller<F>, owner: &Owner, program: &str, rounds: usize) -> Result<()> {
    ensure!(program.ends_with("banger-qemu"), "the comparison is with a bare QEMU, and the VMM here is {program}");
    let rate = sys::tsc::Sample::take().khz_since().context("the time stamp counter's rate can't be measured")?;
    let pristine = format!("{STATE}/images/pristine.ext4");
    copy(&format!("{STATE}/images/root.ext4"), &pristine)?;
    let (mut launched, mut bare) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let mut one = |by_helper: bool| -> Result<()> {
            let image = format!("{STATE}/images/root.ext4");
            copy(&pristine, &image)?;
            chown(&image, Some(Uid::from_raw(owner.uid)), None)?;
            if by_helper {
                launched.push(launch(caller, program)?)
            } else {
                bare.push(bare_qemu(rate)?)
            }
            Ok(())
        };
        // Whoever goes first may find colder caches, or a warmer CPU.
        one(round % 2 == 0)?;
        one(round % 2 == 1)?;
        println!("round {:2} launched {:.3} s, bare QEMU {:.3} s", round + 1, seconds(&launched), seconds(&bare));
    }
    fs::remove_file(pristine)?;
    let (launched, bare) = (summary("launched", launched)?, summary("bare QEMU", bare)?);
    let ratio = launched / bare;
    println!("ratio    {ratio:.3}, at most {MOST}");
    if ratio > MOST {
        bail!("a launched guest takes {ratio:.3} times a bare QEMU's time to its first word");
    }
    Ok(())
}

fn launch<F: Connect>(caller: &Caller<F>, program: &str) -> Result<Duration> {
    let console = Console::from_now(vm::LOG);
    let start = Instant::now();
    let pid = caller.launch(program, &vm::kernel_args(WORD, ""))?;
    let word = console.wait_for(WORD, FIRST_WORD, || caller.runs(pid))?;
    caller.stop(pid)?;
    Ok(word - start)
}

fn bare_qemu(tsc_khz: u64) -> Result<Duration> {
    let console_file = File::create(BARE_CONSOLE)?;
    let console = Console::from_now(BARE_CONSOLE);
    let start = Instant::now();
    let child = Command::new("qemu-system-x86_64")
        .args(["-M", "microvm,acpi=on,pit=off,pic=off,rtc=on,isa-serial=on", "-accel", "tcg,thread=multi"])
        .args(["-smp", "1", "-cpu", "max", "-m", &vm::MEMORY.0.to_string(), "-nodefaults", "-no-user-config"])
        .args(["-display", "none", "-no-reboot", "-serial", "stdio"])
        .args(["-kernel", &format!("{STATE}/images/vmlinux"), "-initrd", &format!("{STATE}/images/initrd")])
        .args(["-append", &format!("{} root=/dev/vda rw tsc_early_khz={tsc_khz}", vm::kernel_args(WORD, ""))])
        .args(["-drive", &format!("id=d0,file={STATE}/images/root.ext4,format=raw,if=none")])
        .args(["-device", "virtio-blk-device,drive=d0"])
        .args(["-netdev", &format!("tap,id=n0,ifname={TAP},script=no,downscript=no")])
        .args(["-device", "virtio-net-device,netdev=n0"])
        .stdin(Stdio::null())
        .stdout(console_file.try_clone()?)
        .stderr(console_file)
        .spawn();
    let mut bare = Bare(child.context("can't start qemu-system-x86_64")?);
    let child = std::cell::RefCell::new(&mut bare.0);
    let word = console.wait_for(WORD, FIRST_WORD, || Ok(child.borrow_mut().try_wait()?.is_none()))?;
    Ok(word - start)
}

/// A bare QEMU, ended when this is dropped.
struct Bare(Child);

impl Drop for Bare {
    fn drop(&mut self) {
        // One that ended by itself can't be killed, and needn't be.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn copy(from: &str, to: &str) -> Result<()> {
    programs::output("cp", ["--reflink=auto", "--sparse=always", from, to])?;
    // Written out now, not while a guest's boot is timed.
    File::open(Path::new(to))?.sync_all()?;
    Ok(())
}

fn seconds(times: &[Duration]) -> f64 {
    times.last().map_or(0.0, Duration::as_secs_f64)
}

/// Prints median and spread; gives the median.
fn summary(what: &str, mut times: Vec<Duration>) -> Result<f64> {
    times.sort();
    let (Some(least), Some(most)) = (times.first(), times.last()) else { bail!("--bench needs at least one round") };
    let middle = (times[(times.len() - 1) / 2] + times[times.len() / 2]).as_secs_f64() / 2.0;
    let (least, most) = (least.as_secs_f64(), most.as_secs_f64());
    println!("{what:9} {middle:.3} s to the guest's first word (median of {}; {least:.3} to {most:.3})", times.len());
    Ok(middle)
}
