//! Templates: VMs that were saved before any command ran in them. A new VM goes on from one instead of booting.
//!
//! One is a folder below `templates/` with three files that are one set and are never changed: what one of them says is
//! true only with the other two. It is whole when it gets its name, and its row comes last: a folder without a row is
//! nobody's, and goes at the next start.

mod key;
mod make;
mod room;
mod unasked;

pub(crate) use make::{build, stop};
pub(crate) use unasked::{begin as begin_unasked, give_way, wanted};

use crate::api::Fault;
use crate::api::template::{Removed, Template as Shown, Templates as All};
use crate::daemon::Daemon;
use crate::daemon::error::exit;
use crate::daemon::store::Act;
use crate::daemon::store::templates::{self, Template};
use crate::daemon::store::vms::{self, Base, Vm};
use crate::daemon::vm::phases::remove_tree;
use crate::daemon::vm::work::Work;
use crate::daemon::vm::{disk, launch, pool};
use crate::daemon::vmm::Over;
use crate::time::of_unix;
use key::{Key, Kind};
use rusqlite::Connection;
use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// The folder of a template that is not whole yet has this behind its id.
const DRAFT: &str = ".draft";
/// Codes of failures that are the template's own. What the helper refuses twice in a row it will refuse again.
const OWN_FAULTS: [&str; 5] = ["template_failed", "vmm_failed", "boot_failed", "agent_silent", "helper_refused"];

/// What is kept of templates beside their rows.
#[derive(Debug, Default)]
pub(crate) struct Templates {
    /// One is made at a time.
    turn: Mutex<()>,
    /// Those that nobody asked for.
    unasked: unasked::Unasked,
    /// Of programs, as they were.
    digests: Mutex<HashMap<String, Arc<Mutex<Option<String>>>>>,
}

/// A template's folder.
#[derive(Clone, Debug)]
pub(crate) struct Files(pub(crate) PathBuf);

impl Files {
    /// Of the template of that id.
    pub(crate) fn of(daemon: &Daemon, id: &str) -> Files {
        Files(place(daemon).join(id))
    }

    /// The state of its devices.
    pub(crate) fn state(&self) -> PathBuf {
        self.0.join("state")
    }

    /// Its memory.
    pub(crate) fn memory(&self) -> PathBuf {
        self.0.join("memory")
    }

    /// Its disk.
    pub(crate) fn disk(&self) -> PathBuf {
        self.0.join("root.ext4")
    }

    fn all(&self) -> [PathBuf; 3] {
        [self.state(), self.memory(), self.disk()]
    }

    /// A VMM that was taken over may have left links and pipes in their place.
    ///
    /// # Errors
    /// `template_failed`, where one is no regular file.
    pub(crate) fn are_regular(&self) -> Result<(), Fault> {
        for path in self.all() {
            let facts = fs::symlink_metadata(&path).map_err(|error| Fault::file("reading", &path, &error))?;
            if !facts.is_file() {
                let message = "a template can't be made: what its VMM saved is no file";
                return Err(Fault::new("template_failed", exit::FAILED, message).why(path.display()));
            }
        }
        Ok(())
    }

    /// Whether they are what they were when the template was made.
    fn are_of(&self, template: &Template) -> bool {
        self.facts().is_ok_and(|facts| facts == template.files)
    }

    /// What they are now, a line each: whoever writes one of them changes that.
    fn facts(&self) -> Result<String, Fault> {
        self.all().iter().map(|path| Ok(format!("{}\n", key::facts(path)?))).collect()
    }
}

/// A template that a VM can go on from.
#[derive(Clone, Debug)]
pub(crate) struct Pick {
    /// Its id.
    pub(crate) id: String,
    /// Its files.
    pub(crate) files: Files,
    /// How often it had failed by then, one time after the other.
    failures: u32,
}

fn place(daemon: &Daemon) -> PathBuf {
    daemon.settings.state.join("templates")
}

/// The template that a new VM can go on from.
///
/// # Errors
/// Why there is none, for a person: such a VM is booted.
pub(crate) fn pick(work: &Work<'_>, vm: &Vm) -> Result<Pick, String> {
    let told = |fault: Fault| fault.message.to_string();
    if vm.kept && launch::choice(work).map_err(told)?.over() == Over::Own {
        return Err("a VM that stays has a disk of its own".into());
    }
    if let Some(method) = work.daemon.settings.disk
        && launch::choice(work).map_err(told)?.over() == Over::Layer
    {
        return Err(format!("disk_method is {}, and here a template's VMs have layers", method.name()));
    }
    if disk::is_longer(vm).map_err(told)? {
        return Err("its disk is longer than its image".into());
    }
    let key = key(work, &vm.base, Kind::of(vm)).map_err(told)?;
    let all = work.daemon.store.change(|t| templates::all(t)).map_err(told)?;
    let digest = key.digest();
    match all.iter().find(|template| template.key == digest) {
        Some(template) if template.is_dropped() => Err(format!("template {} failed twice", template.id)),
        Some(template) => {
            let files = Files::of(work.daemon, &template.id);
            if files.are_of(template) {
                return Ok(Pick { id: template.id.clone(), files, failures: template.failures });
            }
            drop_it(work.daemon, &template.id).map_err(told)?;
            Err(format!("the files of template {} are not what they were", template.id))
        }
        None => Err(missing(&key, &all, vm)),
    }
}

/// Why none of those is it.
fn missing(key: &Key, all: &[Template], vm: &Vm) -> String {
    let near = |template: &&Template| {
        let kind = Kind { cpus: template.cpus, memory_mib: template.memory_mib, init: template.init };
        template.image == vm.base.image && kind == Kind::of(vm)
    };
    match all.iter().find(near) {
        Some(template) => format!("template {} has another {}", template.id, key.differs(template).join(", ")),
        None => {
            let cpus = if vm.cpus == 1 { "1 CPU".into() } else { format!("{} CPUs", vm.cpus) };
            let init = if vm.init { " and its own init" } else { "" };
            format!("no template of {} with {} MiB and {cpus}{init}", vm.base.image, vm.memory_mib)
        }
    }
}

fn key(work: &Work<'_>, base: &Base, kind: Kind) -> Result<Key, Fault> {
    let choice = launch::choice(work)?;
    // Without one VMs have no ssh, and all else is the same.
    let authorized = work.daemon.ssh.owner().unwrap_or_default();
    Key::of(&work.daemon.images.templates, &choice, base, kind, &authorized)
}

/// Whether it is still there.
///
/// # Errors
/// `no_such_template`.
pub(crate) fn is_there(daemon: &Daemon, id: &str) -> Result<(), Fault> {
    daemon.store.change(|t| find(t, id)).map(drop)
}

/// Writes down that a VM went on from it.
pub(crate) fn used(daemon: &Daemon, id: &str) -> Result<(), Fault> {
    daemon.store.change(|t| templates::used(t, id))
}

/// Writes down that a VM could not go on from it, where that says something of the template: a helper that is not there or has
/// no room, or a full disk, says nothing.
pub(crate) fn failed(daemon: &Daemon, pick: &Pick, fault: &Fault) -> Result<(), Fault> {
    if !OWN_FAULTS.contains(&fault.code.as_str()) {
        return Ok(());
    }
    daemon.store.change(|t| templates::failed(t, &pick.id, pick.failures))?;
    sweep(daemon).map(drop)
}

/// Gives one up that can't be right any more.
fn drop_it(daemon: &Daemon, id: &str) -> Result<(), Fault> {
    daemon.store.change(|t| templates::drop(t, id))?;
    sweep(daemon).map(drop)
}

/// All of them, the oldest first.
pub(crate) fn list(daemon: &Daemon) -> Result<All, Fault> {
    daemon.store.change(|t| {
        let vms = vms::all(t)?;
        let bounds = daemon.settings.templates;
        Ok(All {
            templates: templates::all(t)?.iter().map(|template| shown(template, &vms)).collect(),
            most: bounds.count as u64,
            most_bytes: bounds.bytes,
            unasked: bounds.unasked,
        })
    })
}

/// One.
pub(crate) fn one(daemon: &Daemon, reference: &str) -> Result<Shown, Fault> {
    daemon.store.change(|t| Ok(shown(&find(t, reference)?, &vms::all(t)?)))
}

fn shown(template: &Template, vms: &[Vm]) -> Shown {
    Shown {
        id: template.id.clone(),
        image: template.image.clone(),
        digest: template.digest.clone(),
        kernel: template.kernel.clone(),
        cpus: template.cpus,
        memory_bytes: template.memory_mib << 20,
        init: template.init,
        size_bytes: template.size_bytes,
        vms: users(template, vms),
        created_at: of_unix(template.created_at),
    }
}

/// The VMs whose disks are layers over it.
fn users(template: &Template, vms: &[Vm]) -> Vec<String> {
    let using = vms.iter().filter(|vm| vm.template.as_deref() == Some(template.id.as_str()));
    using.map(|vm| vm.name.clone()).collect()
}

/// All VMs but those that nobody has yet, which go with what they lie on.
fn somebodys(connection: &Connection) -> Result<Vec<Vm>, Fault> {
    Ok(vms::all(connection)?.into_iter().filter(|vm| !pool::is_of(vm)).collect())
}

/// The one that is meant: by 4 or more digits of its id, or by its image's name where only one fits.
fn find(connection: &Connection, reference: &str) -> Result<Template, Fault> {
    let is_id = (4..=12).contains(&reference.len()) && reference.bytes().all(|byte| byte.is_ascii_hexdigit());
    let id = reference.to_ascii_lowercase();
    let fits = |template: &Template| template.image == reference || (is_id && template.id.starts_with(&id));
    let mut found: Vec<Template> = templates::all(connection)?.into_iter().filter(fits).collect();
    let shown = wire::code::shown(reference);
    match (found.pop(), found.pop()) {
        (Some(one), None) => Ok(one),
        (Some(one), Some(two)) => {
            let message = format!("several templates are {shown}");
            Err(Fault::new("ambiguous", exit::MISSING, message).fix(format!("{} or {}: give the id", two.id, one.id)))
        }
        _ => Err(Fault::new("no_such_template", exit::MISSING, format!("there is no template {shown}"))
            .fix("banger template list shows what is here")),
    }
}

/// Takes one away.
///
/// # Errors
/// `no_such_template`; `in_use` where a VM's disk lies on it.
pub(crate) fn rm(daemon: &Daemon, reference: &str, act: Act) -> Result<Removed, Fault> {
    // Nobody's VMs are in nobody's way.
    let _none = if act == Act::Do { Some(pool::empty(daemon)?) } else { None };
    let template = daemon.store.change_or_tell(act, |t| {
        let template = find(t, reference)?;
        let users = users(&template, &somebodys(t)?);
        if users.is_empty() {
            templates::remove(t, &template.id)?;
            return Ok(template);
        }
        let message = format!("the disks of {} lie on template {}", users.join(", "), template.id);
        let names = users.join(" ");
        Err(Fault::new("in_use", exit::STATE, message).fix(format!(
            "banger vm stop {names} gives those that stay disks of their own, else banger vm rm -f {names}"
        )))
    })?;
    if act == Act::Do {
        remove_tree(&Files::of(daemon, &template.id).0)?;
    }
    Ok(Removed { id: template.id, freed_bytes: template.size_bytes })
}

/// Removes what nobody can go on from any more: templates whose image, kernel or initial RAM disk is gone or that failed too
/// often, but for those that a VM's disk lies on. How many bytes they took.
pub(crate) fn sweep(daemon: &Daemon) -> Result<u64, Fault> {
    sweep_as_if_gone(daemon, Act::Do, |_| false)
}

/// The same, or what would be removed; files of which `is_gone` says so count as gone.
pub(super) fn sweep_as_if_gone(daemon: &Daemon, act: Act, is_gone: impl Fn(&Path) -> bool) -> Result<u64, Fault> {
    let gone = |template: &Template| {
        let files = [&template.root, &template.vmlinux, &template.initrd];
        template.is_dropped() || files.iter().any(|path| is_gone(path) || !path.exists())
    };
    let removed = daemon.store.change_or_tell(act, |t| {
        let vms = if act == Act::Do { vms::all(t)? } else { somebodys(t)? };
        let mut all = templates::all(t)?;
        all.retain(|template| gone(template) && users(template, &vms).is_empty());
        all.iter().try_for_each(|template| templates::remove(t, &template.id)).map(|()| all)
    })?;
    for template in removed.iter().filter(|_| act == Act::Do) {
        remove_tree(&Files::of(daemon, &template.id).0)?;
    }
    Ok(removed.iter().map(|template| template.size_bytes).sum())
}

/// The same, and folders without a row: what was cut off. For the daemon's start, before anybody asks for a VM.
pub(crate) fn begin(daemon: &Daemon) -> Result<(), Fault> {
    sweep(daemon)?;
    let rows = daemon.store.change(|t| templates::all(t))?;
    let place = place(daemon);
    let entries = match fs::read_dir(&place) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(|error| Fault::file("reading", &place, &error))?,
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if !rows.iter().any(|template| *template.id == *name) {
            remove_tree(&entry.path())?;
        }
    }
    Ok(())
}
