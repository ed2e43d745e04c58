//! Images and kernels as the owner keeps them: each in a folder that its digest names, whole or not there.
//!
//! | below the state directory | what |
//! | --- | --- |
//! | `images/DIGEST/root.ext4` | an image; DIGEST is its SHA-256 |
//! | `kernels/DIGEST/…` | a kernel's files, see [`Kernel::write_to`] |
//! | `kernels/initrd-DIGEST` | a kernel's modules and an agent |
//! | `layers/DIGEST` | a layer of an image that is being pulled |
//! | `making/…` | what is being made or removed, a locked folder each |
//!
//! What is made is made below `making`, written through to the disk, and renamed. What a killed process left there holds
//! no lock any more, and the next one removes it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::SeekFrom;
use sha2::{Digest, Sha256};

use super::error::{Error, Kind};
use super::kernel::{self, Kernel};
use super::oci;
use super::program;
use super::progress::Watch;

/// The store.
#[derive(Clone, Debug)]
pub struct Store {
    state: PathBuf,
}

/// What is kept beside each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shelf {
    /// Root file systems.
    Images,
    /// Kernels with their modules.
    Kernels,
}

impl Shelf {
    fn folder(self) -> &'static str {
        match self {
            Shelf::Images => "images",
            Shelf::Kernels => "kernels",
        }
    }
}

/// A folder in which something is made; it is removed when this value goes.
#[derive(Debug)]
pub struct Work {
    path: PathBuf,
    _lock: File,
}

/// An image that is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its digest, 64 hexadecimal digits.
    pub digest: String,
    /// Its file, or a kernel's folder.
    pub path: PathBuf,
    /// What it takes on the disk, in bytes.
    pub size_bytes: u64,
}

impl Store {
    /// The store below a state directory, its folders made where they are missing, what was left half-made removed.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open(state: &Path) -> Result<Store, Error> {
        let store = Store { state: state.to_owned() };
        for folder in ["images", "kernels", "making"] {
            let path = state.join(folder);
            let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(&path);
            made.map_err(|cause| Error::file("make", &path, &cause))?;
        }
        store.sweep()?;
        Ok(store)
    }

    /// A new folder to work in. `room` bytes must be free.
    ///
    /// # Errors
    /// There is less room, or what the kernel says.
    pub fn work(&self, room: u64) -> Result<Work, Error> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let making = self.state.join("making");
        need_room(&making, room)?;
        let _gate = gate(&making)?;
        let name = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = making.join(name);
        remove(&path)?;
        let failed = |cause| Error::file("make", &path, &cause);
        fs::DirBuilder::new().mode(0o700).create(&path).map_err(failed)?;
        let lock = File::open(&path).map_err(failed)?;
        lock.lock().map_err(failed)?;
        Ok(Work { path, _lock: lock })
    }

    /// Keeps an image that was made and checked in a folder of [`Store::work`]. One that is here already stays as it is.
    ///
    /// # Errors
    /// What the kernel says, or the watcher.
    pub fn keep_image(&self, work: &Work, image: &Path, watch: &dyn Watch) -> Result<Stored, Error> {
        let digest = digest_of(image, watch)?;
        let folder = work.path.join("image");
        let failed = |cause| Error::file("keep", image, &cause);
        fs::create_dir(&folder).map_err(failed)?;
        fs::rename(image, folder.join("root.ext4")).map_err(failed)?;
        fs::set_permissions(folder.join("root.ext4"), fs::Permissions::from_mode(0o444)).map_err(failed)?;
        self.publish(&folder, Shelf::Images, &digest)?;
        self.image(&digest)
    }

    /// An image by its digest.
    ///
    /// # Errors
    /// It isn't here.
    pub fn image(&self, digest: &str) -> Result<Stored, Error> {
        let path = self.state.join("images").join(digest).join("root.ext4");
        let size_bytes = taken(&path).map_err(|cause| Error::file("read", &path, &cause))?;
        Ok(Stored { digest: digest.to_owned(), path, size_bytes })
    }

    /// Keeps a kernel.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn keep_kernel(&self, kernel: &Kernel) -> Result<Stored, Error> {
        let work = self.work(2 * kernel.vmlinux.len() as u64)?;
        let folder = work.folder("kernel")?;
        let digest = kernel.write_to(&folder)?;
        self.publish(&folder, Shelf::Kernels, &digest)?;
        self.kernel(&digest)
    }

    /// A kernel by its digest.
    ///
    /// # Errors
    /// It isn't here.
    pub fn kernel(&self, digest: &str) -> Result<Stored, Error> {
        let path = self.state.join("kernels").join(digest);
        let size = |name: &str| taken(&path.join(name));
        let size_bytes = size("vmlinux").map_err(|cause| Error::file("read", &path, &cause))?;
        Ok(Stored { digest: digest.to_owned(), size_bytes: size_bytes + size("initrd").unwrap_or(0), path })
    }

    /// The initrd of a kernel with this agent: the one that came with the kernel, or ours, packed where it isn't yet.
    ///
    /// # Errors
    /// The kernel isn't here, the agent can't be read.
    pub fn initrd(&self, stored: &Stored, agent: &Path) -> Result<PathBuf, Error> {
        let given = stored.path.join("initrd");
        if given.exists() {
            return Ok(given);
        }
        let agent = fs::read(agent).map_err(|cause| Error::file("read", agent, &cause))?;
        let archive = kernel::initrd(&stored.path, &agent)?;
        let packed = self.state.join("kernels").join(format!("initrd-{}", hex(&Sha256::digest(&archive))));
        if !packed.exists() {
            let work = self.work(2 * archive.len() as u64)?;
            let draft = work.path.join("initrd");
            let failed = |cause| Error::file("write", &packed, &cause);
            fs::write(&draft, &archive).map_err(failed)?;
            sync(&draft).map_err(failed)?;
            fs::rename(&draft, &packed).map_err(failed)?;
        }
        Ok(packed)
    }

    /// Where the layer of an image that is being pulled is kept until the image is made, by `sha256:…`.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn layer(&self, digest: &str) -> Result<PathBuf, Error> {
        let place = self.state.join("layers");
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&place);
        made.map_err(|cause| Error::file("make", &place, &cause))?;
        Ok(place.join(digest.trim_start_matches("sha256:")))
    }

    /// Removes layers of pulls that were not taken up again for a week.
    pub fn sweep_layers(&self) {
        oci::remove_older_than_a_week(&self.state.join("layers"));
    }

    /// Takes something away; what isn't here is gone already.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn remove(&self, shelf: Shelf, digest: &str) -> Result<(), Error> {
        let place = self.state.join(shelf.folder());
        let from = place.join(digest);
        let work = self.work(0)?;
        match fs::rename(&from, work.path.join("gone")) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(Error::file("remove", &from, &cause)),
            _ => synced(&place),
        }
    }

    /// The digests of all that is here.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn digests(&self, shelf: Shelf) -> Result<Vec<String>, Error> {
        let is_digest = |name: &String| name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit());
        Ok(self.names(shelf)?.into_iter().filter(is_digest).collect())
    }

    /// Removes the initrds that are not needed; they are packed anew where one is asked for.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn sweep_initrds(&self, is_needed: impl Fn(&Path) -> bool) -> Result<(), Error> {
        for name in self.names(Shelf::Kernels)?.iter().filter(|name| name.starts_with("initrd-")) {
            let path = self.state.join(Shelf::Kernels.folder()).join(name);
            if !is_needed(&path) {
                remove(&path)?;
            }
        }
        Ok(())
    }

    fn names(&self, shelf: Shelf) -> Result<Vec<String>, Error> {
        let place = self.state.join(shelf.folder());
        let failed = |cause| Error::file("read", &place, &cause);
        let entries = fs::read_dir(&place).map_err(failed)?.collect::<Result<Vec<_>, _>>().map_err(failed)?;
        Ok(entries.iter().filter_map(|entry| entry.file_name().into_string().ok()).collect())
    }

    fn publish(&self, folder: &Path, shelf: Shelf, digest: &str) -> Result<(), Error> {
        let place = self.state.join(shelf.folder());
        let to = place.join(digest);
        let failed = |cause: io::Error| Error::file("keep", &to, &cause);
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).map_err(failed)?;
        sync_below(folder)?;
        match fs::rename(folder, &to) {
            // It is here already; a folder has its digest's name only when it is whole.
            Err(cause) if cause.kind() == io::ErrorKind::DirectoryNotEmpty => return Ok(()),
            renamed => renamed.map_err(failed)?,
        }
        synced(&place)
    }

    fn sweep(&self) -> Result<(), Error> {
        let making = self.state.join("making");
        let _gate = gate(&making)?;
        let failed = |cause| Error::file("read", &making, &cause);
        for entry in fs::read_dir(&making).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if File::open(&path).is_ok_and(|folder| folder.try_lock().is_ok()) {
                // What belongs to subordinate users a service may not remove, but the owner's next build can.
                let _ = remove(&path);
            }
        }
        Ok(())
    }
}

impl Work {
    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A new folder in it.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn folder(&self, name: &str) -> Result<PathBuf, Error> {
        let path = self.path.join(name);
        fs::create_dir(&path).map_err(|cause| Error::file("make", &path, &cause))?;
        Ok(path)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // What stays here, the next start removes.
        let _ = remove(&self.path);
    }
}

/// Held while a folder is made and locked, and while what nobody holds is removed.
fn gate(making: &Path) -> Result<File, Error> {
    let gate = File::open(making).and_then(|gate| gate.lock().map(|()| gate));
    gate.map_err(|cause| Error::file("lock", making, &cause))
}

/// Fails early, in words, where there is less room than `needed` bytes.
///
/// # Errors
/// That, or what the kernel says.
pub fn need_room(folder: &Path, needed: u64) -> Result<(), Error> {
    let fs = rustix::fs::statvfs(folder).map_err(|cause| Error::file("look at", folder, &cause.into()))?;
    let free = fs.f_bavail.saturating_mul(fs.f_frsize);
    if free >= needed {
        return Ok(());
    }
    let (needed, free) = (needed.div_ceil(1 << 20), free >> 20);
    Err(Error::new(Kind::Room, format!("{} has {free}M free, and {needed}M are needed", folder.display()))
        .fix("make room there; banger image list shows what images take"))
}

/// Removes a file or a whole folder; what isn't there is removed already. Files that belong to the owner's subordinate
/// users, which a killed build leaves, are removed in a namespace where he is their root.
pub(crate) fn remove(path: &Path) -> Result<(), Error> {
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(()) };
    let removed = if found.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(cause) if cause.kind() == io::ErrorKind::PermissionDenied => {
            let mut command = super::build::as_namespace_root("rm");
            program::output(command.args(["-rf", "--one-file-system"]).arg(path)).map(drop)
        }
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(Error::file("remove", path, &cause)),
        _ => Ok(()),
    }
}

/// What a file takes on the disk, in bytes; its holes take nothing.
///
/// # Errors
/// What the kernel says.
pub fn taken(path: &Path) -> io::Result<u64> {
    Ok(std::os::unix::fs::MetadataExt::blocks(&fs::metadata(path)?) * 512)
}

/// Writes a file, or a folder's names, through to the disk.
///
/// # Errors
/// What the kernel says.
pub fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn synced(path: &Path) -> Result<(), Error> {
    sync(path).map_err(|cause| Error::file("write", path, &cause))
}

fn sync_below(folder: &Path) -> Result<(), Error> {
    let failed = |cause| Error::file("read", folder, &cause);
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_type().map_err(failed)?.is_dir() { sync_below(&entry.path())? } else { synced(&entry.path())? }
    }
    synced(folder)
}

/// The SHA-256 of a file, as `sha256sum` gives it; its holes are not read.
///
/// # Errors
/// What the kernel says, or the watcher.
pub fn digest_of(path: &Path, watch: &dyn Watch) -> Result<String, Error> {
    let failed = |cause: io::Error| Error::file("read", path, &cause);
    let mut file = File::open(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let zeros = vec![0; 1 << 20];
    let mut at = 0;
    while at < length {
        if watch.is_stopped() {
            return Err(Error::interrupted());
        }
        let data = match rustix::fs::seek(&file, SeekFrom::Data(at)) {
            Ok(data) => data,
            // Nothing but a hole from here on.
            Err(rustix::io::Errno::NXIO) => length,
            Err(cause) => return Err(failed(cause.into())),
        };
        if data > at {
            let hole = (data - at).min(64 << 20);
            for start in (0..hole).step_by(zeros.len()) {
                hash.update(&zeros[..usize::try_from(hole - start).unwrap_or(usize::MAX).min(zeros.len())]);
            }
            at += hole;
            continue;
        }
        let read = file.read(&mut buffer).map_err(failed)?;
        if read == 0 {
            return Err(failed(io::ErrorKind::UnexpectedEof.into()));
        }
        hash.update(&buffer[..read]);
        at += read as u64;
    }
    Ok(hex(&hash.finalize()))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
