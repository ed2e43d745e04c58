//! What a template is bound to. A guest that goes on elsewhere may be dead, or have a wrong clock, and not say so: so all
//! of it has to be the same.

use super::Templates;
use crate::api::Fault;
use crate::daemon::guest::systemd;
use crate::daemon::store::templates::Template;
use crate::daemon::store::vms::{Base, Vm};
use crate::daemon::vm::launch::KERNEL_ARGS;
use crate::daemon::vmm::{Accel, Choice};
use crate::image::progress::Unwatched;
use crate::image::store::{digest_of, hex};
use sha2::{Digest, Sha256};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use wire::firecracker::QEMU_PLACES;

/// The version of the templates' own form: what is written into their disks, and how they are saved. What a guest with systemd is
/// told has a digest of its own.
const FORM: u32 = 1;

/// What a VM is beside what it stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind {
    pub(super) cpus: u8,
    pub(super) memory_mib: u64,
    /// Whether the image's own init is its first process.
    pub(super) init: bool,
}

impl Kind {
    pub(super) fn of(vm: &Vm) -> Kind {
        Kind { cpus: vm.cpus, memory_mib: vm.memory_mib, init: vm.init }
    }
}

/// Names, and what stands for the thing itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Key(Vec<(&'static str, String)>);

impl Key {
    /// The key of a VM that would be started now. The time stamp counter's rate is for `banger-qemu` to compare, which measures
    /// it with each start.
    pub(crate) fn of(
        templates: &Templates,
        choice: &Choice,
        base: &Base,
        kind: Kind,
        authorized: &str,
    ) -> Result<Key, Fault> {
        let mut parts = vec![
            ("form", FORM.to_string()),
            ("VMM", templates.digest(Path::new(&choice.program))?),
            ("way of running", choice.accel.name().to_owned()),
            ("CPU", cpu().map_err(|error| Fault::file("reading", Path::new(CPUINFO), &error))?),
            ("kernel", identity(&base.vmlinux)?),
            ("initial RAM disk or agent", identity(&base.initrd)?),
            ("kernel's arguments", KERNEL_ARGS.to_owned()),
            ("image", identity(&base.root)?),
            ("number of CPUs", kind.cpus.to_string()),
            ("memory", kind.memory_mib.to_string()),
            ("owner's ssh key", hex(&Sha256::digest(authorized))),
        ];
        parts.extend(beneath(templates, choice)?);
        if kind.init {
            parts.push(("first process", "the image's own".to_owned()));
            parts.push(("what systemd is told", systemd::version()));
        }
        Ok(Key(parts))
    }

    /// A line each.
    pub(crate) fn text(&self) -> String {
        self.0.iter().map(|(name, value)| format!("{name}: {value}\n")).collect()
    }

    /// One word for all of it.
    pub(crate) fn digest(&self) -> String {
        hex(&Sha256::digest(self.text()))
    }

    /// What of it is not as in a template.
    pub(crate) fn differs(&self, template: &Template) -> Vec<&'static str> {
        let there: Vec<&str> = template.parts.lines().collect();
        let is_other = |(name, value): &&(&str, String)| !there.contains(&format!("{name}: {value}").as_str());
        self.0.iter().filter(is_other).map(|(name, _)| *name).collect()
    }
}

/// What the VMM stands on: QEMU, and the kernel whose KVM its state is of.
fn beneath(templates: &Templates, choice: &Choice) -> Result<Vec<(&'static str, String)>, Fault> {
    let mut parts = Vec::new();
    if choice.is_qemu() {
        parts.push(("QEMU", templates.digest(qemu())?));
    }
    if choice.accel == Accel::Kvm {
        parts.push(("host's kernel", sys::kernel::identity()));
    }
    Ok(parts)
}

fn qemu() -> &'static Path {
    QEMU_PLACES.iter().map(Path::new).find(|path| path.exists()).unwrap_or(Path::new(QEMU_PLACES[1]))
}

const CPUINFO: &str = "/proc/cpuinfo";

/// The digest of the first CPU's names and flags, as the kernel tells them, which may have turned some off, and as the CPU does,
/// which is what a VMM in a jail can ask.
fn cpu() -> io::Result<String> {
    let info = fs::read_to_string(CPUINFO)?;
    let wanted = ["vendor_id", "cpu family", "model", "stepping", "flags"];
    let mut digest = Sha256::new();
    for (key, value) in info.lines().take_while(|line| !line.is_empty()).filter_map(|line| line.split_once(':')) {
        if wanted.contains(&key.trim()) {
            digest.update(format!("{}\n", value.trim()));
        }
    }
    digest.update(sys::cpu::identity());
    Ok(hex(&digest.finalize()))
}

/// A file as it is now: one that was written since, or another one in its place, is told from it. What the store keeps has
/// its digest in its path.
fn identity(path: &Path) -> Result<String, Fault> {
    Ok(format!("{} {}", path.display(), facts(path)?))
}

/// The same, of a file that may get another name.
pub(super) fn facts(path: &Path) -> Result<String, Fault> {
    let facts = fs::metadata(path).map_err(|error| Fault::file("reading", path, &error))?;
    let (changed, written) = ((facts.ctime(), facts.ctime_nsec()), (facts.mtime(), facts.mtime_nsec()));
    Ok(format!("{} {} {changed:?} {written:?}", facts.ino(), facts.len()))
}

impl Templates {
    /// Has QEMU's digest ready, so that the first VM needn't wait for it: a tenth of what its start takes.
    pub(crate) fn look_ahead(&self) {
        // Who needs it hears of what is wrong.
        let _ = self.digest(qemu());
    }

    /// The digest of a program, read once as long as it stays as it is.
    fn digest(&self, path: &Path) -> Result<String, Fault> {
        let now = identity(path)?;
        // Who asks for another one needn't wait for this.
        let of_it = {
            let mut digests = self.digests.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(digests.entry(now.clone()).or_default())
        };
        let mut known = of_it.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(digest) = &*known {
            return Ok(digest.clone());
        }
        let digest = digest_of(path, &Unwatched)?;
        // One that was put in its place meanwhile is not known by the old one's facts.
        if identity(path)? == now {
            *known = Some(digest.clone());
        }
        Ok(digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::store::templates::tests::template;

    #[test]
    fn what_differs_is_named() {
        let key = Key(vec![("kernel", "/a 1".into()), ("memory", "512".into())]);
        let same = Template { parts: key.text(), ..template('a') };
        assert!(key.differs(&same).is_empty());
        let other = Key(vec![("kernel", "/a 1".into()), ("memory", "51".into())]);
        assert_eq!(other.differs(&same), ["memory"]);
        assert_ne!(key.digest(), other.digest());
    }

    #[test]
    fn a_program_that_was_changed_has_another_digest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("program");
        let templates = Templates::default();
        fs::write(&path, "one").unwrap();
        let one = templates.digest(&path).unwrap();
        assert_eq!(
            (one.as_str(), templates.digest(&path).unwrap()),
            (hex(&Sha256::digest("one")).as_str(), one.clone())
        );
        fs::write(dir.path().join("new"), "two").unwrap();
        fs::rename(dir.path().join("new"), &path).unwrap();
        assert_eq!(templates.digest(&path).unwrap(), hex(&Sha256::digest("two")));
    }
}
