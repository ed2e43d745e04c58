//! Templates that nobody asked for: a run that had to boot leaves one behind, so that the next one like it need not.
//!
//! One thread makes them, one at a time, of a VM of its own. It gives way: it begins when nobody starts a VM and no command runs,
//! its guest stands still meanwhile, and all of it goes where a VM needs its memory.

use super::{Kind, make};
use crate::api::Fault;
use crate::api::vm::Machine;
use crate::daemon::serve::Caller;
use crate::daemon::store::templates;
use crate::daemon::store::vms::Vm;
use crate::daemon::vm::slots::Slots;
use crate::daemon::vm::work::Work;
use crate::daemon::vm::{disk, told};
use crate::daemon::vmm;
use crate::daemon::{Daemon, ahead, image, log};
use std::collections::VecDeque;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// So many wait for their making; of more the runs that come later leave some.
const WAITING: usize = 8;
/// So long a making stands still altogether. It spares all later starts more than it takes from one.
const STILL: Duration = Duration::from_secs(30);
/// What is given up is gone within this time.
const GIVEN_UP: Duration = Duration::from_secs(30);
/// And so often it is looked which VM is to go for that.
const PULSE: Duration = Duration::from_millis(100);
/// A VMM stops its guest, or has it go on, within this time.
const ORDER: Duration = Duration::from_secs(5);

/// What is to be made, and what is.
#[derive(Debug, Default)]
pub(super) struct Unasked {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    wanted: VecDeque<Machine>,
    /// Who asks for what is made now: where he is gone, it is given up.
    making: Option<UnixStream>,
    /// The name of its VMs, once it is its turn.
    vms: Option<String>,
}

impl Unasked {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change is one statement.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> Machine {
        let mut state = self.lock();
        loop {
            if let Some(machine) = state.wanted.pop_front() {
                return machine;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn making(&self, making: Option<UnixStream>) {
        let mut state = self.lock();
        (state.making, state.vms) = (making, None);
        drop(state);
        self.changed.notify_all();
    }

    /// What is made now is made of VMs of that name.
    pub(super) fn made_of(&self, name: String) {
        self.lock().vms = Some(name);
    }
}

/// The run of a VM that was booted, which might take so many milliseconds, is over: the next one like it is to go on from a
/// template, whose own boot may take as long.
pub(crate) fn wanted(daemon: &Daemon, vm: &Vm, boot_timeout_ms: Option<u64>) {
    let is_layer = vm.vmm.as_deref() == Some(vmm::QEMU) && daemon.settings.disk.is_none();
    let can_be = is_layer && vm.template.is_none();
    if !daemon.settings.templates.unasked || !can_be || disk::is_longer(vm).unwrap_or(true) {
        return;
    }
    let machine = Machine {
        image: Some(vm.base.image.clone()),
        kernel: Some(vm.base.kernel.clone()),
        cpus: Some(vm.cpus),
        memory_mib: Some(vm.memory_mib),
        init: vm.init,
        boot_timeout_ms,
        ..Machine::default()
    };
    let unasked = &daemon.images.templates.unasked;
    let mut state = unasked.lock();
    let is_same = |other: &Machine| Machine { boot_timeout_ms, ..other.clone() } == machine;
    if state.wanted.len() < WAITING && !state.wanted.iter().any(is_same) {
        state.wanted.push_back(machine);
        unasked.changed.notify_all();
    }
}

/// Gives up what nobody asked for; whether there was such, and it is gone.
pub(crate) fn give_way(work: &Work<'_>) -> bool {
    let unasked = &work.daemon.images.templates.unasked;
    let end = Instant::now() + GIVEN_UP;
    let mut state = unasked.lock();
    if state.making.is_none() {
        return false;
    }
    while let Some(making) = &state.making {
        if Instant::now() >= end {
            return false;
        }
        let _ = making.shutdown(Shutdown::Both);
        let name = state.vms.clone();
        drop(state);
        // It hears of that between its steps, and each of them ends with its VMM.
        name.map_or(Ok(()), |name| make::give_up(work, |vm| vm.name == name))
            .unwrap_or_else(|fault| log::fault("template", "", &fault));
        let waited = unasked.changed.wait_timeout_while(unasked.lock(), PULSE, |state| state.making.is_some());
        state = waited.unwrap_or_else(PoisonError::into_inner).0;
    }
    true
}

/// Makes them, on a thread of its own.
pub(crate) fn begin(daemon: &Arc<Daemon>) -> Result<(), Fault> {
    if !daemon.settings.templates.unasked {
        return Ok(());
    }
    let daemon = Arc::clone(daemon);
    let work = move || {
        ahead::step_back();
        let unasked = &daemon.images.templates.unasked;
        loop {
            let machine = unasked.next();
            daemon.slots.wait(Some(Instant::now() + STILL), |is_busy| !is_busy);
            let Ok((mut caller, theirs)) = Caller::nobody() else { continue };
            unasked.making(Some(theirs));
            let made = one(&daemon, &mut caller, &machine);
            unasked.making(None);
            match made {
                Ok(Some(id)) => log::say("INFO", "a template was made", &id),
                Ok(None) => {}
                Err(fault) => log::fault("template", caller.op_id(), &fault),
            }
        }
    };
    std::thread::Builder::new().name("templates".into()).spawn(work).map(drop).map_err(Fault::bug)
}

/// Makes one, where none is there and it did not fail too often; its id.
fn one(daemon: &Daemon, caller: &mut Caller, machine: &Machine) -> Result<Option<String>, Fault> {
    let work = Work::new(daemon, caller.op_id());
    let base = image::base(daemon, machine.image.as_deref(), machine.kernel.as_deref())?;
    let (Some(cpus), Some(memory_mib)) = (machine.cpus, machine.memory_mib) else { return Ok(None) };
    let key = super::key(&work, &base, Kind { cpus, memory_mib, init: machine.init })?.digest();
    let is_done = daemon.store.change(|t| {
        let is_there = templates::all(t)?.iter().any(|template| template.key == key && !template.is_dropped());
        Ok((is_there, templates::is_given_up(t, &key)?))
    })?;
    match is_done {
        (true, _) => return Ok(None),
        (_, true) => {
            log::say("INFO", "no template is made: two like it failed", &base.image);
            return Ok(None);
        }
        _ => {}
    }
    make::unasked(daemon, caller, machine).map(|made| Some(made.id))
}

/// Does something while which the guest of the VMM at `api` stands still whenever a VM starts or a command runs.
pub(super) fn beside<T>(slots: &Slots, api: &Path, act: impl FnOnce() -> T) -> T {
    let over = AtomicBool::new(false);
    let is_over = || over.load(Ordering::Acquire);
    let order = |state: &str| {
        // One that doesn't obey goes on, or is gone: its maker sees it.
        let _ = told::ask_for(api, ORDER, "PATCH", "/vm", &format!(r#"{{"state":"{state}"}}"#));
    };
    let watch = || {
        let mut left = STILL;
        while !left.is_zero() {
            slots.wait(None, |is_busy| is_busy || is_over());
            if is_over() {
                return;
            }
            let begun = Instant::now();
            order("Paused");
            slots.wait(Some(begun + left), |is_busy| !is_busy || is_over());
            order("Resumed");
            left = left.saturating_sub(begun.elapsed());
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(watch);
        let _end = End(|| {
            over.store(true, Ordering::Release);
            slots.wake();
        });
        act()
    })
}

/// Does something when it goes.
struct End<F: Fn()>(F);

impl<F: Fn()> Drop for End<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
