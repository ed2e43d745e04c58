//! A git work tree on its way into a guest, and what a guest made of it on its way back.
//!
//! This is git's half, on this machine alone: [`push`] makes a folder of what is shipped and remembers it, [`pull`] makes
//! a patch or a branch of what came back. How files reach a guest is the caller's.
//!
//! What was shipped is kept in a private repository in the VM's directory, which goes with the VM: the commit that the
//! work tree stood on, and behind it one with the files as they were shipped. What comes back is a third commit there. So
//! the owner's repository is only read until a branch is asked for, and then gets its commits and that branch.

mod git;
mod ignored;
mod names;
pub mod pull;
pub mod push;
mod stream;
#[cfg(test)]
mod tests;

use crate::api::Fault;
use crate::daemon::error::exit;
use rustix::fs::FlockOperation;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// The commit with what was shipped.
const SHIPPED: &str = "refs/banger/shipped";
/// What is being made has a name that begins so.
const MAKING: &str = "making-";

/// Something that was not taken along, and why.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct LeftOut {
    /// Its path below the tree, for a person.
    pub path: String,
    /// Why.
    pub why: &'static str,
}

/// A VM's folder of the workspace, this process's alone until it is dropped.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Folder {
    /// Opens it, makes it where it is missing, and removes what a killed process left half-made.
    ///
    /// # Errors
    /// `busy` where another process ships or fetches; what the kernel says.
    pub fn open(path: &Path) -> Result<Folder, Fault> {
        let failed = |error: io::Error| Fault::file("making", path, &error);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        let lock = File::options().create(true).truncate(false).write(true).open(path.join("lock")).map_err(failed)?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
            Fault::new("busy", exit::STATE, "this VM's workspace is being shipped or fetched already")
                .fix("ask again when that is over")
        })?;
        for entry in fs::read_dir(path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_name().to_string_lossy().starts_with(MAKING) {
                remove(&entry.path())?;
            }
        }
        Ok(Folder { path: path.to_owned(), _lock: lock })
    }

    /// The private repository.
    fn repository(&self) -> PathBuf {
        self.path.join("repository")
    }

    /// Is there while what is in the guest may be neither the old tree nor the new one.
    fn cut(&self) -> PathBuf {
        self.path.join("cut")
    }

    /// A new folder in it, which goes with the value.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn making(&self) -> Result<Making, Fault> {
        let failed = |error: io::Error| Fault::file("making a folder in", &self.path, &error);
        let path = self.path.join(format!("{MAKING}{}", std::process::id()));
        remove(&path)?;
        fs::DirBuilder::new().mode(0o700).create(&path).map_err(failed)?;
        Ok(Making { path })
    }
}

/// A folder that belongs to no VM; it goes with the value.
#[derive(Debug)]
pub struct Scratch {
    folder: Folder,
}

impl Scratch {
    /// Makes it where temporary files are.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn make() -> Result<Scratch, Fault> {
        let mut random = [0; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
            .map_err(|errno| Fault::bug(io::Error::from(errno)))?;
        let path = std::env::temp_dir().join(format!("banger-{:016x}", u64::from_ne_bytes(random)));
        // One that is there is somebody else's.
        fs::DirBuilder::new().mode(0o700).create(&path).map_err(|error| Fault::file("making", &path, &error))?;
        Folder::open(&path).map(|folder| Scratch { folder })
    }

    /// The folder.
    pub fn folder(&self) -> &Folder {
        &self.folder
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays is a temporary file.
        let _ = remove(&self.folder.path);
    }
}

/// A folder of what is being made; it goes with the value.
#[derive(Debug)]
pub struct Making {
    path: PathBuf,
}

impl Making {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        // What can't be removed now is when the folder is opened the next time.
        let _ = remove(&self.path);
    }
}

/// Removes a folder. Nothing in it is followed, and rights that its files have keep nothing.
fn remove(path: &Path) -> Result<(), Fault> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Fault::file("removing", path, &error)),
        _ => Ok(()),
    }
}
