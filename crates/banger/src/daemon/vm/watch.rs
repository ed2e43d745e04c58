//! The end of a VM that nobody asked for: a guest that powers itself off, a VMM that is killed.

use super::phases::{Launched, Ready};
use super::places::Places;
use super::work::Work;
use super::{console, publish};
use crate::api::Fault;
use crate::daemon::error::exit;
use crate::daemon::store::vms::{self, State};
use crate::daemon::{Daemon, guest, log};
use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use sys::pidfd::{self, PidFd};
use wire::name::addr::ServerAddr;
use wire::net::ResolverRoute;

/// What goes on with the VM when it ends is its start, its stop or its run, all of which have limits of their own.
const OTHERS: Duration = Duration::from_secs(600);

/// What a command takes to begin in a guest that has just been loaded.
const BEGUN: Duration = Duration::from_millis(300);
/// How often a VM's console is looked at.
const LOOK: Duration = Duration::from_secs(5);
/// How often a guest with systemd is told to go on that has not said that it does.
const TRIES: usize = 3;

/// Watches a VM that was started or taken over, on a thread of its own.
pub(crate) fn begin(daemon: &Arc<Daemon>, ready: &Ready) {
    let (id, pid) = (ready.vm.id.clone(), ready.process().pid());
    // Opened while the caller's own descriptor says that the number is still this process's.
    let watched = pidfd::find(pid).map(|process| process.filter(|_| ready.process().is_alive()));
    publish::begin(daemon, ready);
    let watched = match watched {
        Ok(watched) => watched,
        // It runs; what it comes to is seen by who asks for it, and by the next daemon.
        Err(error) => return log::fault("watch", "", &Fault::bug(error)),
    };
    let places = Places::of(&daemon.settings, &ready.vm);
    let (vsock, console_log) = (places.vsock(), places.console());
    daemon.stamps.add(&console_log);
    // One from a template had its clock and its randomness before it was anybody's; the clock as well as it can be told once.
    let (is_settled, is_systemd) = (ready.vm.template.is_some(), ready.vm.init);
    let vm = ready.vm.name.clone();
    let daemon = Arc::clone(daemon);
    let started = std::thread::Builder::new().name("watch".into()).spawn(move || {
        register_names(&daemon);
        let looked = Cell::new(Instant::now());
        // Asked all the time while the guest is waited for, which may be anybody's: its console is looked at meanwhile.
        let is_over = || {
            if looked.get().elapsed() >= LOOK {
                let _ = console::bound(&console_log);
                looked.set(Instant::now());
            }
            watched.as_ref().is_some_and(|process| !process.is_alive())
        };
        match &watched {
            _ if !is_settled => guest::settle(&vsock, &is_over),
            // Its first command has begun by then, or is over.
            Some(process) if !process.wait_end(BEGUN) => {
                let _ = guest::set_clock(&vsock, &is_over);
            }
            _ => {}
        }
        if let Some(process) = &watched {
            if is_settled && is_systemd {
                go_on(&vm, &vsock, process, &is_over);
            }
            while !process.wait_end(LOOK) {
                // A file system that gives nothing back is no reason to look away.
                let _ = console::bound(&console_log);
            }
        }
        if let Err(fault) = ended(&daemon, &id, pid) {
            log::fault("watch", "", &fault);
        }
    });
    if let Err(error) = started {
        log::fault("watch", "", &Fault::new("no_thread", exit::ROOM, error.to_string()));
    }
}

/// Has a guest with systemd go on with what its template has left.
fn go_on(vm: &str, vsock: &Path, process: &PidFd, is_over: &dyn Fn() -> bool) {
    for _ in 0..TRIES {
        match guest::systemd::go_on(vsock, is_over) {
            Ok(said) if said.is_empty() => return,
            Ok(said) => {
                return log::say("WARN", &format!("{vm}: of what its template has left its systemd says"), &said);
            }
            // It was stopped, or taken away.
            Err(_) if process.wait_end(LOOK) => return,
            Err(error) => {
                log::say(
                    "WARN",
                    &format!("{vm}: its systemd does not go on with what its template has left"),
                    &error.to_string(),
                );
            }
        }
    }
}

/// Has systemd-resolved send `.vm` here, now that the bridge has a carrier: without one it would keep nothing.
fn register_names(daemon: &Daemon) {
    let Some(server) = daemon.names.get().and_then(|address| ServerAddr::new(&address.to_string()).ok()) else {
        return;
    };
    let route = ResolverRoute { bridge: daemon.settings.bridge.name.clone(), server };
    let op_id = crate::daemon::serve::new_op_id();
    if let Err(error) = daemon.helper(&op_id).sync_resolver_routing(&route) {
        log::fault("names", &op_id, &Fault::helper("sending .vm to bangerd", &daemon.settings.helper, error));
    }
}

/// The process has ended. Where somebody ended it, its row says so already.
fn ended(daemon: &Arc<Daemon>, id: &str, pid: i32) -> Result<(), Fault> {
    let Some(vm) = daemon.store.change(|t| vms::by_id(t, id))? else { return Ok(()) };
    let _held = daemon.slots.hold(id, &vm.name, "its end", OTHERS)?;
    let Some(vm) = daemon.store.change(|t| vms::by_id(t, id))? else { return Ok(()) };
    if vm.pid != Some(pid) || vm.state != State::Ready {
        return Ok(());
    }
    let op_id = crate::daemon::serve::new_op_id();
    log::say("WARN", "the VM ended without being asked to", &vm.name);
    let mut work = Work::new(daemon, &op_id);
    let message = format!("{} ended without being asked to", vm.name);
    let why = "its guest powered itself off, or its VMM was killed: banger vm logs shows its last words";
    let planned = Launched::of_row(vm).down(&mut work);
    planned.rest(&mut work, State::Stopped, Some(Fault::new("ended", exit::FAILED, message).why(why))).map(drop)
}
