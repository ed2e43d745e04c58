//! `auto_stop_stale_after`: a VM that stays and that nothing has used for so long is stopped.
//!
//! A use is a connection that goes through this daemon, as long as it is open: a command, a copy, ssh by the agent, a
//! published port; and packets that its guest sends, for who comes in by its address. One that is left alone sends next to none;
//! what comes to it is no measure, since each hears who looks for another. What it computes for itself is no use. After a daemon's start every VM counts as used just then.

use super::life;
use super::work::Work;
use crate::api::Fault;
use crate::daemon::error::exit;
use crate::daemon::store::vms::{self, State, Vm};
use crate::daemon::{Daemon, log, serve};
use std::collections::HashMap;
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What else goes on with a VM is its use.
const OTHERS: Duration = Duration::ZERO;
/// So many packets in each [`WINDOW`] are a guest's own: who is there, who is the router.
const QUIET: u64 = 8;
/// No look is later after the one before: a short use shows among few packets.
const WINDOW: Duration = Duration::from_secs(60);

/// Looks at VMs for ever, on a thread of its own; nothing where none is to be stopped.
pub(crate) fn begin(daemon: &Arc<Daemon>) -> Result<(), Fault> {
    let stale = daemon.settings.stale;
    let Some(after) = stale.after else { return Ok(()) };
    let daemon = Arc::clone(daemon);
    let work = move || {
        let mut uses = Uses::default();
        loop {
            std::thread::sleep(stale.look.min(WINDOW));
            let looked = look(&daemon, &mut uses, after);
            looked.unwrap_or_else(|fault| log::fault("stale", "", &fault));
        }
    };
    std::thread::Builder::new().name("stale".into()).spawn(work).map(drop).map_err(Fault::bug)
}

fn look(daemon: &Daemon, uses: &mut Uses, after: Duration) -> Result<(), Fault> {
    let running: Vec<Vm> =
        daemon.store.change(|t| vms::all(t))?.into_iter().filter(|vm| vm.kept && vm.state == State::Ready).collect();
    uses.0.retain(|id, _| running.iter().any(|vm| vm.id == *id));
    let packets = packets();
    let stale = running.iter().filter(|vm| {
        let used = daemon.slots.used(&vm.id);
        uses.note(&vm.id, packets_of(&packets, &tap(daemon, vm)), used, Instant::now()) >= after
    });
    // A stop may take a minute, and each may fail.
    for vm in stale.collect::<Vec<_>>() {
        match stop(daemon, uses, vm, after) {
            // Somebody does something with it.
            Err(fault) if fault.code == "busy" => {}
            done => done.unwrap_or_else(|fault| log::fault("stale", &vm.name, &fault)),
        }
    }
    Ok(())
}

fn stop(daemon: &Daemon, uses: &mut Uses, vm: &Vm, after: Duration) -> Result<(), Fault> {
    let Some(_place) = daemon.calls.take() else { return Ok(()) };
    let _held = daemon.slots.hold(&vm.id, &vm.name, "its stop, since nothing uses it", OTHERS)?;
    let vm = daemon.store.change(|t| vms::by_id(t, &vm.id))?;
    let Some(vm) = vm.filter(|vm| vm.state == State::Ready) else { return Ok(()) };
    // Whoever came in between has it.
    let (passed, used) = (packets_of(&packets(), &tap(daemon, &vm)), daemon.slots.connected(&vm.id));
    if uses.note(&vm.id, passed, used, Instant::now()) < after {
        return Ok(());
    }
    let op_id = serve::new_op_id();
    log::say("INFO", "nothing uses the VM: it is stopped", &vm.name);
    let mut work = Work::new(daemon, &op_id);
    let message = format!("{} was stopped: nothing had used it for {} s", vm.name, after.as_secs());
    let fault = Fault::new("stale", exit::STATE, message)
        .why("auto_stop_stale_after is configured")
        .fix(format!("banger vm start {}", vm.name));
    life::stop_held(&mut work, vm, None, Some(fault)).map(drop)
}

/// A tap that has no good name has no packets.
fn tap(daemon: &Daemon, vm: &Vm) -> String {
    Work::new(daemon, "").places(vm).tap().map_or(String::new(), |tap| tap.as_str().to_owned())
}

fn packets() -> String {
    fs::read_to_string("/proc/net/dev").unwrap_or_default()
}

/// What is known of each VM, by its id.
#[derive(Default)]
struct Uses(HashMap<String, Use>);

struct Use {
    /// When it was used last.
    last: Instant,
    /// Since when packets are counted, and how many had passed by then.
    since: (Instant, u64),
}

impl Uses {
    /// How long it has not been used. `used` is when its last connection was open.
    fn note(&mut self, id: &str, passed: u64, used: Option<Instant>, now: Instant) -> Duration {
        let known = self.0.entry(id.to_owned()).or_insert(Use { last: now, since: (now, passed) });
        let (begin, before) = known.since;
        let windows = now.saturating_duration_since(begin).as_secs() / WINDOW.as_secs();
        // A tap that was made anew begins anew.
        let is_use = passed.checked_sub(before).is_none_or(|more| more > QUIET * windows.max(1));
        if is_use {
            known.last = now;
        }
        if is_use || windows > 0 {
            known.since = (now, passed);
        }
        known.last = used.map_or(known.last, |used| used.max(known.last));
        now.saturating_duration_since(known.last)
    }
}

/// The packets that came through a link, a tap's from its guest, of proc_pid_net(5)'s `dev`: the second number behind its
/// name.
fn packets_of(text: &str, link: &str) -> u64 {
    let found = text.lines().find_map(|line| line.trim_start().strip_prefix(link)?.strip_prefix(':'));
    found.and_then(|numbers| numbers.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_is_used_by_connections_and_by_packets() {
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let mut uses = Uses::default();
        let mut idle = |passed, used, now| uses.note("1", passed, used, at(now)).as_secs();
        assert_eq!(idle(100, None, 0), 0, "the first look");
        assert_eq!(idle(100 + QUIET, None, 10), 10, "its own packets");
        assert_eq!(idle(100 + 3 * QUIET, None, 20), 0, "somebody's");
        assert_eq!(idle(100 + 3 * QUIET, None, 50), 30);
        assert_eq!(idle(100 + 3 * QUIET, Some(at(45)), 55), 10, "a connection that is over");
        assert_eq!(idle(100 + 3 * QUIET, Some(at(45)), 65), 20);
        assert_eq!(idle(1, None, 75), 0, "a new tap");
    }

    #[test]
    fn packets_count_by_the_minute_however_often_it_is_looked() {
        // Packets each second, seconds between looks, and whether that is a use.
        for (rate, look, is_use) in [(4.0, 1, true), (0.2, 1, true), (0.2, 60, true), (0.1, 1, false), (0.1, 7, false)]
        {
            let (begun, mut uses, mut most) = (Instant::now(), Uses::default(), 0);
            for second in (0..600).step_by(look) {
                let now = begun + Duration::from_secs(second);
                most = most.max(uses.note("1", (second as f64 * rate) as u64, None, now).as_secs());
            }
            assert_eq!(most <= 60, is_use, "{rate}/s, each {look} s: not used for {most} s");
        }
        // A look that is late, as behind a long stop.
        let (begun, mut uses) = (Instant::now(), Uses::default());
        for (minutes, passed, idle) in [(0, 0, 0), (10, 10 * QUIET, 10), (20, 20 * QUIET + 1, 0)] {
            let now = begun + minutes * WINDOW;
            assert_eq!(uses.note("1", passed, None, now), idle * WINDOW);
        }
    }

    #[test]
    fn the_kernels_table_of_links() {
        let text = "Inter-|   Receive\n face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets\n    \
             lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0\n\
             tap-fc-7f3a: 1234      12    0    0    0     0          0         0     5678      30    0    0    0     0       0          0\n";
        assert_eq!([packets_of(text, "tap-fc-7f3a"), packets_of(text, "tap-fc-7"), packets_of(text, "lo")], [12, 0, 1]);
    }
}
