//! What a guest is started from: Debian's kernel, unpacked and never installed; a Debian root file system; the initrd
//! with the agent. All of it is kept in the cache and not made twice.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use banger::image::initrd::{self, GUEST_MODULES, Module};
use banger::image::kernel;

use crate::cache::{Cache, Entry, key, mebibytes, remove};
use crate::{debian, programs};

/// Debian's kernel for virtual machines; the package itself only names the current one.
const KERNEL: &str = "linux-image-cloud-amd64";
/// What the demo's guest has beyond a minimal Debian.
const PACKAGES: &str = "iproute2,iputils-ping";
/// Raised when an entry is made in another way than before.
const RECIPE: &[u8] = b"2";
/// Room that making everything takes, with what apt and mmdebstrap need on the way.
const ROOM: u64 = 1200 << 20;

pub(crate) const NO_MIRROR: &str =
    "Debian's packages can't be fetched\n  fix: see whether the mirror in /etc/apt answers: apt-get update";

/// The files that a guest is started from.
pub(crate) struct Guest {
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: PathBuf,
    pub(crate) root: PathBuf,
}

/// Makes what isn't there yet, tells of each part in a line, and gives the paths. `again` makes kernel and root anew.
pub(crate) fn make(agent: &Path, again: bool) -> Result<Guest> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("guests are x86-64 so far, this machine is {}", std::env::consts::ARCH);
    }
    let release = debian::release()?;
    let agent = fs::read(agent).with_context(|| format!("there is no agent at {}", agent.display()))?;
    let cache = Cache::open()?;
    println!("cache    {}", cache.directory().display());
    let kernel = kernel(&cache, release, again)?;
    let root = root(&cache, release, again)?;
    let initrd = pack_initrd(&cache, &kernel, &agent)?;
    Ok(Guest { kernel: kernel.join("vmlinux"), initrd, root })
}

impl Guest {
    /// Copies the three files into a folder, as `vmlinux`, `initrd` and `root.ext4`: a guest's own, to be written to.
    pub(crate) fn copy_to(&self, folder: &Path) -> Result<()> {
        for (from, name) in [(&self.kernel, "vmlinux"), (&self.initrd, "initrd"), (&self.root, "root.ext4")] {
            let to = folder.join(name);
            let arguments = [Path::new("--reflink=auto"), Path::new("--sparse=always"), from, &to];
            programs::output("cp", arguments)
                .with_context(|| format!("can't copy {name} for the VM; is there room in /var/tmp?"))?;
        }
        Ok(())
    }
}

fn kernel(cache: &Cache, release: &str, again: bool) -> Result<PathBuf> {
    let modules = GUEST_MODULES.join(" ");
    let name = format!("kernel-{release}-{}", key([RECIPE, KERNEL.as_bytes(), modules.as_bytes()]));
    let entry = cache.entry(&name, again, |at| {
        cache.need_room(ROOM)?;
        println!("kernel   fetching Debian's {KERNEL}; it is unpacked here, not installed");
        let unpacked = at.join("unpacked");
        fs::create_dir_all(&unpacked)?;
        fetch_kernel(&unpacked)?;
        keep_kernel(&unpacked, at)?;
        remove(&unpacked)
    })?;
    cache.keep_newest(&format!("kernel-{release}-"), 2)?;
    let version = fs::read_to_string(entry.path.join("version"))?;
    tell("kernel", &format!("Linux {version}, {}", size(&entry.path.join("vmlinux"))?), &entry);
    Ok(entry.path)
}

/// Downloads the current kernel's package and unpacks it into a folder.
pub(crate) fn fetch_kernel(into: &Path) -> Result<()> {
    debian::with_lists(|| {
        let shown = programs::output("apt-cache", ["--no-all-versions", "show", KERNEL])?;
        let depends = shown.lines().find_map(|l| l.strip_prefix("Depends: ")).unwrap_or_default();
        let package = depends.split([' ', ',']).find(|p| p.starts_with("linux-image-"));
        let package = package.with_context(|| format!("apt knows no kernel behind {KERNEL}"))?;
        let mut download = Command::new("apt-get");
        download.args(["-qq", "-o", "APT::Sandbox::User=root", "download", package]).current_dir(into);
        programs::run(&mut download)
    })
    .context(NO_MIRROR)?;
    let entries: Vec<PathBuf> = fs::read_dir(into)?.map(|e| Ok(e?.path())).collect::<Result<_>>()?;
    let package =
        entries.iter().find(|p| p.extension().is_some_and(|e| e == "deb")).context("apt downloaded nothing")?;
    programs::output("dpkg-deb", [Path::new("--extract"), package, into])?;
    Ok(())
}

/// Takes out of an unpacked package what a guest needs.
fn keep_kernel(unpacked: &Path, at: &Path) -> Result<()> {
    let below_lib = ["lib/modules", "usr/lib/modules"].map(|d| unpacked.join(d));
    let versions = below_lib.iter().find_map(|d| fs::read_dir(d).ok()).context("the package has no modules")?;
    let modules = versions.filter_map(|e| Some(e.ok()?.path())).next().context("the package has no modules")?;
    let version = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let image = fs::read(unpacked.join(format!("boot/vmlinuz-{version}"))).context("the package has no kernel")?;
    fs::write(at.join("vmlinux"), kernel::vmlinux(&image)?)?;
    fs::create_dir(at.join("modules"))?;
    let mut order = String::new();
    for module in initrd::modules(&modules, &GUEST_MODULES)? {
        fs::write(at.join(format!("modules/{}.ko", module.name)), &module.object)?;
        order += &format!("{}\n", module.name);
    }
    fs::write(at.join("modules/order"), order)?;
    fs::write(at.join("version"), version)?;
    Ok(())
}

fn pack_initrd(cache: &Cache, kernel: &Path, agent: &[u8]) -> Result<PathBuf> {
    let names = fs::read_to_string(kernel.join("modules/order"))?;
    let load = |name: &str| {
        let object = fs::read(kernel.join(format!("modules/{name}.ko")))?;
        Ok(Module { name: name.to_owned(), object })
    };
    let modules: Vec<Module> = names.lines().map(load).collect::<Result<_>>()?;
    let archive = initrd::pack(agent, &modules);
    let entry = cache.entry(&format!("initrd-{}", key([&archive[..]])), false, |at| Ok(fs::write(at, &archive)?))?;
    cache.keep_newest("initrd-", 4)?;
    let what = format!("the agent and {} modules, {}", modules.len(), mebibytes(archive.len() as u64));
    tell("initrd", &what, &entry);
    Ok(entry.path)
}

fn root(cache: &Cache, release: &str, again: bool) -> Result<PathBuf> {
    let name = format!("root-{release}-{}.ext4", key([RECIPE, PACKAGES.as_bytes()]));
    let work = format!(".making-{name}.work");
    let entry = cache.entry(&name, again, |at| {
        if !rustix::process::geteuid().is_root() {
            bail!("making a root file system needs root\n  fix: sudo, or make demo");
        }
        cache.need_room(ROOM)?;
        println!("root     making a Debian {release} root file system with mmdebstrap; this takes a minute");
        let work = cache.directory().join(work);
        fs::create_dir(&work)?;
        let made = bootstrap(release, &work).and_then(|tree| make_ext4(&tree, at));
        remove(&work)?;
        made
    })?;
    cache.keep_newest(&format!("root-{release}-"), 2)?;
    tell("root", &format!("Debian {release}, {}", size(&entry.path)?), &entry);
    Ok(entry.path)
}

/// A minimal Debian in a folder, from the machine's own package sources.
fn bootstrap(release: &str, work: &Path) -> Result<PathBuf> {
    let tree = work.join("tree");
    let mut mmdebstrap = Command::new("mmdebstrap");
    mmdebstrap.env("TMPDIR", work).args(["--mode=root", "--format=directory", "--variant=apt"]);
    mmdebstrap.arg(format!("--include={PACKAGES}"));
    for pattern in ["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*"] {
        mmdebstrap.arg(format!("--dpkgopt=path-exclude={pattern}"));
    }
    for proxy in debian::proxies()? {
        mmdebstrap.arg(format!("--aptopt={proxy}"));
    }
    mmdebstrap.arg(release).arg(&tree);
    let (lines, stanzas) = debian::sources(release)?;
    for (name, text) in [("debian.list", lines), ("debian.sources", stanzas)] {
        if !text.is_empty() {
            let file = work.join(name);
            fs::write(&file, text)?;
            mmdebstrap.arg(file);
        }
    }
    programs::run(&mut mmdebstrap).context(NO_MIRROR)?;
    fs::write(tree.join("etc/hostname"), "banger\n")?;
    Ok(tree)
}

/// Packs a folder into an ext4 image, sparse, with room to write in.
fn make_ext4(tree: &Path, image: &Path) -> Result<()> {
    let mut mke2fs = Command::new("mke2fs");
    // Tables are written now, not by the guest's kernel in the background.
    mke2fs.args(["-q", "-F", "-t", "ext4", "-L", "root", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0"]);
    mke2fs.arg("-d").arg(tree).arg(image).arg("1G");
    programs::run(&mut mke2fs).context("can't make the ext4 image")?;
    programs::output("fallocate", [Path::new("--dig-holes"), image])?;
    Ok(())
}

fn tell(part: &str, what: &str, entry: &Entry) {
    match entry.made_in {
        Some(time) => println!("{part:8} {what}: made in {}", seconds(time)),
        None => println!("{part:8} {what}: kept from before"),
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

/// What a file takes on the disk.
fn size(path: &Path) -> Result<String> {
    use std::os::unix::fs::MetadataExt;
    Ok(mebibytes(fs::metadata(path)?.blocks() * 512))
}
