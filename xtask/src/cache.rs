//! What is made once and kept: files and folders under names that tell what they were made from.
//!
//! An entry is made under a temporary name and renamed when it is whole, so what has its name is whole. One process at a
//! time makes entries; what one that was killed left half-made is removed by the next.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

const HALF_MADE: &str = ".making-";

/// The folder, locked for as long as this lives.
pub(crate) struct Cache {
    directory: PathBuf,
    _lock: File,
}

/// An entry of the cache, and how long it took to make if it wasn't there.
pub(crate) struct Entry {
    pub(crate) path: PathBuf,
    pub(crate) made_in: Option<Duration>,
}

impl Cache {
    /// Opens the cache of the calling user, waiting while another process makes something in it.
    pub(crate) fn open() -> Result<Self> {
        let directory = directory()?;
        fs::create_dir_all(&directory).with_context(|| format!("can't make the cache {}", directory.display()))?;
        let lock = File::options().create(true).append(true).open(directory.join("lock"))?;
        if lock.try_lock().is_err() {
            eprintln!("waiting: another process is making something in {}", directory.display());
            lock.lock().context("can't lock the cache")?;
        }
        let cache = Self { directory, _lock: lock };
        cache.sweep()?;
        Ok(cache)
    }

    /// The folder itself.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The entry of this name; `make` makes it at the path that it is given when it isn't there, or when `again` is set.
    pub(crate) fn entry(&self, name: &str, again: bool, make: impl FnOnce(&Path) -> Result<()>) -> Result<Entry> {
        let path = self.directory.join(name);
        if !again && path.exists() {
            return Ok(Entry { path, made_in: None });
        }
        let start = Instant::now();
        let half_made = self.directory.join(format!("{HALF_MADE}{name}"));
        let made = make(&half_made).and_then(|()| {
            if again {
                remove(&path)?;
            }
            rustix::fs::sync();
            fs::rename(&half_made, &path).context("can't put it into the cache")
        });
        if let Err(e) = made {
            remove(&half_made)?;
            return Err(e);
        }
        Ok(Entry { path, made_in: Some(start.elapsed()) })
    }

    /// Removes all but the newest `keep` entries whose names begin with `prefix`.
    pub(crate) fn keep_newest(&self, prefix: &str, keep: usize) -> Result<()> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(prefix) {
                entries.push((entry.metadata()?.modified()?, entry.path()));
            }
        }
        entries.sort();
        entries.iter().rev().skip(keep).try_for_each(|(_, path)| remove(path))
    }

    /// Fails early, in words, where there is less room than `needed` bytes.
    pub(crate) fn need_room(&self, needed: u64) -> Result<()> {
        let fs = rustix::fs::statvfs(&self.directory)?;
        let free = fs.f_bavail.saturating_mul(fs.f_frsize);
        if free < needed {
            let (needed, free) = (mebibytes(needed), mebibytes(free));
            bail!(
                "no space: {} needs {needed} free and has {free}\n  fix: make room there, or set XDG_CACHE_HOME to a larger disk",
                self.directory.display()
            );
        }
        Ok(())
    }

    fn sweep(&self) -> Result<()> {
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(HALF_MADE) {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }
}

/// `$XDG_CACHE_HOME/banger` or `~/.cache/banger`. Under sudo it is root's: what root boots doesn't lie where another user
/// could change it.
pub(crate) fn directory() -> Result<PathBuf> {
    let by_sudo = rustix::process::geteuid().is_root() && std::env::var_os("SUDO_UID").is_some();
    if let Some(base) = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|p| p.is_absolute()) {
        return Ok(base.join("banger"));
    }
    let home = if by_sudo { Some("/root".into()) } else { std::env::var_os("HOME") };
    let home = home.map(PathBuf::from).filter(|p| p.is_absolute()).context("neither HOME nor XDG_CACHE_HOME is set")?;
    Ok(home.join(".cache/banger"))
}

/// Twelve hexadecimal digits that tell the given parts from others.
pub(crate) fn key<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize()[..6].iter().map(|b| format!("{b:02x}")).collect()
}

/// Removes a file or a whole folder; what isn't there is removed already.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(()) };
    let removed = if found.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.with_context(|| format!("can't remove {}", path.display()))
}

/// A size for people.
pub(crate) fn mebibytes(bytes: u64) -> String {
    match bytes {
        0..10_485_760 => format!("{:.1}M", bytes as f64 / 1_048_576.0),
        10_485_760..1_073_741_824 => format!("{}M", bytes >> 20),
        _ => format!("{:.1}G", bytes as f64 / 1_073_741_824.0),
    }
}
