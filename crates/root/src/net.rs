//! Links, addresses, rules: the network methods.
//!
//! The kernel is the record of what exists: every method reads it again before it changes a thing. Locks are taken in
//! the order tap, bridges, ways, firewall; none is held while the kernel ends a link but the tap's own.

mod around;
mod beside;
mod bridge;
mod compare;
mod conntrack;
mod expr;
mod firewall;
mod forward;
mod guests;
mod known;
mod list;
mod nat;
mod probe;
mod resolver;
mod route;
mod rules;
mod ruleset;
mod sets;
mod tap;
mod taps;
#[cfg(test)]
mod tests;
mod watch;
mod whose;

use crate::fail::Fail;
use crate::host::Host;
use crate::links::{link, message, netlink};
use crate::locks::Locks;
use crate::log::{Level, Value};
use crate::settings::{Mark, Settings};
use crate::steps;
use firewall::Firewall;
use netlink::{Pool, Refused};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};
use sys::netlink::Family;
use wire::name::link::{BridgeName, TapName};
use wire::net::{Bridge, Nat, NewTap, ResolverRoute, Switch};

/// What the network methods keep between calls: sockets and locks.
#[derive(Debug)]
pub(crate) struct Net {
    /// Links, addresses, routes.
    links: Pool,
    /// Connections.
    tracks: Pool,
    /// The tables: one socket, because a table can belong to the socket that made it.
    /// Opened with the first need: a kernel without netfilter has other methods.
    firewall: Mutex<Option<Firewall>>,
    /// Whether they are to be the helper's alone.
    owned: bool,
    /// Who works on which tap.
    locks: Locks,
    /// Held for writing while a bridge is made or changed, for reading while one must stay as it is.
    bridges: RwLock<()>,
    /// One packet is followed at a time.
    probe: Mutex<()>,
    /// Held while guests' ways and forwarding change together; what is known of where they lead.
    ways: Mutex<around::Around>,
    /// A tap was made, and what the kernel told of it is not heard yet.
    has_news: AtomicBool,
    /// The record of forwarding.
    record: forward::Record,
    /// What is known of other firewalls.
    beside: beside::Beside,
    /// Who listens to what others change.
    watch: watch::Watch,
    /// Guests of one bridge don't see each other.
    isolate_guests: bool,
    /// What guests' packets are marked with.
    mark: Mark,
}

impl Net {
    /// Opens what the methods need.
    pub(crate) fn open(settings: &Settings) -> Result<Net, Fail> {
        Ok(Net {
            links: Pool::new(Family::Route),
            tracks: Pool::new(Family::Netfilter),
            firewall: Mutex::default(),
            owned: settings.own_tables,
            locks: Locks::default(),
            bridges: RwLock::default(),
            ways: Mutex::default(),
            has_news: AtomicBool::new(false),
            probe: Mutex::default(),
            record: forward::Record::default(),
            beside: beside::Beside::default(),
            watch: watch::Watch::default(),
            isolate_guests: settings.isolate_guests,
            mark: settings.mark,
        })
    }

    /// To be called behind each answer: a tap's guest gets its way out next, and need not wait then until what the kernel
    /// told of the tap is read.
    pub(crate) fn hear_news(&self) {
        if !self.has_news.swap(false, Ordering::Relaxed) {
            return;
        }
        // The caller first: woken on this processor, he would wait here for the end of it.
        std::thread::yield_now();
        if let Ok(mut ways) = self.ways.try_lock() {
            ways.hear();
        }
    }

    fn firewall<T>(&self, talk: impl FnOnce(&mut Firewall) -> Result<T, Refused>) -> Result<T, Refused> {
        let mut held = self.firewall.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *held {
            Some(firewall) => talk(firewall),
            empty => talk(empty.insert(Firewall::open(self.owned, self.mark)?)),
        }
    }
}

/// A call of the kernel's that failed where no better words are known.
fn refused(error: Refused) -> Fail {
    Fail::new("the kernel refused a network call; the helper's log says which").because(error)
}

/// The helper starts: taps that are there are isolated or not, as the settings say now. What fails is in the log, and
/// the helper serves: without it the VMs that run would see each other just as well.
pub(crate) fn isolate(host: &Host) {
    if let Err(fail) = tap::isolate_all(host) {
        let fields = [("message", Value::Text(&fail.message, 256)), ("causes", Value::List(&fail.causes, 512))];
        host.log.own(Level::Error, "isolate_guests does not hold for all taps", &fields);
    }
}

/// The helper starts: from now on others' changes can be watched, and are where something of ours is there.
pub(crate) fn watch(host: &'static Host) {
    watch::arm(host);
    // Where nothing of ours is, no probe was under way.
    if host.net.watch.runs() {
        probe::clear(host);
    }
}

/// The bridge exists, up, with its address.
pub(crate) fn ensure_bridge(host: &Host, bridge: &Bridge) -> Result<(), Fail> {
    if bridge::if_right(&host.net, bridge, None)?.0.is_some() {
        return Ok(());
    }
    host.net.watch.begin();
    steps::run("ensure_bridge", &host.faults, |steps| {
        let _alone = host.net.bridges.write().unwrap_or_else(PoisonError::into_inner);
        bridge::put_right(host, steps, bridge)
    })
}

/// The tap exists, the owner's, up, on its bridge.
pub(crate) fn create_tap(host: &Host, new: &NewTap) -> Result<(), Fail> {
    host.net.watch.begin();
    tap::create(host, new).map_err(|fail| whose::explain(&host.net, fail))?;
    host.net.has_news.store(true, Ordering::Relaxed);
    Ok(())
}

/// The tap is gone.
pub(crate) fn delete_tap(host: &Host, tap: &TapName) -> Result<(), Fail> {
    tap::delete(host, tap)
}

/// The taps are gone, all of them.
pub(crate) fn delete_taps(host: &Host, taps: &[TapName]) -> Result<(), Fail> {
    taps::delete(host, taps)
}

/// A new VM comes onto the tap: what was learned of the one before is forgotten, or its frames would be dropped as a
/// second station's. One question where nothing was learned.
pub(crate) fn fresh_port(host: &Host, tap: &TapName) -> Result<(), Fail> {
    let _tap = host.net.locks.hold(format!("tap:{tap}"));
    rules::fresh(&host.net, tap.as_str()).map_err(refused)
}

/// The guest has a way out, or none.
pub(crate) fn ensure_nat(host: &Host, nat: &Nat) -> Result<(), Fail> {
    if nat.switch == Switch::On {
        host.net.watch.begin();
    }
    nat::ensure(host, nat).map_err(|fail| whose::explain(&host.net, fail))
}

/// systemd-resolved sends `~vm` to the server.
pub(crate) fn sync_resolver_routing(host: &Host, route: &ResolverRoute) -> Result<(), Fail> {
    resolver::sync(host, route)
}

/// It does not.
pub(crate) fn clear_resolver_routing(host: &Host, bridge: &BridgeName) -> Result<(), Fail> {
    resolver::clear(host, bridge)
}

/// Where a guest's packet ends.
pub(crate) fn probe(host: &Host, probe: &wire::probe::Probe) -> Result<wire::probe::Probed, Fail> {
    probe::run(host, probe)
}

/// Fills in `bridges`, `taps`, `guests`.
pub(crate) fn list(host: &Host, found: &mut wire::reply::Resources) -> Result<(), Fail> {
    list::list(host, found)
}
