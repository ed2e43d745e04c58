//! The launch of a VM: all checked, then done step by step, so that a failure leaves nothing and a kill nothing that
//! the next helper would not find.

use super::answer::{Awaited, NotRunning};
use super::cgroup::{self, Group};
use super::checks::{self, Checked, OpenSaved, OpenStart, Opened};
use super::devices::{self, Neighbours};
use super::given::{OOM_SCORE_ADJ, arguments, kvm_group, null, open_files};
use super::jail::Jail;
use super::live;
use super::memories::Bounds;
use super::record::{Output, Phase, Process, Record, Socket};
use super::stage::{self, Nodes, Stage};
use super::{config, contents, jail, layer, sockets, tap};
use crate::fail::Fail;
use crate::host::Host;
use crate::log::{Level, Value};
use crate::places::Purpose;
use crate::steps::{self, Steps};
use std::cell::{Cell, RefCell};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;
use sys::dir::{CallError, Facts};
use sys::pidfd::PidFd;
use sys::spawn::{self, Groups, Held, Plan, User};
use wire::client::{self, NO_WORDS};
use wire::code::shown;
use wire::firecracker::VmConfig;
use wire::image::Image;
use wire::name::vm_id::VmId;
use wire::path::HostPath;
use wire::vm::{Jailer, Launch, Pid, Saved, Start};

const LAUNCH: &str = "launch_firecracker";
const RESTORE: &str = "restore_firecracker";
/// The part of a log's end that an error may hold.
const LAST_WORDS: usize = 2048;
const LAST_LINES: usize = 4;

/// Launches a VM; it runs when this returns.
pub(crate) fn launch(host: &Host, asked: &Launch, others: &Neighbours<'_>) -> Result<Pid, Fail> {
    let checked = checks::all(host, asked, others)?;
    let (name, config) = match &asked.start {
        Start::Boot(boot) if asked.jailer.is_some() => (LAUNCH, Some(config::jailed(asked, boot)?)),
        Start::Boot(boot) => (LAUNCH, Some(config::of(asked, boot)?)),
        Start::Restore(_) => (RESTORE, None),
    };
    let record = Record::new(asked, &checked.program, checked.drives.clone());
    let claim = host.vms.claim(&record, host.settings.limits.vms)?;
    host.vms.clear_left(&record.vm_id)?;
    // Behind the claim no other launch can come to use these. The owner can still take them away: the VMM will say so.
    sockets::is_free(&checked.socket_dir, &asked.socket, &host.owner, "socket_path")?;
    sockets::is_free(&checked.vsock_dir, &asked.vsock, &host.owner, "vsock_path")?;
    tap::check(&asked.tap, host.owner.uid)?;
    let written = checked
        .drives
        .iter()
        .zip(&checked.opened)
        .filter_map(|(drive, opened)| matches!(opened, Opened::File(_)).then_some(drive));
    // Behind the drives: what a saved VM's files are.
    let others_files = checked.drives.iter().skip(checked.opened.len());
    for drive in written.chain(others_files).filter(|drive| !drive.read_only) {
        (others.is_free)(drive.dev, drive.ino).map_err(|fail| checks::with_field(fail, "drives"))?;
    }
    let new = New { host, asked, checked: &checked, record, fresh_port: others.fresh_port, stays: Rc::default() };
    // The claim outlives the undo of a failure.
    let (record, vmm) = steps::run(name, &host.faults, |steps| new.run(steps, config))?;
    let pid = Pid(vmm.pid());
    claim.keep(record, vmm);
    Ok(pid)
}

/// A VM that is being launched.
struct New<'a> {
    host: &'a Host,
    asked: &'a Launch,
    checked: &'a Checked,
    record: Record,
    fresh_port: &'a dyn Fn() -> Result<(), Fail>,
    /// Whether an undo left something behind: then the record stays, for the next helper to try again.
    stays: Rc<Cell<bool>>,
}

impl<'a> New<'a> {
    fn run(mut self, steps: &mut Steps<'a>, config: Option<VmConfig>) -> Result<(Record, Arc<PidFd>), Fail> {
        let (host, asked) = (self.host, self.asked);
        let log = host.as_owner(|| {
            if asked.jailer.is_none() {
                self.output(steps, "metrics", "metrics_path", &asked.metrics)?;
            }
            self.output(steps, "log", "log_path", &asked.log)
        })?;
        let facts = Facts::of(&log).map_err(|error| Fail::new("log_path can't be looked at").because(error))?;
        let said_before = facts.size;
        let below = asked.log.below().to_owned();
        self.record.output = Some(Output { below, dev: facts.dev, ino: facts.ino, begin: said_before });
        let (socket_dir, vsock_dir) = (&self.checked.socket_dir, &self.checked.vsock_dir);
        steps.act("socket_room", || sockets::make_room(socket_dir, &asked.socket, &host.owner, "socket_path"))?;
        steps.act("vsock_room", || sockets::make_room(vsock_dir, &asked.vsock, &host.owner, "vsock_path"))?;

        // First of all: what a helper that is killed from here on leaves is found by it.
        self.record.jail = asked.jailer.as_ref().map(|jailer| jail::Mark::wanted(jailer, &asked.vm_id));
        self.undo_record(steps);
        steps.act("intent", || self.record.write(host.records.dir()))?;
        let jail = asked.jailer.as_ref().map(|jailer| self.jail(steps, jailer)).transpose()?;
        let group = self.group(steps)?;
        let memory = self.saved(steps)?;
        // Until it is let go the child ends with whoever holds it, so it needs no undo.
        let (held, nodes) = match &jail {
            None => {
                self.open_devices(steps)?;
                let config = config.as_ref().ok_or_else(|| Fail::new("jailer: a restore needs one"))?;
                let config = config::sealed(config)?;
                (steps.act("fork", || self.fork(&log, &config, group.as_ref()))?, None)
            }
            Some(jail) => {
                let stage = steps.act("stage", || self.stage(jail, config.as_ref()))?;
                let (held, nodes) =
                    steps.act("fork", || self.fork_jailer(&log, stage, memory.as_ref(), group.as_ref()))?;
                let nodes = Rc::new(nodes);
                let made = Rc::clone(&nodes);
                steps.undo("nodes", move || close(&made));
                (held, Some(nodes))
            }
        };
        self.record.process =
            Process::held(&held).map_err(|error| Fail::new("the VMM's process can't be looked at").because(error))?;
        steps.act("record", || self.record.write(host.records.dir()))?;
        steps.act("port", self.fresh_port)?;

        // Where its sockets appear.
        let (api, vsock) = match &jail {
            None => ((socket_dir, asked.socket.file_name()), (vsock_dir, asked.vsock.file_name())),
            Some(jail) => ((&jail.root, jail::API_SOCKET), (&jail.root, jail::VSOCK)),
        };
        let awaited = Awaited {
            dir: api.0,
            name: api.1,
            is_jailed: jail.is_some(),
            owner: &host.owner,
            until: Instant::now() + host.settings.limits.launch_time(),
        };
        let vmm = self.start(steps, held)?;
        host.vms.watch();
        let why = |not_running| self.not_running(&not_running, &vmm, said_before);
        if let Start::Restore(_) = asked.start {
            let place = |path: &str| format!("/{path}");
            let memory = match &memory {
                Some(_) => format!("/proc/self/fd/{}", spawn::PASSED),
                None => place(contents::SAVED_MEMORY),
            };
            let body = config::load(asked, &place(contents::STATE), &memory);
            steps.act("load", || awaited.load(&vmm, &body).map_err(why))?;
        }
        steps.act("answer", || awaited.run(&vmm).map_err(why))?;
        // It has opened its drives.
        nodes.map_or(Ok(()), |nodes| steps.act("nodes", || close(&nodes)))?;
        let (socket, vsock) = steps.act("access", || {
            let close = |(dir, name)| sockets::close_to_others(dir, name, host);
            host.as_owner(|| Ok((close(api)?, close(vsock)?)))
        })?;
        self.record.socket.made = Some(socket);
        self.record.vsock.made = Some(vsock);
        self.record.phase = Phase::Running;
        steps.act("commit", || self.record.write(host.records.dir()))?;
        Ok((self.record, vmm))
    }

    /// What the VMM opens itself, as the owner.
    fn open_devices(&self, steps: &mut Steps<'a>) -> Result<(), Fail> {
        for (drive, opened) in self.asked.drives.iter().zip(&self.checked.opened) {
            if let (Image::Snapshot(name), Opened::Device(device)) = (&drive.image, opened) {
                devices::open_to_owner(self.host, steps, name, device)?;
            }
        }
        Ok(())
    }

    /// Prepares what a saved VM goes on from: the root drive's layer, and the memory, where it is passed.
    fn saved(&self, steps: &mut Steps<'a>) -> Result<Option<OwnedFd>, Fail> {
        let (host, checked) = (self.host, self.checked);
        let OpenStart::Restore(saved) = &checked.start else { return Ok(None) };
        if let (Some(layer), Start::Restore(Saved { layer: Some(path), .. })) = (&saved.layer, &self.asked.start) {
            let written = Rc::new(Cell::new(false));
            let undone = Rc::clone(&written);
            steps.undo("layer", move || if undone.get() { layer::empty(&layer.file) } else { Ok(()) });
            steps.act("layer", || {
                layer::check_empty(&layer.file, path)?;
                written.set(true);
                layer::write(&layer.file, layer.size)
            })?;
        }
        if !contents::takes_memory(self.asked) {
            return Ok(None);
        }
        let limits = &host.settings.limits;
        let bounds = Bounds { count: limits.memories, bytes: limits.memory_bytes(), idle: limits.memory_time() };
        let until = Instant::now() + limits.launch_time();
        steps.act("memory", || host.memories.take(&saved.memory, bounds, until)).map(Some)
    }

    fn undo_record(&self, steps: &mut Steps<'a>) {
        let (host, vm_id) = (self.host, self.record.vm_id.clone());
        let stays = Rc::clone(&self.stays);
        steps.undo("record", move || if stays.get() { Ok(()) } else { Record::remove(&vm_id, host.records.dir()) });
    }

    /// An undo that the record is kept for where it fails.
    fn undo_or_keep(&self, steps: &mut Steps<'a>, what: &'static str, undo: impl FnOnce() -> Result<(), Fail> + 'a) {
        let stays = Rc::clone(&self.stays);
        steps.undo(what, move || undo().inspect_err(|_| stays.set(true)));
    }

    /// Makes a control group for it. A machine that gives none, or one without bounds, has VMs without; the log says so.
    fn group(&self, steps: &mut Steps<'a>) -> Result<Option<Group>, Fail> {
        let Some(name) = self.record.control_group.clone() else { return Ok(None) };
        let bounds = cgroup::Bounds {
            mib: self.asked.memory.0,
            vcpus: self.asked.vcpus.into(),
            processes: self.host.settings.limits.vm_processes,
            translates: contents::is_qemus(&self.asked.program),
        };
        let group = name.clone();
        self.undo_or_keep(steps, "control group", move || cgroup::remove(&group));
        let told = |fail| tell_of_group(self.host, &self.asked.vm_id, &fail);
        steps.act("control_group", || {
            let group = Group::make(&name).map_err(told).ok();
            let _ = group.as_ref().map(|group| group.bound(bounds).map_err(told));
            Ok(group)
        })
    }

    /// Makes the jail's directory, and the links to the sockets that will be in it.
    fn jail(&mut self, steps: &mut Steps<'a>, jailer: &'a Jailer) -> Result<Jail, Fail> {
        let (host, asked) = (self.host, self.asked);
        let jail = steps.act("jail", || Jail::make(host, jailer, &asked.vm_id))?;
        let (mark, made) = (jail.mark.clone(), jail.mark.clone());
        self.undo_or_keep(steps, "jail", move || made.remove(host.state.dir(), host.runtime.dir()));
        self.record.jail = Some(jail.mark.clone());
        let links = [
            (&self.checked.socket_dir, &asked.socket, jail::API_SOCKET, "socket_path"),
            (&self.checked.vsock_dir, &asked.vsock, jail::VSOCK, "vsock_path"),
        ];
        for (_, path, name, _) in links {
            let target = mark.socket(name);
            steps.undo("link", move || sockets::remove_link(host.runtime.dir(), &host.owner, path.as_str(), &target));
        }
        steps.act("links", || {
            let link = |(dir, path, name, field): (_, &HostPath, _, _)| {
                sockets::link(dir, path.file_name(), &mark.socket(name), &host.owner, field)
            };
            host.as_owner(|| links.into_iter().try_for_each(link))
        })?;
        Ok(jail)
    }

    fn stage(&self, jail: &Jail, config: Option<&VmConfig>) -> Result<Stage, Fail> {
        let failed = |error: CallError| Fail::new("the VM's jail can't be furnished").because(error);
        let text = config
            .map(serde_json::to_vec)
            .transpose()
            .map_err(|error| Fail::new("the VM's configuration can't be written").because(error))?;
        let pieces = contents::pieces(self.asked, self.checked, &self.host.owner)?;
        let run_dir = contents::run_dir(&self.host.settings.run_dir)?;
        let (vm_id, gid) = (self.asked.vm_id.as_str(), self.host.owner.gid);
        Stage::prepare(&run_dir, vm_id, gid, jail, &self.checked.program.file, pieces, text).map_err(failed)
    }

    fn fork_jailer(
        &self,
        log: &File,
        stage: Stage,
        memory: Option<&OwnedFd>,
        group: Option<&Group>,
    ) -> Result<(Held, Nodes), Fail> {
        let failed = |cause: String| Fail::new("the jailer can't be started").because(cause);
        let Some(jailer) = &self.checked.jailer else { return Err(failed("there is none".into())) };
        let run_dir = &self.host.settings.run_dir;
        let (uid, gid) = (self.host.owner.uid.to_string(), self.host.owner.gid.to_string());
        let (base, program) = (stage::base(run_dir), stage::program(run_dir));
        let (files, config) = (format!("no-file={}", open_files()), format!("/{}", stage::CONFIG));
        let socket = format!("/{}", jail::API_SOCKET);
        let layer = self.layer();
        let mut argv = vec![
            jailer.path.as_str(),
            "--id",
            self.asked.vm_id.as_str(),
            "--exec-file",
            &program,
            "--uid",
            &uid,
            "--gid",
            &gid,
            "--chroot-base-dir",
            &base,
            "--resource-limit",
            &files,
        ];
        argv.extend(memory.map(|_| "--inherit"));
        argv.extend(["--", "--api-sock", &socket]);
        match (&self.asked.start, &layer) {
            (Start::Boot(_), _) => argv.extend(["--config-file", &config]),
            (Start::Restore(_), Some(layer)) => argv.extend(["--disk-layer", layer]),
            (Start::Restore(_), None) => {}
        }
        let argv = arguments(&argv).map_err(failed)?;
        let null = null().map_err(failed)?;
        let plan = Plan {
            program: jailer.as_fd(),
            is_script: jailer.is_script,
            argv: &argv,
            user: None,
            input: null.as_fd(),
            output: log.as_fd(),
            passed: memory.map_or(null.as_fd(), OwnedFd::as_fd),
            open_files: open_files(),
            oom_score_adj: OOM_SCORE_ADJ,
            // A VMM finds what it is passed below a `/proc` of its own.
            new_pid_namespace: memory.is_some() || self.host.settings.vm_pid_namespace,
            groups: Groups::Same,
        };
        let (host, vm_id) = (self.host, &self.asked.vm_id);
        // From the thread that has the stage.
        stage.hold(|| hold(host, vm_id, group.map(|group| group.hold(&plan)), &plan))
    }

    /// The root drive's layer, as `banger-qemu` is told of it.
    fn layer(&self) -> Option<String> {
        let OpenStart::Restore(OpenSaved { layer: Some(_), .. }) = &self.checked.start else { return None };
        let root = self.asked.drives.iter().find(|drive| drive.is_root)?;
        Some(format!("{}=/{}", root.id.for_firecracker(), contents::LAYER))
    }

    /// Opens a file that the VMM appends to, made where it is missing. One that we made and nobody wrote goes again.
    fn output(&self, steps: &mut Steps<'a>, step: &'static str, field: &str, path: &'a HostPath) -> Result<File, Fail> {
        let (host, owner) = (self.host, &self.host.owner);
        let was_missing = host.state.look(path, owner).is_err_and(|unopened| unopened.is_missing());
        if was_missing {
            steps.undo(step, move || remove_if_empty(host, path));
        }
        steps.act(step, || {
            let opened = host.state.open_file(path, Purpose::Append, owner);
            opened.map_err(|unopened| {
                let fail = Fail::from(unopened);
                Fail { message: format!("{field}: {}", fail.message), ..fail }
            })
        })
    }

    fn fork(&self, log: &File, config: &OwnedFd, group: Option<&Group>) -> Result<Held, Fail> {
        let failed = |cause: String| Fail::new("the VMM can't be started").because(cause);
        let config_path = format!("/proc/self/fd/{}", spawn::PASSED);
        let argv = [
            self.checked.program.path.as_str(),
            "--api-sock",
            self.asked.socket.as_str(),
            "--id",
            self.asked.vm_id.as_str(),
            "--config-file",
            config_path.as_str(),
        ];
        let argv = arguments(&argv).map_err(failed)?;
        let null = null().map_err(failed)?;
        let groups: Vec<u32> = kvm_group().into_iter().collect();
        let plan = Plan {
            program: self.checked.program.as_fd(),
            is_script: self.checked.program.is_script,
            argv: &argv,
            user: Some(User { uid: self.host.owner.uid, gid: self.host.owner.gid, groups: &groups }),
            input: null.as_fd(),
            output: log.as_fd(),
            passed: config.as_fd(),
            open_files: open_files(),
            oom_score_adj: OOM_SCORE_ADJ,
            new_pid_namespace: self.host.settings.vm_pid_namespace,
            groups: Groups::Same,
        };
        hold(self.host, &self.asked.vm_id, group.map(|group| group.hold(&plan)), &plan).map_err(failed)
    }

    /// Lets the VMM go. From here on it has to be ended, and what it made removed, where the launch fails.
    fn start(&self, steps: &mut Steps<'a>, held: Held) -> Result<Arc<PidFd>, Fail> {
        let host = self.host;
        if self.asked.jailer.is_none() {
            let sockets = [&self.asked.socket, &self.asked.vsock].map(|path| Socket::new(path.as_str()));
            steps.undo("sockets", move || {
                sockets.iter().try_for_each(|socket| sockets::remove(host.runtime.dir(), &host.owner, socket))
            });
        }
        let started: Rc<RefCell<Option<Arc<PidFd>>>> = Rc::default();
        steps.undo("VMM", {
            let started = Rc::clone(&started);
            move || started.borrow().as_ref().map_or(Ok(()), |vmm| host.vms.end(vmm))
        });
        steps.act("start", || {
            let pid = held.pid();
            let released = held.release(host.settings.limits.launch_time()).map_err(|failed| {
                Fail::new(format!("program {} can't be executed", shown(&self.checked.program.path))).because(failed)
            });
            let vmm = Arc::new(PidFd::from_fd(released?, pid));
            *started.borrow_mut() = Some(Arc::clone(&vmm));
            Ok(vmm)
        })
    }

    /// What the client is told of a VMM whose VM does not run: why, and its last words.
    fn not_running(&self, why: &NotRunning, vmm: &Arc<PidFd>, said_before: u64) -> Fail {
        let program = self.asked.program.as_str().rsplit('/').next().unwrap_or("the VMM");
        let mut message = match why {
            NotRunning::Ended => {
                let how = self.host.vms.reap(vmm).map_or_else(|| "ended".to_owned(), |status| live::told(&status));
                format!("{program} {how} before its VM ran")
            }
            NotRunning::Late(what) => {
                let seconds = self.host.settings.limits.launch_time().as_secs();
                format!("{program}: waited {seconds} s (limits.launch_seconds) for {what}")
            }
            NotRunning::Said(what) => format!("{program}: {what}"),
        };
        match self.last_words(said_before) {
            Some(words) => message.push_str(&format!("{}{words}", client::LAST_WORDS)),
            None => message.push_str(NO_WORDS),
        }
        if self.asked.jailer.is_none() && !tap::can_be_opened(&self.host.owner) {
            message.push_str(
                "; the owner may not open /dev/net/tun, without which no VMM of his has a network: chmod 666 it",
            );
        }
        Fail::new(message)
    }

    /// The last lines that the VMM wrote to its log since it was launched, fit to be shown.
    fn last_words(&self, said_before: u64) -> Option<String> {
        let file = self.host.state.open_file(&self.asked.log, Purpose::Read, &self.host.owner).ok()?;
        let end = Facts::of(&file).ok()?.size;
        let start = end.saturating_sub(LAST_WORDS as u64).max(said_before);
        let mut bytes = [0u8; LAST_WORDS];
        let length = file.read_at(&mut bytes, start).ok()?;
        let text = String::from_utf8_lossy(&bytes[..length]);
        let mut lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let lines = lines.split_off(lines.len().saturating_sub(LAST_LINES));
        let words: String = lines.join(" | ").chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        (!words.is_empty()).then_some(words)
    }
}

fn close(nodes: &Nodes) -> Result<(), Fail> {
    nodes.close().map_err(|error| Fail::new("the nodes of the VM's devices can't be closed").because(error))
}

/// The child of `plan` that was forked into the VM's group, or one without where there is no group or the kernel didn't let
/// it in.
fn hold(host: &Host, vm_id: &VmId, in_group: Option<Result<Held, String>>, plan: &Plan<'_>) -> Result<Held, String> {
    match in_group {
        Some(Ok(held)) => return Ok(held),
        Some(Err(error)) => tell_of_group(host, vm_id, &Fail::new("the VM is not in its group").because(error)),
        None => {}
    }
    spawn::hold(plan).map_err(|error| error.to_string())
}

fn tell_of_group(host: &Host, vm_id: &VmId, fail: &Fail) {
    let fields = [("vm_id", Value::Text(vm_id.as_str(), 64)), ("cause", Value::List(&fail.causes, 1024))];
    host.log.own(Level::Warn, "vm has no control group, or not all of its bounds", &fields);
}

/// Removes a file that a failed launch made, with the owner's rights, unless there is something in it by now.
fn remove_if_empty(host: &Host, path: &HostPath) -> Result<(), Fail> {
    let failed =
        |error: &dyn std::fmt::Display| Fail::new(format!("{} can't be removed", shown(path.as_str()))).because(error);
    let Ok((_, facts)) = host.state.look(path, &host.owner) else { return Ok(()) };
    if facts.size > 0 {
        return Ok(());
    }
    let dir = host.state.open_parent(path, &host.owner)?;
    let removed = host.owner.run_as(|| dir.unlink(path.file_name())).map_err(|error| failed(&error))?;
    removed.map(|_| ()).map_err(|error| failed(&error))
}
