//! A guest's kernel out of Debian's package or a file: the plain kernel, the modules that a guest needs, and where it is
//! from.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::vmlinux;
use crate::image::debian::{self, Apt};
use crate::image::error::{Error, Kind};
use crate::image::initrd::{self, GUEST_MODULES, Module};
use crate::image::progress::{Stage, Watch};
use crate::image::store::hex;

/// Debian's kernel for virtual machines; the package itself only names the current one.
const DEBIAN: &str = "linux-image-cloud-amd64";
/// A kernel or an initrd that is larger is none.
const LARGEST_FILE: u64 = 512 << 20;

/// What a guest is started from, but for the agent.
#[derive(Debug)]
pub struct Kernel {
    /// As `uname -r` says it; empty where a file doesn't tell.
    pub version: String,
    /// The plain kernel, checked: an ELF file with a PVH entry.
    pub vmlinux: Vec<u8>,
    /// Modules, in the order to load them; none where the kernel has all built in.
    pub modules: Vec<Module>,
    /// An initrd that was given and is used as it is, without ours.
    pub initrd: Option<Vec<u8>>,
    /// Where it is from, for a person.
    pub source: String,
}

impl Kernel {
    /// Writes it into an empty folder:
    ///
    /// | file | what |
    /// | --- | --- |
    /// | `vmlinux` | the plain kernel |
    /// | `version` | as `uname -r` says it |
    /// | `modules/order`, `modules/NAME.ko` | the modules, and their names in the order to load them |
    /// | `initrd` | the one that was given, if one was |
    /// | `SHA256SUMS` | the digests of all these, as `sha256sum` writes them |
    ///
    /// Returns the digest of the last one, which so is that of the whole.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn write_to(&self, folder: &Path) -> Result<String, Error> {
        let mut sums = String::new();
        let mut keep = |name: &str, bytes: &[u8]| {
            sums += &format!("{}  {name}\n", hex(&Sha256::digest(bytes)));
            write(&folder.join(name), bytes)
        };
        let modules = folder.join("modules");
        fs::create_dir(&modules).map_err(|cause| Error::file("make", &modules, &cause))?;
        let order: String = self.modules.iter().map(|module| format!("{}\n", module.name)).collect();
        keep("vmlinux", &self.vmlinux)?;
        keep("version", self.version.as_bytes())?;
        keep("modules/order", order.as_bytes())?;
        for module in &self.modules {
            keep(&format!("modules/{}.ko", module.name), &module.object)?;
        }
        if let Some(initrd) = &self.initrd {
            keep("initrd", initrd)?;
        }
        write(&folder.join("SHA256SUMS"), sums.as_bytes())?;
        Ok(hex(&Sha256::digest(sums.as_bytes())))
    }
}

/// The modules that [`Kernel::write_to`] wrote, in the order to load them.
///
/// # Errors
/// One of the files can't be read.
pub fn modules(folder: &Path) -> Result<Vec<Module>, Error> {
    let order = String::from_utf8_lossy(&read(&folder.join("modules/order"))?).into_owned();
    let load =
        |name: &str| Ok(Module { name: name.to_owned(), object: read(&folder.join(format!("modules/{name}.ko")))? });
    order.lines().map(load).collect()
}

/// Packs them with an agent.
///
/// # Errors
/// One of the files can't be read.
pub fn initrd(folder: &Path, agent: &[u8]) -> Result<Vec<u8>, Error> {
    Ok(initrd::pack(agent, &modules(folder)?))
}

/// Debian's kernel: its package, fetched by apt into `work`, an empty folder, verified as apt verifies it, and unpacked
/// there. Nothing is installed. Without a `version`, such as `6.1.0-40-cloud-amd64`, the release's current kernel.
///
/// # Errors
/// This is no Debian, its mirror doesn't answer, the version is unknown.
pub fn import_debian(work: &Path, version: Option<&str>, watch: &dyn Watch) -> Result<Kernel, Error> {
    let is_version = |v: &str| v.bytes().all(|b| b.is_ascii_alphanumeric() || b".+~-".contains(&b));
    if let Some(version) = version.filter(|v| !v.starts_with(|c: char| c.is_ascii_digit()) || !is_version(v)) {
        return Err(Error::new(Kind::Request, format!("{version:?} is no kernel's version"))
            .fix("give it as uname -r says it, such as 6.1.0-40-cloud-amd64"));
    }
    watch.begin(Stage::Fetch, "Debian's kernel; it is unpacked, not installed");
    let (package, unpacked) = fetch_debian(work, version, &GUEST_MODULES, watch)?;
    Ok(Kernel { source: format!("Debian's {package}"), ..unpacked })
}

/// As [`import_debian`], with other modules; the unpacked package stays in `work/unpacked`.
///
/// # Errors
/// As there.
pub fn fetch_debian(
    work: &Path,
    version: Option<&str>,
    modules: &[&str],
    watch: &dyn Watch,
) -> Result<(String, Kernel), Error> {
    let (lists, unpacked) = (work.join("apt"), work.join("unpacked"));
    for folder in [&lists, &unpacked] {
        fs::create_dir(folder).map_err(|cause| Error::file("make", folder, &cause))?;
    }
    let apt = Apt::new(&lists, debian::release()?, watch)?;
    let package = match version {
        Some(version) => format!("linux-image-{version}"),
        None => apt.behind(DEBIAN, "linux-image-")?,
    };
    apt.unpack(&package, &unpacked, watch)?;
    watch.begin(Stage::Unpack, &package);
    let kernel = of_unpacked(&unpacked, modules)?;
    Ok((package, kernel))
}

/// The modules' folder, `lib/modules/VERSION`, of an unpacked package.
///
/// # Errors
/// It has none.
pub fn modules_of(unpacked: &Path) -> Result<PathBuf, Error> {
    let below_lib = ["lib/modules", "usr/lib/modules"].map(|folder| unpacked.join(folder));
    let versions = below_lib.iter().find_map(|folder| fs::read_dir(folder).ok());
    let modules = versions.and_then(|versions| versions.filter_map(|e| Some(e.ok()?.path())).next());
    modules.ok_or_else(|| Error::input("the package has no modules"))
}

fn of_unpacked(unpacked: &Path, wanted: &[&str]) -> Result<Kernel, Error> {
    let modules = modules_of(unpacked)?;
    let version = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let image = read(&unpacked.join(format!("boot/vmlinuz-{version}")))?;
    let modules = initrd::modules(&modules, wanted).map_err(|cause| Error::input(cause.to_string()))?;
    Ok(Kernel { vmlinux: plain(&image)?, modules, version, initrd: None, source: String::new() })
}

/// A kernel from a file: a `bzImage` (`/boot/vmlinuz-…`) or a plain ELF kernel.
///
/// With an `initrd`, that is used as it is; its `/init` has to be the agent or to start it. Without one, the modules are
/// those that this machine has for the kernel's version; a kernel of another version must have what a guest needs built in.
///
/// # Errors
/// It is no kernel that can be started directly, or one of the files can't be read.
pub fn import(file: File, source: &str, initrd: Option<File>) -> Result<Kernel, Error> {
    let image = read_open(file, source)?;
    let vmlinux = plain(&image)?;
    let version = version_of(&image).unwrap_or_default();
    let installed = Path::new("/lib/modules").join(&version);
    let modules = if initrd.is_none() && !version.is_empty() && installed.join("kernel").is_dir() {
        initrd::modules(&installed, &GUEST_MODULES).map_err(|cause| Error::input(cause.to_string()))?
    } else {
        Vec::new()
    };
    let initrd = initrd.map(|file| read_open(file, "the initrd")).transpose()?;
    Ok(Kernel { version, vmlinux, modules, initrd, source: source.to_owned() })
}

fn plain(image: &[u8]) -> Result<Vec<u8>, Error> {
    vmlinux(image).map_err(|cause| Error::input(cause.to_string()))
}

/// The version that a `bzImage` says it has (boot protocol, `kernel_version`): a path's part, or nothing.
fn version_of(image: &[u8]) -> Option<String> {
    if image.get(0x202..0x206) != Some(b"HdrS") {
        return None;
    }
    let at = 0x200 + usize::from(u16::from_le_bytes(*image.get(0x20e..)?.first_chunk()?));
    let text = image.get(at..)?.split(|byte| *byte == 0 || *byte == b' ').next()?;
    let text = std::str::from_utf8(text).ok()?;
    let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._+~-".contains(&b));
    (plain && text.len() <= 100 && text.starts_with(|c: char| c.is_ascii_digit())).then(|| text.to_owned())
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let file = File::open(path).map_err(|cause| Error::file("read", path, &cause))?;
    read_open(file, &path.display().to_string())
}

fn read_open(mut file: File, shown: &str) -> Result<Vec<u8>, Error> {
    let failed = |cause| Error::file("read", Path::new(shown), &cause);
    let found = file.metadata().map_err(failed)?;
    if !found.is_file() || found.len() > LARGEST_FILE {
        return Err(Error::input(format!("{shown} is no file of at most {}M", LARGEST_FILE >> 20)));
    }
    let mut bytes = Vec::new();
    file.by_ref().take(LARGEST_FILE).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let written = fs::write(path, bytes).and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o444)));
    written.map_err(|cause| Error::file("write", path, &cause))
}
