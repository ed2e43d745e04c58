//! The demo itself: starts the helper, has it launch a Debian VM, listens to what the guest says, takes everything down by the
//! helper's methods, and compares. `demo/inside` calls it in namespaces of its own.

mod bench;
mod console;
mod helper;
mod outside;
mod place;
mod timeline;
mod vm;
mod words;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use banger::daemon::vmm::{self, Missing, Wanted};
use console::Console;
use helper::{Connect, Helper, Owner};
use outside::Outside;
use timeline::Timeline;
use vm::{Caller, Jail};

use crate::inventory::{self, Inventory, Processes};

/// What the guest's program says first.
const WORD: &str = "hello from the guest";
/// How long that may take: emulation on a busy machine is slow.
const FIRST_WORD: Duration = Duration::from_secs(60);

/// What the demo is asked to do beside the usual.
#[derive(Default)]
pub(crate) struct Wishes {
    /// The VM runs without a jail.
    pub(crate) no_jail: bool,
    /// More kernel arguments.
    pub(crate) kernel_args: String,
    /// Rounds of the comparison with a bare QEMU; none: the usual demo.
    pub(crate) bench: Option<usize>,
}

/// Runs the demo as the given owner's.
pub(crate) fn run(owner: &str, wishes: &Wishes) -> Result<()> {
    let owner = Owner::named(owner)?;
    place::prepare(&owner)?;
    let outside = Outside::make()?;
    let before = Inventory::take(Processes::All)?;
    with_helper(&owner, wishes)?;
    let after = Inventory::take(Processes::All)?;
    drop(outside);
    inventory::report("in the demo's namespaces", &before, &after)
}

fn with_helper(owner: &Owner, wishes: &Wishes) -> Result<()> {
    let helper = Helper::start()?;
    let takes = ms(helper.started_in);
    tell("helper", &format!("bangerd-root takes calls after {takes}; VMs are {}'s ({})", owner.name, owner.uid));
    let told = with_network(&Caller::new(helper::client(), owner)?, owner, wishes);
    if told.is_err() && !helper::log_lines().is_empty() {
        eprintln!("the helper's last words:\n{}", helper::log_lines());
    }
    told?;
    helper.stop()
}

fn with_network<F: Connect>(caller: &Caller<F>, owner: &Owner, wishes: &Wishes) -> Result<()> {
    let choice = vmm::choose(|name| caller.resolve(name), &Wanted::default()).map_err(|missing| match missing {
        Missing::Program(error) => error,
        Missing::Kvm(error) => error.into(),
    })?;
    let program = choice.program;
    tell("vmm", &format!("{}: {}", choice.name, choice.why));
    tell_times("network", &caller.network_up()?);
    match wishes.bench {
        None => story(caller, &program, wishes)?,
        Some(rounds) => bench::run(caller, owner, &program, rounds)?,
    }
    tell_times("undo", &caller.network_down()?);
    caller.bridge_down()?;
    tell("", "the bridge stays for the next VM by the contract; here it goes too: ip link delete br-fc");
    let left = caller.left()?;
    ensure!(left == 0, "the helper still finds {left} bridges, taps, guests or VMs of its own");
    Ok(())
}

/// Launch, words, end.
fn story<F: Connect>(caller: &Caller<F>, program: &str, wishes: &Wishes) -> Result<()> {
    let console = Console::from_now(vm::LOG);
    let mut timeline = Timeline::start();
    let jail = if wishes.no_jail { Jail::Without } else { Jail::With };
    let pid =
        caller.launch(program, jail, &vm::kernel_args(WORD, &format!("banger.stages=1 {}", wishes.kernel_args)))?;
    timeline.reached("the helper answers: the VM runs");
    tell("launch", &format!("process {pid}, 1 CPU, 256 MiB, {}", jail.words()));
    let network = console.wait_for(" network", FIRST_WORD, || caller.runs(pid))?;
    guest_stages(&console, network, &mut timeline);
    let first = console.wait_for(WORD, FIRST_WORD, || caller.runs(pid))?;
    timeline.reached_at("the guest's first word, on its console", first);

    words(&mut timeline)?;

    let stopped = caller.stop(pid).context("can't end the VM")?;
    tell("stop", &format!("the VMM was gone {} after TERM", ms(stopped)));
    for line in timeline.lines() {
        println!("{line}");
    }
    Ok(())
}

/// The stages that the guest told by its own clock, put on ours by the moment in which it told the last of them.
fn guest_stages(console: &Console, network: Instant, timeline: &mut Timeline) {
    let stages = console.stages();
    let Some((_, told)) = stages.iter().find(|(name, _)| name == "network") else { return };
    let moment = |at: f64| network.checked_sub(Duration::from_secs_f64((told - at).max(0.0)));
    let names = [
        ("start", "the guest's first process begins"),
        ("modules", "its modules are loaded"),
        ("root", "its root file system is mounted"),
        ("network", "its network is set up"),
    ];
    if let Some(then) = moment(0.0) {
        timeline.reached_at("the guest's kernel has its clock", then);
    }
    for (name, words) in names {
        let at = stages.iter().find(|(told, _)| told == name).and_then(|(_, at)| moment(*at));
        if let Some(at) = at {
            timeline.reached_at(words, at);
        }
    }
}

/// What the guest says, over vsock.
fn words(timeline: &mut Timeline) -> Result<()> {
    words::greet()?;
    timeline.reached("an answer over vsock");
    let system = words::system()?;
    timeline.reached("a program run over vsock");
    tell("guest", &system);
    tell("address", &words::address(vm::GUEST)?);
    let reply = words::ping()?;
    timeline.reached("a ping's reply from beyond the NAT");
    tell("ping", &reply);
    tell("tcp", &words::tcp()?);
    timeline.reached("a TCP answer from there");
    Ok(())
}

/// One line of the demo: what it is about, and what is so.
fn tell(about: &str, what: &str) {
    println!("{about:8} {what}");
}

fn tell_times(about: &str, calls: &[(&str, Duration)]) {
    let calls: Vec<String> = calls.iter().map(|(method, time)| format!("{method} {}", ms(*time))).collect();
    tell(about, &calls.join("   "));
}

fn ms(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}
