//! Where the measurements are made: network, mount and PID namespaces of their own, with an uplink and a helper.

use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The owner's uid and gid, an account that the private /etc/passwd of [`enter`] holds.
pub(crate) const OWNER: u32 = 4242;
const INSIDE: &str = "BANGER_BENCH_INSIDE";

/// Runs this program again in fresh namespaces; true in there.
pub(crate) fn enter() -> Result<bool> {
    if std::env::var_os(INSIDE).is_some() {
        return Ok(true);
    }
    let status = Command::new("unshare")
        .args(["-n", "-m", "-p", "-f", "--propagation", "private", "--mount-proc", "--kill-child=KILL"])
        // A first process that takes in what others leave: QEMU ends behind its front-end, and an ended process that nobody
        // waits for holds one of its user's 200 keys.
        .args(["sh", "-c", "\"$0\" \"$@\"; exit $?"])
        .arg(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "1")
        .status()
        .context("unshare: is this root, with util-linux installed?")?;
    ensure!(status.success(), "the measurement failed");
    Ok(false)
}

/// Runs a program that must succeed.
pub(crate) fn run(line: &str) -> Result<()> {
    if try_run(line)? { Ok(()) } else { bail!("{line}: failed") }
}

/// Runs a program; whether it succeeded.
pub(crate) fn try_run(line: &str) -> Result<bool> {
    let mut words = line.split_whitespace();
    let program = words.next().context("an empty command")?;
    let mut command = Command::new(program);
    command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(command.status().with_context(|| line.to_owned())?.success())
}

/// Directories on a tmpfs of our own, an owner, an uplink with a default route.
pub(crate) fn set_up() -> Result<()> {
    for dir in ["/run", "/var/lib"] {
        run(&format!("mount -t tmpfs -o mode=0755 bench {dir}"))?;
    }
    let passwd = format!("{}bowner:x:{OWNER}:{OWNER}::/nonexistent:/bin/false\n", fs::read_to_string("/etc/passwd")?);
    fs::write("/run/passwd", passwd)?;
    run("mount --bind /run/passwd /etc/passwd")?;
    for dir in ["/run/banger", "/var/lib/banger", "/var/lib/banger/vms"] {
        fs::create_dir(dir)?;
        chown(dir, Some(OWNER), Some(OWNER))?;
    }
    let meta = format!(
        "owner_user = \"bowner\"\nowner_uid = {OWNER}\nowner_gid = {OWNER}\nowner_home = \"/nonexistent\"\nversion = \"0\"\ncommit = \"0\"\nbuilt_at = \"2026-01-01T00:00:00Z\"\ninstalled_at = \"2026-01-01T00:00:00Z\"\n"
    );
    fs::write("/run/install.toml", meta)?;
    fs::set_permissions("/run/install.toml", fs::Permissions::from_mode(0o644))?;
    fs::create_dir("/run/cgroup")?;
    for line in [
        // The one from outside shows another network's links; its control groups are the machine's.
        "mount --rbind /sys/fs/cgroup /run/cgroup",
        "mount -t sysfs -o ro bench /sys",
        "mount --rbind /run/cgroup /sys/fs/cgroup",
        "ip link set lo up",
        "ip link add eth0 type veth peer name up0",
        "ip addr add 198.51.100.2/24 dev eth0",
        "ip link set eth0 up",
        "ip link set up0 up",
        "ip route add default via 198.51.100.1",
    ] {
        run(line)?;
    }
    Ok(())
}

/// Does something twice, told where: with the owner's images and root's logs on the disk that this program was built on,
/// then in memory.
pub(crate) fn on_disk_and_in_memory(act: impl Fn(&str) -> Result<()>) -> Result<()> {
    let disk = beside("bangerd-root")?.with_file_name("bench-disk");
    for (dir, title) in [(disk, "on a disk"), (PathBuf::from("/run/bench-memory"), "in memory")] {
        fs::create_dir_all(&dir)?;
        let done = in_place(&dir, || act(title));
        fs::remove_dir_all(dir)?;
        done?;
    }
    Ok(())
}

/// With the owner's images and root's logs below one directory.
pub(crate) fn in_place(dir: &Path, act: impl Fn() -> Result<()>) -> Result<()> {
    let places = [("state", "/var/lib/banger", OWNER), ("logs", "/var/lib/banger-root", 0)];
    for (below, at, owner) in places {
        let dir = dir.join(below);
        fs::create_dir_all(&dir)?;
        fs::create_dir_all(at)?;
        chown(&dir, Some(owner), Some(owner))?;
        run(&format!("mount --bind {} {at}", dir.display()))?;
    }
    fs::set_permissions("/var/lib/banger-root", fs::Permissions::from_mode(0o700))?;
    let done = act();
    // What failed first is what there is to tell.
    done.and(places.iter().try_for_each(|(_, at, _)| run(&format!("umount {at}"))))
}

/// A helper that serves, ended when this is dropped.
pub(crate) struct Helper {
    child: Child,
    /// From its start to its first answer.
    pub(crate) ready: Duration,
}

/// Where it listens.
pub(crate) const SOCKET: &str = "/run/banger-root/bangerd-root.sock";

/// The program beside this one.
pub(crate) fn beside(name: &str) -> Result<PathBuf> {
    let path = std::env::current_exe()?.parent().unwrap_or(Path::new("/")).join(name);
    ensure!(path.exists(), "{} is not built: cargo build --release", path.display());
    Ok(path)
}

/// Waits until a program listens.
pub(crate) fn connects(socket: &str, program: &mut Child) -> Result<()> {
    let begin = Instant::now();
    while UnixStream::connect(socket).is_err() {
        if let Some(status) = program.try_wait()? {
            bail!("who listens on {socket} ended at once: {status}");
        }
        ensure!(begin.elapsed() < Duration::from_secs(10), "nobody listens on {socket}");
        std::thread::sleep(Duration::from_micros(100));
    }
    Ok(())
}

impl Helper {
    pub(crate) fn start(config: Option<&str>) -> Result<Helper> {
        let begin = Instant::now();
        let mut command = Command::new(beside("bangerd-root")?);
        command.args(["--install-meta", "/run/install.toml", "--log-level", "ERROR"]).stdin(Stdio::null());
        if let Some(config) = config {
            command.args(["--config", config]);
        }
        let child = command.spawn()?;
        let mut helper = Helper { child, ready: Duration::ZERO };
        connects(SOCKET, &mut helper.child)?;
        helper.ready = begin.elapsed();
        Ok(helper)
    }

    /// A line of `/proc/<pid>/status`, in KiB.
    pub(crate) fn status_kib(&self, key: &str) -> Result<u64> {
        status_kib(self.child.id(), key)
    }

    /// The same of its child that has most; 0 without one.
    pub(crate) fn child_kib(&self, key: &str) -> u64 {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).into_iter().flatten().flatten();
        let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
        let children: Vec<u32> =
            lists.flat_map(|list| list.split(' ').filter_map(|n| n.parse().ok()).collect::<Vec<_>>()).collect();
        children.into_iter().filter_map(|child| status_kib(child, key).ok()).max().unwrap_or(0)
    }
}

fn status_kib(pid: u32, key: &str) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find(|line| line.starts_with(key)).context("no such line")?;
    line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).context("no number")
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
