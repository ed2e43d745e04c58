//! From the launch request to the guest program's first word, against a bare QEMU that is started by hand on the same kernel,
//! initrd and image and with the same devices, in turns, in one run; and until the helper's answer, against the same VMM
//! started by hand with the same file.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::chown;
use rustix::process::Uid;

use super::console::Console;
use super::helper::{Connect, Owner};
use super::place::{RUNTIME, STATE};
use super::vm::{self, Caller, Jail, TAP};
use super::{FIRST_WORD, WORD};
use crate::programs;

/// What a launch may take of a bare QEMU's time.
const MOST: f64 = 1.3;
const BARE_CONSOLE: &str = "/run/banger-demo/bare-console";

/// What is timed in one turn.
#[derive(Clone, Copy)]
enum Turn {
    Launched,
    Jailed,
    Bare,
}

/// Runs all in turns and fails where a ratio of the medians, with a jail or without, is above [`MOST`].
pub(crate) fn run<F: Connect>(caller: &Caller<F>, owner: &Owner, program: &str, rounds: usize) -> Result<()> {
    ensure!(program.ends_with("banger-qemu"), "the comparison is with a bare QEMU, and the VMM here is {program}");
    let rate = sys::tsc::Sample::take().khz_since().context("the time stamp counter's rate can't be measured")?;
    let pristine = format!("{STATE}/images/pristine.ext4");
    copy(&format!("{STATE}/images/root.ext4"), &pristine)?;
    let (mut launched, mut bare) = (Vec::new(), Vec::new());
    let (mut answered, mut by_hand) = (Vec::new(), Vec::new());
    let (mut answered_jailed, mut jailed) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let mut one = |turn: Turn| -> Result<()> {
            let image = format!("{STATE}/images/root.ext4");
            copy(&pristine, &image)?;
            chown(&image, Some(Uid::from_raw(owner.uid)), None)?;
            match turn {
                Turn::Launched => {
                    let (answer, word) = launch(caller, program, Jail::Without)?;
                    answered.push(answer);
                    launched.push(word);
                }
                Turn::Jailed => {
                    let (answer, word) = launch(caller, program, Jail::With)?;
                    answered_jailed.push(answer);
                    jailed.push(word);
                }
                Turn::Bare => {
                    bare.push(bare_qemu(rate)?);
                    by_hand.push(same_vmm(program, owner)?);
                }
            }
            Ok(())
        };
        // Whoever goes first may find colder caches, or a warmer CPU.
        let mut turns = [Turn::Bare, Turn::Launched, Turn::Jailed];
        turns.rotate_left(round % 3);
        turns.into_iter().try_for_each(&mut one)?;
        println!(
            "round {:2} launched {:.3} s, in a jail {:.3} s, bare QEMU {:.3} s",
            round + 1,
            seconds(&launched),
            seconds(&jailed),
            seconds(&bare)
        );
    }
    fs::remove_file(pristine)?;
    let what = "until the VM runs";
    let (answered, by_hand) = (summary("launched", what, answered)?, summary("by hand", what, by_hand)?);
    println!("the helper adds {:.1} ms to the same VMM started by hand with the same file", (answered - by_hand) * 1e3);
    let in_jail = summary("in a jail", what, answered_jailed)?;
    println!("a jail adds {:.1} ms to that", (in_jail - answered) * 1e3);
    let what = "to the guest's first word";
    let bare = summary("bare QEMU", what, bare)?;
    let ratios = [
        ("launched", summary("launched", what, launched)? / bare),
        ("in a jail", summary("in a jail", what, jailed)? / bare),
    ];
    for (who, ratio) in ratios {
        println!("ratio    {ratio:.3} {who}, at most {MOST}");
    }
    match ratios.into_iter().find(|(_, ratio)| *ratio > MOST) {
        Some((who, ratio)) => bail!("a guest, {who}, takes {ratio:.3} times a bare QEMU's time to its first word"),
        None => Ok(()),
    }
}

/// Until the helper's answer, and until the guest's first word.
fn launch<F: Connect>(caller: &Caller<F>, program: &str, jail: Jail) -> Result<(Duration, Duration)> {
    let console = Console::from_now(vm::LOG);
    let start = Instant::now();
    let pid = caller.launch(program, jail, &vm::kernel_args(WORD, ""))?;
    let answer = start.elapsed();
    let word = console.wait_for(WORD, FIRST_WORD, || caller.runs(pid))?;
    caller.stop(pid)?;
    Ok((answer, word - start))
}

/// Until the same VMM, started by hand as the same user with the same file, says that its VM runs.
fn same_vmm(program: &str, owner: &Owner) -> Result<Duration> {
    let (file, socket) = (format!("{RUNTIME}/by-hand.json"), format!("{RUNTIME}/by-hand.sock"));
    let config = serde_json::json!({
        "boot-source": {
            "kernel_image_path": format!("{STATE}/images/vmlinux"),
            "initrd_path": format!("{STATE}/images/initrd"),
            "boot_args": vm::kernel_args(WORD, ""),
        },
        "drives": [{
            "drive_id": "rootfs",
            "path_on_host": format!("{STATE}/images/root.ext4"),
            "is_root_device": true,
            "is_read_only": false,
        }],
        "machine-config": {"vcpu_count": 1, "mem_size_mib": vm::MEMORY.0},
        "network-interfaces": [{"iface_id": "1", "host_dev_name": TAP, "guest_mac": "02:00:00:00:00:01"}],
        "vsock": {"guest_cid": 3, "uds_path": format!("{RUNTIME}/by-hand.vsock")},
        "logger": {"log_path": vm::LOG, "level": "Info"},
        "metrics": {"metrics_path": format!("{STATE}/metrics")},
    });
    fs::write(&file, config.to_string())?;
    let start = Instant::now();
    let child = Command::new(program)
        .args(["--api-sock", &socket, "--id", "by-hand", "--config-file", &file])
        .uid(owner.uid)
        .gid(owner.gid)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let vmm = Bare(child.with_context(|| format!("can't start {program}"))?);
    while !says_running(&socket) {
        ensure!(start.elapsed() < FIRST_WORD, "{program}, started by hand, does not say that its VM runs");
        std::thread::sleep(Duration::from_micros(200));
    }
    let took = start.elapsed();
    drop(vmm);
    for left in [file, socket, format!("{RUNTIME}/by-hand.vsock")] {
        let _ = fs::remove_file(left);
    }
    Ok(took)
}

fn says_running(socket: &str) -> bool {
    UnixStream::connect(socket)
        .and_then(|stream| {
            stream.set_read_timeout(Some(Duration::from_secs(1)))?;
            wire::firecracker::says_running(stream)
        })
        .unwrap_or(false)
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
        .args([
            "-append",
            &format!("{} root=/dev/vda rw tsc_early_khz={tsc_khz} tsc=reliable", vm::kernel_args(WORD, "")),
        ])
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
fn summary(who: &str, what: &str, mut times: Vec<Duration>) -> Result<f64> {
    times.sort();
    let (Some(least), Some(most)) = (times.first(), times.last()) else { bail!("--bench needs at least one round") };
    let middle = (times[(times.len() - 1) / 2] + times[times.len() / 2]).as_secs_f64() / 2.0;
    let (least, most) = (least.as_secs_f64(), most.as_secs_f64());
    println!("{who:9} {middle:.3} s {what} (median of {}; {least:.3} to {most:.3})", times.len());
    Ok(middle)
}
