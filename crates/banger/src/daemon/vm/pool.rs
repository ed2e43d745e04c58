//! VMs that nobody has yet: they went on from a template, and wait, paused, for the next `vm.run` of the usual kind. What makes
//! one somebody's it is told when it is given out.
//!
//! Each is a row as any other's, `launched`, of a run without a caller: so whatever happens to this daemon, the next one's start
//! takes away what is left. Giving one out is one write; who else wants it finds it gone.

use super::phases::{Back, Failed, Launched, Planned};
use super::plan::{self, From};
use super::slots::Held;
use super::work::Work;
use super::{life, memory};
use crate::api::Fault;
use crate::api::vm::Machine;
use crate::config::Config;
use crate::daemon::image::template::{self, Pick};
use crate::daemon::store::vms::{self, State, Vm};
use crate::daemon::{Daemon, log, serve};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use sys::pidfd::PidFd;

/// What goes on with one that is ended: a call of its owner's.
const OTHERS: Duration = Duration::from_secs(60);
/// One whose making is given up is gone within this time.
const GIVEN_UP: Duration = Duration::from_secs(30);
/// And so often it is looked for that.
const PULSE: Duration = Duration::from_millis(20);
/// While other VMs start, none is made: so soon it is looked again.
const SOON: Duration = Duration::from_millis(500);
/// And where one could not be made.
const LATER: Duration = Duration::from_secs(60);

/// The VM that names nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usual {
    cpus: Option<u8>,
    memory_mib: Option<u64>,
    no_nat: bool,
}

impl Usual {
    /// As the command line asks for it.
    pub(crate) fn of(config: &Config) -> Usual {
        Usual { cpus: config.vcpu, memory_mib: config.memory_mib, no_nat: config.nat == Some(false) }
    }
}

/// What is known of them beside their rows.
#[derive(Debug)]
pub(crate) struct Pool {
    /// None from its close on.
    most: AtomicUsize,
    usual: Usual,
    /// Their VMMs, that of the one that waits longest first: held from the start, so that no other process is taken for one.
    processes: Mutex<Vec<(String, PidFd)>>,
    /// Held while what they lie on is taken away: none is made meanwhile.
    making: Mutex<()>,
    wake: Sender<()>,
    woken: Mutex<Option<Receiver<()>>>,
}

impl Pool {
    /// An empty one, for `most` VMs.
    pub(crate) fn new(most: usize, usual: Usual) -> Pool {
        let (wake, woken) = channel();
        let (processes, making, woken) = (Mutex::default(), Mutex::default(), Mutex::new(Some(woken)));
        Pool { most: most.into(), usual, processes, making, wake, woken }
    }

    fn processes(&self) -> MutexGuard<'_, Vec<(String, PidFd)>> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The VMM of one that is given out or ends.
    pub(super) fn take(&self, id: &str) -> Option<PidFd> {
        let mut processes = self.processes();
        let place = processes.iter().position(|(known, _)| known == id)?;
        Some(processes.remove(place).1)
    }

    /// How many wait longer than it; `None` where it does not wait.
    fn place(&self, vm: &Vm) -> Option<usize> {
        let waits = vm.state == State::Launched && is_of(vm);
        waits.then(|| self.processes().iter().position(|(id, _)| *id == vm.id)).flatten()
    }

    /// The one that waits longest of those that are so.
    fn longest<'a>(&self, all: &'a [Vm], is_so: impl Fn(&Vm) -> bool) -> Option<&'a Vm> {
        let waiting = all.iter().filter_map(|vm| Some((self.place(vm)?, vm)));
        waiting.filter(|(_, vm)| is_so(vm)).min_by_key(|(place, _)| *place).map(|(_, vm)| vm)
    }

    /// The one that waits longest of those that are as `wanted`.
    pub(super) fn fitting<'a>(&self, all: &'a [Vm], wanted: &Vm) -> Option<&'a Vm> {
        let kind = |vm: &Vm| (vm.base.clone(), vm.cpus, vm.memory_mib, vm.nat, vm.init);
        self.longest(all, |vm| kind(vm) == kind(wanted) && self.is_alive(&vm.id))
    }

    /// Whether the VMM of one that waits has not ended meanwhile.
    fn is_alive(&self, id: &str) -> bool {
        self.processes().iter().any(|(known, process)| known == id && process.is_alive())
    }

    /// From now on one waits, whose VMM this is.
    pub(super) fn keep(&self, id: &str, process: PidFd) {
        self.processes().push((id.to_owned(), process));
    }

    /// No other one is made.
    pub(crate) fn close(&self) {
        self.most.store(0, Ordering::Relaxed);
    }

    fn most(&self) -> usize {
        self.most.load(Ordering::Relaxed)
    }

    /// One may be missing, or there is a template now.
    pub(crate) fn wake(&self) {
        // Where nobody hears it, none is wanted.
        let _ = self.wake.send(());
    }
}

/// What it is called until it is somebody's.
pub(super) fn name(id: &str) -> String {
    format!("pool-{id}")
}

/// Whether it is one: while it is made, while it waits, and while it is taken away.
pub(crate) fn is_of(vm: &Vm) -> bool {
    !vm.kept && vm.name == name(&vm.id)
}

/// `pooled` as what was `planned`: it keeps its id, its address, and what it has in the kernel.
pub(super) fn given_out(pooled: &Vm, planned: Vm) -> Vm {
    let Vm { name, kept, caller, created_at, .. } = planned;
    let started_at = Some(created_at);
    Vm { name, kept, caller, created_at, started_at, state: State::Launched, ..pooled.clone() }
}

/// Ends the one that waits longest, or else the one that is being made, for memory that somebody needs; `false` where there is
/// none, or it is not gone in its time.
pub(super) fn give_way(work: &Work<'_>) -> Result<bool, Fault> {
    let (end, mut is_given_up) = (Instant::now() + GIVEN_UP, false);
    loop {
        // The one in the making may wait by now.
        if end_one(work.daemon, |_| true)? {
            return Ok(true);
        }
        let all = work.daemon.store.change(|t| vms::all(t))?;
        let Some(made) = all.iter().find(|vm| is_of(vm) && memory::begins(vm)) else { return Ok(is_given_up) };
        if Instant::now() >= end {
            return Ok(false);
        }
        life::give_up(work, &made.id, &made.name)?;
        is_given_up = true;
        std::thread::sleep(PULSE);
    }
}

/// Ends one that somebody calls by its name; `false` where it does not wait, or is somebody's by now.
///
/// # Errors
/// `lost`, where not all of it could be taken away.
pub(super) fn end(daemon: &Daemon, id: &str) -> Result<bool, Fault> {
    let Some(gone) = ended(daemon, |vm| vm.id == id)? else { return Ok(false) };
    daemon.pool.wake();
    gone.map(|()| true)
}

/// Ends all, and has none made until what comes back is dropped: what they lie on is to go.
pub(crate) fn empty(daemon: &Daemon) -> Result<MutexGuard<'_, ()>, Fault> {
    let making = daemon.pool.making.lock().unwrap_or_else(PoisonError::into_inner);
    while end_one(daemon, |_| true)? {}
    daemon.pool.wake();
    Ok(making)
}

/// Ends the one that waits longest of those that are so; `false` where there is none. What of it can't be taken away is tried
/// again later, as any VM's.
fn end_one(daemon: &Daemon, is_so: impl Fn(&Vm) -> bool) -> Result<bool, Fault> {
    let Some(gone) = ended(daemon, is_so)? else { return Ok(false) };
    gone.unwrap_or_else(|fault| log::fault("pool", "", &fault));
    Ok(true)
}

/// The same, and whether all of it is gone.
fn ended(daemon: &Daemon, is_so: impl Fn(&Vm) -> bool) -> Result<Option<Result<(), Fault>>, Fault> {
    let taken = daemon.store.change(|t| {
        let all = vms::all(t)?;
        let Some(vm) = daemon.pool.longest(&all, &is_so).cloned() else { return Ok(None) };
        let vm = Vm { state: State::Stopping, ..vm };
        vms::save(t, &vm).map(|()| Some(vm))
    })?;
    let Some(vm) = taken else { return Ok(None) };
    let name = vm.name.clone();
    log::say("INFO", "one of the pool is ended", &vm.id);
    let _held = daemon.slots.hold(&vm.id, &vm.name, "its end", OTHERS)?;
    let op_id = serve::new_op_id();
    let mut work = Work::new(daemon, &op_id);
    Launched::pooled(&work, vm).down(&mut work).remove(&mut work)?;
    Ok(Some(work.all_gone(&name, "goes then")))
}

/// Makes what is missing, on a thread of its own; nothing where none is wanted.
pub(crate) fn begin(daemon: &Arc<Daemon>) -> Result<(), Fault> {
    let woken = daemon.pool.woken.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(woken) = woken.filter(|_| daemon.pool.most() > 0) else { return Ok(()) };
    let daemon = Arc::clone(daemon);
    let work = move || {
        let mut next = Duration::ZERO;
        loop {
            match woken.recv_timeout(next) {
                Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            next = match top_up(&daemon) {
                Ok(next) => next,
                Err(fault) => {
                    // Who needs a VM makes it, and hears of what is wrong.
                    log::fault("pool", "", &fault);
                    LATER
                }
            };
        }
    };
    std::thread::Builder::new().name("pool".into()).spawn(work).map(drop).map_err(Fault::bug)
}

/// Makes one after the other; when to look again.
fn top_up(daemon: &Daemon) -> Result<Duration, Fault> {
    loop {
        let _making = daemon.pool.making.lock().unwrap_or_else(PoisonError::into_inner);
        let starts = |vm: &Vm| !is_of(vm) && memory::begins(vm);
        // Who waits for a VM comes first.
        if daemon.store.change(|t| vms::all(t))?.iter().any(starts) {
            return Ok(SOON);
        }
        if !make(daemon)? {
            return Ok(LATER);
        }
    }
}

/// Makes one, where one is missing and can be made; `false` where not.
fn make(daemon: &Daemon) -> Result<bool, Fault> {
    let op_id = serve::new_op_id();
    let mut work = Work::new(daemon, &op_id);
    let Usual { cpus, memory_mib, no_nat } = daemon.pool.usual;
    let machine = Machine { cpus, memory_mib, no_nat, ..Machine::default() };
    // Where there is no image yet, say: who asks for a VM hears of that.
    let Ok(vm) = plan::plan(&work, &machine, false, None, From::ForPool) else { return Ok(false) };
    let held = daemon.slots.hold(&vm.id, &vm.name, "its making", Duration::ZERO)?;
    let pick = match missing(&work, &vm) {
        Ok(Some(pick)) => pick,
        none => {
            Planned { vm }.remove(&mut work)?;
            return none.map(|_| false);
        }
    };
    let failed = match restored(&mut work, &held, vm, &pick) {
        Ok(launched) if held.is_done() => {
            // Whoever is given it holds it at once.
            drop(held);
            launched.given_to(&daemon.pool);
            return Ok(true);
        }
        Ok(launched) => Failed::new(launched.down(&mut work), Fault::interrupted(&[])),
        Err(Back::Cold(wired, fault)) => {
            // Who takes it away meanwhile has found nothing wrong with its template.
            let counted = if held.is_unwanted() { Ok(()) } else { template::failed(daemon, &pick, &fault) };
            counted.unwrap_or_else(|fault| log::fault("pool", &op_id, &fault));
            Failed::new(wired.down(&mut work), *fault)
        }
        Err(Back::Failed(failed)) => failed,
    };
    let Failed { planned, fault } = *failed;
    planned.remove(&mut work)?;
    // There may be some later.
    if fault.code == "no_memory" { Ok(false) } else { Err(fault) }
}

/// Ends those that are of no use any more. The template of one more, where one is missing.
fn missing(work: &Work<'_>, vm: &Vm) -> Result<Option<Pick>, Fault> {
    let daemon = work.daemon;
    // Where disks are layers: others take too long to be made ahead of nobody.
    let is_layer = super::launch::choice(work).is_ok_and(|choice| choice.is_qemu());
    let pick = template::pick(work, vm).ok().filter(|_| is_layer);
    // What they lie on is of the past, or their VMM has ended.
    let is_on = |vm: &Vm| pick.as_ref().is_some_and(|pick| vm.template.as_ref() == Some(&pick.id));
    while end_one(daemon, |vm| !is_on(vm) || !daemon.pool.is_alive(&vm.id))? {}
    let count = daemon.store.change(|t| vms::all(t))?.iter().filter(|vm| daemon.pool.place(vm).is_some()).count();
    Ok(pick.filter(|_| count < daemon.pool.most()))
}

fn restored(work: &mut Work<'_>, held: &Held, vm: Vm, pick: &Pick) -> Result<Launched, Back> {
    let disked = Planned { vm }.wire(work)?.over(work, &pick.id, &pick.files)?;
    let is_wanted = if held.is_unwanted() { Err(Fault::interrupted(&[])) } else { Ok(()) };
    if let Err(fault) = is_wanted.and_then(|()| template::is_there(work.daemon, &pick.id)) {
        return Err(disked.back(work, fault));
    }
    // One whose guest is late says nothing of its template: it has no bounds of its VMM's work, as a run's has.
    Ok(disked.restore(work, &pick.files)?.paused(work)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::store::vms::tests::planned;

    #[test]
    fn the_one_that_waits_longest_of_those_that_fit_is_given_out() {
        let (pool, this) = (Pool::new(2, Usual::of(&Config::default())), i32::try_from(std::process::id()).unwrap());
        let one = |number: u8, created_at| {
            let template = Some("t".into());
            let vm = Vm { state: State::Launched, created_at, kept: false, template, ..planned(number) };
            Vm { name: name(&vm.id), ..vm }
        };
        let waits = |number, created_at| {
            let vm = one(number, created_at);
            pool.keep(&vm.id, sys::pidfd::open(this).unwrap());
            vm
        };
        let [first, second] = [waits(3, 10), waits(2, 10)];
        let wanted = Vm { name: "web".into(), kept: true, created_at: 30, ..planned(4) };
        let made = one(5, 1);
        let all = [made, second.clone(), first.clone()];
        assert_eq!(pool.fitting(&all, &wanted), Some(&first));
        for other in [
            Vm { memory_mib: 1, ..wanted.clone() },
            Vm { cpus: 7, ..wanted.clone() },
            Vm { nat: !wanted.nat, ..wanted.clone() },
            Vm { init: true, ..wanted.clone() },
            Vm { base: crate::daemon::store::vms::Base { bytes: 1, ..wanted.base.clone() }, ..wanted.clone() },
        ] {
            assert_eq!(pool.fitting(&all, &other), None);
        }
        let given = given_out(&second, wanted.clone());
        assert_eq!(
            (given.id.as_str(), given.address, given.template.as_deref()),
            (second.id.as_str(), second.address, Some("t"))
        );
        assert_eq!((given.name.as_str(), given.kept, given.state), ("web", true, State::Launched));
        assert!(is_of(&second) && !is_of(&given) && !is_of(&wanted));
    }
}
