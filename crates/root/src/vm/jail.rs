//! The directory of a jailed VM: `<base>/firecracker/<vm_id>/root`, made where the owner writes, and taken away again.
//!
//! `<vm_id>` is root's, 0711, and so nobody else puts anything beside `root`, which becomes the VMM's user's. The owner
//! can rename what lies above; so whoever works here works by descriptor, and knows the directory again by its inode.

use super::tree;
use crate::fail::Fail;
use crate::host::Host;
use crate::places::Place;
use rustix::fs::OFlags;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;
use sys::creds::Identity;
use sys::dir::{CallError, Dir, Facts};
use wire::code::shown;
use wire::name::vm_id::VmId;
use wire::path::{HostPath, Root};
use wire::vm::Jailer;

/// What every jail's parent is called, whatever its VMM's program is.
pub(super) const PROGRAM: &str = "firecracker";
/// This project's jailer.
pub(super) const OUR_JAILER: &str = "banger-jailer";
/// The VMM's API socket in its jail.
pub(super) const API_SOCKET: &str = "firecracker.socket";
/// Its vsock's.
pub(super) const VSOCK: &str = "vsock.sock";

/// What a record says of a jail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    /// `<base>/firecracker/<vm_id>`, as the launch had it.
    pub(crate) path: String,
    /// Its device.
    pub(crate) dev: u64,
    /// Its inode.
    pub(crate) ino: u64,
}

impl Mark {
    /// A jail that is to be made.
    pub(super) fn wanted(jailer: &Jailer, vm_id: &VmId) -> Mark {
        Mark { path: path(jailer, vm_id), dev: 0, ino: 0 }
    }

    /// Where the VM's socket `name` is, seen from the host.
    pub(super) fn socket(&self, name: &str) -> String {
        format!("{}/root/{name}", self.path)
    }

    /// Whether that directory is it. One whose launch was cut off before its inode was written down is known by its
    /// owner: nobody but root can have made a directory of root's.
    fn is(&self, facts: &Facts) -> bool {
        if self.ino == 0 {
            facts.uid == 0 && facts.mode == 0o711
        } else {
            (facts.dev, facts.ino) == (self.dev, self.ino)
        }
    }

    /// Takes the jail away, where it still is that one. Success where it is gone.
    pub(super) fn remove(&self, state: &Dir, runtime: &Dir) -> Result<(), Fail> {
        let failed = |error: CallError| Fail::new(format!("{} can't be removed", shown(&self.path))).because(error);
        let Some((above, name)) = self.path.rsplit_once('/') else { return Ok(()) };
        let Some((place, below)) = [state, runtime].into_iter().find_map(|place| Some((place, below(place, above)?)))
        else {
            return Ok(());
        };
        let gone = |error: &CallError| error.is_missing() || error.is_symlink() || error.is_crossing();
        let parent = match place.dir(below) {
            Ok(parent) => parent,
            // Renamed by the owner, who can: then it is his to look for.
            Err(error) if gone(&error) || error.errno() == Errno::NOTDIR => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        match tree::remove(&parent, name, |facts| self.is(facts)) {
            Err(error) if !gone(&error) && error.errno() != Errno::NOTDIR => Err(failed(error)),
            _ => Ok(()),
        }
    }
}

/// `path` below `place`, where it is.
fn below<'a>(place: &Dir, path: &'a str) -> Option<&'a str> {
    path.strip_prefix(place.path().trim_end_matches("/."))?.strip_prefix('/')
}

/// A jail that was made.
pub(super) struct Jail {
    /// Its `root`.
    pub(super) root: Dir,
    /// By which it is known again.
    pub(super) mark: Mark,
}

/// Checks what a launch says of its jail, and opens the directory that it is to be made in: its own, where that is
/// there, or the next one above.
pub(super) fn check(host: &Host, jailer: &Jailer) -> Result<(), Fail> {
    if (jailer.uid, jailer.gid) != (host.owner.uid.into(), host.owner.gid.into()) {
        return Err(Fail::new("jailer: uid and gid must be the registered owner's"));
    }
    if host.owner.gid == 0 {
        return Err(Fail::new("jailer: the owner's group is root's, which no VMM gets"));
    }
    match place(host, &jailer.chroot_base).open_dir(&jailer.chroot_base, &host.owner) {
        Err(unopened) if unopened.is_missing() => Ok(()),
        Err(unopened) => Err(Fail::from(unopened)),
        Ok(base) => is_his(&base, &jailer.chroot_base, &host.owner),
    }
}

/// Whether the owner could make a jail's directory there himself: root makes it, and not where he could not. A base of root's
/// that holds jails alone is one that a jailer made, which runs as root, when an earlier helper asked for it.
fn is_his(base: &Dir, path: &HostPath, owner: &Identity) -> Result<(), Fail> {
    let Err(error) = owner.may_write(base) else { return Ok(()) };
    let is_a_jailers =
        Facts::of(base).is_ok_and(|facts| facts.uid == 0) && base.names().is_ok_and(|names| names == [PROGRAM]);
    if is_a_jailers {
        return Ok(());
    }
    let refused = format!("chroot_base_dir {} can't be written by the owner", shown(path.as_str()));
    Err(Fail::new(refused).because(error))
}

/// Whether what a jail's directory lies in, or what lies there in its place, is root's or the owner's: what belongs to
/// somebody else is left alone, though the owner may have given it that name.
pub(super) fn is_ours(facts: &Facts, owner: &Identity) -> bool {
    [0, owner.uid].contains(&facts.uid)
}

fn place<'a>(host: &'a Host, path: &HostPath) -> &'a Place {
    match path.root() {
        Root::State => &host.state,
        Root::Runtime => &host.runtime,
    }
}

/// Where the jail of a VM is to be, by text.
pub(super) fn path(jailer: &Jailer, vm_id: &VmId) -> String {
    format!("{}/{PROGRAM}/{vm_id}", jailer.chroot_base.as_str())
}

impl Jail {
    /// Makes the jail of a VM: an empty `root` that is root's. The base is made with the owner's rights where it is
    /// missing. An empty directory that is in the way goes; any other is refused.
    pub(super) fn make(host: &Host, jailer: &Jailer, vm_id: &VmId) -> Result<Jail, Fail> {
        let path = path(jailer, vm_id);
        let failed = |error: CallError| Fail::new(format!("jailer: {} can't be made", shown(&path))).because(error);
        let base = base(place(host, &jailer.chroot_base), &jailer.chroot_base, &host.owner)?;
        is_his(&base, &jailer.chroot_base, &host.owner)?;
        let above = base.enter_or_make_among_others(PROGRAM, 0o711).map_err(failed)?;
        if !is_ours(&Facts::of(&above).map_err(failed)?, &host.owner) {
            let refused = format!("chroot_base_dir {}: its {PROGRAM} is somebody else's", shown(base.path()));
            return Err(Fail::new(refused));
        }
        let name = vm_id.as_str();
        let made = match above.make_dir_among_others(name, 0o711) {
            Err(error) if error.errno() == Errno::EXIST => {
                let there = above.dir(name).ok();
                let there = there.filter(|there| Facts::of(there).is_ok_and(|facts| is_ours(&facts, &host.owner)));
                let is_empty =
                    there.is_some_and(|there| there.remove_dir("root").and_then(|_| above.remove_dir(name)).is_ok());
                if !is_empty {
                    return Err(Fail::new(format!(
                        "jailer: {} is there already: take it away with priv.cleanup_jailer_chroot",
                        shown(&path)
                    ))
                    .because(error));
                }
                above.make_dir_among_others(name, 0o711)
            }
            made => made,
        };
        let made = made.map_err(failed)?;
        let facts = Facts::of(&made).map_err(failed)?;
        // Above it the owner may rename: what was opened must be what was made, or as good as that.
        let is_new = facts.uid == 0 && facts.mode == 0o711 && made.names().map_err(failed)?.is_empty();
        if !is_new {
            return Err(failed(CallError::new("mkdirat", Errno::EXIST)));
        }
        let root = made.make_dir("root", 0o700).map_err(failed)?;
        Ok(Jail { root, mark: Mark { path, dev: facts.dev, ino: facts.ino } })
    }

    /// A new empty file in it, of root's, for something to be put on.
    pub(super) fn file(&self, path: &str) -> Result<(), CallError> {
        let (dir, name) = self.folder_of(path)?;
        dir.as_ref().unwrap_or(&self.root).open_at(name, OFlags::RDONLY | OFlags::CREATE | OFlags::EXCL, 0o444)?;
        Ok(())
    }

    /// A new empty directory in it, of root's, for something to be put on.
    pub(super) fn dir(&self, path: &str) -> Result<(), CallError> {
        let (dir, name) = self.folder_of(path)?;
        dir.as_ref().unwrap_or(&self.root).enter_or_make(name, 0o755).map(|_| ())
    }

    /// A symlink in it.
    pub(super) fn link(&self, target: &str, name: &str) -> Result<(), CallError> {
        self.root.symlink(target, name)
    }

    /// The directory that a path's last part lies in, made where it is missing; `None` for the root.
    fn folder_of<'a>(&self, path: &'a str) -> Result<(Option<Dir>, &'a str), CallError> {
        let mut parts = path.split('/');
        let name = parts.next_back().unwrap_or(path);
        let mut dir = None;
        for part in parts {
            dir = Some(dir.as_ref().unwrap_or(&self.root).enter_or_make(part, 0o755)?);
        }
        Ok((dir, name))
    }

    /// Its `root` as a descriptor.
    pub(super) fn open(&self) -> Result<OwnedFd, CallError> {
        self.root.open_at(".", OFlags::PATH | OFlags::DIRECTORY, 0)
    }
}

/// The base of jails, made part by part with the owner's rights where it is missing.
fn base(place: &Place, base: &HostPath, owner: &Identity) -> Result<Dir, Fail> {
    match place.open_dir(base, owner) {
        Err(unopened) if unopened.is_missing() => {}
        opened => return opened.map_err(Fail::from),
    }
    let failed = |error: &dyn std::fmt::Display| {
        Fail::new(format!("jailer: {} can't be made", shown(base.as_str()))).because(error)
    };
    let made = owner.run_as(|| {
        let mut dir = place.dir().dir(".")?;
        for part in base.below().split('/') {
            dir = dir.enter_or_make(part, 0o711)?;
        }
        Ok::<_, CallError>(())
    });
    made.map_err(|error| failed(&error))?.map_err(|error| failed(&error))?;
    place.open_dir(base, owner).map_err(Fail::from)
}
