//! `vm prune`: VMs that don't run and that nobody named, or that are old, are taken away; first it says which, and asks.

use super::Status;
use crate::api::Request;
use crate::api::vm::{Changed, Vm, Vms};
use crate::cli::documents::{Gone, Pruned};
use crate::cli::problem::Problem;
use crate::cli::reach::Asked;
use crate::cli::{manner, output, several, size, table, text};
use crate::daemon::vm::is_made_up;
use crate::{duration, time};
use clap::Args;
use std::time::Duration;

#[derive(Args)]
pub(crate) struct Prune {
    /// Those with names too: all that don't run.
    #[arg(long)]
    all: bool,
    /// Those that were last started before this time, with names too: 7d, 12h.
    #[arg(long, value_name = "D", value_parser = duration::age)]
    older: Option<Duration>,
    /// Say what would go; take nothing away.
    #[arg(long)]
    dry_run: bool,
    /// Don't ask.
    #[arg(short, long)]
    force: bool,
    #[command(flatten)]
    pub(super) asked: Asked,
}

const HEADER: [&str; 4] = ["NAME", "STATE", "DISK", "LAST STARTED"];
/// States in which nothing of a VM is in the kernel.
const DOWN: [&str; 3] = ["planned", "stopped", "failed"];

pub(super) fn prune(prune: &Prune) -> Result<Status, Problem> {
    let Vms { vms } = prune.asked.reach.ask(Request::VmList {})?;
    let now = time::unix_now();
    let chosen: Vec<Vm> = vms.into_iter().filter(|vm| is_chosen(prune, vm, now)).collect();
    // What would be lost with one of these was not made by banger and is nowhere else.
    let (kept, gone): (Vec<Vm>, Vec<Vm>) =
        chosen.into_iter().partition(|vm| vm.workspace.as_ref().is_some_and(|tree| tree.unpulled));
    for vm in &kept {
        let name = text::line(&vm.name);
        output::ours(&format!(
            "{name} stays: it may hold changes that were not pulled; banger vm rm --discard-changes {name}\n"
        ));
    }
    let bytes: u64 = gone.iter().filter_map(|vm| vm.disk.used_bytes).sum();
    if !gone.is_empty() && !prune.asked.json {
        let rows: Vec<Vec<String>> = gone.iter().map(|vm| row(vm, now)).collect();
        output::ours(&table::table(&HEADER, &rows, output::width()));
    }
    if !gone.is_empty() && !prune.dry_run && !prune.force && !manner::yes() {
        ask(gone.len(), bytes, prune.all)?;
    }
    let (removed, status) = if prune.dry_run { (gone, 0) } else { remove(prune, gone) };
    tell(prune, &removed)?;
    Ok(status)
}

fn is_chosen(prune: &Prune, vm: &Vm, now: u64) -> bool {
    let is_down = DOWN.contains(&vm.state.as_str());
    let is_old = prune
        .older
        .is_none_or(|older| last_started(vm).is_some_and(|then| now.saturating_sub(then) >= older.as_secs()));
    let is_meant = prune.all || prune.older.is_some() || is_made_up(&vm.name);
    is_down && is_old && is_meant
}

/// When it was last started, or made where it never was; `None` for a time that can't be read, which is no reason to go.
fn last_started(vm: &Vm) -> Option<u64> {
    time::parse_rfc3339(vm.started_at.as_ref().unwrap_or(&vm.created_at))
}

fn row(vm: &Vm, now: u64) -> Vec<String> {
    let age = last_started(vm).map_or(String::new(), |then| time::age(now.saturating_sub(then)));
    let used = vm.disk.used_bytes.map_or(String::new(), size::shown);
    [&vm.name, &vm.state, &used, &age].map(|content| table::cell(content)).to_vec()
}

/// Asks a person; a script has to say it beforehand.
fn ask(count: usize, bytes: u64, all: bool) -> Result<(), Problem> {
    let what = if count == 1 { "1 VM".to_owned() } else { format!("{count} VMs") };
    let what = format!("{what}, {}", size::shown(bytes));
    let question = if all {
        format!("{what}: type {count} to take all of them away: ")
    } else {
        format!("{what}: take away? [y/N] ")
    };
    let Some(answer) = manner::ask(&question) else {
        return Err(manner::unasked(&format!("{what} may go"), "-f").fix("--dry-run only lists"));
    };
    let answer = answer.trim();
    let is_yes = if all { answer == count.to_string() } else { ["y", "Y", "yes"].contains(&answer) };
    if is_yes { Ok(()) } else { Err(Problem::usage("nothing was taken away")) }
}

/// Takes them away, each for itself; those that went.
fn remove(prune: &Prune, vms: Vec<Vm>) -> (Vec<Vm>, Status) {
    let (mut removed, mut status) = (Vec::new(), 0);
    for vm in vms {
        // By its id: another may have got the name since. One that runs by now is refused.
        let gone = Request::VmRm { name: vm.id.clone(), force: false, discard_changes: false, dry_run: false };
        match prune.asked.reach.try_ask::<Changed>(gone) {
            Ok(_) => removed.push(vm),
            Err(fault) if fault.code == "no_such_vm" => {}
            Err(fault) => {
                let exit = fault.exit;
                output::failure(&Problem::of_fault(fault), exit);
                status = several::SOME;
            }
        }
    }
    (removed, status)
}

fn gone(vm: &Vm) -> Gone<'_> {
    Gone { name: &vm.name, id: &vm.id, state: &vm.state, disk_bytes: vm.disk.used_bytes }
}

fn tell(prune: &Prune, removed: &[Vm]) -> Result<(), Problem> {
    let bytes: u64 = removed.iter().filter_map(|vm| vm.disk.used_bytes).sum();
    if prune.asked.json {
        let vms = removed.iter().map(gone).collect();
        return output::json(&Pruned { vms, freed_bytes: bytes, dry_run: prune.dry_run });
    }
    if !output::on_terminal() {
        output::data(&removed.iter().map(|vm| format!("{}\n", text::line(&vm.name))).collect::<String>())?;
    }
    let done = if prune.dry_run { "would free" } else { "freed" };
    let freed = format!("{done} {}\n", size::shown(bytes));
    let nothing = if prune.dry_run { "nothing would be taken away\n" } else { "nothing was taken away\n" };
    output::ours(if removed.is_empty() { nothing } else { &freed });
    Ok(())
}
