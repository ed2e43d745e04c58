//! The one match: what is asked for, and who does it. No logic.

use super::image::{self, Incoming, KernelFrom, template};
use super::serve::Caller;
use super::store::Act;
use super::store::assets::Kind;
use super::{Daemon, vm};
use crate::api::ssh::Config;
use crate::api::{Fault, Request, Version};
use crate::image::build::Origin;
use serde::Serialize;
use serde_json::{Value, json};
use std::sync::Arc;

/// The request's name in the log.
pub(crate) fn name(request: &Request) -> &'static str {
    match request {
        Request::Ping {} => "ping",
        Request::Version {} => "version",
        Request::VmRun { .. } => "vm.run",
        Request::VmPlan { .. } => "vm.plan",
        Request::VmLogTimes { .. } => "vm.log.times",
        Request::VmCreate { .. } => "vm.create",
        Request::VmStart { .. } => "vm.start",
        Request::VmStop { .. } => "vm.stop",
        Request::VmKill { .. } => "vm.kill",
        Request::VmRm { .. } => "vm.rm",
        Request::VmList {} => "vm.list",
        Request::VmShow { .. } => "vm.show",
        Request::VmExec { .. } => "vm.exec",
        Request::VmWorkspace { .. } => "vm.workspace",
        Request::VmWorkspacePushed { .. } => "vm.workspace.pushed",
        Request::VmWorkspacePulled { .. } => "vm.workspace.pulled",
        Request::VmSsh { .. } => "vm.ssh",
        Request::SshConfig {} => "ssh.config",
        Request::VmLogs { .. } => "vm.logs",
        Request::ImageAbout {} => "image.about",
        Request::ImageImport { .. } => "image.import",
        Request::ImagePromote { .. } => "image.promote",
        Request::ImageList {} => "image.list",
        Request::ImageShow { .. } => "image.show",
        Request::ImageRm { .. } => "image.rm",
        Request::KernelFetch { .. } => "kernel.fetch",
        Request::KernelImport { .. } => "kernel.import",
        Request::KernelList {} => "kernel.list",
        Request::KernelShow { .. } => "kernel.show",
        Request::KernelRm { .. } => "kernel.rm",
        Request::TemplateBuild { .. } => "template.build",
        Request::TemplateList {} => "template.list",
        Request::TemplateShow { .. } => "template.show",
        Request::TemplateRm { .. } => "template.rm",
    }
}

/// Does what is asked for.
pub(crate) fn run(daemon: &Arc<Daemon>, caller: &mut Caller, request: Request) -> Result<Value, Fault> {
    match request {
        Request::Ping {} => Ok(json!({})),
        Request::Version {} => done(Ok(Version { bangerd: env!("CARGO_PKG_VERSION").into() })),
        Request::VmRun { machine, keep } => done(vm::run::run(daemon, caller, &machine, keep)),
        Request::VmPlan { machine, keep } => done(vm::run::planned(daemon, caller, &machine, keep)),
        Request::VmLogTimes { name } => done(vm::life::log_times(daemon, caller, &name)),
        Request::VmCreate { machine } => done(vm::life::create(daemon, caller, &machine)),
        Request::VmStart { name, boot_timeout_ms, wait, cold } => {
            done(vm::life::start(daemon, caller, &name, vm::life::How { boot_timeout_ms, wait, cold }))
        }
        Request::VmStop { name, timeout_ms } => done(vm::life::stop(daemon, caller, &name, timeout_ms)),
        Request::VmKill { name, signal } => done(vm::life::kill(daemon, caller, &name, &signal)),
        Request::VmRm { name, force, discard_changes, dry_run } => {
            done(vm::life::rm(daemon, caller, &name, force, discard_changes, Act::of(dry_run)))
        }
        Request::VmList {} => done(vm::show::list(daemon)),
        Request::VmShow { name } => done(vm::show::one(daemon, &name)),
        Request::VmExec { name, looks } => done(vm::run::exec(daemon, caller, &name, looks)),
        Request::VmWorkspace { name } => done(vm::workspace::about(daemon, &name)),
        Request::VmWorkspacePushed { name, pushed } => done(vm::workspace::pushed(daemon, &name, &pushed)),
        Request::VmWorkspacePulled { name, commit } => done(vm::workspace::pulled(daemon, &name, commit.as_deref())),
        Request::VmSsh { name } => done(vm::ssh(daemon, caller, &name)),
        Request::SshConfig {} => done(Ok(Config { config: daemon.ssh.config() })),
        Request::VmLogs { name } => done(vm::life::logs(daemon, caller, &name)),
        Request::ImageAbout {} => done(image::about(daemon)),
        Request::ImageImport { name, source, size_bytes, built, layers, force } => {
            let origin = match (built, layers) {
                (true, _) => Origin::Built,
                (false, Some(_)) => Origin::Layers,
                (false, None) => Origin::Given,
            };
            let incoming = Incoming { name, source, force };
            done(image::import(daemon, caller, &incoming, size_bytes, origin, layers.unwrap_or(1)))
        }
        Request::ImagePromote { vm, name, force } => done(image::promote(daemon, caller, &vm, &name, force)),
        Request::ImageList {} => done(image::list(daemon, Kind::Image)),
        Request::ImageShow { name } => done(image::one(daemon, Kind::Image, &name)),
        Request::ImageRm { name, force, dry_run } => {
            done(image::rm(daemon, Kind::Image, &name, force, Act::of(dry_run)))
        }
        Request::KernelFetch { name, version, force } => {
            done(image::import_kernel(daemon, caller, name.as_deref(), &KernelFrom::Debian(version), force))
        }
        Request::KernelImport { name, source, with_initrd, force } => {
            let from = KernelFrom::Files { source, with_initrd };
            done(image::import_kernel(daemon, caller, name.as_deref(), &from, force))
        }
        Request::KernelList {} => done(image::list(daemon, Kind::Kernel)),
        Request::KernelShow { name } => done(image::one(daemon, Kind::Kernel, &name)),
        Request::KernelRm { name, force, dry_run } => {
            done(image::rm(daemon, Kind::Kernel, &name, force, Act::of(dry_run)))
        }
        Request::TemplateBuild { machine } => done(template::build(daemon, caller, &machine)),
        Request::TemplateList {} => done(template::list(daemon)),
        Request::TemplateShow { name } => done(template::one(daemon, &name)),
        Request::TemplateRm { name, dry_run } => done(template::rm(daemon, &name, Act::of(dry_run))),
    }
}

fn done<T: Serialize>(result: Result<T, Fault>) -> Result<Value, Fault> {
    result.and_then(|value| serde_json::to_value(value).map_err(Fault::bug))
}
