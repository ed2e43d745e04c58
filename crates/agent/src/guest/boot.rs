//! From the kernel's hands to a root with its mounts and its network.

use std::ffi::CStr;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_move, mount_remount};
use rustix::system::RebootCommand;
use sys::guest::Link;

use super::config;
use super::console::{say, stage, want_stages};
use super::settings::{Network, Settings};

/// How long the root's device may take to appear.
const DEVICE_LIMIT: Duration = Duration::from_secs(10);
const NEW_ROOT: &str = "/newroot";
/// The interface where nobody names one.
pub(super) const DEVICE: &str = "eth0";

/// Does all of it, and says what the command line wants.
///
/// # Errors
/// What makes it impossible to go on.
pub(super) fn boot() -> Result<Settings, String> {
    stage("start");
    let in_initrd = is_initrd();
    kernel_mounts();
    open_console();
    let cmdline = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let (settings, faults) = Settings::read(&cmdline);
    want_stages(settings.stages);
    faults.iter().for_each(|fault| say(&format!("kernel argument not understood: {fault}")));
    if in_initrd {
        load_modules();
        stage("modules");
        mount_root(&settings)?;
        switch_root()?;
        if settings.grow
            && let Err(error) = grow(&settings.root)
        {
            say(&format!("the root can't be made as long as {}: {error}", settings.root));
        }
        stage("root");
    }
    more_mounts();
    network(&settings.network);
    stage("network");
    Ok(settings)
}

/// Resets the machine: the one way to its end that every VMM here understands.
pub(super) fn reset() -> ! {
    restart(RebootCommand::Restart)
}

/// Has the kernel reset the machine at once.
pub(super) fn want_quick_reset() {
    // Where the channel is a virtio-serial port the machine is QEMU's microvm, which has no keyboard controller: the
    // kernel would ask it for two seconds, where `reboot=k` tells it to. A triple fault resets at once.
    if std::fs::read_dir("/sys/class/virtio-ports").is_ok_and(|mut ports| ports.next().is_some()) {
        let _ = std::fs::write("/sys/kernel/reboot/type", "triple");
    }
}

/// Writes everything out and ends the machine.
pub(super) fn restart(how: RebootCommand) -> ! {
    rustix::fs::sync();
    want_quick_reset();
    let _ = mount_remount("/", MountFlags::RDONLY, "");
    if let Err(error) = rustix::system::reboot(how) {
        say(&format!("reboot: {error}"));
    }
    // Not allowed to, or a machine that has no end: PID 1 must not return.
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

fn is_initrd() -> bool {
    // linux/magic.h: ramfs and tmpfs, the two kinds of a rootfs.
    rustix::fs::statfs("/").is_ok_and(|fs| matches!(fs.f_type as u64, 0x8584_58f6 | 0x0102_1994))
}

/// Mounts what is not there yet; a failure is said, since most of what follows can do without one of them.
fn attach(source: &str, target: &str, kind: &str, flags: MountFlags, data: Option<&CStr>) {
    if let Err(error) = std::fs::create_dir(target)
        && error.kind() != std::io::ErrorKind::AlreadyExists
    {
        say(&format!("mkdir {target}: {error}"));
    }
    match mount(source, target, kind, flags, data) {
        // Mounted already by the kernel (devtmpfs), or by whoever was here before.
        Ok(()) | Err(Errno::BUSY) => {}
        Err(error) => say(&format!("mount {target}: {error}")),
    }
}

fn kernel_mounts() {
    let plain = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV;
    attach("proc", "/proc", "proc", plain, None);
    attach("sysfs", "/sys", "sysfs", plain, None);
    attach("devtmpfs", "/dev", "devtmpfs", MountFlags::NOSUID, Some(c"mode=0755"));
}

fn more_mounts() {
    let plain = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV;
    attach(
        "devpts",
        "/dev/pts",
        "devpts",
        MountFlags::NOSUID | MountFlags::NOEXEC,
        Some(c"mode=0620,gid=5,ptmxmode=0666"),
    );
    attach("tmpfs", "/dev/shm", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=1777"));
    attach("tmpfs", "/run", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=0755"));
    attach("cgroup2", "/sys/fs/cgroup", "cgroup2", plain, None);
    // A root that can't be written has no other place for anybody's files.
    if rustix::fs::statvfs("/").is_ok_and(|fs| fs.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY)) {
        attach("tmpfs", "/tmp", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=1777"));
    }
}

/// The kernel opens the console for us only where its initramfs has the device; ours may not.
fn open_console() {
    let Ok(console) = rustix::fs::open("/dev/console", OFlags::RDWR | OFlags::NOCTTY, Mode::empty()) else { return };
    let _ = rustix::stdio::dup2_stdin(&console);
    let _ = rustix::stdio::dup2_stdout(&console);
    let _ = rustix::stdio::dup2_stderr(&console);
}

/// Loads `/modules` in their order, and gives their memory back.
fn load_modules() {
    let Ok(order) = std::fs::read_to_string("/modules/order") else { return };
    for name in names_of(&order) {
        if let Err(error) = load(&format!("/modules/{name}")) {
            say(&format!("module {name}: {error}"));
        }
    }
    let _ = std::fs::remove_file("/init");
}

fn load(path: &str) -> std::io::Result<()> {
    let file = File::open(path)?;
    // A compressed one is for the kernel to unpack (linux/module.h: MODULE_INIT_COMPRESSED_FILE).
    let flags = if path.ends_with(".ko") { 0 } else { 4 };
    match rustix::system::finit_module(&file, c"", flags) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    std::fs::remove_file(path)
}

/// The lines' names, without blanks and comments.
fn names_of(order: &str) -> impl Iterator<Item = &str> {
    order.lines().map(|line| line.split('#').next().unwrap_or_default().trim()).filter(|line| !line.is_empty())
}

fn mount_root(settings: &Settings) -> Result<(), String> {
    let device = settings.root.as_str();
    let limit = Instant::now() + DEVICE_LIMIT;
    while !Path::new(device).exists() {
        if Instant::now() > limit {
            return Err(format!("no {device}: is the drive there, and its modules in the initrd?"));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let _ = std::fs::create_dir(NEW_ROOT);
    let flags = if settings.read_only { MountFlags::RDONLY } else { MountFlags::empty() };
    mount(device, NEW_ROOT, settings.root_type.as_str(), flags, None)
        .map_err(|error| format!("mount {device} as {}: {error}", settings.root_type))
}

/// Makes the root's ext4 as long as its device; one that is so stays as it is.
fn grow(device: &str) -> std::io::Result<()> {
    let name = device.rsplit('/').next().unwrap_or_default();
    let sectors = std::fs::read_to_string(format!("/sys/class/block/{name}/size"))?;
    let bytes = sectors.trim().parse::<u64>().map_err(std::io::Error::other)? * 512;
    let root = File::open("/")?;
    let block = rustix::fs::fstatvfs(&root)?.f_bsize.max(1);
    sys::guest::grow_ext4(&root, bytes / block)
}

/// Takes /proc, /sys and /dev along and makes the new root the only one.
fn switch_root() -> Result<(), String> {
    for name in ["dev", "proc", "sys"] {
        let (from, to) = (format!("/{name}"), format!("{NEW_ROOT}/{name}"));
        let _ = std::fs::create_dir(&to);
        mount_move(&from, &to).map_err(|error| format!("move {from} into the root: {error}"))?;
    }
    let moved = rustix::process::chdir(NEW_ROOT)
        .and_then(|()| mount_move(".", "/"))
        .and_then(|()| rustix::process::chroot("."))
        .and_then(|()| rustix::process::chdir("/"));
    moved.map_err(|error| format!("switch to the root: {error}"))
}

fn network(cmdline: &Network) {
    let (network, resolvers) = config::over(cmdline).unwrap_or_else(|error| {
        say(&error);
        (cmdline.clone(), Vec::new())
    });
    if let Some(name) = &network.hostname
        && let Err(error) = rustix::system::sethostname(name.as_bytes())
    {
        say(&format!("hostname: {error}"));
    }
    if let Err(error) = Link::new("lo").and_then(|lo| lo.up()) {
        say(&format!("lo: {error}"));
    }
    if let Err(error) = interface(&network) {
        say(&error);
    }
    if !resolvers.is_empty()
        && let Err(error) = write_resolvers(&resolvers)
    {
        say(&format!("/etc/resolv.conf: {error}"));
    }
}

fn interface(network: &Network) -> Result<(), String> {
    let name = network.device.as_deref().unwrap_or(DEVICE);
    // No host passes a guest's IPv6 on, so that a guest need not look for anybody there.
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
    let Some((address, mask)) = network.address else { return Ok(()) };
    let failed = |what: &str| {
        let what = format!("{name}: {what}");
        move |error| format!("{what}: {error}")
    };
    let link = Link::new(name).map_err(failed("socket"))?;
    link.set_address(address, mask).map_err(failed(&format!("address {address}")))?;
    link.up().map_err(failed("up"))?;
    match network.gateway {
        Some(gateway) => link.default_route(gateway).map_err(failed(&format!("route by {gateway}"))),
        None => Ok(()),
    }
}

pub(super) fn write_resolvers(resolvers: &[std::net::Ipv4Addr]) -> std::io::Result<()> {
    let mut text = String::new();
    for resolver in resolvers {
        text.push_str(&format!("nameserver {resolver}\n"));
    }
    File::create("/etc/resolv.conf")?.write_all(text.as_bytes())
}
