//! VMs as they are shown.

use super::is_of_template;
use super::places::Places;
use super::{disk, find, pool, workspace};
use crate::api::Fault;
use crate::api::vm::{Agent, Disk, Image, Network, Port, Published, Vm as Shown, Vmm, Vms};
use crate::daemon::store::ports;
use crate::daemon::store::vms::{self, State, Vm};
use crate::daemon::{Daemon, names};
use crate::time::of_unix;
use sys::pidfd;

/// All that are somebody's, by name: those in the making of a template, and in the pool, are not.
pub(crate) fn list(daemon: &Daemon) -> Result<Vms, Fault> {
    let all = daemon.store.change(|t| vms::all(t))?;
    let is_somebodys = |vm: &Vm| !is_of_template(&vm.name) && !pool::is_of(vm);
    Ok(Vms { vms: all.into_iter().filter(is_somebodys).map(|vm| shown(daemon, vm)).collect() })
}

/// One.
pub(crate) fn one(daemon: &Daemon, reference: &str) -> Result<Shown, Fault> {
    let vm = daemon.store.change(|t| find(t, reference))?;
    Ok(shown(daemon, vm))
}

/// Its ports on this machine.
fn published(daemon: &Daemon, id: &str) -> Vec<Published> {
    let open = daemon.published.open(id);
    // What can't be read now is not worth a list that can't be shown.
    let ports = daemon.store.change(|t| ports::of(t, id)).unwrap_or_default();
    let shown = |port: Port| Published {
        address: port.address,
        port: port.port,
        guest_port: port.guest,
        open: open.contains(&port),
    };
    ports.into_iter().map(shown).collect()
}

/// A row as it is shown.
pub(crate) fn shown(daemon: &Daemon, vm: Vm) -> Shown {
    // What can't be read now is not worth a list that can't be shown.
    let workspace = workspace::of(daemon, &vm).unwrap_or_default();
    let used_bytes = disk::used(&Places::of(&daemon.settings, &vm));
    let runs = vm.pid.filter(|_| !vm.state.is_down());
    // Whoever looks in the moment between a VMM's end and its row's sees the end.
    let ended = vm.state == State::Ready && !runs.is_some_and(|pid| pidfd::open(pid).is_ok_and(|it| it.is_alive()));
    let (state, runs) = if ended { (State::Stopping, None) } else { (vm.state, runs) };
    let vmm = runs.zip(vm.vmm.clone()).map(|(pid, program)| Vmm {
        program,
        version: vm.vmm_version.clone(),
        accel: vm.accel.clone().unwrap_or_default(),
        pid,
    });
    let agent = match state {
        State::Ready => "ready",
        State::Launched => "silent",
        _ => "none",
    };
    let published = published(daemon, &vm.id);
    let dns = daemon.names.get().map(|_| format!("{}.{}", vm.name, names::ZONE));
    let speaks = agent == "ready";
    Shown {
        name: vm.name,
        id: vm.id,
        state: state.shown().to_owned(),
        image: Image { name: vm.base.image, digest: vm.base.digest },
        kernel: vm.base.kernel,
        init: vm.init,
        cpus: vm.cpus,
        memory_bytes: vm.memory_mib << 20,
        disk: Disk { size_bytes: vm.base.bytes, used_bytes, method: vm.disk_method },
        network: Network { ip: vm.address.to_string(), dns, mac: vm.mac, nat: vm.nat, published },
        vmm,
        agent: Agent {
            state: agent.to_owned(),
            version: vm.agent.filter(|_| speaks),
            protocol: speaks.then_some(agent::protocol::VERSION),
        },
        workspace,
        created_at: of_unix(vm.created_at),
        started_at: vm.started_at.map(of_unix),
        ready_ms: vm.ready_ms,
        last_error: vm.last_error,
    }
}
