//! `vm.ssh`: what a client needs to come into a VM.

use super::places::Places;
use super::work::Work;
use super::{find, workspace};
use crate::api::Fault;
use crate::api::ssh::Way;
use crate::daemon::error::exit;
use crate::daemon::serve::Caller;
use crate::daemon::store::vms::Vm;
use crate::daemon::{Daemon, guest, ssh};
use std::sync::Arc;

/// Where a server listens.
const PORT: u16 = 22;

/// Tells it, once something in the guest listens for ssh.
pub(crate) fn ssh(daemon: &Arc<Daemon>, caller: &mut Caller, reference: &str) -> Result<Way, Fault> {
    let vm = daemon.store.change(|t| find(t, reference))?;
    super::run::is_running(&vm)?;
    daemon.ssh.owner()?;
    workspace::touch(daemon, &vm)?;
    if !Places::of(&daemon.settings, &vm).host_key().exists() {
        return Err(Fault::new("no_host_key", exit::STATE, format!("{} has no ssh key of its own", vm.name))
            .why("it was made by an older bangerd, or its key could not be written then")
            .fix(format!("banger vm exec {} works; or make the VM anew", vm.name)));
    }
    let work = Work::new(daemon, caller.op_id());
    if !listens(&work, &vm)? {
        return Err(Fault::new("no_ssh_server", exit::STATE, format!("nothing in {} listens for ssh", vm.name))
            .why("its image has no openssh-server, or the server there doesn't run")
            .fix("banger image build NAME --include openssh-server, and a VM of it")
            .fix(format!("banger vm exec {} needs none", vm.name)));
    }
    let (address, bridge) = (vm.address, daemon.settings.bridge.addr.ip());
    Ok(Way { host: ssh::host(&vm), address, bridge, config: daemon.ssh.config() })
}

/// The guest's own word; a lie costs it the visit.
fn listens(work: &Work<'_>, vm: &Vm) -> Result<bool, Fault> {
    let _counted = work.daemon.slots.connect(&vm.id, &vm.name)?;
    let silent =
        |why: String| Fault::new("agent_silent", exit::FAILED, format!("{}'s agent doesn't answer", vm.name)).why(why);
    let call = guest::call(&work.places(vm).vsock(), guest::ANSWER).map_err(|error| silent(error.to_string()))?;
    let listeners = call.listeners().map_err(|failure| silent(failure.to_string()))?;
    Ok(listeners.0.iter().any(|listener| listener.proto == "tcp" && listener.port == PORT))
}
