//! What changes VMs: `create`, `start`, `restart`, `stop`, `kill`, `rm`. Several names are dealt with at once, and a failure of one
//! stops no other.

use super::Status;
use super::machine::MachineArgs;
use super::plan;
use crate::api::vm::{Changed, Vm, Vms};
use crate::api::{Fault, Request, WaitFor};
use crate::cli::problem::Problem;
use crate::cli::reach::{Asked, Reach, milliseconds};
use crate::cli::{config, manner, output, several, size, text};
use crate::duration;
use clap::Args;
use std::thread::ScopedJoinHandle;
use std::time::Duration;

#[derive(Args)]
pub(crate) struct Create {
    /// Its name [default: one is made up].
    name: Option<String>,
    #[command(flatten)]
    machine: MachineArgs,
    /// Start it too.
    #[arg(long)]
    start: bool,
    #[arg(long, hide = true, conflicts_with = "start")]
    no_start: bool,
    /// Say what would be made, and of what; make nothing.
    #[arg(long, conflicts_with = "start")]
    dry_run: bool,
    #[command(flatten)]
    pub(super) asked: Asked,
}

#[derive(Args)]
pub(crate) struct Start {
    /// Boot one that was never started, though there may be a template to go on from.
    #[arg(long)]
    cold: bool,
    #[command(flatten)]
    pub(super) up: Restart,
}

#[derive(Args)]
pub(crate) struct Restart {
    /// VMs: names, or 4 or more digits of their ids.
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// How long an agent may take to answer [default: 60s; 3m under emulation].
    #[arg(long, alias = "boot-timeout", value_name = "D", value_parser = duration::parse)]
    timeout: Option<Duration>,
    /// What to wait for: that commands can be run, that it boots, or nothing but what fails at once. What comes after is
    /// bangerd's, and a start that fails then is told by vm show.
    #[arg(long, value_name = "FOR", value_enum, default_value_t = WaitFor::Agent)]
    wait: WaitFor,
    #[command(flatten)]
    pub(super) asked: Asked,
}

#[derive(Args)]
pub(crate) struct Stop {
    /// VMs: names, or 4 or more digits of their ids.
    #[arg(required_unless_present = "all", value_name = "NAME")]
    names: Vec<String>,
    /// All that run.
    #[arg(long, conflicts_with = "names")]
    all: bool,
    /// Kill what has not ended after this time [default: 10s; with --init 30s, 1m under emulation].
    #[arg(short, long, value_name = "D", value_parser = duration::parse)]
    timeout: Option<Duration>,
    #[command(flatten)]
    pub(super) asked: Asked,
}

#[derive(Args)]
pub(crate) struct Kill {
    /// VMs: names, or 4 or more digits of their ids.
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// TERM, KILL, INT, HUP, QUIT, USR1, USR2 or ABRT.
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL")]
    signal: String,
    #[command(flatten)]
    pub(super) asked: Asked,
}

#[derive(Args)]
pub(crate) struct Rm {
    /// VMs: names, or 4 or more digits of their ids.
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// Those that run too; and a name that is not there is no error.
    #[arg(short, long)]
    force: bool,
    /// Those with changes to a work tree that were not pulled, too.
    #[arg(long)]
    discard_changes: bool,
    /// Say what would go, and its size; take nothing away.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    pub(super) asked: Asked,
}

pub(super) fn create(create: &Create) -> Result<Status, Problem> {
    let machine = create.machine.machine(create.name.clone());
    if create.dry_run {
        return plan::show(&create.asked, machine, true, None).map(|()| 0);
    }
    create.machine.need_base(&create.asked.reach)?;
    let mut vm: Vm = create.asked.reach.ask(Request::VmCreate { machine })?;
    if create.start {
        let (name, boot_timeout_ms) = (vm.name.clone(), milliseconds(config().boot_timeout));
        let request = Request::VmStart { name, boot_timeout_ms, wait: WaitFor::Agent, cold: false };
        let done: Changed = create.asked.reach.ask(request)?;
        vm = done.vm.unwrap_or(vm);
    }
    let name = text::line(&vm.name);
    if create.asked.json {
        output::json(&vm)?;
    } else {
        output::data(&format!("{name}\n"))?;
    }
    if output::on_terminal() && !create.start {
        output::hint(&format!("next: banger vm start {name}\n"));
    }
    Ok(0)
}

pub(super) fn start(Start { cold, up: start }: &Start) -> Result<Status, Problem> {
    let boot_timeout_ms = milliseconds(start.timeout.or(config().boot_timeout));
    let ask = |name: String| vec![Request::VmStart { name, boot_timeout_ms, wait: start.wait, cold: *cold }];
    let several = Several { reach: &start.asked.reach, names: &start.names, json: start.asked.json, forgives: None };
    several.each(ask, |name, done| started(name, done, start.wait))
}

pub(super) fn restart(start: &Restart) -> Result<Status, Problem> {
    let boot_timeout_ms = milliseconds(start.timeout.or(config().boot_timeout));
    let ask = |name: String| {
        vec![
            Request::VmStop { name: name.clone(), timeout_ms: milliseconds(config().stop_timeout) },
            // One that was up boots in any case.
            Request::VmStart { name, boot_timeout_ms, wait: start.wait, cold: false },
        ]
    };
    let several = Several { reach: &start.asked.reach, names: &start.names, json: start.asked.json, forgives: None };
    several.each(ask, |name, done| started(name, done, start.wait))
}

fn started(name: &str, done: &Changed, wait: WaitFor) -> (String, Vec<String>) {
    let seconds = done.ms as f64 / 1000.0;
    let ip = done.vm.as_ref().map_or("", |vm| vm.network.ip.as_str());
    let dns = done.vm.as_ref().and_then(|vm| vm.network.dns.as_deref()).unwrap_or("");
    match done.changed {
        true => {
            let how = match wait {
                WaitFor::Agent => "ready in",
                WaitFor::Boot => "boots after",
                WaitFor::None => "starts after",
            };
            (format!("{name}  {how} {seconds:.1} s  {ip}  {dns}"), vec![done.ms.to_string(), ip.into()])
        }
        false => (format!("{name}  runs already  {ip}"), vec!["0".into(), ip.into()]),
    }
}

pub(super) fn stop(stop: &Stop) -> Result<Status, Problem> {
    let names = if stop.all {
        let Vms { vms } = stop.asked.reach.ask(Request::VmList {})?;
        vms.into_iter().filter(|vm| vm.state == "running").map(|vm| vm.name).collect()
    } else {
        stop.names.clone()
    };
    let timeout_ms = milliseconds(stop.timeout.or(config().stop_timeout));
    let ask = |name: String| vec![Request::VmStop { name, timeout_ms }];
    let several = Several { reach: &stop.asked.reach, names: &names, json: stop.asked.json, forgives: None };
    several.each(ask, |name, done| {
        let seconds = done.ms as f64 / 1000.0;
        match done.changed {
            true => (format!("{name}  stopped in {seconds:.1} s"), vec![done.ms.to_string()]),
            false => (format!("{name}  does not run"), vec!["0".into()]),
        }
    })
}

pub(super) fn kill(kill: &Kill) -> Result<Status, Problem> {
    let ask = |name: String| vec![Request::VmKill { name, signal: kill.signal.clone() }];
    let several = Several { reach: &kill.asked.reach, names: &kill.names, json: kill.asked.json, forgives: None };
    several.each(ask, |name, _| (format!("{name}  signalled"), vec![]))
}

pub(super) fn rm(rm: &Rm) -> Result<Status, Problem> {
    let Rm { force, discard_changes, dry_run, .. } = *rm;
    let ask = |name: String| vec![Request::VmRm { name, force, discard_changes, dry_run }];
    let forgives = rm.force.then_some("no_such_vm");
    let several = Several { reach: &rm.asked.reach, names: &rm.names, json: rm.asked.json, forgives };
    several.each(ask, |name, done| {
        let freed = size::shown(done.freed_bytes);
        let line = match &done.vm {
            Some(vm) if dry_run => format!("{name}  would be removed: {}, {freed}", vm.state),
            _ if done.changed => format!("{name}  removed, {freed} freed"),
            _ => format!("{name}  was not there"),
        };
        (line, vec![])
    })
}

/// The same requests, one behind the other, for each of several names.
struct Several<'a> {
    reach: &'a Reach,
    names: &'a [String],
    json: bool,
    /// The code of a fault that is none here.
    forgives: Option<&'static str>,
}

impl Several<'_> {
    /// Asks for all of them at once. `say` gives the line for a person, and the cells beside the name for a pipe.
    fn each(
        &self,
        ask: impl Fn(String) -> Vec<Request>,
        say: impl Fn(&str, &Changed) -> (String, Vec<String>),
    ) -> Result<Status, Problem> {
        let (mut done, mut failures) = (Vec::new(), Vec::new());
        for (name, result) in self.names.iter().zip(self.results(ask)) {
            match result {
                Ok(changed) => {
                    let name = text::line(changed.vm.as_ref().map_or(name, |vm| &vm.name));
                    self.tell(&name, &changed, &say)?;
                    done.push(changed);
                }
                Err(fault) => failures.push(fault),
            }
        }
        if self.json {
            output::json(&done)?;
        }
        match (self.names, failures.pop()) {
            (_, None) => return Ok(0),
            ([_], Some(fault)) => return Err(Problem::of_fault(fault)),
            (_, Some(fault)) => failures.push(fault),
        }
        for fault in failures {
            let exit = fault.exit;
            output::failure(&Problem::of_fault(fault), exit);
        }
        Ok(several::SOME)
    }

    fn results(&self, ask: impl Fn(String) -> Vec<Request>) -> Vec<Result<Changed, Fault>> {
        let requests: Vec<Vec<Request>> = self.names.iter().map(|name| ask(name.clone())).collect();
        let results: Vec<Result<Changed, Fault>> = std::thread::scope(|scope| {
            let begin = |requests| scope.spawn(|| self.ask(requests));
            let running: Vec<ScopedJoinHandle<'_, _>> = requests.into_iter().map(begin).collect();
            let wait = |thread: ScopedJoinHandle<'_, _>| {
                thread.join().unwrap_or_else(|_| Err(Fault::bug("the thread of a call panicked")))
            };
            running.into_iter().map(wait).collect()
        });
        let forgive = |fault: Fault| match self.forgives {
            Some(code) if fault.code == code => Ok(Changed::default()),
            _ => Err(fault),
        };
        results.into_iter().map(|result| result.or_else(forgive)).collect()
    }

    /// The last result, with the time and the warnings of all.
    fn ask(&self, requests: Vec<Request>) -> Result<Changed, Fault> {
        let mut all = Changed::default();
        for request in requests {
            let goes_on = match &request {
                Request::VmStart { name, wait, .. } if *wait != WaitFor::Agent => Some(name.clone()),
                _ => None,
            };
            let mut done: Changed = self.reach.try_ask(request)?;
            if let Some(name) = goes_on.filter(|_| done.vm.is_none()) {
                // It was answered in the middle.
                done.vm = self.reach.try_ask(Request::VmShow { name }).ok();
            }
            let warnings = [all.warnings, done.warnings].concat();
            all = Changed { ms: all.ms + done.ms, warnings, ..done };
        }
        Ok(all)
    }

    fn tell(
        &self,
        name: &str,
        changed: &Changed,
        say: impl Fn(&str, &Changed) -> (String, Vec<String>),
    ) -> Result<(), Problem> {
        let (line, cells) = say(name, changed);
        for warning in &changed.warnings {
            output::warning(warning);
        }
        match self.json {
            true => {}
            false if manner::is_quiet() => output::data(&format!("{name}\n"))?,
            false if output::on_terminal() => output::ours(&format!("{line}\n")),
            false => output::data(&format!("{}\n", [vec![name.to_owned()], cells].concat().join("\t")))?,
        }
        Ok(())
    }
}
