//! The demo itself: starts the helper, has it launch a Debian VM, listens to what the guest says, takes everything down by the
//! helper's methods, and compares. `demo/inside` calls it in namespaces of its own.

mod helper;
mod outside;
mod place;
mod timeline;
mod vm;
mod vmm;

use std::io;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result};
use helper::{Helper, Owner};
use outside::Outside;
use timeline::Timeline;
use vm::Caller;

use crate::inventory::{self, Inventory, Processes};

/// Runs the demo as the given owner's.
pub(crate) fn run(owner: &str) -> Result<()> {
    let owner = Owner::named(owner)?;
    place::prepare(&owner)?;
    let outside = Outside::make()?;
    let before = Inventory::take(Processes::All)?;
    with_helper(&owner)?;
    let after = Inventory::take(Processes::All)?;
    drop(outside);
    inventory::report("in the demo's namespaces", &before, &after)
}

fn with_helper(owner: &Owner) -> Result<()> {
    let helper = Helper::start()?;
    tell(
        "helper",
        &format!("bangerd-root takes calls after {}; VMs are {}'s ({})", ms(helper.started_in), owner.name, owner.uid),
    );
    let told = story(&Caller::new(helper::client())?);
    if let Err(e) = told {
        eprintln!("the helper's last words:\n{}", helper::log_lines());
        return Err(e);
    }
    helper.stop()
}

/// Network, launch, words, end.
fn story<F: Fn() -> io::Result<UnixStream>>(caller: &Caller<F>) -> Result<()> {
    let choice = vmm::choose();
    let program = caller.resolve(choice.name)?;
    tell("vmm", &format!("{program}: {}", choice.why));
    tell_times("network", &caller.network_up()?);

    let mut timeline = Timeline::start();
    let pid = caller.launch(&program, "console=ttyS0")?;
    timeline.reached("the helper answers: the VM runs");
    tell("launch", &format!("process {pid}, 1 CPU, 256 MiB"));

    let stopped = caller.stop(pid).context("can't end the VM")?;
    tell("stop", &format!("the VMM was gone {} after TERM", ms(stopped)));
    for line in timeline.lines() {
        println!("{line}");
    }
    tell_times("undo", &caller.network_down()?);
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
