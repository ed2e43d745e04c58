//! `vm.run`: a VM from nothing to a connection with its agent, and away again when its caller is done. And `vm.exec`, which
//! is the middle of it.

use super::phases::{End, Launched, Ready};
use super::plan::From;
use super::slots::{Held, START};
use super::start::Way;
use super::work::Work;
use super::{disk, find, launch, life, memory, plan, show, start, workspace};
use crate::api::vm::{Changed, Disk, Machine, Network, Plan as Planned};
use crate::api::{Attached, Fault, Handed, StageState};
use crate::daemon::error::exit;
use crate::daemon::image::template;
use crate::daemon::serve::{Caller, Woken};
use crate::daemon::store::vms::{self, State, Vm};
use crate::daemon::{Daemon, guest};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use sys::pidfd;

/// How often it is looked whether a stop is over.
const PULSE: Duration = Duration::from_millis(20);
/// Who holds what was just planned sees within this time whose it is.
const OTHERS: Duration = Duration::from_secs(10);

/// Runs it.
pub(crate) fn run(daemon: &Arc<Daemon>, caller: &mut Caller, machine: &Machine, keep: bool) -> Result<Changed, Fault> {
    let begun = Instant::now();
    let mut work = Work::new(daemon, caller.op_id());
    (work.stages, work.command) = (machine.stages, true);
    caller.stage("plan", StageState::Begun, "", "");
    let from = if machine.cold { From::New } else { From::Pool };
    let vm = plan::plan(&work, machine, keep, caller.process(), from).map_err(|fault| fault.at("plan"))?;
    let (id, name) = (vm.id.clone(), vm.name.clone());
    caller.stage("plan", StageState::Ended, &name, format!("{}, {}", vm.base.image, vm.address));
    let started = {
        let held = hold(daemon, &mut work, &vm)?;
        let way = Way::of_first(&work, &vm, machine.cold);
        start::start(daemon, &mut work, caller, &held, vm, way, machine.boot_timeout_ms)
    };
    let ready = match started {
        Ok(ready) => ready,
        Err(failed) => {
            let fault =
                if failed.fault.code == "interrupted" { interrupted(&work, failed.fault) } else { failed.fault };
            // A VM that never ran is nothing to keep, but where something of it is left.
            return Err(failed.planned.remove(&mut work).err().unwrap_or(fault));
        }
    };
    let Ready { vm, call, .. } = ready;
    let used = hand_over(daemon, caller, &vm, call);
    if keep {
        if !machine.cold {
            template::wanted(daemon, &vm, machine.boot_timeout_ms);
        }
        used?;
        let vm = show::one(daemon, &id)?;
        let (vm, ms, warnings) = (Some(vm), ms(begun), work.warnings);
        return Ok(Changed { vm, changed: true, ms, warnings, ..Changed::default() });
    }
    let ended = Instant::now();
    caller.stage("down", StageState::Begun, &name, "");
    // Whoever stops it waits for its guest, whose way down has ended the command: it is not killed meanwhile, unless the caller
    // wants that.
    while !matches!(used, Ok(Woken::Cancel | Woken::Gone)) && daemon.slots.stops(&id) {
        if caller.wait(&[], Some(Instant::now() + PULSE)) != Woken::Time {
            break;
        }
    }
    let taken = remove(daemon, &mut work, &id, &name);
    caller.stage("down", StageState::Ended, &name, "");
    if !machine.cold {
        template::wanted(daemon, &vm, machine.boot_timeout_ms);
    }
    used?;
    let warnings = work.warnings.into_iter().chain(taken.err().map(|fault| fault.message.into())).collect();
    Ok(Changed { changed: true, ms: ms(ended), warnings, ..Changed::default() })
}

/// Holds what was planned, for its start. Who called it by its name in the pool may hold it for a moment; where somebody began
/// something else with it, the run is over, and nothing stays of it.
fn hold(daemon: &Arc<Daemon>, work: &mut Work<'_>, vm: &Vm) -> Result<Held, Fault> {
    let fault = match daemon.slots.hold(&vm.id, &vm.name, START, OTHERS) {
        Ok(held) => {
            let now = daemon.store.change(|t| vms::by_id(t, &vm.id))?;
            if now.is_some_and(|now| now.state == vm.state) {
                return Ok(held);
            }
            Fault::interrupted(&[]).why("somebody else has begun something with the VM")
        }
        Err(busy) => busy,
    };
    match vm.kept {
        true => Err(fault),
        false => Err(remove(daemon, work, &vm.id, &vm.name).err().unwrap_or(fault)),
    }
}

/// What [`run`], or a `vm.create`, would make: by the same looks, and nothing is made.
pub(crate) fn planned(
    daemon: &Arc<Daemon>,
    caller: &mut Caller,
    machine: &Machine,
    keep: bool,
) -> Result<Planned, Fault> {
    let work = Work::new(daemon, caller.op_id());
    let draft = plan::draft(&work, machine, keep).map_err(|fault| fault.at("plan"))?;
    memory::has_room(&work, &draft.vm).map_err(|fault| fault.at("plan"))?;
    let choice = launch::choice(&work)?;
    let (method, template, why) = match Way::of_first(&work, &draft.vm, machine.cold) {
        Way::Warm(pick) => (disk::LAYER, Some(pick.id), None),
        Way::Cold(why) => (disk::first(&work, &draft.vm)?, None, why),
    };
    let vm = show::shown(daemon, draft.vm.clone());
    Ok(Planned {
        name: vm.name,
        keep,
        image: vm.image,
        kernel: vm.kernel,
        init: vm.init,
        cpus: vm.cpus,
        memory_bytes: vm.memory_bytes,
        disk: Disk { used_bytes: None, method: Some(method.into()), ..vm.disk },
        network: Network { published: draft.ports(), ..vm.network },
        vmm: choice.name.into(),
        accel: choice.accel.name().into(),
        template,
        why,
    })
}

/// Hands a connection to a running VM's agent over.
pub(crate) fn exec(daemon: &Arc<Daemon>, caller: &mut Caller, reference: &str, looks: bool) -> Result<(), Fault> {
    let vm = daemon.store.change(|t| find(t, reference))?;
    is_running(&vm)?;
    if looks {
        return hand_over(daemon, caller, &vm, None).map(drop);
    }
    // Before and after: what is written down while the command runs is not true of what it does then.
    workspace::touch(daemon, &vm)?;
    let done = hand_over(daemon, caller, &vm, None);
    workspace::touch(daemon, &vm)?;
    done.map(drop)
}

/// Refuses one that isn't.
pub(super) fn is_running(vm: &Vm) -> Result<(), Fault> {
    if vm.state == State::Ready {
        return Ok(());
    }
    let (name, state) = (&vm.name, vm.state.shown());
    Err(Fault::new("not_running", exit::STATE, format!("{name} does not run: it is {state}"))
        .fix(format!("banger vm start {name}")))
}

/// Connects, or takes what was asked for ahead, hands over, and stays until the caller is done, which it then says how, or the VM
/// has ended.
fn hand_over(daemon: &Arc<Daemon>, caller: &mut Caller, vm: &Vm, ahead: Option<guest::Asked>) -> Result<Woken, Fault> {
    let _counted = daemon.slots.connect(&vm.id, &vm.name)?;
    let work = Work::new(daemon, caller.op_id());
    let process = vm.pid.and_then(|pid| pidfd::open(pid).ok()).ok_or_else(|| lost(vm))?;
    let stream = guest::connect_ahead(&work.places(vm).vsock(), ahead).map_err(|error| {
        let fault = if process.is_alive() {
            let message = format!("{}'s agent doesn't answer", vm.name);
            Fault::new("agent_silent", exit::FAILED, message)
                .fix(format!("banger vm logs {} shows its console", vm.name))
        } else {
            lost(vm)
        };
        fault.why(error)
    })?;
    let accel = vm.accel.clone().unwrap_or_default();
    let workspace = workspace::of(daemon, vm)?;
    caller.hand_over(Attached { vm: vm.name.clone(), what: Handed::Agent, accel, workspace }, stream.as_fd());
    drop(stream);
    let _waits = daemon.calls.hand_over();
    match caller.wait(&[process.as_fd()], None) {
        Woken::Ready(_) => Err(lost(vm)),
        // Who is gone needs no answer, and who cancels has its connection's end to tell the guest.
        done @ (Woken::Finished | Woken::Cancel | Woken::Gone | Woken::Time) => Ok(done),
    }
}

fn lost(vm: &Vm) -> Fault {
    let message = format!("{} went away while the command ran; its status is unknown", vm.name);
    let fault = Fault::new("lost", exit::FAILED, message)
        .why("its guest powered itself off, or its VMM was killed (the kernel's log says whether memory ran out)");
    if vm.kept { fault.fix(format!("its disk is kept: banger vm start {}", vm.name)) } else { fault }
}

/// What the caller wanted undone is said by its names.
fn interrupted(work: &Work<'_>, fault: Fault) -> Fault {
    let mut undone: Vec<String> = work.undone.iter().map(|what| (*what).to_owned()).collect();
    undone.push("address".into());
    Fault { why: fault.why, stage: fault.stage, ..Fault::interrupted(&undone) }
}

/// Ends it at once and takes it away: nobody is to see its disk again.
pub(crate) fn remove(daemon: &Arc<Daemon>, work: &mut Work<'_>, id: &str, name: &str) -> Result<(), Fault> {
    let _held = life::hold_unwanted(work, id, name)?;
    match daemon.store.change(|t| vms::by_id(t, id))? {
        Some(vm) => remove_held(work, vm),
        None => Ok(()),
    }
}

/// The same, of one that the caller holds. From here on it is kept no more: what can't be taken away now goes later.
pub(super) fn remove_held(work: &mut Work<'_>, mut vm: Vm) -> Result<(), Fault> {
    let name = vm.name.clone();
    (vm.kept, vm.caller, vm.state) = (false, None, State::Stopping);
    work.daemon.store.change(|t| match vms::by_id(t, &vm.id)? {
        // It waited in the pool until just now.
        Some(now) if now.name != name => Err(Fault::no_such_vm(&name, None)),
        _ => vms::save(t, &vm),
    })?;
    let planned = match Ready::again(work, &vm) {
        Ok(Some(ready)) => ready.down(work, End::Kill).planned,
        _ => Launched::of_row(vm).down(work),
    };
    planned.remove(work)?;
    work.all_gone(&name, "goes then, with its disk")
}

pub(super) fn ms(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
