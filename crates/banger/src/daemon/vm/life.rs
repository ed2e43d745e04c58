//! `vm.create`, `vm.start`, `vm.stop`, `vm.kill`, `vm.rm`, `vm.logs`.

use super::phases::{End, Launched, Ready};
use super::places::Places;
use super::run::{self, ms};
use super::slots::{Held, START, STOPPING};
use super::start::Way;
use super::work::Work;
use super::{disk, find, plan, pool, show, stamps, start, whole, workspace};
use crate::api::vm::{Changed, LogTimes, Machine, Vm as Shown};
use crate::api::{Attached, Fault, Handed, WaitFor};
use crate::daemon::error::exit;
use crate::daemon::image::template;
use crate::daemon::serve::Caller;
use crate::daemon::store::Act;
use crate::daemon::store::vms::{self, State, Vm};
use crate::daemon::vmm::Accel;
use crate::daemon::{Daemon, log};
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use wire::name::signal::Signal;

/// How long a guest has to end by itself.
const STOP: Duration = Duration::from_secs(10);
/// And one with an init of its own, which stops each unit in order: by the processor, and emulated. That is two seconds'
/// work of an emulated processor, and where other VMs have the machine's it takes as many times longer.
const STOP_OF_INIT: [Duration; 2] = [Duration::from_secs(30), Duration::from_secs(60)];
/// What else is under way is waited for so long: the end of a VM whose VMM was killed, say, whose disk may have to be
/// copied.
const OTHERS: Duration = Duration::from_secs(30);
/// What is under way and unwanted is given up within this time.
const GIVEN_UP: Duration = Duration::from_secs(60);
/// It is told again after this time.
const AGAIN: Duration = Duration::from_secs(1);
/// What who holds one that is to go is doing with it.
const REMOVAL: &str = "its removal";

/// Who waits for nothing is told of what fails within this time.
const EARLY: Duration = Duration::from_millis(300);

/// How one is to be started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct How {
    /// How long its agent may take.
    pub(crate) boot_timeout_ms: Option<u64>,
    /// What is waited for.
    pub(crate) wait: WaitFor,
    /// Whether it boots in any case.
    pub(crate) cold: bool,
}

/// Makes one that doesn't run yet.
pub(crate) fn create(daemon: &Arc<Daemon>, caller: &mut Caller, machine: &Machine) -> Result<Shown, Fault> {
    let work = Work::new(daemon, caller.op_id());
    let vm = plan::plan(&work, machine, true, None, plan::From::New)?;
    // They were free, and are taken again by each start.
    daemon.published.let_go(&vm.id);
    Ok(show::shown(daemon, vm))
}

/// Starts one.
pub(crate) fn start(daemon: &Arc<Daemon>, caller: &mut Caller, reference: &str, how: How) -> Result<Changed, Fault> {
    let begun = Instant::now();
    let vm = daemon.store.change(|t| find(t, reference))?;
    let held = daemon.slots.hold(&vm.id, &vm.name, START, OTHERS)?;
    let vm = now(daemon, &vm)?;
    if vm.state == State::Ready {
        return Ok(changed(daemon, vm, false, begun));
    }
    if !vm.kept {
        return Err(Fault::new("is_going", exit::STATE, format!("{} is being taken away", vm.name))
            .fix("banger vm create makes another"));
    }
    match how.wait {
        WaitFor::Agent => {}
        WaitFor::Boot => caller.until("launch"),
        WaitFor::None => {
            caller.until("launch");
            caller.within(EARLY);
        }
    }
    let mut work = Work::new(daemon, caller.op_id());
    if !vm.state.is_down() {
        // What an earlier end could not take away has to go first.
        let planned = Launched::of_row(vm).down(&mut work);
        if !work.troubles.is_empty() {
            let vm = planned.rest(&mut work, State::Lost, None)?;
            return work.all_gone(&vm.name, "can be started then").and(Ok(changed(daemon, vm, false, begun)));
        }
        return up(daemon, caller, &held, planned.vm, how, begun);
    }
    up(daemon, caller, &held, vm, how, begun)
}

fn up(
    daemon: &Arc<Daemon>,
    caller: &mut Caller,
    held: &Held,
    mut vm: Vm,
    how: How,
    begun: Instant,
) -> Result<Changed, Fault> {
    let mut work = Work::new(daemon, caller.op_id());
    // What could not be done when it ended.
    whole::make(&work, &mut vm).map_err(|fault| fault.at("disk"))?;
    whole::name(&work, &vm).unwrap_or_else(|fault| log::fault("disk", caller.op_id(), &fault));
    let (is_first, name) = (vm.disk_method.is_none(), vm.name.clone());
    let way = if is_first { Way::of_first(&work, &vm, how.cold) } else { Way::Cold(None) };
    match start::start(daemon, &mut work, caller, held, vm, way, how.boot_timeout_ms) {
        Ok(ready) => {
            if is_first && !how.cold {
                template::wanted(daemon, &ready.vm, how.boot_timeout_ms);
            }
            Ok(Changed { warnings: work.warnings, ..changed(daemon, ready.vm, true, begun) })
        }
        Err(failed) => {
            let wanted = failed.fault.code == "interrupted";
            let state = if wanted { State::Stopped } else { State::Failed };
            let fault = match failed.fault.code.as_str() {
                "boot_failed" | "agent_silent" => {
                    failed.fault.fix(format!("banger vm logs {name} has the whole console"))
                }
                _ => failed.fault,
            };
            failed.planned.rest(&mut work, state, (!wanted).then(|| fault.clone()))?;
            Err(fault)
        }
    }
}

/// Ends one in an orderly way.
pub(crate) fn stop(
    daemon: &Arc<Daemon>,
    caller: &mut Caller,
    reference: &str,
    timeout_ms: Option<u64>,
) -> Result<Changed, Fault> {
    let begun = Instant::now();
    let found = daemon.store.change(|t| find(t, reference))?;
    let gone = || Ok(Changed { changed: true, ms: ms(begun), ..Changed::default() });
    if pool::is_of(&found) && pool::end(daemon, &found.id)? {
        return gone();
    }
    let _held = daemon.slots.hold(&found.id, &found.name, STOPPING, OTHERS)?;
    let vm = now(daemon, &found)?;
    if vm.state.is_down() {
        return Ok(changed(daemon, vm, false, begun));
    }
    let mut work = Work::new(daemon, caller.op_id());
    if pool::is_of(&vm) {
        // It is nobody's to keep.
        run::remove_held(&mut work, vm)?;
        return gone();
    }
    let (vm, warnings) = stop_held(&mut work, vm, timeout_ms, None)?;
    Ok(Changed { warnings, ..changed(daemon, vm, true, begun) })
}

/// The same, of one that is not down and that the caller holds; what was lost with it. `why` is kept as its last error.
pub(super) fn stop_held(
    work: &mut Work<'_>,
    mut vm: Vm,
    timeout_ms: Option<u64>,
    why: Option<Fault>,
) -> Result<(Vm, Vec<String>), Fault> {
    let ready = Ready::again(work, &vm)?;
    work.reach(&mut vm, State::Stopping)?;
    let patience = timeout_ms.map_or_else(|| patience(&vm), Duration::from_millis);
    let is_told = why.is_some();
    let mut warnings = Vec::new();
    let planned = match ready {
        Some(ready) => {
            let name = vm.name.clone();
            let downed = ready.down(work, End::Ask(patience));
            if downed.killed {
                warnings.push(format!("{name} had to be killed: what its guest had not written to its disk is lost"));
            }
            downed.planned
        }
        None => Launched::of_row(vm).down(work),
    };
    let vm = planned.rest(work, State::Stopped, why)?;
    work.all_gone(&vm.name, "is stopped then")?;
    if !is_told {
        // Of its disk: it is stopped in any case.
        warnings.extend(vm.last_error.iter().map(|fault| fault.message.to_string()));
    }
    Ok((vm, warnings))
}

/// How long it has to end by itself, where nothing else is asked for.
fn patience(vm: &Vm) -> Duration {
    let [by_kvm, emulated] = STOP_OF_INIT;
    match (vm.init, vm.accel.as_deref() == Some(Accel::Kvm.name())) {
        (false, _) => STOP,
        (true, true) => by_kvm,
        (true, false) => emulated,
    }
}

/// Sends its VMM a signal.
pub(crate) fn kill(daemon: &Arc<Daemon>, caller: &mut Caller, reference: &str, signal: &str) -> Result<Changed, Fault> {
    let begun = Instant::now();
    let signal = Signal::new(signal).map_err(|invalid| Fault::new("bad_signal", exit::USAGE, invalid.to_string()))?;
    let vm = daemon.store.change(|t| find(t, reference))?;
    let Some(pid) = vm.pid.filter(|_| !vm.state.is_down()).and_then(|pid| wire::vm::Pid::new(pid.into())) else {
        return Err(Fault::new(
            "not_running",
            exit::STATE,
            format!("{} does not run: it is {}", vm.name, vm.state.shown()),
        ));
    };
    let work = Work::new(daemon, caller.op_id());
    // A start of it is given up: the VMM's end is nobody's fault, and nobody wants another one.
    daemon.store.change(|t| {
        let now = vms::by_id(t, &vm.id)?.ok_or_else(|| Fault::no_such_vm(&vm.name, None))?;
        same(&vm, now).map(|now| daemon.slots.unwant(&now.id))
    })?;
    work.helper().signal_process(pid, signal).map_err(|error| work.refused("the signal", error))?;
    Ok(changed(daemon, vm, true, begun))
}

/// Takes one away, its disk too.
pub(crate) fn rm(
    daemon: &Arc<Daemon>,
    caller: &mut Caller,
    reference: &str,
    force: bool,
    discard_changes: bool,
    act: Act,
) -> Result<Changed, Fault> {
    let begun = Instant::now();
    let vm = daemon.store.change(|t| find(t, reference))?;
    if !discard_changes {
        workspace::is_pulled(daemon, &vm)?;
    }
    if act == Act::Tell {
        if !force {
            must_be_down(&vm)?;
        }
        let freed_bytes = size_of(daemon, &vm);
        return Ok(Changed { freed_bytes, ..changed(daemon, vm, false, begun) });
    }
    let gone = || Ok(Changed { changed: true, ms: ms(begun), ..Changed::default() });
    if force && pool::is_of(&vm) && pool::end(daemon, &vm.id)? {
        return gone();
    }
    let mut work = Work::new(daemon, caller.op_id());
    let _held = match force {
        true => hold_unwanted(&work, &vm.id, &vm.name)?,
        false => daemon.slots.hold(&vm.id, &vm.name, REMOVAL, OTHERS)?,
    };
    // What was under way may have taken it away itself.
    let vm = match daemon.store.change(|t| vms::by_id(t, &vm.id))? {
        None => return gone(),
        Some(now) => same(&vm, now)?,
    };
    if !force {
        must_be_down(&vm)?;
    }
    let freed_bytes = size_of(daemon, &vm);
    run::remove_held(&mut work, vm)?;
    Ok(Changed { changed: true, ms: ms(begun), freed_bytes, ..Changed::default() })
}

fn must_be_down(vm: &Vm) -> Result<(), Fault> {
    if vm.state.is_down() || vm.state == State::Lost {
        return Ok(());
    }
    Err(Fault::new("is_running", exit::STATE, format!("{} is {}", vm.name, vm.state.shown()))
        .fix(format!("banger vm stop {0}, or banger vm rm -f {0}", vm.name)))
}

/// What the disk has more without it.
fn size_of(daemon: &Daemon, vm: &Vm) -> u64 {
    disk::used(&Places::of(&daemon.settings, vm)).unwrap_or(0)
}

/// As it is now that its caller holds it. Another VM may have its name by then; and it another one, where it waited in the
/// pool and is somebody's by now.
fn now(daemon: &Daemon, vm: &Vm) -> Result<Vm, Fault> {
    let now = daemon.store.change(|t| vms::by_id(t, &vm.id))?;
    same(vm, now.ok_or_else(|| Fault::no_such_vm(&vm.name, None))?)
}

fn same(vm: &Vm, now: Vm) -> Result<Vm, Fault> {
    if now.name == vm.name { Ok(now) } else { Err(Fault::no_such_vm(&vm.name, None)) }
}

/// Holds one that is to go, whatever goes on with it.
pub(super) fn hold_unwanted(work: &Work<'_>, id: &str, name: &str) -> Result<Held, Fault> {
    let end = Instant::now() + GIVEN_UP;
    let mut patience = Duration::ZERO;
    loop {
        match work.daemon.slots.hold(id, name, REMOVAL, patience) {
            Err(busy) if Instant::now() >= end => return Err(busy),
            Err(_) => give_up(work, id, name)?,
            held => return held,
        }
        // What is under way may have started its VMM only now, and be followed by something else.
        patience = AGAIN;
    }
}

/// Has what goes on with it end soon; not where it has another name by now, and is somebody's.
pub(crate) fn give_up(work: &Work<'_>, id: &str, name: &str) -> Result<(), Fault> {
    let vm = work.daemon.store.change(|t| {
        let vm = vms::by_id(t, id)?.filter(|vm| vm.name == name);
        // While nobody can be given it. What is done with it by now could be, before its VMM is killed.
        Ok(vm.filter(|_| work.daemon.slots.unwant(id)))
    })?;
    // A start waits for its agent, which answers no more: so it fails now.
    if let Some(pid) = vm.and_then(|vm| vm.pid).and_then(|pid| wire::vm::Pid::new(pid.into())) {
        let _ = work.helper().kill_process(pid);
    }
    Ok(())
}

/// Hands its console over, open for reading.
pub(crate) fn logs(daemon: &Arc<Daemon>, caller: &mut Caller, reference: &str) -> Result<Shown, Fault> {
    let vm = daemon.store.change(|t| find(t, reference))?;
    let work = Work::new(daemon, caller.op_id());
    let console = work.places(&vm).console();
    let file = File::open(&console).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            Fault::new("no_logs", exit::STATE, format!("{} has not been started yet, so its console is empty", vm.name))
                .fix(format!("banger vm start {}", vm.name))
        }
        _ => Fault::file("reading", &console, &error),
    })?;
    let accel = vm.accel.clone().unwrap_or_default();
    caller.hand_over(Attached { vm: vm.name.clone(), what: Handed::Console, accel, workspace: None }, file.as_fd());
    Ok(show::shown(daemon, vm))
}

/// When its console had grown to which length.
pub(crate) fn log_times(daemon: &Arc<Daemon>, caller: &Caller, reference: &str) -> Result<LogTimes, Fault> {
    let vm = daemon.store.change(|t| find(t, reference))?;
    let console = Work::new(daemon, caller.op_id()).places(&vm).console();
    Ok(LogTimes { times: stamps::read(&console) })
}

fn changed(daemon: &Daemon, vm: Vm, changed: bool, begun: Instant) -> Changed {
    Changed { vm: Some(show::shown(daemon, vm)), changed, ms: ms(begun), ..Changed::default() }
}
