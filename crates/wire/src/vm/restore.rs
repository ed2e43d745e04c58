//! A VM that begins where another one was saved: the parameters of a launch, without a kernel and with a snapshot.

use super::says::{RestoreSays, SavedSays};
use super::{FAILED, Launch, Saved, Start};
use crate::code::Refusal;
use crate::image::Image;
use crate::params;
use crate::path::{HostPath, Root, Roots};

/// Checks a restore in the order of a launch, the snapshot where that has its kernel.
pub(crate) fn restore_firecracker(text: Option<&str>, roots: &Roots) -> Result<Launch, Refusal> {
    let says = params::read::<RestoreSays>(text)?;
    let launch = says.check(roots, || saved(&says.snapshot, roots).map(Start::Restore))?;
    if launch.jailer.is_none() {
        let why = "a restore needs a jail: in it the drives have the names that were saved";
        return Err(Refusal::new(FAILED, "jailer", why));
    }
    let layered = matches!(&launch.start, Start::Restore(Saved { layer: Some(_), .. }));
    if layered && launch.drives.iter().any(|drive| drive.is_root && !matches!(drive.image, Image::File(_))) {
        let why = "a layer lies on a file, and the root drive is a snapshot";
        return Err(Refusal::new(FAILED, "snapshot.layer_path", why));
    }
    Ok(launch)
}

fn saved(says: &SavedSays, roots: &Roots) -> Result<Saved, Refusal> {
    let below = |text: &str, field| HostPath::new(text, &[Root::State], roots, FAILED, field);
    let saved = Saved {
        state: below(&says.state_path, "snapshot.state_path")?,
        memory: below(&says.mem_path, "snapshot.mem_path")?,
        layer: match says.layer_path.as_str() {
            "" => None,
            path => Some(below(path, "snapshot.layer_path")?),
        },
    };
    if saved.state.as_str() == saved.memory.as_str() {
        return Err(Refusal::new(FAILED, "snapshot.mem_path", "state_path and mem_path are the same"));
    }
    Ok(saved)
}
