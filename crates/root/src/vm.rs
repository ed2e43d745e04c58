//! Launching VMs, and their processes, sockets and programs.

mod answer;
mod cgroup;
mod checks;
mod chroot;
mod clear;
mod config;
mod contents;
mod devices;
mod given;
mod jail;
mod launch;
mod layer;
mod live;
mod memories;
mod older;
mod output;
mod process;
mod record;
mod sockets;
mod stage;
mod tap;
mod tree;

use crate::fail::Fail;
use crate::host::Host;
use crate::log::Log;
use crate::places::Place;
use sys::creds::Identity;
use wire::reply::{Resources, VmFound};
use wire::vm::{SocketAccess, Wanted};

pub(crate) use chroot::cleanup as cleanup_chroot;
pub(crate) use devices::{Device, Neighbours};
pub(crate) use launch::launch;
pub(crate) use live::Vms;
pub(crate) use memories::Memories;
pub(crate) use process::{find, kill, running, signal};

impl Vms {
    /// Takes over what an earlier helper launched, by its records, and clears away what of it has ended. `log` is for
    /// what happens to VMs without a request.
    pub(crate) fn adopt(
        records: &Place,
        state: &Place,
        runtime: &Place,
        owner: &Identity,
        log: Log,
        output_bytes: u64,
    ) -> Result<Vms, Fail> {
        let again = |place: &Place| {
            let opened = place.dir().dir(".");
            opened.map_err(|error| Fail::new("a directory of the helper's can't be opened again").because(error))
        };
        Vms::take_over(clear::Ground {
            records: again(records)?,
            state: again(state)?,
            runtime: again(runtime)?,
            owner: owner.clone(),
            log,
            output_bytes,
        })
    }
}

pub(crate) fn resolve(host: &Host, wanted: &Wanted) -> Result<String, Fail> {
    crate::program::resolve(host, wanted)
}

pub(crate) fn ensure_socket_access(host: &Host, access: &SocketAccess) -> Result<(), Fail> {
    sockets::ensure_access(host, access)
}

/// Fills in `vms`.
pub(crate) fn list(host: &Host, found: &mut Resources) -> Result<(), Fail> {
    let alive = host.vms.running().into_iter().filter(|vm| vm.vmm.is_alive());
    found.vms = alive
        .map(|vm| VmFound {
            control_group: vm.record.control_group.unwrap_or_default(),
            jail: vm.record.jail.map_or_else(String::new, |jail| jail.path),
            vm_id: vm.record.vm_id,
            pid: vm.record.process.pid,
            program: vm.record.program.path,
            socket: vm.record.socket.path,
            tap: vm.record.tap,
            cid: vm.record.cid,
        })
        .collect();
    Ok(())
}
