//! `vm.workspace`, `vm.workspace.pushed`, `vm.workspace.pulled`: what of a VM's files is a work tree of the owner's. How it
//! comes there and back is the command line's; the daemon remembers it, and that commands may have changed it since.

use super::find;
use super::places::Places;
use crate::api::Fault;
use crate::api::vm::{Pushed, Workspace as Shown, WorkspaceAt};
use crate::daemon::Daemon;
use crate::daemon::error::exit;
use crate::daemon::store::vms::Vm;
use crate::daemon::store::workspaces::{self, Workspace};
use crate::time::{of_unix, unix_now};

/// A VM's, and where the command line keeps what belongs to it.
pub(crate) fn about(daemon: &Daemon, reference: &str) -> Result<WorkspaceAt, Fault> {
    let vm = daemon.store.change(|t| find(t, reference))?;
    let dir = Places::of(&daemon.settings, &vm).dir().join("workspace");
    let dir = dir.into_os_string().into_string().map_err(|_| Fault::bug("the state directory is not UTF-8"))?;
    let workspace = of(daemon, &vm)?;
    Ok(WorkspaceAt { vm: vm.name, dir, state: vm.state.shown().to_owned(), workspace })
}

/// It was shipped.
pub(crate) fn pushed(daemon: &Daemon, reference: &str, pushed: &Pushed) -> Result<WorkspaceAt, Fault> {
    let all = [&pushed.host, &pushed.guest, &pushed.commit];
    if all.iter().any(|text| text.is_empty() || text.len() > 4096) {
        return Err(Fault::new("bad_request", exit::USAGE, "a workspace has a directory on both sides, and a commit"));
    }
    daemon.store.change(|t| {
        let vm = find(t, reference)?;
        workspaces::pushed(t, &vm.id, pushed, unix_now())
    })?;
    about(daemon, reference)
}

/// Its changes were fetched.
pub(crate) fn pulled(daemon: &Daemon, reference: &str, commit: Option<&str>) -> Result<WorkspaceAt, Fault> {
    daemon.store.change(|t| {
        let vm = find(t, reference)?;
        workspaces::pulled(t, &vm.id, commit, unix_now())
    })?;
    about(daemon, reference)
}

/// Whatever a command does in the VM: it may have changed the files.
pub(super) fn touch(daemon: &Daemon, vm: &Vm) -> Result<(), Fault> {
    daemon.store.change(|t| workspaces::touch(t, &vm.id))
}

/// Refuses where changes may be in the VM alone.
pub(super) fn is_pulled(daemon: &Daemon, vm: &Vm) -> Result<(), Fault> {
    let unpulled = daemon.store.change(|t| workspaces::of(t, &vm.id))?.filter(|workspace| workspace.unpulled);
    let Some(workspace) = unpulled else { return Ok(()) };
    let name = &vm.name;
    let message = format!("{name} may hold changes to {} that were not pulled", workspace.pushed.host);
    let start = if vm.state.is_down() { format!("banger vm start {name}; ") } else { String::new() };
    Err(Fault::new("changes_not_pulled", exit::STATE, message)
        .why("commands have run in it since")
        .fix(format!("{start}banger vm workspace pull {name}"))
        .fix("--discard-changes"))
}

/// As it is shown.
pub(super) fn of(daemon: &Daemon, vm: &Vm) -> Result<Option<Shown>, Fault> {
    let found = daemon.store.change(|t| workspaces::of(t, &vm.id))?;
    Ok(found.map(|Workspace { pushed, pushed_at, pulled_at, pulled_commit, unpulled }| Shown {
        pushed,
        pushed_at: of_unix(pushed_at),
        pulled_at: pulled_at.map(of_unix),
        pulled_commit,
        unpulled,
    }))
}
