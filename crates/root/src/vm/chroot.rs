//! Taking a jailed VM's chroot away. This version launches nothing in a jail, so there is none that it could know.

use crate::fail::Fail;
use crate::host::Host;
use crate::places::Why;
use wire::Code;
use wire::path::{ChrootPath, Root};

/// Success where it is gone already; nothing is changed where it is not.
pub(crate) fn cleanup(host: &Host, chroot: &ChrootPath) -> Result<(), Fail> {
    let place = match chroot.vm_dir.root() {
        Root::State => &host.state,
        Root::Runtime => &host.runtime,
    };
    let gone = |error: &sys::dir::CallError| error.is_missing();
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
    if host.vms.any(|record| record.vm_id == chroot.vm_id.as_str()) {
        return Err(Fail::new(format!("chroot_root: VM {} runs: end it first", chroot.vm_id)));
    }
    Err(Fail::new("chroot_root: this version of bangerd-root removes no chroots yet; nothing was changed"))
}
