//! A VM's way up and down: each phase is a type that owns what was made so far.
//!
//! ```text
//! Planned ─wire→ Wired ─disk→ Disked ─launch→ Launched ─ready→ Ready
//!    ↑─────down────┴─────down───┴──────down──────┴─────down──────┘
//! ```
//!
//! The store is told of a step before it is taken, so a row says what may be there, whenever the daemon ends. `down`
//! takes away what its phase may have made, whether it is there or not, and goes on past what can't be taken away: so
//! the same `down` undoes a failed start, ends a VM, and cleans up after a dead one.

mod warm;

pub(crate) use warm::{Back, Became};

use super::effort::Wanted;
use super::places::Places;
use super::work::Work;
use super::{disk, identity, is_of_template, launch, memory, told, whole};
use crate::api::Fault;
use crate::daemon::error::exit;
use crate::daemon::guest::{self, Doorbell};
use crate::daemon::serve::Caller;
use crate::daemon::store::vms::{self, State, Vm};
use crate::time::unix_now;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::{Duration, Instant};
use sys::pidfd::{self, PidFd};
use wire::image::Write;
use wire::name::addr::GuestAddr;
use wire::net::{Nat, NewTap, Switch};

/// A VMM that was killed is gone within this time.
const KILL: Duration = Duration::from_secs(10);

/// It has a name and an address, and nothing in the kernel.
pub(crate) struct Planned {
    pub(crate) vm: Vm,
}

/// Its tap is on the bridge, and packets pass.
pub(crate) struct Wired {
    vm: Vm,
}

/// Its disk can be started from.
pub(crate) struct Disked {
    vm: Vm,
}

/// Its VMM runs, unless it was not found again.
pub(crate) struct Launched {
    pub(crate) vm: Vm,
    process: Option<PidFd>,
}

/// Its agent answers. The row says so once it is [`noted`](Ready::noted).
pub(crate) struct Ready {
    pub(crate) vm: Vm,
    process: PidFd,
    /// The connection of the command that follows, where it was asked for already.
    pub(crate) call: Option<guest::Asked>,
}

/// A step that failed: what it began is undone.
pub(crate) struct Failed {
    pub(crate) planned: Planned,
    pub(crate) fault: Fault,
}

/// A step's result.
pub(crate) type Step<T> = Result<T, Box<Failed>>;

impl Failed {
    pub(crate) fn new(planned: Planned, fault: Fault) -> Box<Failed> {
        Box::new(Failed { planned, fault })
    }
}

/// How a VM is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The guest is told, and has so long.
    Ask(Duration),
    /// At once.
    Kill,
}

impl Planned {
    /// Memory, as far as that is promised to nobody else; bridge, tap, way out.
    pub(crate) fn wire(mut self, work: &mut Work<'_>) -> Step<Wired> {
        if let Err(fault) = memory::admit(work, &mut self.vm) {
            return Err(Failed::new(self, fault.at("plan")));
        }
        let mut wired = Wired { vm: self.vm };
        match wire(work, &mut wired.vm) {
            Ok(()) => Ok(wired),
            Err(fault) => Err(Failed::new(wired.down(work), fault.at("wire"))),
        }
    }

    /// Leaves it as it is: its disk stays, and is its own from here on. Where it can't be yet, the VM says so.
    pub(crate) fn rest(mut self, work: &mut Work<'_>, state: State, error: Option<Fault>) -> Result<Vm, Fault> {
        work.daemon.published.let_go(&self.vm.id);
        self.vm.pid = None;
        self.vm.boot_id = None;
        // Where something of it is left, a VMM may still write its disk. One that isn't kept needs none.
        let whole = match work.troubles.first() {
            None if self.vm.kept => whole::make(work, &mut self.vm).and_then(|()| whole::name(work, &self.vm)),
            _ => Ok(()),
        };
        self.vm.last_error = whole.err().or(error).or_else(|| work.troubles.first().cloned());
        let state = if work.troubles.is_empty() { state } else { State::Lost };
        work.reach(&mut self.vm, state)?;
        if state == State::Lost {
            // Its reader lives as long as the daemon.
            let _ = work.daemon.lost.send(self.vm.id.clone());
        }
        Ok(self.vm)
    }

    /// Takes its files and its row away. Where something of it is left that could not be taken away, a VMM that still writes
    /// its disk perhaps, they stay too.
    pub(crate) fn remove(self, work: &mut Work<'_>) -> Result<(), Fault> {
        work.daemon.published.let_go(&self.vm.id);
        if work.daemon.pool.take(&self.vm.id).is_some() {
            // It waits no more, and is missing.
            work.daemon.pool.wake();
        }
        if work.troubles.is_empty() {
            let places = work.places(&self.vm);
            let gone = work.daemon.aside.remove(&places.dir()).and(remove_tree(&places.sockets()));
            work.undo("files", gone);
        }
        if !work.troubles.is_empty() {
            return self.rest(work, State::Lost, None).map(drop);
        }
        work.daemon.store.change(|t| vms::remove(t, &self.vm.id))?;
        work.daemon.slots.forget(&self.vm.id);
        work.pin();
        work.undo("address", Ok(()));
        Ok(())
    }
}

impl Wired {
    pub(crate) fn vm(&self) -> &Vm {
        &self.vm
    }

    /// The disk: made at the first start, found again later.
    pub(crate) fn disk(mut self, work: &mut Work<'_>) -> Step<Disked> {
        if let Err(fault) = work.reach(&mut self.vm, State::Disked) {
            return Err(Failed::new(self.down(work), fault.at("disk")));
        }
        let mut disked = Disked { vm: self.vm };
        match make_disk(work, &mut disked.vm) {
            Ok(()) => Ok(disked),
            Err(fault) => Err(Failed::new(disked.down(work), fault.at("disk"))),
        }
    }

    pub(crate) fn down(mut self, work: &mut Work<'_>) -> Planned {
        let unwired = unwire(work, &self.vm);
        if unwired.is_ok() {
            self.vm.tap = None;
        }
        work.undo("tap", unwired);
        Planned { vm: self.vm }
    }
}

impl Disked {
    pub(crate) fn vm(&self) -> &Vm {
        &self.vm
    }

    /// The VMM: it runs when this returns.
    pub(crate) fn launch(mut self, work: &mut Work<'_>) -> Step<Launched> {
        if let Err(fault) = work.reach(&mut self.vm, State::Launched) {
            return Err(Failed::new(self.down(work), fault.at("launch")));
        }
        let begun = launch::launch(work, &mut self.vm).and_then(|pid| has_begun(work, &mut self.vm, pid));
        match begun {
            Ok(process) => {
                // While the guest boots: a run may be over soon after that, and its daemon with it.
                work.daemon.ahead.came_up(&self.vm);
                Ok(Launched { vm: self.vm, process: Some(process) })
            }
            Err(fault) => Err(Failed::new(Launched::of_row(self.vm).down(work), fault.at("launch"))),
        }
    }

    pub(crate) fn down(self, work: &mut Work<'_>) -> Planned {
        let unmapped = self.unmapped(work);
        work.undo("disk", unmapped);
        Wired { vm: self.vm }.down(work)
    }

    /// Takes the device away, where the disk is a snapshot or may be one; what it holds stays.
    fn unmapped(&self, work: &Work<'_>) -> Result<(), Fault> {
        if self.vm.disk_method.as_deref().is_some_and(|method| method != disk::SNAPSHOT) {
            return Ok(());
        }
        let name = work.places(&self.vm).snapshot()?;
        let removed = work.helper().remove_dm_snapshot(&name);
        removed.map_err(|error| work.refused("removing the disk's snapshot", error))
    }
}

impl Launched {
    /// What a row says is there, from whatever phase: to be taken down.
    pub(crate) fn of_row(vm: Vm) -> Launched {
        Launched { vm, process: None }
    }

    /// Waits until the agent answers, while the caller may change its mind.
    pub(crate) fn ready(mut self, work: &mut Work<'_>, caller: &mut Caller, wait: Wait) -> Step<Ready> {
        let Some(process) = self.process.take() else {
            return Err(Failed::new(self.down(work), Fault::bug("no process").at("boot")));
        };
        let places = work.places(&self.vm);
        let bell = Doorbell::hang(&places.doorbell());
        // The guest boots meanwhile.
        let told = told::ask(&places.api());
        let answered = bell.and_then(|bell| guest::await_agent(&bell, &places.vsock(), &process, caller, wait));
        match answered {
            Ok(agent) => {
                self.vm.agent = Some(agent);
                (self.vm.vmm_version, self.vm.mac) = (told.version, told.mac);
                self.vm.ready_ms = Some(u64::try_from(wait.begun.elapsed().as_millis()).unwrap_or(u64::MAX));
                self.vm.last_error = None;
                Ok(Ready { vm: self.vm, process, call: None })
            }
            Err(fault) => {
                let fault = explain(fault, &self.vm, &places.console());
                self.process = Some(process);
                Err(Failed::new(self.down(work), fault.at("boot")))
            }
        }
    }

    pub(crate) fn down(self, work: &mut Work<'_>) -> Planned {
        self.ended(work).down(work)
    }

    /// Ends its VMM alone.
    fn ended(self, work: &mut Work<'_>) -> Disked {
        if let Some(process) = &self.process
            && is_of_template(&self.vm.name)
        {
            work.starved |= Wanted::of(process.pid()).is_starved();
        }
        let ended = kill(work, &self.vm, self.process.as_ref());
        work.undo("VMM", ended);
        let jail = work.places(&self.vm).jail().and_then(|jail| {
            work.helper().cleanup_jailer_chroot(&jail).map_err(|error| work.refused("removing the jail", error))
        });
        work.undo("jail", jail);
        Disked { vm: self.vm }
    }
}

impl Ready {
    /// From here on commands run in it, and a daemon that comes later takes it over.
    pub(crate) fn noted(mut self, work: &mut Work<'_>) -> Step<Ready> {
        match work.reach(&mut self.vm, State::Ready) {
            Ok(()) => Ok(self),
            Err(fault) => Err(Failed::new(self.down(work, End::Kill).planned, fault.at("ready"))),
        }
    }

    /// Takes over a VM that runs and whose row says so; `None` where the process is gone.
    pub(crate) fn again(work: &Work<'_>, vm: &Vm) -> Result<Option<Ready>, Fault> {
        let here = pidfd::boot_id().ok();
        let (Some(pid), true) = (vm.pid, vm.boot_id.is_some() && vm.boot_id == here) else { return Ok(None) };
        // Opened first, asked about then: what the helper confirms is what the descriptor holds.
        let Some(process) = pidfd::find(pid).map_err(Fault::bug)? else { return Ok(None) };
        let Some(number) = wire::vm::Pid::new(pid.into()) else { return Ok(None) };
        let api = work.places(vm).api();
        let running = work.helper().process_running(number, &api.to_string_lossy());
        let running = running.map_err(|error| work.refused("finding the VM again", error))?;
        Ok((running && process.is_alive()).then(|| Ready { vm: vm.clone(), process, call: None }))
    }

    /// Its process, to be watched.
    pub(crate) fn process(&self) -> &PidFd {
        &self.process
    }

    pub(crate) fn down(self, work: &mut Work<'_>, end: End) -> Downed {
        let mut killed = end == End::Kill;
        if let End::Ask(patience) = end {
            let asked = Instant::now();
            let told = guest::ask_down(&work.places(&self.vm).vsock(), patience);
            let left = patience.saturating_sub(asked.elapsed());
            killed = told.is_err() || !self.process.wait_end(left);
        }
        let planned = Launched { vm: self.vm, process: Some(self.process) }.down(work);
        Downed { planned, killed }
    }
}

/// A VM that was taken down.
pub(crate) struct Downed {
    pub(crate) planned: Planned,
    /// It did not end by itself in its time.
    pub(crate) killed: bool,
}

/// How long a start waits for the agent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wait {
    /// When the start began.
    pub(crate) begun: Instant,
    /// When its boot did, from which the limit counts: a try with a template takes nothing of it.
    pub(crate) boots: Instant,
    /// Without a ring for so long, the agent is called.
    pub(crate) ring: Duration,
    /// And then the start fails.
    pub(crate) limit: Duration,
}

fn wire(work: &Work<'_>, vm: &mut Vm) -> Result<(), Fault> {
    if let Some(ready) = work.daemon.ahead.take_tap() {
        vm.tap = Some(ready.to_string());
        work.save(vm)?;
    }
    let (helper, tap) = (work.helper(), work.places(vm).tap()?);
    let bridge = work.daemon.settings.bridge.clone();
    let new = NewTap { bridge, tap: tap.clone() };
    helper.create_tap(&new).map_err(|error| work.refused("making the tap", error))?;
    if vm.nat {
        let guest = GuestAddr::new(&vm.address.to_string()).map_err(Fault::bug)?;
        let nat = Nat { guest, tap, switch: Switch::On };
        helper.ensure_nat(&nat).map_err(|error| work.refused("the way out", error))?;
    }
    Ok(())
}

fn unwire(work: &Work<'_>, vm: &Vm) -> Result<(), Fault> {
    let (helper, tap) = (work.helper(), work.places(vm).tap()?);
    let guest = GuestAddr::new(&vm.address.to_string()).map_err(Fault::bug)?;
    let nat = Nat { guest, tap: tap.clone(), switch: Switch::Off };
    let closed = helper.ensure_nat(&nat).map_err(|error| work.refused("closing the way out", error));
    let gone = helper.delete_tap(&tap).map_err(|error| work.refused("removing the tap", error));
    if gone.is_ok() {
        work.daemon.ahead.tap_is_gone(&tap);
    }
    closed.and(gone)
}

/// The VMM is there: its process.
fn has_begun(work: &Work<'_>, vm: &mut Vm, pid: i32) -> Result<PidFd, Fault> {
    vm.pid = Some(pid);
    vm.boot_id = pidfd::boot_id().ok();
    vm.started_at = Some(unix_now());
    work.save(vm)?;
    work.daemon.stamps.add(&work.places(vm).console());
    pidfd::open(pid).map_err(|error| Fault::bug(error).at("launch"))
}

fn make_disk(work: &Work<'_>, vm: &mut Vm) -> Result<(), Fault> {
    let places = work.places(vm);
    make_dirs(&places)?;
    match vm.disk_method.as_deref() {
        Some(disk::SNAPSHOT) => return disk::snapshot(work, vm, &disk::origin(work.daemon, vm), false),
        Some(_) => return Ok(()),
        None => {}
    }
    let method = disk::make(work, vm, &vm.base.root).and_then(|method| {
        let (image, mut files) = (places.image(method)?, identity::files(&work.daemon.settings, vm)?);
        files.extend(work.ssh_files(vm));
        let written = work.helper().write_ext4_files(Write { image, files });
        written.map(|()| method).map_err(|error| work.refused("writing into the disk", error))
    });
    let method = method.inspect_err(|_| disk::discard(&places))?;
    // Written down last: a disk whose making was cut off is made anew.
    vm.disk_method = Some(method.to_owned());
    work.save(vm)?;
    work.pin();
    Ok(())
}

fn make_dirs(places: &Places<'_>) -> Result<(), Fault> {
    for dir in [places.dir(), places.sockets()] {
        match DirBuilder::new().mode(0o700).create(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Fault::file("making", &dir, &error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Ends the VMM, by the helper, and waits for its end.
fn kill(work: &Work<'_>, vm: &Vm, process: Option<&PidFd>) -> Result<(), Fault> {
    let api = work.places(vm).api();
    let found;
    let process = match process {
        Some(process) => process,
        // A daemon that was killed may have launched it and not have heard so.
        None => match work.helper().find_firecracker_pid(&api.to_string_lossy()) {
            Ok(pid) => match pidfd::find(pid.0).map_err(Fault::bug)? {
                Some(process) => {
                    found = process;
                    &found
                }
                None => return Ok(()),
            },
            Err(wire::client::Error::Refused(_)) => return Ok(()),
            Err(error) => return Err(work.refused("finding the VMM", error)),
        },
    };
    if !process.is_alive() {
        return Ok(());
    }
    let pid = wire::vm::Pid(process.pid());
    if let Err(error) = work.helper().kill_process(pid)
        && process.is_alive()
    {
        return Err(work.refused("ending the VMM", error));
    }
    if process.wait_end(KILL) {
        return Ok(());
    }
    Err(Fault::new("vmm_stays", exit::FAILED, format!("{}'s VMM, process {pid}, has not ended", vm.name)))
}

/// A start that failed for the guest's own reasons is explained by what its console said last.
fn explain(fault: Fault, vm: &Vm, console: &Path) -> Fault {
    let fault = match fault.code.as_str() {
        "boot_failed" => {
            Fault { message: format!("{}'s VMM ended before its agent answered", vm.name).into(), ..fault }
        }
        "agent_silent" => {
            let message = fault.message.strip_prefix("it ").unwrap_or(&fault.message);
            Fault { message: format!("{} {message}", vm.name).into(), ..fault }
        }
        _ => return fault,
    };
    match guest::last_words(console, &vm.id) {
        Some(words) => {
            let fault = match fault.code == "boot_failed" {
                true if words.contains("memory") => fault.fix("--memory 512M gives it more"),
                true => fault.fix("banger kernel import --debian makes a kernel that boots here"),
                false => fault,
            };
            fault.why(format!("the console's last lines:\n{words}"))
        }
        None => fault.why("its console is empty: the kernel has said nothing"),
    }
}

/// Removes a directory with all that is in it; one that is not there is gone.
pub(crate) fn remove_tree(path: &Path) -> Result<(), Fault> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Fault::file("removing", path, &error)),
        _ => Ok(()),
    }
}
