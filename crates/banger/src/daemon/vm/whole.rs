//! A VM that stays and went on from a template has a layer over the template's disk. When it has ended that becomes a disk of
//! its own, from which it boots.
//!
//! The row is the intent, and its end: as long as it says that the disk is a layer, the layer and what it lies on are the
//! truth, the template is not removed, and whatever else is there is made anew. So it does not matter where this is cut off.

use super::work::Work;
use super::{disk, identity, layer};
use crate::api::Fault;
use crate::daemon::image::template;
use crate::daemon::log;
use crate::daemon::store::vms::Vm;
use std::fs;
use std::io;
use std::path::Path;
use wire::client::Error;
use wire::image::{Image, Read, Write};
use wire::name::guest_path::GuestPath;
use wire::path::Root;

/// Where this one has something in it, the guest has got the files that it was sent.
const SENT: &str = "/etc/ssh/ssh_host_ed25519_key";

/// Makes it, where its disk is a layer. Nothing of the VM may run.
///
/// # Errors
/// `no_space`, or what else is in the way: then all is as before, and it can be tried again.
pub(crate) fn make(work: &Work<'_>, vm: &mut Vm) -> Result<(), Fault> {
    let (from, to, machine_id) = {
        let places = work.places(vm);
        (places.layer(), places.disk(), places.machine_id())
    };
    let no_more = || disk::remove_file(&from).unwrap_or_else(|fault| log::fault("disk", "", &fault));
    let (Some(disk::LAYER), Some(id)) = (vm.disk_method.as_deref(), vm.template.clone()) else {
        // What was cut off behind the row's end left it.
        no_more();
        return Ok(());
    };
    // A guest that never became this VM has run nobody's command: there is nothing in it to keep.
    let method = match vm.ready_ms {
        None => disk::remove_file(&machine_id).map(|()| None)?,
        Some(_) => Some(flatten(work, vm, &id, &from, &to)?),
    };
    (vm.disk_method, vm.template) = (method.map(str::to_owned), None);
    work.save(vm)?;
    no_more();
    Ok(())
}

fn flatten(work: &Work<'_>, vm: &Vm, id: &str, from: &Path, to: &Path) -> Result<&'static str, Fault> {
    let below = template::Files::of(work.daemon, id).disk();
    if !from.exists() && to.exists() {
        // It goes when the disk is on the disk and the row is written, and a crash of the machine may undo the row.
        return Ok(disk::COPY);
    }
    layer::flatten(from, &below, to).map_err(|error| {
        let fault = Fault::file(&format!("making a disk of {}'s layer on template {id},", vm.name), to, &error);
        fault.fix(format!("banger vm start {} tries again: what it wrote is kept until then", vm.name))
    })
}

/// Writes into such a disk what a boot reads of the VM and the guest had not on it. A file beside it says that this is still to
/// be done.
///
/// # Errors
/// The root helper's: a disk without room, say. The VM boots without, and it can be tried again.
pub(crate) fn name(work: &Work<'_>, vm: &Vm) -> Result<(), Fault> {
    let places = work.places(vm);
    let kept = places.machine_id();
    let machine_id = match fs::read_to_string(&kept) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        read => read.map_err(|error| Fault::file("reading", &kept, &error))?,
    };
    let image = Image::File(places.host(&places.disk(), Root::State)?);
    let mut files = identity::read_at_boot(&work.daemon.settings, vm, &machine_id)?;
    let sent = Read { image: image.clone(), path: GuestPath::new(SENT).map_err(Fault::bug)? };
    match work.helper().read_ext4_file(&sent) {
        Ok(found) if !found.is_empty() => {}
        // Its VMM ended before the guest had written them to its disk.
        Ok(_) | Err(Error::Refused(_)) => {
            files.push(identity::hosts(vm)?);
            files.extend(work.own_ssh_files(vm));
            work.pin();
        }
        Err(error) => return Err(work.refused("reading the disk", error)),
    }
    let written = work.helper().write_ext4_files(Write { image, files });
    written
        .map_err(|error| work.refused(&format!("writing {}'s name and machine-id into its disk", vm.name), error))?;
    disk::remove_file(&kept)
}

/// Keeps the machine-id that a guest is told, which is not in its disk.
pub(crate) fn remember(work: &Work<'_>, vm: &Vm, machine_id: &str) -> Result<(), Fault> {
    let path = work.places(vm).machine_id();
    fs::write(&path, machine_id).map_err(|error| Fault::file("writing", &path, &error))
}
