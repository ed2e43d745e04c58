//! The lab's disk: a Debian with systemd, device-mapper, Docker and firewalld; its kernel; the initrd that starts both.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use banger::image::progress::Unwatched;
use banger::image::{debian, kernel};

use super::children;
use crate::cache::{Cache, key, mebibytes, remove};
use crate::programs;

/// Raised when the image is made in another way than before.
const RECIPE: &[u8] = b"1";
/// What is installed beyond apt and what that needs.
const PACKAGES: &str = "systemd,systemd-sysv,systemd-resolved,dbus,udev,kmod,iproute2,nftables,iptables,dmsetup,e2fsprogs,\
                        xfsprogs,btrfs-progs,procps,psmisc,dnsmasq-base,iputils-ping,strace,docker.io,firewalld,\
                        qemu-system-x86";
/// Installed, but started by those tests alone that want them.
const NOT_STARTED: [&str; 4] = ["docker.service", "docker.socket", "containerd.service", "firewalld.service"];
/// What would only take time, or run at a moment of its own.
const MASKED: [&str; 9] = [
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty@tty1.service",
    "serial-getty@ttyS0.service",
    "systemd-tmpfiles-clean.timer",
];
/// Modules between the kernel and its root file system, and the port.
const MODULES: [&str; 4] = ["virtio_mmio", "virtio_blk", "virtio_console", "ext4"];
/// The disk's size; it takes what is written to it.
const SIZE: &str = "8G";
/// Room that making the image takes on the way.
const ROOM: u64 = 3 << 30;

/// The files of an image.
pub(super) struct Image {
    pub(super) root: PathBuf,
    pub(super) kernel: PathBuf,
    pub(super) initrd: Vec<u8>,
    /// Another one for each image that was ever made.
    pub(super) stamp: String,
}

/// Where an image of this recipe lies, made or not.
pub(super) fn place(cache: &Path, release: &str) -> PathBuf {
    cache.join(name(release))
}

fn name(release: &str) -> String {
    let parts = [PACKAGES, SIZE].into_iter().chain(NOT_STARTED).chain(MASKED).chain(MODULES);
    let recipe = key([RECIPE].into_iter().chain(parts.map(str::as_bytes)));
    format!("lab-image-{release}-{recipe}")
}

/// Reads an image that is there. `inside` is the program that becomes the initrd's `/init`.
pub(super) fn open(at: &Path, inside: &Path) -> Result<Image> {
    let inside = fs::read(inside).with_context(|| format!("there is no {}", inside.display()))?;
    Ok(Image {
        root: at.join("root.ext4"),
        kernel: at.join("vmlinux"),
        initrd: kernel::initrd(at, &inside)?,
        stamp: fs::read_to_string(at.join("stamp"))?,
    })
}

/// Makes the image where it isn't there.
pub(super) fn make(cache: &Cache, release: &str, again: bool) -> Result<()> {
    let entry = cache.entry(&name(release), again, |at| {
        if !rustix::process::geteuid().is_root() {
            bail!("making the lab's image needs root\n  fix: sudo lab/run …");
        }
        cache.need_room(ROOM)?;
        eprintln!("lab: making its image, a Debian {release} from this machine's package sources: one or two minutes");
        fs::create_dir(at)?;
        let work = at.join("work");
        fs::create_dir(&work)?;
        let tree = bootstrap(release, &work)?;
        settle(&tree)?;
        add_kernel(&tree, &work, at)?;
        make_ext4(&tree, &at.join("root.ext4"))?;
        remove(&work)?;
        Ok(fs::write(at.join("stamp"), random_hex()?)?)
    })?;
    if let Some(time) = entry.made_in {
        let size = mebibytes(blocks(&entry.path.join("root.ext4"))?);
        eprintln!("lab: image of {size} made in {:.0} s", time.as_secs_f64());
    }
    cache.keep_newest("lab-image-", 1)
}

/// The Debian, in a folder. In namespaces of its own, so that neither a mount nor a process outlives the making.
fn bootstrap(release: &str, work: &Path) -> Result<PathBuf> {
    let tree = work.join("tree");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child=KILL", "mmdebstrap"]);
    command.env("TMPDIR", work).args(["--quiet", "--mode=root", "--format=directory", "--variant=apt"]);
    command.arg(format!("--include={PACKAGES}")).arg("--dpkgopt=force-unsafe-io");
    for pattern in ["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*"] {
        command.arg(format!("--dpkgopt=path-exclude={pattern}"));
    }
    for proxy in debian::proxies()? {
        command.arg(format!("--aptopt={}", proxy.trim_end_matches(';')));
    }
    command.arg(release).arg(&tree);
    command.args(debian::sources(release).write_to(work)?);
    let log = work.join("log");
    children::run(command, &log).with_context(|| {
        let said = programs::indented(&fs::read_to_string(&log).unwrap_or_default(), 8);
        format!("Debian's packages can't be fetched or set up:\n{said}")
    })?;
    Ok(tree)
}

/// What makes a machine of it.
fn settle(tree: &Path) -> Result<()> {
    let etc = tree.join("etc");
    fs::write(etc.join("hostname"), "lab\n")?;
    fs::write(etc.join("hosts"), "127.0.0.1 localhost\n127.0.1.1 lab\n::1 localhost\n")?;
    // Without an id systemd would take this for a first boot, and enable everything.
    fs::write(etc.join("machine-id"), format!("{}\n", random_hex()?))?;
    remove(&etc.join("resolv.conf"))?;
    symlink("../run/systemd/resolve/stub-resolv.conf", etc.join("resolv.conf"))?;
    for unit in MASKED {
        let link = etc.join("systemd/system").join(unit);
        remove(&link)?;
        symlink("/dev/null", link)?;
    }
    let mut disable = Command::new("chroot");
    disable.arg(tree).args(["systemctl", "--quiet", "disable"]).args(NOT_STARTED);
    programs::run(&mut disable)?;
    fs::create_dir(tree.join("lab"))?;
    Ok(())
}

/// Debian's kernel for virtual machines: its modules into the tree, itself and the initrd's modules beside the image.
fn add_kernel(tree: &Path, work: &Path, at: &Path) -> Result<()> {
    let work = work.join("kernel");
    fs::create_dir(&work)?;
    let (_, kernel) = kernel::fetch_debian(&work, None, &MODULES, &Unwatched)?;
    kernel.write_to(at)?;
    let modules = kernel::modules_of(&work.join("unpacked"))?;
    let place = tree.join("usr/lib/modules");
    fs::create_dir_all(&place)?;
    fs::rename(&modules, place.join(&kernel.version))?;
    programs::run(Command::new("chroot").arg(tree).arg("depmod").arg(&kernel.version))?;
    Ok(())
}

/// Without a journal: nobody sees this disk again after its machine has ended.
fn make_ext4(tree: &Path, image: &Path) -> Result<()> {
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.args(["-q", "-F", "-t", "ext4", "-L", "lab", "-m", "0", "-O", "^has_journal", "-E", "lazy_itable_init=0"]);
    programs::run(mke2fs.arg("-d").arg(tree).arg(image).arg(SIZE)).context("can't make the lab's disk")?;
    programs::output("fallocate", [Path::new("--dig-holes"), image])?;
    Ok(())
}

fn random_hex() -> Result<String> {
    let bytes: [u8; 16] = super::random()?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

/// Bytes that a file takes on the disk.
pub(super) fn blocks(file: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    Ok(fs::metadata(file)?.blocks() * 512)
}
