//! systemd-resolved, by its own interface on the system's bus: `~vm` goes to a server, nothing else does.
//!
//! What it is told belongs to the link: it survives a restart of resolved, and goes with the link. It counts only while
//! the bridge has carrier, that is, while a VM on it runs.

mod bus;
mod calls;
mod message;

use super::{bridge, link, refused};
use crate::fail::Fail;
use crate::host::Host;
use crate::log::{Level, Value};
use crate::steps;
use bus::{Bus, Trouble};
use calls::{Call, MANAGER};
use rustix::fs::{AtFlags, CWD};
use std::cell::RefCell;
use wire::name::link::BridgeName;
use wire::net::ResolverRoute;

const UNKNOWN_METHOD: &str = "org.freedesktop.DBus.Error.UnknownMethod";
const INVALID_ARGS: &str = "org.freedesktop.DBus.Error.InvalidArgs";
const NO_SUCH_LINK: &str = "org.freedesktop.resolve1.NoSuchLink";
const LINK_BUSY: &str = "org.freedesktop.resolve1.LinkBusy";

/// Names below `vm` go to the server while the bridge has carrier; success where resolved is not there.
pub(crate) fn sync(host: &Host, route: &ResolverRoute) -> Result<(), Fail> {
    let name = &route.bridge;
    // One at a time: settings of two that mix could leave a server without its domain, which would get every name.
    let _alone = host.net.locks.hold(format!("resolver:{name}"));
    let Some(bus) = resolved()? else { return Ok(()) };
    let Some(bridge) = find(host, name)? else {
        return Err(Fail::new(format!("the bridge {name} is not there: make it first (priv.ensure_bridge)")));
    };
    let index = bridge.link().index;
    let bus = RefCell::new(bus);
    steps::run("sync_resolver_routing", &host.faults, |steps| {
        let ask = |call: Call| {
            bus.borrow_mut().ask(&MANAGER, &call).map(drop).map_err(|trouble| explained(name, &call, trouble))
        };
        // The server last: until resolved knows it, nothing goes to this link, however few of the others were done.
        steps.act("default_route", || ask(calls::no_default_route(index)))?;
        steps.undo("the link's name server", move || revert(name, index));
        steps.act("domain", || ask(calls::domains(index)))?;
        steps.act("llmnr", || ask(calls::off("SetLinkLLMNR", index)))?;
        steps.act("mdns", || ask(calls::off("SetLinkMulticastDNS", index)))?;
        steps.act("dnssec", || ask(calls::off("SetLinkDNSSEC", index)))?;
        steps.act("tls", || ask(calls::off("SetLinkDNSOverTLS", index)))?;
        steps.act("server", || ask(calls::dns(index, route.server)))
    })?;
    if !bridge.link().carrier {
        let fields = [("bridge", Value::Text(name.as_str(), 16))];
        host.log.own(Level::Info, "resolver routing waits for a running VM on the bridge", &fields);
    }
    Ok(())
}

/// Names below `vm` no longer go there; success where bridge or resolved is not there.
pub(crate) fn clear(host: &Host, name: &BridgeName) -> Result<(), Fail> {
    let _alone = host.net.locks.hold(format!("resolver:{name}"));
    let Some(mut bus) = resolved()? else { return Ok(()) };
    let Some(bridge) = find(host, name)? else { return Ok(()) };
    steps::run("clear_resolver_routing", &host.faults, |steps| {
        steps.act("revert", || revert_by(&mut bus, name, bridge.link().index))
    })
}

/// The undo of [`sync`]: a new conversation, since the first may have broken off.
fn revert(name: &BridgeName, index: u32) -> Result<(), Fail> {
    match resolved()? {
        Some(mut bus) => revert_by(&mut bus, name, index),
        None => Ok(()),
    }
}

fn revert_by(bus: &mut Bus, name: &BridgeName, index: u32) -> Result<(), Fail> {
    let call = calls::revert(index);
    match bus.ask(&MANAGER, &call) {
        // It went meanwhile, and what resolved knew of it too.
        Err(trouble) if trouble.is(NO_SUCH_LINK) => Ok(()),
        other => other.map(drop).map_err(|trouble| explained(name, &call, trouble)),
    }
}

/// The bridge, proven ours.
fn find(host: &Host, name: &BridgeName) -> Result<Option<bridge::Ours>, Fail> {
    let found = host.net.links.with(|conn| link::by_name(conn, name.as_str())).map_err(refused)?;
    match found {
        None => Ok(None),
        // An alternative name finds its link too.
        Some(link) if link.name != name.as_str() => Err(Fail::new(format!("{name} is another link's other name"))),
        Some(link) => match bridge::Ours::prove(link) {
            Some(ours) => Ok(Some(ours)),
            None => Err(Fail::new(format!("the link {name} is not banger's bridge: choose another bridge"))),
        },
    }
}

/// A bus on which resolved answers; `None` where it does not run. It is not started for this.
fn resolved() -> Result<Option<Bus>, Fail> {
    let lost =
        |trouble| Fail::new("the system's message bus could not be asked; the helper's log says why").because(trouble);
    let Some(mut bus) = Bus::open().map_err(lost)? else { return Ok(None) };
    let ask = calls::about_resolved("NameHasOwner");
    if bus.number(&calls::BUS, &ask).map_err(lost)? == 0 {
        return Ok(None);
    }
    let pid = bus.number(&calls::BUS, &calls::about_resolved("GetConnectionUnixProcessID")).map_err(lost)?;
    Ok(has_our_links(pid)?.then_some(bus))
}

/// Whether that process is in our network namespace. Links go by their index: in another namespace it is another link.
fn has_our_links(pid: u32) -> Result<bool, Fail> {
    let namespace = |of: &str| {
        let path = format!("/proc/{of}/ns/net");
        rustix::fs::statat(CWD, path.as_str(), AtFlags::empty()).map(|stat| (stat.st_dev, stat.st_ino)).map_err(
            |error| Fail::new("systemd-resolved's network could not be seen").because(format!("stat {path}: {error}")),
        )
    };
    Ok(namespace("self")? == namespace(&pid.to_string())?)
}

/// What resolved's refusal means, and what helps.
fn explained(name: &BridgeName, call: &Call, trouble: Trouble) -> Fail {
    let words = if trouble.is(UNKNOWN_METHOD) && call.member == "SetLinkDNSEx" {
        "systemd-resolved is older than 246 and asks no server at a port of its own: \
         name the server without a port, and let it listen on port 53"
            .to_owned()
    } else if trouble.is(UNKNOWN_METHOD) {
        format!("systemd-resolved is too old: it has no {}", call.member)
    } else if trouble.is(LINK_BUSY) {
        format!(
            "systemd-networkd manages {name}, so resolved takes its name servers from there alone: \
                 set Unmanaged=yes in the [Link] section of its .network file"
        )
    } else if trouble.is(NO_SUCH_LINK) {
        format!("systemd-resolved does not know the link {name}: it may have gone meanwhile; try again")
    } else if trouble.is(INVALID_ARGS) && call.member.starts_with("SetLinkDNS") {
        "systemd-resolved takes no such server: name the address at which the daemon's own listens".to_owned()
    } else {
        format!("systemd-resolved could not be told about {name}; the helper's log says why")
    };
    Fail::new(words).because(trouble)
}
