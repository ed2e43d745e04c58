//! The VMs that run: who has what, who has ended, and what goes with him.
//!
//! A launch claims what its VM is to have before it changes anything, so that two launches can't come to share it.
//! One thread waits for the VMMs' ends; there is none while no VM runs or is being launched. Whoever else meets an ended VM first clears
//! it himself: nobody has to wait for that thread.

use super::clear::Ground;
use super::output;
use super::record::{Phase, Record};
use crate::fail::Fail;
use crate::log::{Level, Value};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::process::{WaitId, WaitIdOptions, WaitIdStatus, waitid};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use sys::pidfd::PidFd;
use wire::code::shown;

/// How long a VMM that was killed gets to be gone. The kernel may have gigabytes to give back.
const END_TIME: Duration = Duration::from_secs(30);

/// VMs that were launched here, or by an earlier helper, and still run.
#[derive(Clone)]
pub(crate) struct Vms {
    shared: Arc<Shared>,
}

struct Shared {
    ground: Ground,
    table: Mutex<Table>,
    changed: Condvar,
    wake: OwnedFd,
    /// Whether somebody looks at the VMs' output now.
    bounds_output: AtomicBool,
}

#[derive(Default)]
struct Table {
    vms: BTreeMap<String, Vm>,
    watched: bool,
    /// VMMs that have ended, or were killed and will, and could not be reaped: somebody traces them, or the kernel
    /// has not finished with them. Each is looked after again whenever another one ends or begins.
    unreaped: Vec<Arc<PidFd>>,
}

impl Table {
    /// Whether one runs, or is being launched.
    fn has_vms(&self) -> bool {
        self.vms.values().any(|vm| !matches!(vm.state, State::Ending))
    }
}

struct Vm {
    record: Record,
    state: State,
    /// Whether it was told that its output has no bound.
    is_unbounded: bool,
}

enum State {
    /// Its launch goes on.
    Launching,
    /// It runs, or ran when somebody last looked.
    Running(Arc<PidFd>),
    /// It has ended and is being cleared away.
    Ending,
}

/// A VM that runs.
pub(super) struct Found {
    pub(super) record: Record,
    pub(super) vmm: Arc<PidFd>,
}

/// What a launch has claimed. Dropped, it is free again.
pub(super) struct Claim<'a> {
    vms: &'a Vms,
    vm_id: String,
    is_kept: bool,
}

impl Vms {
    /// Takes over the VMs that the records in `ground` tell of and the kernel knows. What has ended is cleared away,
    /// and what was still being launched is ended.
    pub(super) fn take_over(ground: Ground) -> Result<Vms, Fail> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| Fail::new("the helper can't watch its VMs").because(format!("eventfd: {errno}")))?;
        let (records, bad) =
            Record::all(&ground.records).map_err(|error| Fail::new("the VMs' records can't be read").because(error))?;
        for name in bad {
            ground.log.own(Level::Warn, "vm record is none, removed", &[("name", Value::Text(&name, 256))]);
            if let Err(error) = ground.records.unlink(&name) {
                ground.report("vm record stays", &name, &Fail::new("").because(error));
            }
        }
        let shared = Shared {
            ground,
            table: Mutex::default(),
            changed: Condvar::new(),
            wake,
            bounds_output: AtomicBool::new(false),
        };
        let vms = Vms { shared: Arc::new(shared) };
        for record in records {
            vms.take_one(record);
        }
        Ok(vms)
    }

    /// Begins to wait for the ends of VMs: of those that were taken over, apart from that because it may start a thread;
    /// of one that is being launched, while its VMM starts and nobody waits for this.
    pub(crate) fn watch(&self) {
        self.shared.watch();
    }

    fn take_one(&self, record: Record) {
        let ground = &self.shared.ground;
        let id = [
            ("vm_id", Value::Text(&record.vm_id, 64)),
            ("pid", Value::Number(record.process.pid.unsigned_abs().into())),
        ];
        match record.process.find() {
            Some(vmm) if record.phase == Phase::Running => {
                ground.log.own(Level::Info, "vm taken over", &id);
                let vm = Vm { state: State::Running(Arc::new(vmm)), record, is_unbounded: false };
                self.shared.lock().vms.insert(vm.record.vm_id.clone(), vm);
            }
            Some(vmm) => {
                ground.log.own(Level::Warn, "vm launch was cut off, ended", &id);
                if let Err(fail) = self.end(&Arc::new(vmm)) {
                    ground.report("vm can't be ended", &record.vm_id, &fail);
                }
                ground.clear(&record);
            }
            None => {
                ground.log.own(Level::Info, "vm has ended meanwhile", &id);
                ground.clear(&record);
            }
        }
    }

    /// Claims what `record` names, for a launch.
    pub(super) fn claim(&self, record: &Record, most: usize) -> Result<Claim<'_>, Fail> {
        let until = Instant::now() + END_TIME;
        let mut table = self.shared.lock();
        loop {
            let clash = table.vms.values().find_map(|vm| record.clash(&vm.record).map(|what| (vm, what)));
            let Some((vm, what)) = clash else { break };
            let other = vm.record.vm_id.clone();
            match &vm.state {
                State::Running(vmm) if !vmm.is_alive() => {
                    drop(table);
                    self.shared.settle(&other);
                    table = self.shared.lock();
                }
                State::Ending if Instant::now() < until => table = self.shared.wait(table, until),
                _ => return Err(Fail::new(format!("{what}: VM {} has it", shown(&other)))),
            }
        }
        table.unreaped.retain(|vmm| matches!(wait_status(vmm), Ok(None)));
        // They count too: each holds a process and a descriptor.
        if table.vms.len() + table.unreaped.len() >= most {
            return Err(Fail::new(format!("{most} VMs are the most that limits.vms allows: end one first")));
        }
        let vm = Vm { record: record.clone(), state: State::Launching, is_unbounded: false };
        table.vms.insert(record.vm_id.clone(), vm);
        Ok(Claim { vms: self, vm_id: record.vm_id.clone(), is_kept: false })
    }

    /// Tries once more to clear away what an ended VM of that id left, for a launch that has claimed it.
    pub(super) fn clear_left(&self, vm_id: &str) -> Result<(), Fail> {
        let ground = &self.shared.ground;
        let Some(record) = Record::left(vm_id, &ground.records) else { return Ok(()) };
        ground.clear(&record);
        if Record::left(vm_id, &ground.records).is_none() {
            return Ok(());
        }
        Err(Fail::new("vm_id: what an ended VM of that id left can't be removed; the helper's log says why"))
    }

    /// The running VM that `which` picks.
    pub(super) fn find(&self, which: impl Fn(&Record) -> bool) -> Option<Found> {
        let found = self.running().into_iter().find(|vm| which(&vm.record))?;
        if found.vmm.is_alive() {
            return Some(found);
        }
        self.shared.settle(&found.record.vm_id);
        None
    }

    /// All running VMs.
    pub(super) fn running(&self) -> Vec<Found> {
        let table = self.shared.lock();
        let running = table.vms.values().filter_map(|vm| match &vm.state {
            State::Running(vmm) => Some(Found { record: vm.record.clone(), vmm: Arc::clone(vmm) }),
            State::Launching | State::Ending => None,
        });
        running.collect()
    }

    /// Whether a VM that runs or is being launched is so.
    pub(super) fn any(&self, which: impl Fn(&Record) -> bool) -> bool {
        let table = self.shared.lock();
        table.vms.values().any(|vm| {
            which(&vm.record)
                && match &vm.state {
                    State::Running(vmm) => vmm.is_alive(),
                    State::Launching => true,
                    State::Ending => false,
                }
        })
    }

    /// The VMs that run or are being launched and have a drive of that device and inode: their ids, and whether they
    /// write it.
    pub(crate) fn with_drive(&self, dev: u64, ino: u64) -> Vec<(String, bool)> {
        let table = self.shared.lock();
        let lives = |vm: &&Vm| match &vm.state {
            State::Running(vmm) => vmm.is_alive(),
            State::Launching => true,
            State::Ending => false,
        };
        let drive = |vm: &Vm| {
            let found = vm.record.drives.iter().find(|drive| (drive.dev, drive.ino) == (dev, ino))?;
            Some((vm.record.vm_id.clone(), !found.read_only))
        };
        table.vms.values().filter(lives).filter_map(drive).collect()
    }

    /// Waits until an ended VM is cleared away, so that what it had is free when the caller answers.
    pub(super) fn settle(&self, vm_id: &str) {
        self.shared.settle(vm_id);
    }

    /// Ends a VMM for good: it is gone and reaped when this returns.
    pub(super) fn end(&self, vmm: &Arc<PidFd>) -> Result<(), Fail> {
        let _ = vmm.send_signal(libc::SIGKILL);
        let has_ended = vmm.wait_end(END_TIME);
        self.reap(vmm);
        if has_ended {
            return Ok(());
        }
        Err(Fail::new("the VMM does not end").because(format!("pid {} lives after SIGKILL", vmm.pid())))
    }

    /// Takes an ended child off the process table. `None` where it is not our child, or can't be reaped yet.
    pub(super) fn reap(&self, vmm: &Arc<PidFd>) -> Option<WaitIdStatus> {
        self.shared.reap(vmm)
    }
}

impl Claim<'_> {
    /// The VM runs: it is known from now on.
    pub(super) fn keep(mut self, record: Record, vmm: Arc<PidFd>) {
        let mut table = self.vms.shared.lock();
        if let Some(vm) = table.vms.get_mut(&self.vm_id) {
            *vm = Vm { record, state: State::Running(vmm), is_unbounded: false };
        }
        drop(table);
        self.is_kept = true;
        self.vms.shared.watch();
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if !self.is_kept {
            self.vms.shared.lock().vms.remove(&self.vm_id);
            self.vms.shared.changed.notify_all();
            self.vms.shared.watch();
        }
    }
}

impl Shared {
    /// The table is whole whenever nobody holds it, whatever became of the one who did.
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, table: MutexGuard<'a, Table>, until: Instant) -> MutexGuard<'a, Table> {
        let left = until.saturating_duration_since(Instant::now());
        self.changed.wait_timeout(table, left).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Clears an ended VM away, once, whoever asks; returns when that is done.
    fn settle(&self, vm_id: &str) {
        if let Some((record, vmm)) = self.take_ended(vm_id, Instant::now() + END_TIME) {
            self.clear(&record, &vmm);
        }
    }

    /// Takes an ended VM for the caller to clear away. `None` where there is none, or another one has done it.
    fn take_ended(&self, vm_id: &str, until: Instant) -> Option<(Record, Arc<PidFd>)> {
        let mut table = self.lock();
        loop {
            let Vm { record, state, .. } = table.vms.get_mut(vm_id)?;
            match state {
                State::Running(vmm) if !vmm.is_alive() => {
                    let ended = (record.clone(), Arc::clone(vmm));
                    *state = State::Ending;
                    return Some(ended);
                }
                State::Ending if Instant::now() < until => table = self.wait(table, until),
                _ => return None,
            }
        }
    }

    fn clear(&self, record: &Record, vmm: &Arc<PidFd>) {
        let how = self.reap(vmm).map_or_else(|| "nobody told us".to_owned(), |status| told(&status));
        let fields = [("vm_id", Value::Text(&record.vm_id, 64)), ("how", Value::Text(&how, 64))];
        self.ground.log.own(Level::Info, "vm ended", &fields);
        self.ground.clear(record);
        self.lock().vms.remove(&record.vm_id);
        self.changed.notify_all();
    }

    /// Clears an ended VM away in a thread of its own: an owner who fills a jail while it is emptied holds up no other.
    fn clear_aside(self: &Arc<Self>, vm_id: &str) {
        let Some((record, vmm)) = self.take_ended(vm_id, Instant::now()) else { return };
        let (shared, ended) = (Arc::clone(self), (record.clone(), Arc::clone(&vmm)));
        let started = std::thread::Builder::new()
            .name("end".into())
            .stack_size(256 << 10)
            .spawn(move || shared.clear(&ended.0, &ended.1));
        if started.is_err() {
            self.clear(&record, &vmm);
        }
    }

    fn reap(&self, vmm: &Arc<PidFd>) -> Option<WaitIdStatus> {
        let status = wait_status(vmm);
        let mut table = self.lock();
        table.unreaped.retain(|other| matches!(wait_status(other), Ok(None)));
        if matches!(status, Ok(None)) {
            table.unreaped.push(Arc::clone(vmm));
        }
        status.ok().flatten()
    }

    /// Sees to it that the thread that waits for ends is there, and knows of every VM.
    fn watch(self: &Arc<Self>) {
        let mut table = self.lock();
        if table.watched || !table.has_vms() {
            // It looks at the table again. Eight bytes into a counter that is not full: can't fail.
            let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
            return;
        }
        let shared = Arc::clone(self);
        let started = std::thread::Builder::new().name("vms".into()).stack_size(128 << 10).spawn(move || {
            let mut due = Instant::now() + output::EVERY;
            while shared.wait_for_ends(&mut due) {}
        });
        match started {
            Ok(_) => table.watched = true,
            Err(error) => self.ground.report("vms are not watched", "", &Fail::new("").because(error)),
        }
    }

    /// Waits for the next end and clears it away; looks at the VMs' output where that is due. False, and no longer
    /// watching, where no VM runs or will.
    fn wait_for_ends(self: &Arc<Self>, due: &mut Instant) -> bool {
        let mut table = self.lock();
        if !table.has_vms() {
            table.watched = false;
            return false;
        }
        let running: Vec<(String, Arc<PidFd>)> = table
            .vms
            .iter()
            .filter_map(|(id, vm)| match &vm.state {
                State::Running(vmm) => Some((id.clone(), Arc::clone(vmm))),
                _ => None,
            })
            .collect();
        drop(table);
        let mut fds = vec![PollFd::new(&self.wake, PollFlags::IN)];
        fds.extend(running.iter().map(|(_, vmm)| PollFd::from_borrowed_fd(vmm.as_fd(), PollFlags::IN)));
        let left = due.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        if poll(&mut fds, Some(&left)).is_err() {
            // Memory is short, most likely. Whoever asks meanwhile looks himself.
            #[allow(clippy::disallowed_methods, reason = "what failed is the waiting itself")]
            std::thread::sleep(Duration::from_millis(100));
            return true;
        }
        let ended: Vec<bool> = fds[1..].iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        let _ = rustix::io::read(&self.wake, &mut [0u8; 8][..]);
        for ((id, _), _) in running.iter().zip(ended).filter(|(_, ended)| *ended) {
            self.clear_aside(id);
        }
        if Instant::now() >= *due {
            self.bound_outputs(running.into_iter().map(|(id, _)| id).collect());
            *due = Instant::now() + output::EVERY;
        }
        true
    }

    /// Bounds what VMs have written, in a thread of its own: an owner can hold it, and holds up nobody's end by that. One at
    /// a time.
    fn bound_outputs(self: &Arc<Self>, ids: Vec<String>) {
        if ids.is_empty() || self.bounds_output.swap(true, Ordering::Acquire) {
            return;
        }
        let shared = Arc::clone(self);
        let started = std::thread::Builder::new().name("output".into()).stack_size(128 << 10).spawn(move || {
            ids.iter().for_each(|id| shared.bound_output(id));
            shared.bounds_output.store(false, Ordering::Release);
        });
        if started.is_err() {
            self.bounds_output.store(false, Ordering::Release);
        }
    }

    /// Bounds what a VM has written. Where that can't be it is told, once.
    fn bound_output(&self, vm_id: &str) {
        let output = self.lock().vms.get(vm_id).and_then(|vm| vm.record.output.clone());
        let Some(output) = output else { return };
        let ground = &self.ground;
        let Err(fail) = output::bound(&ground.state, &ground.owner, &output, ground.output_bytes) else { return };
        let mut table = self.lock();
        let Some(vm) = table.vms.get_mut(vm_id) else { return };
        let was_told = std::mem::replace(&mut vm.is_unbounded, true);
        drop(table);
        if !was_told {
            ground.report("vm output has no bound", vm_id, &fail);
        }
    }
}

/// What a child's end was; it is reaped by that. `Ok(None)` where it can't be reaped yet, an error where it is not our
/// child, or was reaped before.
fn wait_status(vmm: &PidFd) -> rustix::io::Result<Option<WaitIdStatus>> {
    waitid(WaitId::PidFd(vmm.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG)
}

/// How a process ended, in words.
pub(super) fn told(status: &WaitIdStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("ended with status {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}
