//! A template's making: a VM of its own is booted, armed and saved; another one goes on from it, as a try; then it gets its
//! name. Both VMs are nobody's: no command ever runs in them, and they go as any VM does whose run is over.

use super::{DRAFT, Files, Key, Kind, OWN_FAULTS, Template, drop_it, key, place, remove_tree, room, shown, unasked};
use crate::api::template::Template as Shown;
use crate::api::vm::Machine;
use crate::api::{Fault, StageState};
use crate::daemon::Daemon;
use crate::daemon::error::exit;
use crate::daemon::guest::systemd::Making;
use crate::daemon::guest::{self, Bounds};
use crate::daemon::serve::{Caller, Woken};
use crate::daemon::store::templates;
use crate::daemon::store::vms::{self, Vm};
use crate::daemon::vm::effort::Wanted;
use crate::daemon::vm::phases::{Back, Became, End, Failed, Launched, Planned, Ready, Wired};
use crate::daemon::vm::places::Places;
use crate::daemon::vm::slots::Held;
use crate::daemon::vm::work::Work;
use crate::daemon::vm::{is_of_template, life, plan, start, told};
use crate::daemon::{addresses, log};
use crate::image::store::{sync, taken};
use crate::time::unix_now;
use agent::client::Program;
use rustix::time::ClockId;
use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::sync::{Arc, MutexGuard, TryLockError};
use std::time::{Duration, Instant};
use wire::image::NewFile;
use wire::name::guest_path::GuestPath;

/// A VMM saves within this time.
const SAVE: Duration = Duration::from_secs(150);
/// How long a guest that was loaded is watched, and by what part of it its clock may be wrong: two looks at it on a busy machine
/// differ by less.
const WATCHED: Duration = Duration::from_secs(2);
const WRONG: u32 = 8;
/// How many bytes it makes a digest of.
const TRIED: usize = 4 << 10;
/// What systemd does when it is armed, taking note of what lies over its files now, is not to go on in each VM from it: it is saved
/// when its VMM has worked no more than so long in such a time, and after all of the last one in any case.
const LULL: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
const NO_LULL: Duration = Duration::from_secs(20);
/// Codes of a boot that took longer than it may.
const LATE: [&str; 2] = ["agent_silent", "init_silent"];
/// What killed its VMM, for want of memory perhaps, may do so each time.
const KILLED: &str = "vmm_killed";
/// How often a caller is listened to while another template is made.
const PULSE: Duration = Duration::from_millis(200);
/// And how often it is looked whether a making that is given up is over.
const SOON: Duration = Duration::from_millis(20);
/// Gives memory that holds nothing but files back. An image may have no shell; then its template is larger.
const DROP_CACHES: [&str; 3] = ["/bin/sh", "-c", "sync; echo 1 >/proc/sys/vm/drop_caches"];
/// Has what every command's start reads in memory again, so that no VM's first command waits for the disk.
const REHEARSAL: [&str; 1] = ["true"];

/// Makes one for VMs as `machine`; one that is there stays as it is.
pub(crate) fn build(daemon: &Daemon, caller: &mut Caller, machine: &Machine) -> Result<Shown, Fault> {
    make(daemon, caller, machine, Manner::Asked)
}

/// The same, that gives way to what somebody asks for.
pub(super) fn unasked(daemon: &Daemon, caller: &mut Caller, machine: &Machine) -> Result<Shown, Fault> {
    make(daemon, caller, machine, Manner::Unasked)
}

/// For whom one is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Asked,
    Unasked,
}

fn make(daemon: &Daemon, caller: &mut Caller, machine: &Machine, manner: Manner) -> Result<Shown, Fault> {
    let _turn = turn(daemon, caller)?;
    let op_id = caller.op_id().to_owned();
    let mut work = Work::new(daemon, &op_id);
    let id = addresses::id()?;
    let draft = Draft::begin(daemon, &id)?;
    let vm = plan::of_template(&work, &of_making(machine), &id)?;
    if manner == Manner::Unasked {
        daemon.images.templates.unasked.made_of(vm.name.clone());
    }
    let key = match key(&work, &vm.base, Kind::of(&vm)).and_then(|key| Ok((there(daemon, &key)?, key))) {
        Ok((None, key)) => key,
        found => {
            Planned { vm }.remove(&mut work)?;
            return found.and_then(|(there, _)| there.ok_or_else(|| Fault::bug("a template that is none")));
        }
    };
    let made = make_of(&mut work, caller, vm, &key, draft, (manner, machine.boot_timeout_ms));
    made.inspect_err(|fault| {
        // A time that was too short is its asker's, and one in which it had no processor is nobody's.
        let code = fault.code.as_str();
        let is_others = match manner {
            Manner::Asked => LATE.contains(&code) && machine.boot_timeout_ms.is_some(),
            Manner::Unasked => LATE.contains(&code) && work.starved,
        };
        let is_own = LATE.contains(&code) || OWN_FAULTS.contains(&code) || code == KILLED;
        if is_own
            && !is_others
            && let Err(fault) = daemon.store.change(|t| templates::key_failed(t, &key.digest(), 1))
        {
            // It is tried once more, that is all.
            log::fault("template", &op_id, &fault);
        }
    })
}

fn make_of(
    work: &mut Work<'_>,
    caller: &mut Caller,
    vm: Vm,
    key: &Key,
    draft: Draft,
    boot: (Manner, Option<u64>),
) -> Result<Shown, Fault> {
    let (daemon, base) = (work.daemon, vm.base.clone());
    let (id, kind) = (draft.id.clone(), Kind::of(&vm));
    let machine = Machine {
        image: Some(base.image.clone()),
        kernel: Some(base.kernel.clone()),
        cpus: Some(kind.cpus),
        memory_mib: Some(kind.memory_mib),
        init: kind.init,
        ..Machine::default()
    };
    let made = room::need(daemon, &draft.files.0, &base.root, kind.memory_mib)
        .map_err(|fault| Failed::new(Planned { vm: vm.clone() }, fault));
    let made = made.and_then(|()| save(work, caller, vm, &draft.files, boot));
    finish(work, made)?;
    // Both may take long, and who gives way is waited for.
    caller.go_on()?;
    draft.freeze()?;
    caller.go_on()?;
    try_it(work, caller, &machine, &id, &draft.files)?;
    if self::key(work, &base, kind)? != *key {
        return Err(Fault::new("changed", exit::FAILED, "a template can't be made of what is changed meanwhile")
            .fix("banger template build, once more"));
    }
    let template = Template {
        id,
        key: key.digest(),
        parts: key.text(),
        image: base.image,
        digest: base.digest,
        root: base.root,
        kernel: base.kernel,
        vmlinux: base.vmlinux,
        initrd: base.initrd,
        cpus: kind.cpus,
        memory_mib: kind.memory_mib,
        init: kind.init,
        files: draft.files.facts()?,
        size_bytes: draft.bytes()?,
        failures: 0,
        used: 0,
        created_at: unix_now(),
    };
    draft.publish(daemon, &template)?;
    Ok(shown(&template, &[]))
}

/// Templates are made one after the other.
fn turn<'a>(daemon: &'a Daemon, caller: &mut Caller) -> Result<MutexGuard<'a, ()>, Fault> {
    loop {
        match daemon.images.templates.turn.try_lock() {
            Ok(turn) => return Ok(turn),
            Err(TryLockError::Poisoned(poisoned)) => return Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => caller.go_on()?,
        }
        std::thread::sleep(PULSE);
    }
}

/// Ends the making of one, and has none made until what comes back is dropped.
pub(crate) fn stop<'a>(work: &Work<'a>) -> Result<MutexGuard<'a, ()>, Fault> {
    loop {
        match work.daemon.images.templates.turn.try_lock() {
            Ok(turn) => return Ok(turn),
            Err(TryLockError::Poisoned(poisoned)) => return Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => {}
        }
        give_up(work, |vm| is_of_template(&vm.name))?;
        std::thread::sleep(SOON);
    }
}

/// Has the VMs of makings end that are so: the one that is saved, or behind it the one that tries.
pub(super) fn give_up(work: &Work<'_>, is_so: impl Fn(&Vm) -> bool) -> Result<(), Fault> {
    let all = work.daemon.store.change(|t| vms::all(t))?;
    all.iter().filter(|vm| is_so(vm)).try_for_each(|vm| life::give_up(work, &vm.id, &vm.name))
}

/// The one of that key, where it can be gone on from; one that can't makes room for another.
fn there(daemon: &Daemon, key: &Key) -> Result<Option<Shown>, Fault> {
    let digest = key.digest();
    let of_key = || -> Result<Option<Template>, Fault> {
        Ok(daemon.store.change(|t| templates::all(t))?.into_iter().find(|one| one.key == digest))
    };
    let Some(template) = of_key()? else { return Ok(None) };
    if !template.is_dropped() && Files::of(daemon, &template.id).are_of(&template) {
        return Ok(Some(shown(&template, &[])));
    }
    drop_it(daemon, &template.id)?;
    match of_key()? {
        None => Ok(None),
        Some(template) => {
            let message = format!("template {} is of no use any more, and a VM's disk lies on it", template.id);
            Err(Fault::new("in_use", exit::STATE, message).fix("again when that VM is gone"))
        }
    }
}

/// A VM of the making has no way out, and no caller's command.
fn of_making(machine: &Machine) -> Machine {
    Machine { name: None, no_nat: true, disk_mib: None, ports: Vec::new(), ..machine.clone() }
}

/// Boots a VM, which may take so many milliseconds, arms its agent, saves it and ends it.
fn save(
    work: &mut Work<'_>,
    caller: &mut Caller,
    vm: Vm,
    to: &Files,
    (manner, boot_timeout_ms): (Manner, Option<u64>),
) -> Result<Planned, Box<Failed>> {
    let held = match work.daemon.slots.hold(&vm.id, &vm.name, "a template's making", Duration::ZERO) {
        Ok(held) => held,
        Err(fault) => return Err(Failed::new(Planned { vm }, fault)),
    };
    let name = vm.name.clone();
    caller.stage("boot", StageState::Begun, &name, "");
    let disked = Planned { vm }.wire(work)?.blank(work)?;
    if let Err(fault) = caller.go_on() {
        return Err(Failed::new(disked.down(work), fault));
    }
    let begun = Instant::now();
    let launched = disked.launch(work).map_err(|failed| unwanted(&held, failed))?;
    if held.is_unwanted() {
        return Err(unwanted(&held, Failed::new(launched.down(work), Fault::interrupted(&[]))));
    }
    let mut wait = start::wait_for(&launched.vm, begun, boot_timeout_ms);
    if manner == Manner::Unasked {
        // It stands still for others meanwhile, which whoever chose a short time did not reckon with.
        wait.limit = wait.limit.max(start::wait_for(&launched.vm, begun, None).limit);
    }
    let api = work.places(&launched.vm).api();
    let slots = Arc::clone(&work.daemon.slots);
    let answered = match manner {
        Manner::Asked => launched.answered(work, caller, wait),
        Manner::Unasked => unasked::beside(&slots, &api, || launched.answered(work, caller, wait)),
    };
    let launched = answered.map_err(|failed| unwanted(&held, failed))?;
    if held.is_unwanted() {
        return Err(unwanted(&held, Failed::new(launched.down(work), Fault::interrupted(&[]))));
    }
    caller.stage("boot", StageState::Ended, &name, "");
    caller.stage("save", StageState::Begun, &name, "");
    let places = work.places(&launched.vm);
    let note = match arm_and_save(&launched, caller, &places, &work.own_files()) {
        Ok(note) => note,
        Err(fault) => return Err(unwanted(&held, Failed::new(launched.down(work), fault.at("save")))),
    };
    let planned = launched.into_files(work, to).map_err(|failed| unwanted(&held, failed))?;
    caller.stage("save", StageState::Ended, &name, note);
    Ok(planned)
}

/// What of its units is to be told.
fn arm_and_save(launched: &Launched, caller: &mut Caller, places: &Places<'_>, own: &[&str]) -> Result<String, Fault> {
    let (vsock, api) = (&places.vsock(), &places.api());
    let mut making = Making { vsock, process: launched.process()?, caller };
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        Fault::new("template_failed", exit::FAILED, format!("a template can't be made: {what}")).why(error)
    };
    let call = || guest::call(vsock, guest::ANSWER).map_err(|error| failed("its agent does not answer", &error));
    let program = Program { args: &DROP_CACHES, env: &[], user: "root", cwd: "/", most: 1 << 10 };
    let _ = making.exec(program)?;
    let left = if launched.vm.init { making.rest()? } else { String::new() };
    let _ = making.exec(Program { args: &REHEARSAL, cwd: "", ..program })?;
    // From here on it does nothing but become another.
    call()?.arm(own).map_err(|failure| failed("its agent can't be armed", &failure))?;
    let is_at_rest = !launched.vm.init || await_lull(&mut making)?;
    let refused = |error: std::io::Error| failed("its VMM does not save it", &error);
    told::ask_for(api, SAVE, "PATCH", "/vm", r#"{"state":"Paused"}"#).map_err(refused)?;
    let files = r#"{"snapshot_path":"/run/state","mem_file_path":"/run/memory"}"#;
    told::ask_for(api, SAVE, "PUT", "/snapshot/create", files).map_err(refused)?;
    let mut notes = Vec::new();
    if !left.is_empty() {
        log::say("INFO", "units did not come up in a template, and are begun in each VM from it", &left);
        notes.push(format!("begun in each VM: {left}"));
    }
    if !is_at_rest {
        notes.push(format!("its guest worked on for {} s", NO_LULL.as_secs()));
    }
    Ok(notes.join("; "))
}

/// Whether it came to be with nothing left to do.
fn await_lull(making: &mut Making<'_>) -> Result<bool, Fault> {
    let pid = making.process.pid();
    let (most, time) = LULL;
    let end = Instant::now() + NO_LULL;
    while Instant::now() < end {
        let before = Wanted::of(pid);
        making.wait(time)?;
        if Wanted::of(pid).since(before) <= most {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A VM goes on from it as any other will: it answers, what its processor computes is right, its clock keeps time, and its
/// systemd goes on.
fn try_it(work: &mut Work<'_>, caller: &mut Caller, machine: &Machine, id: &str, files: &Files) -> Result<(), Fault> {
    let vm = plan::of_template(work, &of_making(machine), id)?;
    let name = vm.name.clone();
    let held = work.daemon.slots.hold(&vm.id, &name, "a template's try", Duration::ZERO)?;
    caller.stage("try", StageState::Begun, &name, "");
    let tried = Planned { vm }.wire(work).map_err(Back::from).and_then(|wired| go_on(work, wired, id, files));
    let done = match tried {
        Ok((ready, _)) => {
            let vsock = work.places(&ready.vm).vsock();
            let right = computes(&vsock).and_then(|()| keeps_time(caller, &vsock)).and_then(|()| match ready.vm.init {
                true => Making { vsock: &vsock, process: ready.process(), caller }.try_to_go_on(),
                false => Ok(()),
            });
            let planned = ready.down(work, End::Kill).planned;
            match right {
                Ok(()) => Ok(planned),
                Err(fault) => Err(Failed::new(planned, fault)),
            }
        }
        Err(Back::Cold(wired, fault)) => Err(Failed::new(wired.down(work), *fault)),
        Err(Back::Failed(failed)) => Err(failed),
    };
    finish(work, done.map_err(|failed| unwanted(&held, failed)))?;
    caller.stage("try", StageState::Ended, &name, "");
    Ok(())
}

/// Who takes one of these VMs away wants no template, and has found nothing wrong with it.
fn unwanted(held: &Held, failed: Box<Failed>) -> Box<Failed> {
    match held.is_unwanted() {
        true => Box::new(Failed { fault: Fault::interrupted(&[]).why("somebody took its VM away"), ..*failed }),
        false => failed,
    }
}

fn go_on(work: &mut Work<'_>, wired: Wired, id: &str, files: &Files) -> Result<(Ready, Became), Back> {
    let begun = Instant::now();
    let launched: Launched = wired.over(work, id, files)?.restore(work, files)?;
    let (ready, became) = launched.become_itself(work, begun)?;
    Ok((ready.noted(work)?, became))
}

/// Whether its processor computes right, as far as the digest of a file tells that it makes of what it was sent.
fn computes(vsock: &Path) -> Result<(), Fault> {
    let path = GuestPath::new("/run/banger/try").map_err(Fault::bug)?;
    let file = NewFile { path, data: (0..=u8::MAX).cycle().take(TRIED).collect(), mode: 0o600 };
    guest::put_within(vsock, &[file], Bounds::within(guest::ANSWER)).map_err(|failure| {
        Fault::new("template_failed", exit::FAILED, "a template can't be made: its guest takes no file").why(failure)
    })
}

/// Whether as much time passes in the guest as here, as far as two looks can tell: on a busy machine an answer may take longer
/// than any clock is wrong, and that is not the clock's fault.
fn keeps_time(caller: &mut Caller, vsock: &Path) -> Result<(), Fault> {
    let wrong = |why: &dyn std::fmt::Display| {
        Fault::new("template_failed", exit::FAILED, "a template can't be made: its guest's clock is wrong").why(why)
    };
    let look = || {
        let call = guest::call(vsock, guest::ANSWER).map_err(|error| wrong(&error))?;
        let asked = Instant::now();
        let told = call.time().map_err(|failure| wrong(&failure))?;
        Ok::<_, Fault>((told, i64::try_from(asked.elapsed().as_millis()).unwrap_or(i64::MAX / 2)))
    };
    let offset = offset_ms();
    let (first, took) = look()?;
    // One that was set has the time of the question.
    let first = ahead(if first.stepped { 0 } else { first.behind_ms }, took);
    match caller.wait(&[], Some(Instant::now() + WATCHED)) {
        Woken::Time => {}
        _ => return Err(Fault::interrupted(&[])),
    }
    let (second, took) = look()?;
    // This machine's clock may have been set between the two, or have gone on while all stood still.
    let set = offset_ms().saturating_sub(offset);
    let off = apart(first, ahead(second.behind_ms.saturating_sub(set), took));
    if u128::from(off) <= (WATCHED / WRONG).as_millis() {
        return Ok(());
    }
    Err(wrong(&format!("in {} ms it was {off} ms off at least", WATCHED.as_millis())))
}

/// How far this machine's clock is from the one that nobody sets.
fn offset_ms() -> i64 {
    let ms = |clock| {
        let now = rustix::time::clock_gettime(clock);
        now.tv_sec.saturating_mul(1000).saturating_add(now.tv_nsec / 1_000_000)
    };
    ms(ClockId::Realtime).saturating_sub(ms(ClockId::Monotonic))
}

/// How far a clock was ahead at least and at most that was read as `behind`, some time before the answer came.
fn ahead(behind: i64, took: i64) -> (i64, i64) {
    (behind.saturating_neg().saturating_sub(took), behind.saturating_neg())
}

/// What lies between the two at least.
fn apart(one: (i64, i64), other: (i64, i64)) -> u64 {
    let between = other.0.saturating_sub(one.1).max(one.0.saturating_sub(other.1));
    u64::try_from(between).unwrap_or(0)
}

/// Takes the row and the files of a VM away, however far it came.
fn finish(work: &mut Work<'_>, done: Result<Planned, Box<Failed>>) -> Result<(), Fault> {
    match done {
        Ok(planned) => planned.remove(work),
        Err(failed) => {
            let Failed { planned, fault } = *failed;
            Err(planned.remove(work).err().unwrap_or(fault))
        }
    }
}

/// A template's folder that goes when it is not published.
struct Draft {
    id: String,
    files: Files,
    is_published: bool,
}

impl Draft {
    fn begin(daemon: &Daemon, id: &str) -> Result<Draft, Fault> {
        let place = place(daemon);
        let path = place.join(format!("{id}{DRAFT}"));
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
        made.map_err(|error| Fault::file("making", &path, &error))?;
        Ok(Draft { id: id.to_owned(), files: Files(path), is_published: false })
    }

    /// Nobody writes its files any more, and they are on the disk.
    fn freeze(&self) -> Result<(), Fault> {
        for path in self.files.all() {
            let frozen = fs::set_permissions(&path, Permissions::from_mode(0o444));
            frozen.and_then(|()| sync(&path)).map_err(|error| Fault::file("keeping", &path, &error))?;
        }
        synced(&self.files.0)
    }

    fn bytes(&self) -> Result<u64, Fault> {
        let bytes = |path: std::path::PathBuf| taken(&path).map_err(|error| Fault::file("reading", &path, &error));
        self.files.all().into_iter().map(bytes).sum()
    }

    /// Gives it its name, and its row last.
    fn publish(mut self, daemon: &Daemon, template: &Template) -> Result<(), Fault> {
        let to = Files::of(daemon, &template.id);
        fs::rename(&self.files.0, &to.0).map_err(|error| Fault::file("keeping", &to.0, &error))?;
        self.files = to;
        synced(&place(daemon))?;
        room::add(daemon, template)?;
        self.is_published = true;
        daemon.pool.wake();
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.is_published
            && let Err(fault) = remove_tree(&self.files.0)
        {
            // It has no row, so the next start removes it.
            log::fault("template", "", &fault);
        }
    }
}

fn synced(dir: &Path) -> Result<(), Fault> {
    sync(dir).map_err(|error| Fault::file("keeping", dir, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_wrong_when_no_delay_explains_it() {
        assert_eq!(apart(ahead(3, 10), ahead(5, 10)), 0);
        // Answers that were late, whichever of the two.
        assert_eq!(apart(ahead(0, 5), ahead(-1162, 1200)), 0);
        assert_eq!(apart(ahead(-1162, 1200), ahead(0, 5)), 0);
        // Fast and slow.
        assert_eq!(apart(ahead(0, 5), ahead(-300, 10)), 290);
        assert_eq!(apart(ahead(0, 5), ahead(300, 10)), 295);
        assert!(apart(ahead(i64::MIN, 5), ahead(0, 5)) > 1 << 60);
    }
}
