//! systemd-resolved: where it isn't there, there is nothing to do.

use crate::fail::Fail;
use rustix::fs::{CWD, FileType};

/// Success where resolved does not run. Where it does, its routing is still to come, and the answer says so.
pub(crate) fn nothing_to_do() -> Result<(), Fail> {
    // Its directory is made by its unit, and gone with it; without the bus nobody can speak to it.
    let is = |path: &str, kind: FileType| {
        rustix::fs::statat(CWD, path, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == kind)
    };
    if is("/run/systemd/resolve", FileType::Directory) && is("/run/dbus/system_bus_socket", FileType::Socket) {
        return Err(Fail::new(
            "systemd-resolved runs here, and its routing is not built yet: send ~vm to the server by resolvectl",
        ));
    }
    Ok(())
}
