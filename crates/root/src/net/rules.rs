//! What the tables hold of a bridge and of a tap: written when it comes, taken away when it goes.

use super::firewall::{Change, Changed, Firewall, Tables};
use super::link::{self, Address, Link};
use super::netlink::Refused;
use super::sets::{Element, Set};
use super::{Net, bridge, refused, tap};
use crate::fail::Fail;
use crate::host::Host;
use crate::steps::Steps;
use std::net::Ipv4Addr;

/// A bridge in the tables: its name, its MAC and addresses as nobody else's.
pub(crate) fn of_bridge(link: &Link, addresses: &[Address]) -> Vec<Element> {
    let mut elements =
        vec![Element::link(Set::Bridges, &link.name), Element::together(&link.name), Element::mac(&link.mac)];
    elements
        .extend(addresses.iter().filter(|address| address.index == link.index).map(|address| Element::ip(address.ip)));
    elements
}

/// Everything of ours that the kernel has and the tables are to hold: for tables made anew.
pub(crate) fn survey(net: &Net) -> Result<Vec<Element>, Refused> {
    net.links.with(|conn| {
        let addresses = link::addresses(conn, None)?;
        let mut elements = Vec::new();
        for link in link::list(conn, None)? {
            if tap::is_ours(&link) {
                // One that is half made is let in by whoever makes it.
                if link.master == 0 && !link.tun.is_some_and(|tun| tun.persists) {
                    continue;
                }
                elements.push(Element::link(Set::Ports, &link.name));
            } else if let Some(ours) = bridge::Ours::prove(link) {
                elements.extend(of_bridge(ours.link(), &addresses));
            }
        }
        Ok(elements)
    })
}

/// The tap's MAC as it was learned: forgotten when the tap gets a new guest.
pub(crate) fn station(fw: &mut Firewall, tap: &str) -> Result<Vec<Element>, Refused> {
    let mut elements = vec![Element::link(Set::HasMac, tap)];
    for station in fw.elements(Set::Stations)?.into_iter().filter(|station| station.link_name() == tap) {
        elements.push(Element::mac(station.station()));
        elements.push(station);
    }
    Ok(elements)
}

/// The addresses that a tap is held to, with their place among those that are taken.
pub(crate) fn pins(fw: &mut Firewall, tap: &str) -> Result<Vec<Element>, Refused> {
    let mut elements = vec![Element::link(Set::HasIp, tap)];
    for pin in fw.elements(Set::Addresses)?.into_iter().filter(|pin| pin.link_name() == tap) {
        elements.extend(pin.address().map(Element::ip));
        elements.push(pin);
    }
    Ok(elements)
}

/// The guests among `pins`: those that have a way out.
pub(crate) fn guests(fw: &mut Firewall, pins: &[Element]) -> Result<Vec<Element>, Refused> {
    if pins.is_empty() {
        return Ok(Vec::new());
    }
    let addresses: Vec<_> = pins.iter().filter_map(Element::address).collect();
    let guests = fw.elements(Set::Guests)?;
    Ok(guests.into_iter().filter(|guest| guest.address().is_some_and(|ip| addresses.contains(&ip))).collect())
}

/// Lets a tap's frames be looked at, from before it is on the bridge. A pinned address stays where it has a way out.
/// A tap that is no port yet is refused where there are `most` of them.
pub(crate) fn admit<'a>(
    host: &'a Host,
    steps: &mut Steps<'a>,
    tap: &str,
    on: &bridge::Ours,
    most: usize,
) -> Result<(), Fail> {
    let net = &host.net;
    let change = |fw: &mut Firewall| {
        let mut standing = of_bridge(on.link(), on.addresses());
        standing.push(Element::link(Set::Ports, tap));
        let seen =
            fw.look(&[&[Element::link(Set::HasMac, tap), Element::link(Set::HasIp, tap)], &standing[..]].concat())?;
        // Under the lock of the tables: many at once don't pass the limit together.
        if seen.there.last() == Some(&false) && fw.count(&seen)?.ports >= most {
            return Ok(Err(tap::full(most)));
        }
        let mut present = if seen.stands() { Vec::new() } else { survey(net)? };
        present.extend(standing);
        let mut absent = if seen.there[0] { station(fw, tap)? } else { Vec::new() };
        let pins = if seen.there[1] { pins(fw, tap)? } else { Vec::new() };
        let ways = guests(fw, &pins)?;
        // A guest with a way out on another bridge is one of before the tap was moved.
        if ways.iter().all(|way| way.link_name() != on.link().name) {
            absent.extend(pins);
            absent.extend(ways);
        }
        fw.apply_seen(&Change { tables: Tables::Made, present, absent }, Some(seen)).map(Ok)
    };
    let changed = steps.act("rules", || {
        net.firewall(change)
            .map_err(|error| Fail::new(format!("the rules for {tap} could not be made")).because(error))?
    })?;
    steps.undo("the tap's rules", move || take_back(net, changed));
    Ok(())
}

/// What a tap has in the sets that learn: asked first whether there is any, by one question. Its station, its pins.
pub(crate) fn learned(fw: &mut Firewall, tap: &str) -> Result<(Vec<Element>, Vec<Element>), Refused> {
    let seen = fw.look(&[Element::link(Set::HasMac, tap), Element::link(Set::HasIp, tap)])?;
    let stations = if seen.there[0] { station(fw, tap)? } else { Vec::new() };
    let pins = if seen.there[1] { pins(fw, tap)? } else { Vec::new() };
    Ok((stations, pins))
}

/// Forgets what was learned of the tap's last guest: its MAC, and its address where it has no way out.
pub(crate) fn fresh(net: &Net, tap: &str) -> Result<(), Refused> {
    net.firewall(|fw| {
        let (mut absent, pins) = learned(fw, tap)?;
        if guests(fw, &pins)?.is_empty() {
            absent.extend(pins);
        }
        if absent.is_empty() {
            return Ok(());
        }
        fw.apply(&Change { absent, ..Change::default() }).map(|_| ())
    })
}

/// Takes a change of the tables back.
pub(crate) fn take_back(net: &Net, changed: Changed) -> Result<(), Fail> {
    net.firewall(|fw| fw.take_back(changed)).map_err(refused)
}

/// An address that a bridge had is free again.
pub(crate) fn forget_address<'a>(host: &'a Host, steps: &mut Steps<'a>, ip: Ipv4Addr) -> Result<(), Fail> {
    let net = &host.net;
    let change = Change { absent: vec![Element::ip(ip)], ..Change::default() };
    let changed = net.firewall(|fw| fw.apply(&change)).map_err(refused)?;
    steps.undo("the bridge's rules", move || take_back(net, changed));
    Ok(())
}
