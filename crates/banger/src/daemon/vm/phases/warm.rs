//! The phases where a VM goes on from a template: a disk over the template's, a load in the place of a boot, and the
//! agent is told what else would stand in the disk. A try that comes to nothing leaves a wired VM, which is booted then.
//!
//! And those of the VM that becomes a template: a disk with nobody's name, and an agent that is not the end of it.

use super::{Disked, Failed, Launched, Planned, Ready, Step, Wait, Wired, has_begun, make_dirs};
use crate::api::Fault;
use crate::daemon::error::exit;
use crate::daemon::guest::systemd::Making;
use crate::daemon::guest::{self, Bounds, Doorbell};
use crate::daemon::image::template::Files;
use crate::daemon::serve::Caller;
use crate::daemon::store::vms::{State, Vm};
use crate::daemon::vm::pool::Pool;
use crate::daemon::vm::work::Work;
use crate::daemon::vm::{disk, effort, identity, launch, told, whole};
use crate::daemon::vmm::Over;
use rustix::fs::{CWD, Mode, OFlags};
use std::cell::Cell;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};
use sys::pidfd::PidFd;
use wire::image::{Image, Write};
use wire::path::Root;

/// What its VMM may work before a guest that was loaded says HELLO, for each CPU, and then before it has become another; it
/// takes a tenth of that.
const EFFORT: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(5)];
/// And how long each of the two may take where its VMM works little: one that waits for nothing. On a machine where other VMs
/// start, it may have to wait for its turn.
const ANSWER: Duration = Duration::from_secs(15);
/// Whoever else starts, that is all.
const LONGEST: Duration = Duration::from_secs(60);

/// A VMM pauses its guest, and has it go on, within this time.
const VMM: Duration = Duration::from_secs(10);
const PAUSED: &str = r#"{"state":"Paused"}"#;
const RESUMED: &str = r#"{"state":"Resumed"}"#;

/// Why a VM did not go on from its template.
pub(crate) enum Back {
    /// It is wired as before, and can be booted.
    Cold(Box<Wired>, Box<Fault>),
    /// And not: the start has failed.
    Failed(Box<Failed>),
}

impl From<Box<Failed>> for Back {
    fn from(failed: Box<Failed>) -> Back {
        Back::Failed(failed)
    }
}

/// How long the parts of a guest's becoming another took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Became {
    /// Until its HELLO.
    pub(crate) answered: Duration,
    /// Its name, address, clock, randomness, and the files that are its own.
    pub(crate) identity: Duration,
}

impl Wired {
    /// The disk of a VM that goes on from a template: an empty layer over the template's, or one of its own that is made of
    /// it, as the VMM has it.
    pub(crate) fn over(mut self, work: &mut Work<'_>, id: &str, template: &Files) -> Result<Disked, Back> {
        let over = match launch::choice(work) {
            Ok(choice) => choice.over(),
            Err(fault) => return Err(Failed::new(self.down(work), fault.at("disk")).into()),
        };
        self.vm.template = Some(id.to_owned());
        // A disk of its own may be a snapshot: that is known when it is made, and taken away as if it were one until then.
        self.vm.disk_method = (over == Over::Layer).then(|| disk::LAYER.to_owned());
        if let Err(fault) = work.reach(&mut self.vm, State::Disked) {
            return Err(Failed::new(self.down(work), fault.at("disk")).into());
        }
        let made = make_dirs(&work.places(&self.vm)).and_then(|()| match over {
            Over::Layer => {
                let path = work.places(&self.vm).layer();
                let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
                file.map(drop).map_err(|error| Fault::file("making", &path, &error))
            }
            Over::Own => {
                self.vm.disk_method = Some(disk::make(work, &self.vm, &template.disk())?.to_owned());
                work.save(&self.vm)
            }
        });
        let disked = Disked { vm: self.vm };
        match made {
            Ok(()) => Ok(disked),
            Err(fault) => Err(disked.back(work, fault.at("disk"))),
        }
    }

    /// The disk of a VM that becomes a template: a copy of its image.
    pub(crate) fn blank(mut self, work: &mut Work<'_>) -> Step<Disked> {
        if let Err(fault) = work.reach(&mut self.vm, State::Disked) {
            return Err(Failed::new(self.down(work), fault.at("disk")));
        }
        let places = work.places(&self.vm);
        let (from, to) = (&self.vm.base.root, places.disk());
        let made = make_dirs(&places).and_then(|()| {
            let method = disk::copy(from, &to);
            let method = method.map_err(|error| Fault::file(&format!("copying {} to", from.display()), &to, &error))?;
            let mut files = identity::nobodys()?;
            files.push(identity::hosts(&self.vm)?);
            files.extend(work.shared_ssh_files());
            let image = Image::File(places.host(&to, Root::State)?);
            let written = work.helper().write_ext4_files(Write { image, files });
            written.map(|()| method).map_err(|error| work.refused("writing into the disk", error))
        });
        self.vm.disk_method = made.as_ref().ok().map(|method| (*method).to_owned());
        let disked = Disked { vm: self.vm };
        match made {
            Ok(_) => Ok(disked),
            Err(fault) => Err(Failed::new(disked.down(work), fault.at("disk"))),
        }
    }
}

impl Disked {
    /// The VMM loads the template: it runs when this returns.
    pub(crate) fn restore(mut self, work: &mut Work<'_>, template: &Files) -> Result<Launched, Back> {
        if let Err(fault) = work.reach(&mut self.vm, State::Launched) {
            return Err(Failed::new(self.down(work), fault.at("launch")).into());
        }
        let begun = launch::restore(work, &mut self.vm, template).and_then(|pid| has_begun(work, &mut self.vm, pid));
        match begun {
            Ok(process) => Ok(Launched { vm: self.vm, process: Some(process) }),
            Err(fault) => Err(Launched::of_row(self.vm).back(work, fault.at("launch"))),
        }
    }

    /// Gives the disk up.
    pub(crate) fn back(mut self, work: &mut Work<'_>, fault: Fault) -> Back {
        let gone = self.unmapped(work).and_then(|()| {
            let places = work.places(&self.vm);
            disk::remove(&places).and_then(|()| disk::remove_file(&places.machine_id()))
        });
        work.undo("disk", gone);
        if !work.troubles.is_empty() {
            return Failed::new(self.down(work), fault).into();
        }
        (self.vm.disk_method, self.vm.template) = (None, None);
        (self.vm.pid, self.vm.boot_id, self.vm.started_at) = (None, None, None);
        let mut wired = Wired { vm: self.vm };
        match work.reach(&mut wired.vm, State::Wired) {
            Ok(()) => {
                // The start goes on: of it nothing is undone yet.
                work.undone.clear();
                Back::Cold(Box::new(wired), Box::new(fault))
            }
            Err(fault) => Failed::new(wired.down(work), fault).into(),
        }
    }
}

impl Launched {
    /// One that waited in the pool.
    pub(crate) fn pooled(work: &Work<'_>, vm: Vm) -> Launched {
        let process = work.daemon.pool.take(&vm.id);
        Launched { vm, process }
    }

    /// Stops its guest, which has answered once: it is nobody's yet, and takes no time of the processor's until it is.
    pub(crate) fn paused(self, work: &mut Work<'_>) -> Step<Launched> {
        let places = work.places(&self.vm);
        let answered = guest::call(&places.vsock(), ANSWER).map(drop);
        let paused = answered.and_then(|()| told::ask_for(&places.api(), VMM, "PATCH", "/vm", PAUSED));
        match paused {
            Ok(()) => Ok(self),
            Err(error) => Err(Failed::new(self.down(work), not_going_on("can't be paused", &error).at("launch"))),
        }
    }

    /// Has it go on.
    pub(crate) fn resumed(self, work: &mut Work<'_>) -> Result<Launched, Back> {
        match told::ask_for(&work.places(&self.vm).api(), VMM, "PATCH", "/vm", RESUMED) {
            Ok(()) => Ok(self),
            Err(error) => Err(self.back(work, not_going_on("does not go on", &error).at("launch"))),
        }
    }

    /// Its process is the pool's.
    pub(crate) fn given_to(self, pool: &Pool) {
        if let Some(process) = self.process {
            pool.keep(&self.vm.id, process);
        }
    }

    /// Ends a VMM whose guest came to nothing, and gives the disk up.
    pub(crate) fn back(self, work: &mut Work<'_>, fault: Fault) -> Back {
        self.ended(work).back(work, fault)
    }

    /// Has the guest become this VM. Until it has, its agent does nothing else.
    pub(crate) fn become_itself(mut self, work: &mut Work<'_>, begun: Instant) -> Result<(Ready, Became), Back> {
        let Some(process) = self.process.take() else {
            return Err(self.back(work, Fault::bug("no process").at("boot")));
        };
        let (became, call) = match identify(work, &mut self.vm) {
            Ok(identified) => identified,
            Err(fault) => {
                self.process = Some(process);
                return Err(self.back(work, fault.at("boot")));
            }
        };
        self.vm.vmm_version = told::ask(&work.places(&self.vm).api()).version;
        self.vm.ready_ms = Some(u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX));
        self.vm.last_error = None;
        work.pin();
        Ok((Ready { vm: self.vm, process, call }, became))
    }

    /// Waits for the agent of a VM that becomes a template, and for its init; the VM stays one that starts, so that nobody else gets to it.
    pub(crate) fn answered(mut self, work: &mut Work<'_>, caller: &mut Caller, wait: Wait) -> Step<Launched> {
        let places = work.places(&self.vm);
        let answered = Doorbell::hang(&places.doorbell()).and_then(|bell| match &self.process {
            Some(process) => {
                let agent = guest::await_agent(&bell, &places.vsock(), process, caller, wait)?;
                if self.vm.init {
                    Making { vsock: &places.vsock(), process, caller }.await_up(wait.limit)?;
                }
                Ok(agent)
            }
            None => Err(Fault::bug("no process")),
        });
        match answered {
            Ok(agent) => {
                self.vm.agent = Some(agent);
                Ok(self)
            }
            Err(fault) => Err(Failed::new(self.down(work), fault.at("boot"))),
        }
    }

    /// Its process, while it is known.
    ///
    /// # Errors
    /// A bug.
    pub(crate) fn process(&self) -> Result<&PidFd, Fault> {
        self.process.as_ref().ok_or_else(|| Fault::bug("no process"))
    }

    /// Moves what the VMM saved as `state` and `memory` in its jail's `/run` to `to`, ends it, and moves its disk there too. Some
    /// write memory that was never touched as zeros.
    pub(crate) fn into_files(self, work: &mut Work<'_>, to: &Files) -> Step<Planned> {
        let (run, disk) = (work.places(&self.vm).root().join("run"), work.places(&self.vm).disk());
        let moved = taken_out(&run, "state", &to.state()).and_then(|()| taken_out(&run, "memory", &to.memory()));
        let planned = self.down(work);
        // Nobody writes it any more, unless the VMM could not be ended.
        let all = match work.troubles.first() {
            Some(trouble) => Err(trouble.clone()),
            None => moved.and_then(|()| renamed(&disk, &to.disk())).and_then(|()| to.are_regular()).and_then(|()| {
                disk::dig(&to.memory()).map_err(|error| Fault::file("making holes in", &to.memory(), &error))
            }),
        };
        match all {
            Ok(()) => Ok(planned),
            Err(fault) => Err(Failed::new(planned, fault.at("save"))),
        }
    }
}

fn not_going_on(what: &str, error: &dyn std::fmt::Display) -> Fault {
    Fault::new("template_failed", exit::FAILED, format!("the guest of the template {what}")).why(error)
}

/// HELLO and `start`; beside them, the connection of the command that follows.
fn identify(work: &Work<'_>, vm: &mut Vm) -> Result<(Became, Option<guest::Asked>), Fault> {
    let silent = not_going_on;
    let begun = Instant::now();
    let mut files = vec![identity::hosts(vm)?];
    files.extend(work.own_ssh_files(vm));
    if vm.kept {
        files.push(identity::guest(&work.daemon.settings, vm)?);
    }
    let start = identity::start(&work.daemon.settings, vm, files)?;
    if let (true, Some(id)) = (vm.kept, &start.machine_id) {
        whole::remember(work, vm, id)?;
    }
    let worked = || vm.pid.map(effort::of).unwrap_or_default();
    // When the part began that is waited for, what the VMM had worked by then, and what it may.
    let part = Cell::new((begun, worked(), EFFORT[0]));
    let others_start = || work.daemon.slots.starting(&vm.id);
    let is_enough = || {
        let (begun, before, most) = part.get();
        worked().saturating_sub(before) >= most * vm.cpus.into() || (begun.elapsed() >= ANSWER && !others_start())
    };
    let bounds = Bounds { end: begun + LONGEST, is_enough: &is_enough };
    let vsock = work.places(vm).vsock();
    let client = guest::call_within(&vsock, bounds).map_err(|error| silent("does not answer", &error))?;
    part.set((Instant::now(), worked(), EFFORT[1]));
    let answered = begun.elapsed();
    let agent = client.hello().agent.chars().take(64).filter(char::is_ascii_graphic).collect();
    let mac = start.network.as_ref().and_then(|network| network.mac.clone());
    // Its way to the guest and back is that of START.
    let call = if work.command { guest::Asked::now(&vsock).ok() } else { None };
    client.start(start).map_err(|failure| silent("does not become another", &failure))?;
    (vm.agent, vm.mac) = (Some(agent), mac);
    Ok((Became { answered, identity: begun.elapsed().saturating_sub(answered) }, call))
}

/// Moves what a VMM left under a name in a directory of its jail, which is its own to change: what was put in that one's place is
/// not followed. Of what kind it is nobody may rely on before the VMM has ended ([`Files::are_regular`]).
fn taken_out(dir: &Path, name: &str, to: &Path) -> Result<(), Fault> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let moved = rustix::fs::open(dir, flags, Mode::empty()).and_then(|dir| rustix::fs::renameat(dir, name, CWD, to));
    moved.map_err(|errno| Fault::file(&format!("moving {}/{name} to", dir.display()), to, &errno.into()))
}

fn renamed(from: &Path, to: &Path) -> Result<(), Fault> {
    fs::rename(from, to).map_err(|error| Fault::file(&format!("moving {} to", from.display()), to, &error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn what_a_vmm_put_in_the_place_of_a_file_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for made in ["owners", "jail", "jail/run", "draft"] {
            fs::create_dir(at(made)).unwrap();
        }
        fs::write(at("owners/state"), "secret").unwrap();
        // A directory that leads elsewhere: nothing is moved.
        symlink(at("owners"), at("jail/link")).unwrap();
        assert!(taken_out(&at("jail/link"), "state", &at("draft/state")).is_err());
        assert_eq!(fs::read(at("owners/state")).unwrap(), b"secret");
        // A link, and a pipe that would be waited for: what is moved is they, and no template is made of them.
        let to = Files(at("draft"));
        symlink(at("owners/state"), at("jail/run/state")).unwrap();
        let pipe = at("jail/run/pipe");
        rustix::fs::mknodat(CWD, &pipe, rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
        fs::write(at("jail/run/memory"), "").unwrap();
        fs::write(to.disk(), "").unwrap();
        taken_out(&at("jail/run"), "memory", &to.memory()).unwrap();
        for name in ["state", "pipe"] {
            taken_out(&at("jail/run"), name, &to.state()).unwrap();
            assert_eq!(to.are_regular().unwrap_err().code, "template_failed");
            fs::remove_file(to.state()).unwrap();
        }
        fs::write(at("jail/run/state"), "").unwrap();
        taken_out(&at("jail/run"), "state", &to.state()).unwrap();
        to.are_regular().unwrap();
    }
}
