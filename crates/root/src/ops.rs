//! The one match: a request, its function. No logic.

use crate::fail::Fail;
use crate::gate::Charge;
use crate::host::Host;
use crate::{disk, net, vm};
use wire::name::dm::DmName;
use wire::reply::Resources;
use wire::{Reply, Request};

/// Does what is asked. `room` is charged with a reply that may be large.
pub(crate) fn run(host: &Host, request: &Request, room: &mut Charge) -> Result<Reply, Fail> {
    match request {
        Request::EnsureBridge(bridge) => net::ensure_bridge(host, bridge).map(done),
        Request::CreateTap(new) => net::create_tap(host, new).map(done),
        Request::DeleteTap(tap) => net::delete_tap(host, tap).map(done),
        Request::SyncResolverRouting(Some(route)) => net::sync_resolver_routing(host, route).map(done),
        Request::ClearResolverRouting(Some(bridge)) => net::clear_resolver_routing(host, bridge).map(done),
        Request::SyncResolverRouting(None) | Request::ClearResolverRouting(None) => Ok(Reply::Done),
        Request::EnsureNat(nat) => net::ensure_nat(host, nat).map(done),
        Request::CreateDmSnapshot(new) => disk::create_dm_snapshot(host, new).map(Reply::Handles),
        Request::CleanupDmSnapshot(handles) => disk::cleanup_dm_snapshot(host, handles).map(done),
        Request::RemoveDmSnapshot(name) => disk::remove_dm_snapshot(host, name).map(done),
        Request::FsckSnapshot(name) => disk::fsck(host, name).map(done),
        Request::ReadExt4File(asked) => disk::read(host, asked, room).map(Reply::Data),
        Request::WriteExt4Files(asked) => disk::write(host, asked).map(done),
        Request::ResolveFirecrackerBinary(wanted) => vm::resolve(host, wanted).map(Reply::Path),
        Request::LaunchFirecracker(launch) | Request::RestoreFirecracker(launch) => {
            let images: Vec<_> = launch.drives.iter().map(|drive| drive.image.clone()).collect();
            let _using = disk::prepare(host, &images, "launch_firecracker")?;
            let open = |name: &DmName, writable| {
                disk::open_drive(host, name, writable).map(|(fd, number, size)| vm::Device { _held: fd, number, size })
            };
            let others = vm::Neighbours {
                open_snapshot: &open,
                is_free: &|dev, ino| disk::is_under_no_device(host, dev, ino),
                fresh_port: &|| net::fresh_port(host, &launch.tap),
            };
            vm::launch(host, launch, &others).map(Reply::Pid)
        }
        Request::EnsureSocketAccess(access) => vm::ensure_socket_access(host, access).map(done),
        Request::FindFirecrackerPid(api_sock) => vm::find(host, api_sock).map(Reply::Pid),
        Request::KillProcess(pid) => vm::kill(host, *pid).map(done),
        Request::SignalProcess(kill) => vm::signal(host, kill).map(done),
        Request::ProcessRunning(question) => Ok(Reply::Running(vm::running(host, question))),
        Request::CleanupJailerChroot(chroot) => vm::cleanup_chroot(host, chroot).map(done),
        Request::DeleteTaps(taps) => net::delete_taps(host, taps).map(done),
        Request::ListResources => list(host).map(Reply::Resources),
        Request::ProbeNetwork(probe) => net::probe(host, probe).map(Reply::Probed),
    }
}

fn done((): ()) -> Reply {
    Reply::Done
}

fn list(host: &Host) -> Result<Resources, Fail> {
    let mut found = Resources::default();
    net::list(host, &mut found)?;
    vm::list(host, &mut found)?;
    disk::list(host, &mut found)?;
    Ok(found)
}
