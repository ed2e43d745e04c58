//! Watches what others do to rules and routes, and puts ours back: one thread, which sleeps until the kernel says that
//! something changed. There is none while nothing is ours.
//!
//! Each commit of nftables ends in a message with the socket and the name of who did it. What a foreign one took of our
//! tables is put back at once; what stands in others' tables and the links' forwarding after 5 ms of quiet, at the
//! latest 45 ms after the first message. Where messages were lost, everything is looked at.

mod heard;
mod repair;
mod told;

use crate::host::Host;
use crate::log::{Level, Value};
use heard::{Heard, Sources};
use repair::Look;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use told::Told;

/// Others finish what they are at: a restart of Docker's is 41 commits.
const QUIET: Duration = Duration::from_millis(5);
/// No longer than that, however busy they are.
const LONGEST: Duration = Duration::from_millis(45);
/// More repairs a second are a fight.
const REPAIRS: usize = 20;
/// How long a fight is left alone.
const PAUSE: Duration = Duration::from_secs(10);
/// What it does takes less than that, and then it sleeps: nobody loses by its coming first.
const TURN: Duration = Duration::from_micros(100);
/// So often what failed is tried again without anything having happened: after 1 s, 2 s, 4 s …
const TRIES: u32 = 6;

/// The watcher, as the methods see it.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    host: OnceLock<&'static Shared>,
    runs: AtomicBool,
}

/// The host, for the thread.
struct Shared(&'static Host);

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shared")
    }
}

impl Watch {
    /// Whether somebody watches.
    pub(crate) fn runs(&self) -> bool {
        self.runs.load(Ordering::Acquire)
    }

    /// Something of ours is there, or comes: from now on somebody watches.
    pub(crate) fn begin(&self) {
        let Some(Shared(host)) = self.host.get() else { return };
        if self.runs.swap(true, Ordering::AcqRel) {
            return;
        }
        // Opened here: what happens from now on is heard. The tables' socket before it: the first one of a process has
        // its pid for a number, by which nft names an owner.
        let own = host.net.firewall(|fw| Ok(fw.port())).ok().flatten();
        let started = Sources::open(own).and_then(|sources| {
            let watcher = Watcher::new(host, sources, own);
            std::thread::Builder::new().name("watch".into()).stack_size(256 << 10).spawn(move || watcher.watch())
        });
        if let Err(error) = started {
            self.runs.store(false, Ordering::Release);
            let text = error.to_string();
            host.log.own(
                Level::Warn,
                "others' changes of rules are not watched",
                &[("cause", Value::Text(&text, 256))],
            );
        }
    }
}

/// Where the helper starts: it may watch from now on, and does where something of ours is there already.
pub(crate) fn arm(host: &'static Host) {
    let _ = host.net.watch.host.set(Box::leak(Box::new(Shared(host))));
    let failed = if repair::anything(host) {
        host.net.watch.begin();
        repair::adopt(host)
    } else {
        repair::sweep(host)
    };
    if let Some(fail) = failed {
        Told::default().failed(host, &fail);
    }
}

/// The thread.
struct Watcher {
    host: &'static Host,
    sources: Sources,
    heard: Heard,
    fight: Fight,
    told: Told,
    /// Rules are not looked at before.
    not_before: Option<Instant>,
    /// How often it failed, one time after the other.
    failed: u32,
}

impl Watcher {
    fn new(host: &'static Host, sources: Sources, own: Option<u32>) -> Watcher {
        Watcher {
            host,
            sources,
            heard: Heard::new(own),
            fight: Fight::default(),
            told: Told::default(),
            not_before: None,
            failed: 0,
        }
    }

    fn watch(mut self) {
        // The sooner we come the better: when the program that changed rules ends, the kernel holds all of nftables for a
        // grace period. Where it can't be had we come later.
        let _ = sys::slice::ask(TURN);
        loop {
            self.turn();
        }
    }

    /// Waits for something to happen, and answers it.
    fn turn(&mut self) {
        let left = |at: Instant| at.saturating_duration_since(Instant::now());
        let put_off = self.heard.rules.then(|| self.not_before.map_or(Duration::ZERO, left));
        self.sources.wait(put_off);
        let since = Instant::now();
        self.hear(since);
        while since.elapsed() < LONGEST && self.sources.wait(Some(QUIET)) {
            self.hear(since);
        }
        let look = match (self.heard.rules && self.may(), self.heard.routes) {
            (true, _) => Look::All,
            (false, true) => Look::Links,
            (false, false) => return,
        };
        self.heard.routes = false;
        self.put_back(look, since);
    }

    /// Reads what came. Our own tables wait for nobody's quiet: meanwhile guests are unprotected.
    fn hear(&mut self, since: Instant) {
        self.sources.hear(&mut self.heard);
        if self.heard.rules {
            self.host.net.beside.forget();
        }
        if self.heard.tables && self.may() {
            self.put_back(Look::Tables, since);
        }
    }

    /// Whether rules may be looked at now.
    fn may(&mut self) -> bool {
        if self.not_before.is_some_and(|at| Instant::now() < at) {
            return false;
        }
        self.not_before = None;
        true
    }

    fn put_back(&mut self, look: Look, since: Instant) {
        let (repaired, failed) = repair::repair(self.host, look);
        match look {
            Look::Links => {}
            Look::Tables => self.heard.tables = false,
            Look::All => (self.heard.tables, self.heard.rules) = (false, false),
        }
        if let Some(fail) = &failed {
            self.told.failed(self.host, fail);
            self.failed += 1;
            if self.failed <= TRIES {
                self.heard.rules = true;
                self.not_before = Some(Instant::now() + Duration::from_secs(1 << (self.failed - 1)));
            }
        } else if look == Look::All {
            self.failed = 0;
        }
        if repaired.is_empty() {
            return;
        }
        self.told.repaired(self.host, &self.heard.by, &repaired, since.elapsed());
        if self.fight.one_more(Instant::now()) {
            self.told.fights(self.host, &self.heard.by);
            self.heard.rules = true;
            self.not_before = Some(Instant::now() + PAUSE);
        }
    }
}

/// How often there was something to put back of late.
#[derive(Debug, Default)]
struct Fight(Vec<Instant>);

impl Fight {
    /// Counts a repair; one too many, and the other has it his way for a while.
    fn one_more(&mut self, now: Instant) -> bool {
        self.0.retain(|time| now.duration_since(*time) < Duration::from_secs(1));
        self.0.push(now);
        let fights = self.0.len() > REPAIRS;
        if fights {
            self.0.clear();
        }
        fights
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_twenty_in_a_second_are_a_fight() {
        let start = Instant::now();
        let mut fight = Fight::default();
        let at = |ms: u64| start + Duration::from_millis(ms);
        assert!((0..100).all(|nth| !fight.one_more(at(nth * 50))), "twenty a second");
        assert!((0..19).all(|nth| !fight.one_more(at(20_000 + nth))));
        assert!(!fight.one_more(at(20_020)) && fight.one_more(at(20_021)));
        assert!(!fight.one_more(at(20_022)), "it begins anew");
    }
}
