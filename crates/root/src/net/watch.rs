//! Watches what others do to rules and routes, and puts ours back: one thread, which sleeps until the kernel says that
//! something changed. There is none while nothing is ours.
//!
//! Each commit of nftables ends in a message with the socket and the name of who did it. A foreign one is answered
//! after 5 ms of quiet, and within 50 ms.

mod repair;

use super::message::{attr, text, u16_at, u32_at};
use super::ruleset::nft;
use crate::host::Host;
use crate::log::{Level, Value};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use sys::netlink::Family;
use sys::netlink_events::Events;

/// Others finish what they are at: a restart of Docker's is 41 commits.
const QUIET: Duration = Duration::from_millis(5);
/// No longer than that, however busy they are.
const LONGEST: Duration = Duration::from_millis(45);
/// More repairs a second are a fight.
const REPAIRS: usize = 20;
/// How long a fight is left alone.
const PAUSE: Duration = Duration::from_secs(10);

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
        // Opened here: what happens from now on is heard.
        let started = Sources::open().and_then(|sources| {
            std::thread::Builder::new().name("watch".into()).stack_size(256 << 10).spawn(move || watch(host, &sources))
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
    if repair::anything(host) {
        host.net.watch.begin();
        repair::adopt(host);
    }
}

/// What is listened to.
struct Sources {
    rules: Events,
    routes: Events,
}

impl Sources {
    fn open() -> std::io::Result<Sources> {
        // NFNLGRP_NFTABLES; RTNLGRP_LINK, IPV4_ROUTE, IPV4_RULE, IPV4_NETCONF.
        Ok(Sources {
            rules: Events::open(Family::Netfilter, &[7])?,
            routes: Events::open(Family::Route, &[1, 7, 8, 24])?,
        })
    }

    /// Waits for a message; `false` where the time was over.
    fn wait(&self, time: Option<Duration>) -> bool {
        let time =
            time.map(|time| Timespec { tv_sec: time.as_secs().cast_signed(), tv_nsec: time.subsec_nanos().into() });
        let mut fds = [PollFd::new(&self.rules, PollFlags::IN), PollFd::new(&self.routes, PollFlags::IN)];
        // A signal that comes between is as good as a message.
        poll(&mut fds, time.as_ref()).unwrap_or(1) > 0
    }
}

/// What was heard.
#[derive(Debug, Default)]
struct Heard {
    rules: bool,
    routes: bool,
    /// Who changed rules last.
    by: String,
}

fn watch(host: &'static Host, sources: &Sources) {
    let mut buffer = vec![0; 64 << 10];
    let mut fight = Fight::default();
    loop {
        sources.wait(None);
        let since = Instant::now();
        let mut heard = Heard::default();
        hear(host, sources, &mut buffer, &mut heard);
        if !(heard.rules || heard.routes) {
            continue;
        }
        while since.elapsed() < LONGEST && sources.wait(Some(QUIET)) {
            hear(host, sources, &mut buffer, &mut heard);
        }
        if heard.rules {
            host.net.beside.forget();
        }
        let repaired = repair::repair(host, heard.rules);
        if !repaired.is_empty() {
            let fields = [
                ("by", Value::Text(&heard.by, 64)),
                ("what", Value::List(&repaired, 256)),
                ("after_us", Value::Number(since.elapsed().as_micros() as u64)),
            ];
            host.log.own(Level::Info, "put back what another changed", &fields);
            fight.one_more(host, &heard.by);
        }
    }
}

fn hear(host: &Host, sources: &Sources, buffer: &mut [u8], heard: &mut Heard) {
    loop {
        match sources.rules.receive(buffer) {
            Ok(Some(length)) => {
                let own = host.net.own_port();
                for (kind, port, body) in messages(&buffer[..length]) {
                    if kind == nft(NEWGEN) && Some(port) != own {
                        heard.rules = true;
                        heard.by = body.get(4..).and_then(|body| attr(body, 3)).map(text).unwrap_or_default();
                    }
                }
            }
            Ok(None) => break,
            // ENOBUFS: something was lost, so something changed.
            Err(_) => heard.rules = true,
        }
    }
    loop {
        match sources.routes.receive(buffer) {
            Ok(Some(_)) => heard.routes = true,
            Ok(None) => return,
            Err(_) => heard.routes = true,
        }
    }
}

const NEWGEN: u16 = 15;

/// The messages of a datagram: type, who caused it, body.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, u32, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32_at(bytes, 0)? as usize;
        let message = bytes.get(..length).filter(|message| message.len() >= 16)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16_at(message, 4)?, u32_at(message, 12)?, &message[16..]))
    })
}

/// How often there was something to put back of late.
#[derive(Debug, Default)]
struct Fight {
    times: Vec<Instant>,
    named: Vec<String>,
}

impl Fight {
    /// Counts a repair; one too many, and the other has it his way for a while.
    fn one_more(&mut self, host: &Host, by: &str) {
        self.times.retain(|time| time.elapsed() < Duration::from_secs(1));
        self.times.push(Instant::now());
        if self.times.len() <= REPAIRS {
            return;
        }
        if !self.named.iter().any(|name| name == by) && self.named.len() < 64 {
            self.named.push(by.to_owned());
            let fields = [("by", Value::Text(by, 64))];
            host.log.own(
                Level::Warn,
                "another program takes banger's rules away again and again: left alone for 10 s at a time",
                &fields,
            );
        }
        std::thread::sleep(PAUSE);
        self.times.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_says_whose_it_is() {
        let mut bytes = vec![];
        bytes.extend(20u32.to_ne_bytes());
        bytes.extend(nft(NEWGEN).to_ne_bytes());
        bytes.extend([0; 6]);
        bytes.extend(77u32.to_ne_bytes());
        bytes.extend([0; 4]);
        assert_eq!(messages(&bytes).map(|(kind, port, _)| (kind, port)).collect::<Vec<_>>(), [(nft(NEWGEN), 77)]);
        for cut in 0..bytes.len() {
            assert_eq!(messages(&bytes[..cut]).count(), 0);
        }
    }
}
