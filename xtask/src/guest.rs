//! What the demo's guest is started from, as `banger` makes it, kept in the cache and not made twice.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use banger::image::build::{self, BUILD_ROOM, Recipe};
use banger::image::initrd::GUEST_MODULES;
use banger::image::progress::Unwatched;
use banger::image::store::Store;
use banger::image::{debian, kernel};

use crate::cache::{Cache, Entry, key, mebibytes, remove};
use crate::programs;

/// Raised when an entry is made in another way than before.
const RECIPE: &[u8] = b"4";
/// Room that the kernel takes on the way.
const KERNEL_ROOM: u64 = 600 << 20;
/// The demo's guest writes little, and its disk is copied.
const ROOT_SIZE: u64 = 1 << 30;

/// The files that a guest is started from.
pub(crate) struct Guest {
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: PathBuf,
    pub(crate) root: PathBuf,
}

/// Makes what isn't there yet, tells of each part in a line, and gives the paths. `include`: Debian's packages beside what
/// every guest has. `again` makes kernel and root anew.
pub(crate) fn make(agent: &Path, include: &[String], again: bool) -> Result<Guest> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("guests are x86-64 so far, this machine is {}", std::env::consts::ARCH);
    }
    let release = debian::release()?;
    let agent = fs::read(agent).with_context(|| format!("there is no agent at {}", agent.display()))?;
    let cache = Cache::open()?;
    println!("cache    {}", cache.directory().display());
    let kernel = kernel(&cache, release, again)?;
    let root = root(&cache, release, include, again)?;
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
    let name = format!("kernel-{release}-{}", key([RECIPE, modules.as_bytes()]));
    let entry = cache.entry(&name, again, |at| {
        cache.need_room(KERNEL_ROOM)?;
        println!("kernel   fetching Debian's; it is unpacked here, not installed");
        let work = at.with_extension("work");
        fs::create_dir(&work)?;
        let made = kernel::import_debian(&work, None, &Unwatched);
        remove(&work)?;
        fs::create_dir(at)?;
        made?.write_to(at)?;
        Ok(())
    })?;
    cache.keep_newest(&format!("kernel-{release}-"), 2)?;
    let version = fs::read_to_string(entry.path.join("version"))?;
    tell("kernel", &format!("Linux {version}, {}", size(&entry.path.join("vmlinux"))?), &entry);
    Ok(entry.path)
}

fn pack_initrd(cache: &Cache, kernel: &Path, agent: &[u8]) -> Result<PathBuf> {
    let archive = kernel::initrd(kernel, agent)?;
    let entry = cache.entry(&format!("initrd-{}", key([&archive[..]])), false, |at| Ok(fs::write(at, &archive)?))?;
    cache.keep_newest("initrd-", 4)?;
    tell("initrd", &format!("the agent and the kernel's modules, {}", mebibytes(archive.len() as u64)), &entry);
    Ok(entry.path)
}

fn root(cache: &Cache, release: &str, include: &[String], again: bool) -> Result<PathBuf> {
    let (kind, key) = match include {
        [] => ("root", key([RECIPE])),
        packages => ("root-with", key([RECIPE, packages.join(",").as_bytes()])),
    };
    let entry = cache.entry(&format!("{kind}-{release}-{key}.ext4"), again, |at| {
        cache.need_room(BUILD_ROOM)?;
        println!("root     making a Debian {release} root file system with mmdebstrap; this takes a minute");
        let store = Store::open(&at.with_extension("work"))?;
        let work = store.work(BUILD_ROOM)?;
        let recipe = Recipe { size: ROOT_SIZE, include: include.to_vec(), ..Recipe::default() };
        let made = build::build(&recipe, &work, &Unwatched);
        let kept = made.map_err(Into::into).and_then(|image| Ok(fs::rename(image, at)?));
        drop(work);
        remove(&at.with_extension("work"))?;
        kept
    })?;
    cache.keep_newest(&format!("{kind}-{release}-"), 2)?;
    tell("root", &format!("Debian {release}, {}", size(&entry.path)?), &entry);
    Ok(entry.path)
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
