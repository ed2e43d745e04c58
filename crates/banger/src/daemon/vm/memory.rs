//! Memory: what a VM gets, and whether the machine has it for one more start.
//!
//! A guest's memory is taken when it is touched, so what is available now is promised in part to VMs that run already. What
//! they have not touched yet counts, from the moment that a start is admitted.

use super::effort;
use super::is_of_template;
use super::pool;
use super::work::Work;
use crate::api::Fault;
use crate::daemon::error::exit;
use crate::daemon::image::template;
use crate::daemon::store::vms::{self, State, Vm};
use rusqlite::Connection;
use std::fs;

/// Memory of a VM that names none: an eighth of the machine's, within these bounds, in MiB.
const USUAL: (u64, u64) = (512, 8192);
/// No guest comes up with less.
const LEAST: u64 = 64;
/// What a new VM must leave to the machine.
const RESERVE: u64 = 256;
/// What a VMM takes beside its guest's memory: QEMU's translated code, mostly.
const VMM: u64 = 64;

/// The memory of a new VM, in MiB.
pub(super) fn of_new(asked: Option<u64>) -> Result<u64, Fault> {
    let total = meminfo("MemTotal")?;
    match asked {
        Some(mib) if (LEAST..=total).contains(&mib) => Ok(mib),
        Some(mib) => {
            let message = format!("{mib} MiB of memory: {LEAST} to {total} are possible on this machine");
            Err(Fault::new("bad_memory", exit::USAGE, message))
        }
        None => Ok((total / 8).clamp(USUAL.0, USUAL.1).min(total)),
    }
}

/// Lets a start begin where there is the memory that it may take; a template that nobody asked for, and VMs that
/// nobody has yet, give way to it.
///
/// # Errors
/// `no_memory`; the VM is as it was.
pub(super) fn admit(work: &Work<'_>, vm: &mut Vm) -> Result<(), Fault> {
    let is_somebodys = !is_of_template(&vm.name) && !pool::is_of(vm);
    loop {
        match admit_now(work, vm) {
            Err(fault) if fault.code == "no_memory" && is_somebodys => {
                if !template::give_way(work) && !pool::give_way(work)? {
                    return Err(fault);
                }
            }
            done => return done,
        }
    }
}

/// The same: writes `wired` down, in one step with the look at who
/// else was let, so that of many that are asked for at once as many begin as there is memory for.
fn admit_now(work: &Work<'_>, vm: &mut Vm) -> Result<(), Fault> {
    work.daemon.store.change(|t| {
        room(t, vm, |_| false)?;
        vms::save(t, &Vm { state: State::Wired, ..vm.clone() })
    })?;
    vm.state = State::Wired;
    Ok(())
}

/// Whether a start would be let begin now: VMs that nobody has yet would give way to it.
///
/// # Errors
/// As [`admit`].
pub(super) fn has_room(work: &Work<'_>, vm: &Vm) -> Result<(), Fault> {
    work.daemon.store.change(|t| room(t, vm, pool::is_of))
}

fn room(connection: &Connection, vm: &Vm, gives_way: impl Fn(&Vm) -> bool) -> Result<(), Fault> {
    let all = vms::all(connection)?.into_iter().filter(|other| other.id != vm.id && may_run(other));
    let (going, others): (Vec<Vm>, Vec<Vm>) = all.partition(gives_way);
    let given_back: u64 = going.iter().map(held).sum();
    fits(vm.memory_mib, &others, meminfo("MemAvailable")? + given_back, held)
}

/// Whether its start is under way, or it waits in the pool.
pub(super) fn begins(vm: &Vm) -> bool {
    matches!(vm.state, State::Wired | State::Disked | State::Launched)
}

/// Whether it has a VMM, or is about to.
fn may_run(vm: &Vm) -> bool {
    begins(vm) || (matches!(vm.state, State::Ready | State::Lost) && vm.pid.is_some())
}

/// Whether `asked` MiB more fit beside `others`, each of which holds so much already.
fn fits(asked: u64, others: &[Vm], available: u64, held: impl Fn(&Vm) -> u64) -> Result<(), Fault> {
    let promised: u64 = others.iter().map(|vm| (vm.memory_mib + VMM).saturating_sub(held(vm))).sum();
    let most = available.saturating_sub(promised + RESERVE + VMM);
    if asked <= most {
        return Ok(());
    }
    let message = format!("{asked} MiB more would leave the machine less than {RESERVE} MiB");
    let all: u64 = others.iter().map(|vm| vm.memory_mib).sum();
    let why = match others.len() {
        0 => format!("{available} MiB are available"),
        n => {
            let vms = if n == 1 { "1 VM has".into() } else { format!("{n} VMs have") };
            format!("{available} MiB are available; {vms} {all} MiB, and may still take {promised} of it")
        }
    };
    let fault = Fault::new("no_memory", exit::ROOM, message).why(why);
    let fault = if most >= LEAST { fault.fix(format!("--memory {most}M or less, at the VM's making")) } else { fault };
    Err(match others.iter().max_by_key(|vm| vm.memory_mib) {
        Some(vm) => fault.fix(format!("banger vm stop NAME (the biggest: {}, {} MiB)", vm.name, vm.memory_mib)),
        None => fault,
    })
}

/// What a VM's processes hold, in MiB: the VMM's, and its children's. Of a template's memory, which the VM only reads, each page
/// is still to be copied when it is written to; any other VM's memory is its own, whatever it is made of.
fn held(vm: &Vm) -> u64 {
    let Some(pid) = vm.pid else { return 0 };
    let own = if vm.template.is_some() { "RssAnon" } else { "VmRSS" };
    effort::processes(pid).filter_map(|pid| mib(&format!("/proc/{pid}/status"), own)).sum()
}

fn meminfo(key: &str) -> Result<u64, Fault> {
    mib("/proc/meminfo", key).ok_or_else(|| Fault::bug(format!("/proc/meminfo has no {key}")))
}

/// A line in KiB of one of the kernel's files, in MiB.
fn mib(file: &str, key: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    line.trim().trim_end_matches(" kB").parse::<u64>().ok().map(|kib| kib >> 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::store::vms::tests::planned;

    #[test]
    fn what_is_promised_is_not_there_any_more() {
        let vm = |number: u8, memory_mib| Vm { memory_mib, state: State::Ready, pid: Some(1), ..planned(number) };
        let others = [vm(2, 1000), vm(3, 2000)];
        let touched = |vm: &Vm| vm.memory_mib / 2;
        // 500 + 1000 to come, and what each VMM takes.
        let room = 10_000 - 1500 - 3 * VMM - RESERVE;
        assert_eq!(fits(room, &others, 10_000, touched), Ok(()));
        let fault = fits(room + 1, &others, 10_000, touched).unwrap_err();
        assert_eq!((fault.code.as_str(), fault.exit), ("no_memory", exit::ROOM));
        let (less, biggest) = (format!("--memory {room}M or less"), "vm-3, 2000 MiB".to_owned());
        assert!(fault.fix[0].starts_with(&less) && fault.fix[1].contains(&biggest), "{fault:?}");
        assert!(fault.why.unwrap().contains("2 VMs have 3000 MiB"));
        assert!(fits(LEAST, &[], 100, touched).is_err());
        assert_eq!(fits(room, &others, 10_000, |_| 1 << 30), Ok(()), "a VM that holds more than its own owes nothing");
    }

    #[test]
    fn a_process_and_its_children_hold_what_they_touched() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let touched = vec![1u8; 32 << 20];
        let vm = Vm { pid: Some(pid), ..planned(2) };
        let all = held(&vm);
        assert!(touched.iter().all(|byte| *byte == 1) && (32..16_384).contains(&all), "{all} MiB");
        // This program's own file is mapped, and read only.
        let copied = held(&Vm { template: Some("t".into()), ..vm });
        assert!((32..all).contains(&copied), "{copied} of {all} MiB");
    }
}
