//! A VM started by hand: as the owner, or by a jailer over a root that is made for it.

use crate::launch::{ARGS, DRIVE, KERNEL, LOG, METRICS, MIB, PATIENCE, TAP, VMM, tap_is_free};
use crate::world::OWNER;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{chown, symlink};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use sys::mount::{self, Tree};

/// The VMM under the name that jails are called after.
pub(crate) const PROGRAM: &str = "/run/exec/firecracker";
const BASE: &str = "/var/lib/by-hand";

/// A VMM that was started without a jail.
pub(crate) struct Bare(Child);

impl Bare {
    /// Until its VM runs.
    pub(crate) fn start() -> Result<Bare> {
        let (file, socket) = ("/run/banger/by-hand.json", "/run/banger/by-hand.sock");
        let mut told = config(KERNEL, DRIVE, "/run/banger/by-hand.vsock");
        told["logger"] = json!({"log_path": LOG, "level": "Info", "show_level": true});
        told["metrics"] = json!({"metrics_path": METRICS});
        fs::write(file, told.to_string())?;
        let mut command = Command::new(VMM);
        command.args(["--api-sock", socket, "--id", "by-hand", "--config-file", file]).uid(OWNER).gid(OWNER);
        running(command, socket).map(Bare)
    }

    /// Its end.
    pub(crate) fn end(self) -> Result<()> {
        ended(self.0)?;
        ["json", "sock", "vsock"].iter().try_for_each(|end| Ok(fs::remove_file(format!("/run/banger/by-hand.{end}"))?))
    }
}

/// A VMM that a jailer started.
pub(crate) struct InJail(Child);

impl InJail {
    /// Makes a root, has the jailer enter it, and waits until the VM runs.
    pub(crate) fn start(jailer: &str) -> Result<InJail> {
        let root = format!("{BASE}/firecracker/by-hand/root");
        fs::create_dir_all(format!("{root}/etc"))?;
        for (from, to) in [(KERNEL, "vmlinux"), (DRIVE, "rootfs")] {
            fs::hard_link(from, format!("{root}/{to}"))?;
        }
        fs::copy("/etc/ld.so.cache", format!("{root}/etc/ld.so.cache"))?;
        fs::write(format!("{root}/etc/vm.json"), config("/vmlinux", "/rootfs", "/vsock.sock").to_string())?;
        // QEMU and its libraries.
        for dir in ["usr", "tmp"] {
            fs::create_dir(format!("{root}/{dir}"))?;
        }
        chown(format!("{root}/tmp"), Some(OWNER), Some(OWNER))?;
        Tree::copy(mount::place("/usr")?)?.put_on(mount::place(&format!("{root}/usr"))?)?;
        for name in ["lib", "lib64"] {
            symlink(format!("usr/{name}"), format!("{root}/{name}"))?;
        }
        let owner = OWNER.to_string();
        let mut command = Command::new(jailer);
        command.args(["--id", "by-hand", "--exec-file", PROGRAM, "--uid", &owner, "--gid", &owner]);
        command.args(["--chroot-base-dir", BASE, "--resource-limit", "no-file=4096", "--"]);
        command.args(["--api-sock", "/api.sock", "--config-file", "/etc/vm.json"]);
        running(command, &format!("{root}/api.sock")).map(InJail)
    }

    /// Its end, and its root's.
    pub(crate) fn end(self) -> Result<()> {
        ended(self.0)?;
        crate::world::run(&format!("umount {BASE}/firecracker/by-hand/root/usr"))?;
        Ok(fs::remove_dir_all(BASE)?)
    }
}

fn config(kernel: &str, drive: &str, vsock: &str) -> Value {
    json!({
        "boot-source": {"kernel_image_path": kernel, "boot_args": ARGS},
        "drives": [{"drive_id": "rootfs", "path_on_host": drive, "is_root_device": true, "is_read_only": false}],
        "machine-config": {"vcpu_count": 1, "mem_size_mib": MIB},
        "network-interfaces": [{"iface_id": "1", "host_dev_name": TAP, "guest_mac": "02:00:00:00:00:01"}],
        "vsock": {"guest_cid": 3, "uds_path": vsock},
    })
}

fn running(mut command: Command, socket: &str) -> Result<Child> {
    let begin = Instant::now();
    command.stdin(Stdio::null()).stdout(fs::File::options().append(true).create(true).open(LOG)?);
    command.stderr(fs::File::options().append(true).open(LOG)?);
    let mut child = command.spawn().with_context(|| format!("{command:?}"))?;
    while !says_running(socket) {
        let log = || fs::read_to_string(LOG).unwrap_or_default();
        ensure!(child.try_wait()?.is_none() && begin.elapsed() < PATIENCE, "{command:?} runs no VM: {}", log());
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(child)
}

fn says_running(socket: &str) -> bool {
    UnixStream::connect(socket)
        .and_then(|stream| {
            stream.set_read_timeout(Some(Duration::from_secs(1)))?;
            wire::firecracker::says_running(stream)
        })
        .unwrap_or(false)
}

fn ended(mut child: Child) -> Result<()> {
    child.kill()?;
    child.wait()?;
    tap_is_free()
}
