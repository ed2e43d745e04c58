//! The initrd of a guest: the agent as `/init`, and the kernel modules that it must load, in the order to load them.
//!
//! The archive is what the kernel takes without unpacking: cpio, format "newc". The same input gives the same bytes.
//!
//! | in the archive | what |
//! | --- | --- |
//! | `/init` | the agent, a static program |
//! | `/modules/NAME.ko` | each module, unpacked |
//! | `/modules/order` | these files' names, one a line, in the order to load them |
//! | `/dev/console` | what the kernel opens for `/init` |

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::{fs, io};

use thiserror::Error;

use super::{elf, xz_zstd};

/// What a guest needs to see its machine's disk, network, console port and vsock, whichever VMM it runs on. What these
/// need themselves comes with them; what a kernel has built in is left out.
pub const GUEST_MODULES: [&str; 8] = [
    "virtio_mmio",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "vsock",
    "vsock_loopback",
    "vmw_vsock_virtio_transport",
    "ext4",
];

/// No module is larger unpacked.
const LARGEST_MODULE: usize = 64 << 20;

/// Why no initrd could be made.
#[derive(Debug, Error)]
pub enum InitrdError {
    /// The modules' directory can't be read.
    #[error("can't read {path}: {cause}")]
    Read {
        /// What was to be read.
        path: PathBuf,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// Neither a module nor built in.
    #[error("this kernel has no module {0} and hasn't it built in; use a distribution's kernel with virtio and vsock")]
    Missing(String),
    /// A module whose bytes make no sense.
    #[error("the module {0} is damaged; fetch the kernel's package again")]
    Damaged(PathBuf),
}

/// A kernel module, ready to be loaded.
#[derive(Debug)]
pub struct Module {
    /// Its name as the kernel writes it, with `_`.
    pub name: String,
    /// The ELF object, unpacked.
    pub object: Vec<u8>,
}

/// The wanted modules and all that they need, in the order to load them, out of `lib/modules/VERSION` of an unpacked
/// kernel package. No `modules.dep` is needed (Debian makes it only on installing): a module names what it needs itself.
///
/// # Errors
/// A module that is neither there nor built in, and one that can't be read or unpacked.
pub fn modules(directory: &Path, wanted: &[&str]) -> Result<Vec<Module>, InitrdError> {
    let mut found = BTreeMap::new();
    find(&directory.join("kernel"), &mut found)?;
    let built_in_list = directory.join("modules.builtin");
    let text = fs::read_to_string(&built_in_list).map_err(|cause| InitrdError::Read { path: built_in_list, cause })?;
    let mut order =
        Order { found, built_in: text.lines().map(module_name).collect(), seen: BTreeSet::new(), loads: Vec::new() };
    for name in wanted {
        order.add(name)?;
    }
    Ok(order.loads)
}

/// Modules put behind what they need.
struct Order {
    found: BTreeMap<String, PathBuf>,
    built_in: BTreeSet<String>,
    seen: BTreeSet<String>,
    loads: Vec<Module>,
}

impl Order {
    fn add(&mut self, name: &str) -> Result<(), InitrdError> {
        let name = name.replace('-', "_");
        // A module is marked before what it needs is looked at, so that a circle ends.
        if self.built_in.contains(&name) || !self.seen.insert(name.clone()) {
            return Ok(());
        }
        let path = self.found.get(&name).ok_or_else(|| InitrdError::Missing(name.clone()))?;
        let object = read_module(path)?;
        let damaged = || InitrdError::Damaged(path.clone());
        let (needed, helpful) = needs(&object).ok_or_else(damaged)?;
        // What only helps is named by what it does: `crypto-crc32c` is the module `crc32c_generic`.
        let helpful = helpful.iter().map(|n| n.strip_prefix("crypto_").unwrap_or(n));
        let helpful =
            helpful.flat_map(|n| [format!("{n}_generic"), n.to_owned()]).filter(|n| self.found.contains_key(n));
        for other in helpful.collect::<Vec<_>>().iter().chain(&needed) {
            self.add(other)?;
        }
        self.loads.push(Module { name, object });
        Ok(())
    }
}

/// All modules below a directory. Symbolic links are not followed.
fn find(directory: &Path, found: &mut BTreeMap<String, PathBuf>) -> Result<(), InitrdError> {
    let failed = |cause| InitrdError::Read { path: directory.to_owned(), cause };
    for entry in fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let kind = entry.file_type().map_err(failed)?;
        let path = entry.path();
        if kind.is_dir() {
            find(&path, found)?;
        } else if let Some(file) = path.file_name().and_then(|f| f.to_str())
            && kind.is_file()
            && [".ko", ".ko.xz", ".ko.zst"].iter().any(|end| file.ends_with(end))
        {
            found.insert(module_name(file), path);
        }
    }
    Ok(())
}

/// `kernel/drivers/char/hw_random/virtio-rng.ko.xz` is the module `virtio_rng`.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split_once(".ko").map_or(file, |(name, _)| name).replace('-', "_")
}

fn read_module(path: &Path) -> Result<Vec<u8>, InitrdError> {
    let bytes = fs::read(path).map_err(|cause| InitrdError::Read { path: path.to_owned(), cause })?;
    let unpacked = match path.extension().and_then(|e| e.to_str()) {
        Some("xz") => xz_zstd::xz(&bytes, LARGEST_MODULE),
        Some("zst") => xz_zstd::zstd(&bytes, LARGEST_MODULE),
        _ => Ok(bytes),
    };
    unpacked.map_err(|_| InitrdError::Damaged(path.to_owned()))
}

/// What a module's own description says that it needs, and what is to be loaded before it where it is there.
fn needs(object: &[u8]) -> Option<(Vec<String>, Vec<String>)> {
    if !elf::is_x86_64(object) {
        return None;
    }
    let lines: Vec<&str> = elf::section(object, b".modinfo")?
        .split(|b| *b == 0)
        .map(std::str::from_utf8)
        .collect::<Result<_, _>>()
        .ok()?;
    let needed = lines.iter().find_map(|l| l.strip_prefix("depends="))?.split(',').filter(|n| !n.is_empty());
    let before = lines.iter().filter_map(|l| l.strip_prefix("softdep=pre:"));
    let helpful = before.flat_map(|l| l.split("post:").next().unwrap_or("").split_whitespace());
    let names = |name: &str| name.replace('-', "_");
    Some((needed.map(names).collect(), helpful.map(names).collect()))
}

/// Packs the agent and the modules.
#[must_use]
pub fn pack(agent: &[u8], modules: &[Module]) -> Vec<u8> {
    let mut archive = Cpio::default();
    for directory in ["dev", "modules"] {
        archive.entry(directory, DIRECTORY | 0o755, (0, 0), &[]);
    }
    archive.entry("dev/console", CHARACTER_DEVICE | 0o600, (5, 1), &[]);
    archive.entry("init", FILE | 0o755, (0, 0), agent);
    let order: String = modules.iter().map(|m| format!("{}.ko\n", m.name)).collect();
    archive.entry("modules/order", FILE | 0o644, (0, 0), order.as_bytes());
    for module in modules {
        archive.entry(&format!("modules/{}.ko", module.name), FILE | 0o644, (0, 0), &module.object);
    }
    archive.finish()
}

const FILE: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// A cpio archive in the format "newc": a header of hexadecimal numbers, the name, the bytes, each padded to four.
#[derive(Default)]
struct Cpio {
    bytes: Vec<u8>,
    entries: u32,
}

impl Cpio {
    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), data: &[u8]) {
        self.entries += 1;
        let links = if mode & DIRECTORY != 0 { 2 } else { 1 };
        let numbers =
            [self.entries, mode, 0, 0, links, 0, data.len() as u32, 0, 0, device.0, device.1, name.len() as u32 + 1, 0];
        self.bytes.extend_from_slice(b"070701");
        for number in numbers {
            self.bytes.extend_from_slice(format!("{number:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad(4);
        self.bytes.extend_from_slice(data);
        self.pad(4);
    }

    fn pad(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.pad(512);
        self.bytes
    }
}

#[cfg(test)]
mod tests;
