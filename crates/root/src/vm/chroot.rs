//! Taking a jailed VM's chroot away, where its VM has ended: one of ours, or an older banger's with links and mounts of
//! the machine's in it. Its shape is all that says so; what the owner puts there is his.

use super::record::Record;
use super::{jail, tree};
use crate::fail::Fail;
use crate::host::Host;
use crate::places::Why;
use sys::dir::{CallError, Facts};
use wire::Code;
use wire::path::{ChrootPath, Root};

/// Success where it is gone already; nothing is changed where it is not.
pub(crate) fn cleanup(host: &Host, chroot: &ChrootPath) -> Result<(), Fail> {
    let place = match chroot.vm_dir.root() {
        Root::State => &host.state,
        Root::Runtime => &host.runtime,
    };
    let gone = |error: &CallError| error.is_missing();
    host.vms.settle(chroot.vm_id.as_str());
    let vm_dir = match place.open_dir(&chroot.vm_dir, &host.owner) {
        Ok(dir) => dir,
        Err(unopened) if unopened.is_missing() => return Ok(()),
        Err(unopened) => {
            let code = if unopened.why == Why::Refused { Code::InvalidPath } else { Code::OperationFailed };
            return Err(Fail::from(unopened).code(code));
        }
    };
    if chroot.root_only {
        match vm_dir.facts("root") {
            Err(error) if gone(&error) => return Ok(()),
            Err(error) if error.is_symlink() => {
                return Err(Fail::new("chroot_root: it is a symlink").because(error).code(Code::InvalidPath));
            }
            _ => {}
        }
    }
    let failed = |error: CallError| Fail::new("chroot_root: it can't be removed whole").because(error);
    let facts = Facts::of(&vm_dir).map_err(failed)?;
    let is_ours = |facts: &Facts| jail::is_ours(facts, &host.owner);
    // What the owner could not remove himself he may have given these names.
    let root = vm_dir.facts("root").ok();
    if let Some(other) = [Some(&facts), root.as_ref()].into_iter().flatten().find(|facts| !is_ours(facts)) {
        let message = format!("chroot_root: it belongs to uid {}, so no jailer made it", other.uid);
        return Err(Fail::new(message).code(Code::InvalidPath));
    }
    // By its inode too: the owner can give the directory of another VM this name.
    let is_it = |record: &Record| {
        let its_own = record.jail.as_ref().is_some_and(|jail| (jail.dev, jail.ino) == (facts.dev, facts.ino));
        its_own || record.vm_id == chroot.vm_id.as_str()
    };
    if host.vms.any(is_it) {
        return Err(Fail::new(format!("chroot_root: VM {} runs: end it first", chroot.vm_id)));
    }
    let removed = match chroot.root_only {
        true => tree::remove(&vm_dir, "root", is_ours),
        false => {
            let parent = place.open_parent(&chroot.vm_dir, &host.owner).map_err(Fail::from)?;
            tree::remove(&parent, chroot.vm_id.as_str(), |now| now.is_same_file(&facts))
        }
    };
    match removed {
        Ok(true) => Ok(()),
        Ok(false) => Err(Fail::new("chroot_root: something else has its name by now; nothing was changed")),
        Err(error) => Err(failed(error)),
    }
}
