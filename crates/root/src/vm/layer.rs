//! The layer of a restored VM: a qcow2 file that holds what its guest writes, over a file that is only read. Its header is
//! made here, never by the owner, and names nothing: the VMM is told what lies below.

use crate::fail::Fail;
use std::fs::File;
use std::os::unix::fs::FileExt;
use wire::code::shown;
use wire::path::HostPath;
use wire::qcow2;

const FIELD: &str = "snapshot.layer_path";

/// Checks that a drive of `size` bytes can have a layer, and that `layer` is empty.
pub(super) fn check(layer: &File, path: &HostPath, size: u64) -> Result<(), Fail> {
    check_empty(layer, path)?;
    if size > qcow2::MOST || !size.is_multiple_of(qcow2::SECTOR) {
        return Err(Fail::new(format!("{FIELD}: the root drive's {size} bytes are not whole sectors up to 4 TiB")));
    }
    Ok(())
}

/// Refuses a file that holds anything.
pub(super) fn check_empty(layer: &File, path: &HostPath) -> Result<(), Fail> {
    let facts = layer.metadata().map_err(|error| Fail::new(format!("{FIELD}: can't be looked at")).because(error))?;
    if facts.len() == 0 {
        return Ok(());
    }
    Err(Fail::new(format!("{FIELD}: {} is not empty: a restore needs a new file", shown(path.as_str()))))
}

/// Makes an empty file the layer of a drive of `size` bytes: nothing in it is written yet.
pub(super) fn write(layer: &File, size: u64) -> Result<(), Fail> {
    let failed = |error: std::io::Error| Fail::new("snapshot.layer_path: can't be written").because(error);
    layer.set_len(qcow2::EMPTY).map_err(failed)?;
    qcow2::empty(size).iter().try_for_each(|(at, part)| layer.write_all_at(part, *at)).map_err(failed)
}

/// Takes that back.
pub(super) fn empty(layer: &File) -> Result<(), Fail> {
    layer.set_len(0).map_err(|error| Fail::new("the layer can't be emptied").because(error))
}
