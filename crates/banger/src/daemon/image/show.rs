//! What is here, who uses it, what a VM is started from, and removal.

use super::{find, template};
use crate::api::Fault;
use crate::api::asset::{About, Asset as Shown, Assets, Removed};
use crate::daemon::error::exit;
use crate::daemon::store::Act;
use crate::daemon::store::assets::{self, Asset, Kind};
use crate::daemon::store::usual;
use crate::daemon::store::vms::{self, Base, Vm};
use crate::daemon::vm::{pool, work::Work};
use crate::daemon::{Daemon, serve};
use crate::image::debian;
use crate::image::store::{Shelf, Stored};
use crate::time::of_unix;
use rusqlite::Connection;
use std::collections::BTreeSet;
use std::path::Path;

/// The name of what `--image-files` gave.
const FILES: &str = "files";

/// All of a kind, by name.
pub(crate) fn list(daemon: &Daemon, kind: Kind) -> Result<Assets, Fault> {
    daemon.store.change(|t| {
        let (all, vms) = (assets::all(t, kind)?, vms::all(t)?);
        Ok(Assets { assets: all.iter().map(|asset| shown(asset, &all, &vms)).collect() })
    })
}

/// One.
pub(crate) fn one(daemon: &Daemon, kind: Kind, reference: &str) -> Result<Shown, Fault> {
    daemon.store.change(|t| {
        let asset = find(t, kind, reference)?;
        Ok(shown(&asset, &assets::all(t, kind)?, &vms::all(t)?))
    })
}

fn shown(asset: &Asset, all: &[Asset], vms: &[Vm]) -> Shown {
    let is_shared = all.iter().filter(|other| other.digest == asset.digest).count() > 1;
    Shown {
        name: asset.name.clone(),
        digest: format!("sha256:{}", asset.digest),
        size_bytes: asset.size_bytes,
        shared_bytes: if is_shared { asset.size_bytes } else { 0 },
        version: asset.version.clone(),
        source: asset.source.clone(),
        vms: users(asset, vms),
        created_at: of_unix(asset.created_at),
    }
}

/// The VMs that were made of it, under this name.
fn users(asset: &Asset, vms: &[Vm]) -> Vec<String> {
    let has_name = |base: &Base| match asset.kind {
        Kind::Image => base.image == asset.name,
        Kind::Kernel => base.kernel == asset.name,
    };
    let using = vms.iter().filter(|vm| has_name(&vm.base) && digest_of(asset.kind, &vm.base) == Some(&asset.digest));
    using.map(|vm| vm.name.clone()).collect()
}

/// The digest in the path of what a VM was made of.
fn digest_of(kind: Kind, base: &Base) -> Option<&str> {
    digest_in(if kind == Kind::Image { &base.root } else { &base.vmlinux })
}

fn digest_in(path: &Path) -> Option<&str> {
    path.parent()?.file_name()?.to_str()
}

/// What who makes an image, or wants the default one, has to know.
pub(crate) fn about(daemon: &Daemon) -> Result<About, Fault> {
    let given = daemon.settings.files.is_some() || configured(daemon).is_some();
    let default_image = configured(daemon).map_or_else(default_image, str::to_owned);
    let (has_image, has_kernel) = daemon.store.change(|t| {
        let kernels = assets::all(t, Kind::Kernel)?;
        Ok((assets::by_name(t, Kind::Image, &default_image)?.is_some(), !kernels.is_empty()))
    })?;
    Ok(About {
        state: daemon.settings.state.to_string_lossy().into_owned(),
        default_image,
        has_image: has_image || given,
        has_kernel: has_kernel || daemon.settings.files.is_some(),
    })
}

/// The image that somebody chose for VMs that name none: it is not made unasked, as this machine's Debian is.
fn configured(daemon: &Daemon) -> Option<&str> {
    daemon.settings.image.as_deref().filter(|name| *name != default_image())
}

/// The image of a VM that names none: this machine's Debian.
fn default_image() -> String {
    let here = debian::release().ok().and_then(|here| debian::RELEASES.iter().find(|(_, name)| *name == here));
    format!("debian-{}", here.unwrap_or(&debian::RELEASES[0]).0)
}

/// The image and kernel of those names, as a VM is started from them; the default ones for `None`.
///
/// # Errors
/// `no_such_image`, `no_such_kernel`, `no_image` and `no_kernel` where there is not even the default; a file that is gone.
pub(crate) fn base(daemon: &Daemon, image: Option<&str>, kernel: Option<&str>) -> Result<Base, Fault> {
    let files = daemon.settings.files.as_ref();
    let image = image.or_else(|| configured(daemon).filter(|_| files.is_none()));
    let given = |named: Option<&str>| files.filter(|_| named.is_none_or(|name| name == FILES));
    let (image, digest, root) = match given(image) {
        Some(files) => (FILES.into(), None, files.root.clone()),
        None => {
            let asset = daemon.store.change(|t| match image {
                Some(name) => find(t, Kind::Image, name),
                None => assets::by_name(t, Kind::Image, &default_image())?.ok_or_else(|| {
                    Fault::new("no_image", exit::MISSING, "there is no image yet")
                        .fix(format!("banger image build {}", default_image()))
                }),
            })?;
            let stored = daemon.images.store.image(&asset.digest)?;
            (asset.name, Some(format!("sha256:{}", asset.digest)), stored.path)
        }
    };
    let facts = std::fs::metadata(&root).map_err(|error| Fault::file("reading", &root, &error))?;
    let (kernel, vmlinux, initrd) = match given(kernel) {
        Some(files) => (FILES.into(), files.kernel.clone(), files.initrd.clone()),
        None => {
            let asset = daemon.store.change(|t| match kernel {
                Some(name) => find(t, Kind::Kernel, name),
                None => default_kernel(t),
            })?;
            let stored: Stored = daemon.images.store.kernel(&asset.digest)?;
            let initrd = daemon.images.store.initrd(&stored, &daemon.settings.agent)?;
            (asset.name, stored.path.join("vmlinux"), initrd)
        }
    };
    Ok(Base { image, digest, root, bytes: facts.len(), kernel, vmlinux, initrd })
}

/// The kernel of a VM that names none: the newest of Debian's, else the newest.
fn default_kernel(connection: &Connection) -> Result<Asset, Fault> {
    let newest = assets::all(connection, Kind::Kernel)?.into_iter().max_by_key(|k| (k.is_debians, k.created_at));
    newest.ok_or_else(|| {
        Fault::new("no_kernel", exit::MISSING, "there is no kernel yet").fix("banger kernel import --debian")
    })
}

/// Takes a name away, and the files where nothing else needs them.
///
/// # Errors
/// `no_such_…`; `in_use` where a VM was made of it, unless it is forced: then the files stay as long as the VM.
pub(crate) fn rm(daemon: &Daemon, kind: Kind, reference: &str, force: bool, act: Act) -> Result<Removed, Fault> {
    let _none = match act {
        Act::Do => {
            // A template that nobody asked for is no use of it.
            template::give_way(&Work::new(daemon, &serve::new_op_id()));
            // Nobody's VMs are in nobody's way.
            Some(pool::empty(daemon)?)
        }
        Act::Tell => None,
    };
    let (asset, is_needed) = daemon.store.change_or_tell(act, |t| {
        let asset = find(t, kind, reference)?;
        let mut vms = vms::all(t)?;
        vms.retain(|vm| !pool::is_of(vm));
        let users = users(&asset, &vms);
        if !users.is_empty() && !force {
            let message = format!("{} {} is in use by {}", kind.name(), asset.name, users.join(", "));
            return Err(Fault::new("in_use", exit::STATE, message)
                .fix(format!("banger vm rm {}", users.join(" ")))
                .fix("--force takes the name away now, and the files stay as long as these VMs"));
        }
        assets::remove(t, kind, &asset.name)?;
        if kind == Kind::Image {
            usual::forget(t, &asset.name)?;
        }
        let is_needed = needed(t, kind, &vms)?.contains(&asset.digest);
        Ok((asset, is_needed))
    })?;
    let is_of_it = |path: &Path| !is_needed && digest_in(path) == Some(&asset.digest);
    let freed_bytes = match act {
        Act::Do if release(daemon, kind, &asset.digest)? => asset.size_bytes,
        Act::Tell if !is_needed => asset.size_bytes,
        _ => 0,
    };
    // What can't be gone on from without it goes with it.
    let templates = template::sweep_as_if_gone(daemon, act, is_of_it)?;
    Ok(Removed { name: asset.name, freed_bytes: freed_bytes + templates })
}

/// Removes the files of a digest that nothing needs any more; whether they went.
pub(super) fn release(daemon: &Daemon, kind: Kind, digest: &str) -> Result<bool, Fault> {
    if daemon.store.change(|t| needed(t, kind, &vms::all(t)?))?.contains(digest) {
        return Ok(false);
    }
    daemon.images.store.remove(shelf(kind), digest)?;
    daemon.ahead.forget_gone();
    Ok(true)
}

fn shelf(kind: Kind) -> Shelf {
    match kind {
        Kind::Image => Shelf::Images,
        Kind::Kernel => Shelf::Kernels,
    }
}

/// The digests that a name or one of those VMs needs.
fn needed(connection: &Connection, kind: Kind, vms: &[Vm]) -> Result<BTreeSet<String>, Fault> {
    let named = assets::all(connection, kind)?.into_iter().map(|asset| asset.digest);
    let used = vms.iter().filter_map(|vm| digest_of(kind, &vm.base)).map(str::to_owned);
    Ok(named.chain(used).collect())
}

/// Removes what nothing needs: files whose name was taken away while a VM had them, and initrds of older agents. For the
/// daemon's start, before anybody asks for a VM.
pub(crate) fn sweep(daemon: &Daemon) -> Result<(), Fault> {
    for kind in [Kind::Image, Kind::Kernel] {
        let needed = daemon.store.change(|t| needed(t, kind, &vms::all(t)?))?;
        for digest in daemon.images.store.digests(shelf(kind))?.iter().filter(|d| !needed.contains(*d)) {
            release(daemon, kind, digest)?;
        }
    }
    let vms = daemon.store.change(|t| vms::all(t))?;
    let needs = |initrd: &Path| vms.iter().any(|vm| vm.base.initrd == initrd);
    // A template with an older agent has none then, and goes.
    Ok(daemon.images.store.sweep_initrds(needs)?)
}
