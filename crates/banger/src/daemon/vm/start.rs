//! A VM's start: the phases one behind the other, each told to the caller as a stage.

use super::phases::{Back, End, Failed, Launched, Planned, Ready, Step, Wait, Wired};
use super::slots::Held;
use super::work::Work;
use super::{disk, publish, synced, watch};
use crate::api::{Fault, StageState};
use crate::daemon::error::exit;
use crate::daemon::image::template::{self, Pick};
use crate::daemon::serve::Caller;
use crate::daemon::store::usual::{self, Usual};
use crate::daemon::store::vms::{State, Vm};
use crate::daemon::vmm::Accel;
use crate::daemon::{Daemon, guest, log};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long an agent may take, and after how long without its ring it is called: by the processor, and emulated.
const BOOT: [(Accel, u64, u64); 2] = [(Accel::Kvm, 60, 5), (Accel::Emulation, 180, 30)];

/// How a VM is to begin.
pub(crate) enum Way {
    /// By a boot; where something else was wanted, why.
    Cold(Option<String>),
    /// By going on from a template, else by a boot.
    Warm(Pick),
}

impl Way {
    /// The way of a VM that has no disk yet.
    pub(crate) fn of_first(work: &Work<'_>, vm: &Vm, cold: bool) -> Way {
        if cold {
            return Way::Cold(Some("--cold".into()));
        }
        template::pick(work, vm).map_or_else(|why| Way::Cold(Some(why)), Way::Warm)
    }
}

/// Starts a planned or stopped VM, or one that waits in the pool; if the pool's comes to nothing, as any other. `held` is the
/// start's own hold of it.
pub(crate) fn start(
    daemon: &Arc<Daemon>,
    work: &mut Work<'_>,
    caller: &mut Caller,
    held: &Held,
    vm: Vm,
    way: Way,
    boot_timeout_ms: Option<u64>,
) -> Step<Ready> {
    let mut stage = Stages::of(daemon, held, &vm, &way);
    let ports = publish::before_start(daemon, &vm.id).map_err(|fault| fault.at("plan"));
    let wired = if vm.state == State::Launched {
        let launched = Launched::pooled(work, vm);
        if let Err(fault) = ports {
            return Err(Failed::new(launched.down(work), fault));
        }
        match pooled(work, caller, &mut stage, launched, &way) {
            Ok(ready) => {
                note(template::used(daemon, ready.vm.template.as_deref().unwrap_or_default()));
                return came_up(daemon, work, caller, &mut stage, ready);
            }
            Err(Back::Failed(failed)) => return Err(failed),
            Err(Back::Cold(wired, fault)) => {
                log::fault("pool", "", &fault);
                *wired
            }
        }
    } else {
        let planned = Planned { vm };
        if let Err(fault) = ports {
            return Err(Failed::new(planned, fault));
        }
        stage.begin(caller, "wire");
        let wired = planned.wire(work)?;
        let out = if wired.vm().nat { "nat" } else { "no way out" };
        stage.end(caller, "wire", format!("{}, {out}", wired.vm().address));
        wired
    };
    start_wired(daemon, work, caller, &mut stage, wired, way, boot_timeout_ms)
}

fn start_wired(
    daemon: &Arc<Daemon>,
    work: &mut Work<'_>,
    caller: &mut Caller,
    stage: &mut Stages<'_>,
    wired: Wired,
    way: Way,
    boot_timeout_ms: Option<u64>,
) -> Step<Ready> {
    if let Err(fault) = stage.go_on(caller) {
        return Err(Failed::new(wired.down(work), fault.at("wire")));
    }
    let (wired, why) = match way {
        Way::Cold(why) => (wired, why),
        Way::Warm(pick) => match warm(work, caller, stage, wired, &pick) {
            Ok(ready) => {
                note(template::used(daemon, &pick.id));
                return came_up(daemon, work, caller, stage, ready);
            }
            Err(Back::Failed(failed)) => return Err(failed),
            Err(Back::Cold(wired, fault)) => {
                stage.goes_cold(wired.vm());
                let why = gone_wrong(daemon, stage.held, &pick, &fault);
                // Before a whole disk is made for nobody.
                if let Err(fault) = stage.go_on(caller) {
                    return Err(Failed::new(wired.down(work), fault.at("disk")));
                }
                (*wired, Some(why))
            }
        },
    };
    let boots = Instant::now();
    stage.begin(caller, "disk");
    let disked = wired.disk(work)?;
    let method = disked.vm().disk_method.clone().unwrap_or_default();
    stage.end(caller, "disk", why.map_or(method.clone(), |why| format!("{method}; a boot: {why}")));
    if let Err(fault) = stage.go_on(caller) {
        return Err(Failed::new(disked.down(work), fault.at("disk")));
    }
    stage.begin(caller, "launch");
    let launched = disked.launch(work)?;
    stage.end(caller, "launch", run_by(&launched.vm));
    stage.begin(caller, "boot");
    let wait = Wait { begun: stage.begun, ..wait_for(&launched.vm, boots, boot_timeout_ms) };
    let ready = match stage.go_on(caller) {
        Ok(()) => launched.ready(work, caller, wait)?,
        Err(fault) => return Err(Failed::new(launched.down(work), fault.at("boot"))),
    };
    let stages = work.stages.then(|| guest::stages(&work.places(&ready.vm).console())).flatten();
    stage.end(caller, "boot", stages.unwrap_or_else(|| format!("agent {}", ready.vm.agent.as_deref().unwrap_or("?"))));
    came_up(daemon, work, caller, stage, ready)
}

fn came_up(
    daemon: &Arc<Daemon>,
    work: &mut Work<'_>,
    caller: &mut Caller,
    stage: &mut Stages<'_>,
    ready: Ready,
) -> Step<Ready> {
    // Before anybody's command runs in it, and before a later daemon takes it over.
    if !daemon.settings.synced.is_empty() {
        stage.begin(caller, "ready");
        let files = match synced::give(work, &ready.vm, || stage.go_on(caller)) {
            Ok(files) => files,
            Err(fault) => return Err(Failed::new(ready.down(work, End::Kill).planned, fault.at("ready"))),
        };
        stage.end(caller, "ready", format!("file_sync: {files} file{}", if files == 1 { "" } else { "s" }));
        work.warnings.iter().for_each(|warning| log::say("WARN", warning, &ready.vm.name));
    }
    let ready = ready.noted(work)?;
    stage.remember(daemon, &ready.vm).unwrap_or_else(|fault| log::fault("usual", "", &fault));
    watch::begin(daemon, &ready);
    daemon.ahead.came_up(&ready.vm);
    daemon.pool.wake();
    Ok(ready)
}

/// Goes on as one that waited in the pool.
fn pooled(
    work: &mut Work<'_>,
    caller: &mut Caller,
    stage: &mut Stages<'_>,
    launched: Launched,
    way: &Way,
) -> Result<Ready, Back> {
    let template = launched.vm.template.clone().unwrap_or_default();
    if !matches!(way, Way::Warm(pick) if pick.id == template) {
        let fault = Fault::new("template_failed", exit::FAILED, "what waited in the pool is not right any more");
        return Err(launched.back(work, fault));
    }
    stage.begin(caller, "disk");
    stage.end(caller, "disk", format!("pool, layer on template {template}"));
    if let Err(fault) = stage.go_on(caller) {
        return Err(Failed::new(launched.down(work), fault.at("disk")).into());
    }
    stage.begin(caller, "launch");
    let launched = launched.resumed(work)?;
    stage.end(caller, "launch", format!("pool, {}", run_by(&launched.vm)));
    become_itself(work, caller, stage, launched)
}

/// Goes on from a template.
fn warm(
    work: &mut Work<'_>,
    caller: &mut Caller,
    stage: &mut Stages<'_>,
    wired: Wired,
    pick: &Pick,
) -> Result<Ready, Back> {
    stage.begin(caller, "disk");
    let disked = wired.over(work, &pick.id, &pick.files)?;
    // From here on it can't be removed.
    if let Err(fault) = template::is_there(work.daemon, &pick.id) {
        return Err(disked.back(work, fault));
    }
    stage.end(caller, "disk", disk::made_of(disked.vm(), &pick.id));
    if let Err(fault) = stage.go_on(caller) {
        return Err(Failed::new(disked.down(work), fault.at("disk")).into());
    }
    stage.begin(caller, "launch");
    let launched = disked.restore(work, &pick.files)?;
    stage.end(caller, "launch", run_by(&launched.vm));
    become_itself(work, caller, stage, launched)
}

fn become_itself(
    work: &mut Work<'_>,
    caller: &mut Caller,
    stage: &mut Stages<'_>,
    launched: Launched,
) -> Result<Ready, Back> {
    if let Err(fault) = stage.go_on(caller) {
        return Err(Failed::new(launched.down(work), fault.at("launch")).into());
    }
    stage.begin(caller, "boot");
    let (ready, became) = launched.become_itself(work, stage.begun)?;
    let [answered, identity] = [became.answered, became.identity].map(|took| took.as_millis());
    stage.end(caller, "boot", format!("no boot: answer {answered}, identity {identity}"));
    Ok(ready)
}

/// The way of one that boots.
fn booted(vm: &Vm) -> &'static str {
    if vm.init { "init" } else { "cold" }
}

/// A template that could not be gone on from: for the log, and for who looks at how long it took. Who takes the VM away
/// meanwhile has found nothing wrong with it.
fn gone_wrong(daemon: &Daemon, held: &Held, pick: &Pick, fault: &Fault) -> String {
    log::fault("template", "", fault);
    if !held.is_unwanted() {
        note(template::failed(daemon, pick, fault));
    }
    let why = fault.why.as_deref().map_or(String::new(), |why| format!(": {why}"));
    format!("template {}: {}{why}", pick.id, fault.message)
}

fn note(done: Result<(), Fault>) {
    if let Err(fault) = done {
        // The VM runs; what the store can't say now it says the next time.
        log::fault("template", "", &fault);
    }
}

fn run_by(vm: &Vm) -> String {
    format!("{}, {}", vm.vmm.as_deref().unwrap_or_default(), vm.accel.as_deref().unwrap_or_default())
}

/// How long a start waits for the agent of a VM whose boot began then.
pub(crate) fn wait_for(vm: &Vm, boots: Instant, boot_timeout_ms: Option<u64>) -> Wait {
    let accel = if vm.accel.as_deref() == Some(Accel::Kvm.name()) { Accel::Kvm } else { Accel::Emulation };
    let (_, limit, ring) = BOOT.into_iter().find(|(known, ..)| *known == accel).unwrap_or(BOOT[1]);
    let limit = boot_timeout_ms.map_or(Duration::from_secs(limit), Duration::from_millis);
    Wait { begun: boots, boots, ring: Duration::from_secs(ring), limit }
}

struct Stages<'a> {
    name: String,
    held: &'a Held,
    begun: Instant,
    /// How the VM comes up.
    way: &'static str,
    /// How long that usually takes.
    usual: Vec<Usual>,
    /// The stage that goes on, since when.
    on: Option<(&'static str, Instant)>,
    /// What those that are over took, in microseconds.
    took: Vec<(&'static str, &'static str, u64)>,
}

impl<'a> Stages<'a> {
    fn of(daemon: &Daemon, held: &'a Held, vm: &Vm, way: &Way) -> Stages<'a> {
        let usual = daemon.store.change(|t| usual::of(t, &vm.base.image));
        let usual = usual.inspect_err(|fault| log::fault("usual", "", fault)).unwrap_or_default();
        let way = if matches!(way, Way::Warm(_)) { "warm" } else { booted(vm) };
        Stages { name: vm.name.clone(), held, begun: Instant::now(), way, usual, on: None, took: Vec::new() }
    }

    fn goes_cold(&mut self, vm: &Vm) {
        self.way = booted(vm);
    }

    fn begin(&mut self, caller: &mut Caller, stage: &'static str) {
        let is_it = |(way, known, _): &&Usual| *way == self.way && known == stage;
        caller.stage_usually(stage, &self.name, self.usual.iter().find(is_it).map(|(.., us)| *us));
        self.on = Some((stage, Instant::now()));
    }

    fn end(&mut self, caller: &mut Caller, stage: &'static str, note: String) {
        if let Some((_, since)) = self.on.take().filter(|(on, _)| *on == stage) {
            self.took.push((self.way, stage, u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)));
        }
        caller.stage(stage, StageState::Ended, &self.name, note);
    }

    /// Writes down how long it took.
    fn remember(&self, daemon: &Daemon, vm: &Vm) -> Result<(), Fault> {
        daemon.store.change(|t| self.took.iter().try_for_each(|took| usual::took(t, &vm.base.image, *took)))
    }

    /// Stops where the caller or somebody else wants the VM gone.
    fn go_on(&self, caller: &mut Caller) -> Result<(), Fault> {
        if self.held.is_unwanted() {
            return Err(Fault::interrupted(&[]).why("somebody takes the VM away"));
        }
        caller.go_on()
    }
}
