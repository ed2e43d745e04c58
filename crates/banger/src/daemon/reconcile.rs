//! After a start: what the store says is compared with what is there. VMs that run on are taken over; what dead ones left
//! is taken away by the helper.

use super::store::vms::{self, Process, State, Vm};
use super::vm::phases::{Launched, Planned, Ready};
use super::vm::places::Places;
use super::vm::slots::Held;
use super::vm::work::Work;
use super::vm::{disk, run, watch};
use super::{Daemon, log, serve};
use crate::api::Fault;
use crate::daemon::error::exit;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;
use sys::pidfd;
use wire::name::addr::GuestAddr;
use wire::name::dm::DmName;
use wire::name::link::TapName;
use wire::net::{Nat, Switch};
use wire::reply::Resources;
use wire::vm::Pid;

/// A helper that is not there yet is asked again after so long, and what could not be taken away is tried again.
const AGAIN: Duration = Duration::from_secs(5);
/// What goes on with a VM is waited for so long: a call that was there first.
const OTHERS: Duration = Duration::from_secs(1);

/// Compares the rows of now, and goes on in the background: with what is left, and with what comes by `lost`, the ids of
/// VMs of which something could not be taken away. To be called before anybody can ask for a VM.
pub(super) fn begin(daemon: &Arc<Daemon>, lost: Receiver<String>) -> Result<(), Fault> {
    let rows = daemon.store.change(|t| vms::all(t))?;
    let ids = rows.into_iter().map(|vm| vm.id).collect();
    let mut left = Left { ids, lost: BTreeSet::new(), strays: true };
    left.work_off(daemon);
    let daemon = Arc::clone(daemon);
    let work = move || {
        loop {
            let came = if left.is_done() { lost.recv().map_err(Into::into) } else { lost.recv_timeout(AGAIN) };
            match came {
                Ok(id) => drop(left.lost.insert(id)),
                Err(RecvTimeoutError::Timeout) => left.work_off(&daemon),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    };
    std::thread::Builder::new().name("reconcile".into()).spawn(work).map(drop).map_err(Fault::bug)
}

/// What is left to be looked after.
struct Left {
    /// Rows of before this daemon's start.
    ids: Vec<String>,
    /// Rows that say so.
    lost: BTreeSet<String>,
    strays: bool,
}

impl Left {
    fn is_done(&self) -> bool {
        self.ids.is_empty() && self.lost.is_empty() && !self.strays
    }

    fn work_off(&mut self, daemon: &Arc<Daemon>) {
        let op_id = serve::new_op_id();
        let tell = |fault: &Fault| log::fault("reconcile", &op_id, fault);
        self.ids.retain(|id| one(daemon, &op_id, id).inspect_err(tell).is_err());
        self.lost.retain(|id| {
            let row = daemon.store.change(|t| vms::by_id(t, id)).ok().flatten();
            // Whoever started or removed it since has taken it away first.
            row.is_some_and(|vm| vm.state == State::Lost) && one(daemon, &op_id, id).inspect_err(tell).is_err()
        });
        self.strays = self.strays && strays(daemon, &op_id).inspect_err(tell).is_err();
    }
}

/// One VM's row against what is there.
fn one(daemon: &Arc<Daemon>, op_id: &str, id: &str) -> Result<(), Fault> {
    let held = daemon.slots.hold(id, id, "being looked after", OTHERS)?;
    let Some(vm) = daemon.store.change(|t| vms::by_id(t, id))? else { return Ok(()) };
    let mut work = Work::new(daemon, op_id);
    if vm.state.is_down() {
        return if vm.kept { Ok(()) } else { Planned { vm }.remove(&mut work).and_then(|()| told(work)) };
    }
    if vm.state == State::Ready
        && let Some(ready) = Ready::again(&work, &vm)?
    {
        log::say("INFO", "the VM runs on and is taken over", &vm.name);
        watch::begin(daemon, &ready);
        return if vm.kept { Ok(()) } else { goes_with(daemon, vm) };
    }
    log::say("WARN", "what the VM left is taken away", &vm.name);
    if vm.kept && vm.disk_method.as_deref() == Some(disk::LAYER) {
        return make_whole(daemon, held, vm);
    }
    let (kept, error) = (vm.kept, cut_off(&vm));
    let planned = Launched::of_row(vm).down(&mut work);
    match kept {
        true => planned.rest(&mut work, State::Stopped, error).map(drop)?,
        false => planned.remove(&mut work)?,
    }
    told(work)
}

/// Takes away what a VM left whose disk is a layer. To make it a disk of its own takes a while, and nobody else waits for it:
/// the VM is held meanwhile.
fn make_whole(daemon: &Arc<Daemon>, held: Held, vm: Vm) -> Result<(), Fault> {
    let daemon = Arc::clone(daemon);
    let work = move || {
        let _held = held;
        let op_id = serve::new_op_id();
        let mut work = Work::new(&daemon, &op_id);
        let error = cut_off(&vm);
        let planned = Launched::of_row(vm).down(&mut work);
        // What can't be taken away comes again as one that is lost.
        if let Err(fault) = planned.rest(&mut work, State::Stopped, error).and_then(|_| told(work)) {
            log::fault("reconcile", &op_id, &fault);
        }
    };
    std::thread::Builder::new().name("disk".into()).spawn(work).map(drop).map_err(Fault::bug)
}

/// What the row's VM suffered.
fn cut_off(vm: &Vm) -> Option<Fault> {
    match vm.state {
        State::Stopping => None,
        State::Lost => vm.last_error.clone(),
        state => {
            let message =
                format!("{} was {} when bangerd ended, and was gone when it came back", vm.name, state.shown());
            Some(Fault::new("ended", exit::FAILED, message).fix(format!("banger vm start {}", vm.name)))
        }
    }
}

fn told(work: Work<'_>) -> Result<(), Fault> {
    work.troubles.into_iter().next().map_or(Ok(()), Err)
}

/// A run's VM that goes on without its daemon goes when its caller does.
fn goes_with(daemon: &Arc<Daemon>, vm: Vm) -> Result<(), Fault> {
    let caller = vm.caller.and_then(same);
    let daemon = Arc::clone(daemon);
    let work = move || {
        if let Some(caller) = caller {
            while !caller.wait_end(Duration::from_secs(3600)) {}
        }
        let op_id = serve::new_op_id();
        let mut work = Work::new(&daemon, &op_id);
        if let Err(fault) = run::remove(&daemon, &mut work, &vm.id, &vm.name) {
            log::fault("reconcile", &op_id, &fault);
        }
    };
    std::thread::Builder::new().name("caller".into()).spawn(work).map(drop).map_err(Fault::bug)
}

/// The process, where it is still that one.
fn same(process: Process) -> Option<pidfd::PidFd> {
    let opened = pidfd::open(process.pid).ok()?;
    (pidfd::start_time(process.pid).ok()? == process.start).then_some(opened)
}

/// What has the shape of a VM's of this daemon, and no row: a store that was lost leaves such.
fn strays(daemon: &Arc<Daemon>, op_id: &str) -> Result<(), Fault> {
    let work = Work::new(daemon, op_id);
    let found = work.helper().list_resources().map_err(|error| work.refused("asking what is there", error))?;
    // Asked for behind the helper: what is made meanwhile has its row by now.
    let rows = daemon.store.change(|t| vms::all(t))?;
    for stray in Stray::all(daemon, &found, &rows) {
        log::say("WARN", "nobody's any more, and taken away", &stray.to_string());
        stray.remove(&work)?;
    }
    Ok(())
}

/// Something that no row knows.
#[derive(Debug, PartialEq)]
enum Stray {
    Vm(String, Pid),
    Snapshot(DmName),
    Guest(GuestAddr, TapName),
    Tap(TapName),
}

impl Stray {
    /// In the order in which they can be taken away.
    fn all(daemon: &Daemon, found: &Resources, rows: &[Vm]) -> Vec<Stray> {
        let ids: BTreeSet<&str> = rows.iter().map(|vm| vm.id.as_str()).collect();
        let places = |vm: &Vm| Places::of(&daemon.settings, vm).tap().ok();
        let taps: BTreeSet<String> = rows.iter().filter_map(places).map(|tap| tap.to_string()).collect();
        let is_id = |id: &str, digits: usize| id.len() == digits && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        let of_tap = |name: &str| {
            let ours = name.strip_prefix("tap-fc-").is_some_and(|id| is_id(id, 8)) && !taps.contains(name);
            let ours = ours && !daemon.ahead.has_made(name);
            ours.then(|| TapName::new(name).ok()).flatten()
        };
        let sockets = daemon.settings.runtime.join("vms");
        let vms = found.vms.iter().filter(|vm| {
            let socket = sockets.join(&vm.vm_id).join("api.sock");
            is_id(&vm.vm_id, 12) && !ids.contains(vm.vm_id.as_str()) && socket.as_os_str() == vm.socket.as_str()
        });
        let vms = vms.filter_map(|vm| Some(Stray::Vm(vm.vm_id.clone(), Pid::new(vm.pid.into())?)));
        let snapshots = found.snapshots.iter().filter_map(|snapshot| {
            let id = snapshot.name.strip_prefix("fc-rootfs-")?;
            let ours = is_id(id, 12) && !ids.contains(id);
            ours.then(|| DmName::new(&snapshot.name).ok()).flatten().map(Stray::Snapshot)
        });
        let guests = found
            .guests
            .iter()
            .filter_map(|guest| Some(Stray::Guest(GuestAddr::new(&guest.address).ok()?, of_tap(&guest.tap)?)));
        let bridge = daemon.settings.bridge.name.to_string();
        let loose = found.taps.iter().filter(|tap| tap.bridge == bridge && !tap.carrier);
        let loose = loose.filter_map(|tap| of_tap(&tap.name).map(Stray::Tap));
        vms.chain(snapshots).chain(guests).chain(loose).collect()
    }

    fn remove(&self, work: &Work<'_>) -> Result<(), Fault> {
        let helper = work.helper();
        let removed = match self {
            Stray::Vm(_, pid) => helper.kill_process(*pid),
            Stray::Snapshot(name) => helper.remove_dm_snapshot(name),
            Stray::Guest(guest, tap) => {
                helper.ensure_nat(&Nat { guest: *guest, tap: tap.clone(), switch: Switch::Off })
            }
            Stray::Tap(tap) => helper.delete_tap(tap),
        };
        removed.map_err(|error| work.refused(&format!("taking {self} away"), error))
    }
}

impl std::fmt::Display for Stray {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Stray::Vm(id, pid) => write!(f, "VM {id}, process {pid}"),
            Stray::Snapshot(name) => write!(f, "snapshot {name}"),
            Stray::Guest(guest, tap) => write!(f, "guest {guest} on {tap}"),
            Stray::Tap(tap) => write!(f, "tap {tap}"),
        }
    }
}
