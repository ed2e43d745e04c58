//! What is brought into the lab: files and folders on a second disk, made for one run.
//!
//! Nothing of it has a name when the run begins: the folder in which it is gathered is removed as soon as the disk is
//! made, and the disk never had one. What a killed run left of the folder, the next one removes.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};

use super::children;
use super::machine::SECOND_DISK;
use crate::cache::{mebibytes, remove};
use crate::programs;

/// Where it is mounted inside.
pub(super) const FOLDER: &str = "/lab";
const GATHERING: &str = "lab-gathering-";

/// A file or folder of this machine, and its name below `/lab`.
pub(super) struct Item {
    pub(super) from: PathBuf,
    pub(super) name: PathBuf,
}

impl Item {
    /// Under its last name.
    pub(super) fn new(from: &Path) -> Result<Self> {
        let from = fs::canonicalize(from).with_context(|| format!("there is no {}", from.display()))?;
        let name = from.file_name().with_context(|| format!("{} can't be brought whole", from.display()))?.into();
        Ok(Self { from, name })
    }

    /// Under its whole path, so that things of one name don't meet.
    pub(super) fn at_own_path(from: &Path) -> Self {
        let below = from.strip_prefix("/").unwrap_or(from);
        Self { from: from.to_owned(), name: Path::new("tree").join(below) }
    }

    /// Its own path, and where it lies inside.
    pub(super) fn link(&self) -> (Vec<u8>, Vec<u8>) {
        let inside = Path::new(FOLDER).join(&self.name);
        (self.from.as_os_str().as_bytes().to_vec(), inside.as_os_str().as_bytes().to_vec())
    }
}

/// The disk with these things on it.
pub(super) fn disk(cache: &Path, items: &[Item]) -> Result<File> {
    static GATHERED: AtomicU32 = AtomicU32::new(0);
    let nth = GATHERED.fetch_add(1, Ordering::Relaxed);
    let folder = cache.join(format!("{GATHERING}{}-{nth}", std::process::id()));
    // Held until the folder is gone, so that no other run sweeps it; and none sweeps before it is held.
    let gate = File::open(cache)?;
    gate.lock()?;
    sweep(cache)?;
    fs::create_dir(&folder).with_context(|| format!("can't make {}", folder.display()))?;
    let lock = File::open(&folder)?;
    lock.lock()?;
    drop(gate);
    let made = gather(items, &folder).and_then(|()| pack(cache, &folder));
    remove(&folder)?;
    drop(lock);
    made
}

fn sweep(cache: &Path) -> Result<()> {
    for entry in fs::read_dir(cache)? {
        let entry = entry?;
        if entry.file_name().as_bytes().starts_with(GATHERING.as_bytes())
            && File::open(entry.path()).is_ok_and(|folder| folder.try_lock().is_ok())
        {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

fn gather(items: &[Item], folder: &Path) -> Result<()> {
    for item in items {
        let to = folder.join(&item.name);
        if fs::symlink_metadata(&to).is_ok() {
            bail!("two things of the name {} are brought; rename one", item.name.display());
        }
        fs::create_dir_all(to.parent().unwrap_or(folder))?;
        copy(&item.from, &to).with_context(|| format!("can't bring {}", item.from.display()))?;
    }
    Ok(())
}

/// A second name for each file, or a copy where it lies on another file system.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let found = fs::symlink_metadata(from)?;
    if found.is_dir() {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
        fs::set_permissions(to, found.permissions())?;
    } else if found.is_symlink() {
        symlink(fs::read_link(from)?, to)?;
    } else if found.is_file() {
        if fs::hard_link(from, to).is_err() {
            fs::copy(from, to)?;
        }
    } else {
        bail!("{} is neither a file nor a folder", from.display());
    }
    Ok(())
}

fn pack(cache: &Path, folder: &Path) -> Result<File> {
    children::check()?;
    let disk = rustix::fs::open(
        cache,
        rustix::fs::OFlags::TMPFILE | rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
    );
    let disk = File::from(disk.context("can't make a disk in the cache")?);
    disk.set_len(SECOND_DISK)?;
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.args(["-q", "-F", "-t", "ext4", "-L", "brought", "-m", "0", "-O", "^has_journal", "-E"]);
    // Owned by root, as everything in the lab is.
    mke2fs.args(["lazy_itable_init=0,root_owner=0:0", "-d"]).arg(folder);
    mke2fs.arg(format!("/proc/{}/fd/{}", std::process::id(), disk.as_raw_fd()));
    programs::run(&mut mke2fs)
        .with_context(|| format!("what is brought doesn't fit on a disk of {}?", mebibytes(SECOND_DISK)))?;
    if disk.metadata()?.len() != SECOND_DISK {
        bail!("mke2fs made a disk of another size");
    }
    Ok(disk)
}
