//! What the tables hold of a bridge and of a tap: written when it comes, taken away when it goes.

use super::firewall::{Change, Changed, Firewall, Tables};
use super::link::{self, Address, Link};
use super::netlink::Refused;
use super::sets::{Element, Set};
use super::{Net, bridge, forward, nat, refused, tap};
use crate::fail::Fail;
use crate::host::Host;
use crate::steps::Steps;
use std::net::Ipv4Addr;
use std::sync::PoisonError;

/// A bridge in the tables: its name, its MAC and addresses as nobody else's; its guests see each other, or not.
pub(crate) fn of_bridge(net: &Net, link: &Link, addresses: &[Address]) -> Vec<Element> {
    let mut elements = vec![Element::link(Set::Bridges, &link.name), Element::mac(&link.mac)];
    if !net.isolate_guests {
        elements.push(Element::together(&link.name));
    }
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
                // One that is on no bridge comes or goes: whoever makes it lets it in.
                if link.master == 0 {
                    continue;
                }
                elements.push(Element::link(Set::Ports, &link.name));
            } else if let Some(ours) = bridge::Ours::prove(link) {
                elements.extend(of_bridge(net, ours.link(), &addresses));
            }
        }
        Ok(elements)
    })
}

/// The taps' MACs as they were learned: forgotten when a tap gets a new guest.
pub(crate) fn station(fw: &mut Firewall, taps: &[String]) -> Result<Vec<Element>, Refused> {
    if taps.is_empty() {
        return Ok(Vec::new());
    }
    let mut elements: Vec<_> = taps.iter().map(|tap| Element::link(Set::HasMac, tap)).collect();
    for station in fw.elements(Set::Stations)?.into_iter().filter(|station| taps.contains(&station.link_name())) {
        elements.push(Element::mac(station.station()));
        elements.push(station);
    }
    Ok(elements)
}

/// The addresses that taps are held to, with their place among those that are taken.
pub(crate) fn pins(fw: &mut Firewall, taps: &[String]) -> Result<Vec<Element>, Refused> {
    if taps.is_empty() {
        return Ok(Vec::new());
    }
    let mut elements: Vec<_> = taps.iter().map(|tap| Element::link(Set::HasIp, tap)).collect();
    for pin in fw.elements(Set::Addresses)?.into_iter().filter(|pin| taps.contains(&pin.link_name())) {
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

/// Lets a tap's frames be looked at, from before it is on the bridge. A pinned address stays where it has a way out there.
/// A tap that is no port yet is refused where there are `most` of them.
pub(crate) fn admit<'a>(
    host: &'a Host,
    steps: &mut Steps<'a>,
    tap: &str,
    on: &bridge::Ours,
    most: usize,
) -> Result<(), Fail> {
    let net = &host.net;
    let [has_mac, has_ip] = leave(host, steps, tap, on)?;
    let change = |fw: &mut Firewall| {
        let mut standing = of_bridge(net, on.link(), on.addresses());
        standing.push(Element::link(Set::Ports, tap));
        let together = net.isolate_guests.then(|| Element::together(&on.link().name));
        let seen = fw.look(&[together.as_slice(), &standing].concat())?;
        // Under the lock of the tables: many at once don't pass the limit together.
        if seen.there.last() == Some(&false) && fw.count(&seen)?.ports >= most {
            return Ok(Err(tap::full(most)));
        }
        let mut present = if seen.stands() { Vec::new() } else { survey(net)? };
        present.extend(standing);
        let own = [tap.to_owned()];
        let mut absent = if has_mac { station(fw, &own)? } else { Vec::new() };
        absent.extend(together);
        let pins = if has_ip { pins(fw, &own)? } else { Vec::new() };
        // One with a way out is on this bridge, and keeps its address.
        if guests(fw, &pins)?.is_empty() {
            absent.extend(pins);
        }
        fw.apply_seen(&Change { tables: Tables::Made, present, absent }, Some(&seen)).map(Ok)
    };
    let changed = steps.act("rules", || {
        net.firewall(change)
            .map_err(|error| Fail::new(format!("the rules for {tap} could not be made")).because(error))?
    })?;
    steps.undo("the tap's rules", move || take_back(net, changed));
    Ok(())
}

/// A guest with a way out on another bridge is one of before the tap was moved: its way ends. Tells whether the tap is held
/// to a MAC, and to an address, by then.
fn leave<'a>(host: &'a Host, steps: &mut Steps<'a>, tap: &str, on: &bridge::Ours) -> Result<[bool; 2], Fail> {
    let has = |fw: &mut Firewall| {
        let seen = fw.look(&[Element::link(Set::HasMac, tap), Element::link(Set::HasIp, tap)])?;
        Ok(([seen.there[0], seen.there[1]], seen))
    };
    let held = |fw: &mut Firewall| -> Result<_, Refused> {
        let (has, seen) = has(fw)?;
        let pins = if has[1] { pins(fw, &[tap.to_owned()])? } else { Vec::new() };
        Ok((has, guests(fw, &pins)?, pins, fw.count(&seen)?.guests))
    };
    let ways = {
        let _ways = host.net.ways.lock().unwrap_or_else(PoisonError::into_inner);
        let (has, ways, pins, guests) = host.net.firewall(held).map_err(refused)?;
        // A helper may have died between the last way's end and that of the record of forwarding.
        let is_shut = guests > 0 || forward::recorded(host)?.is_empty();
        if is_shut && ways.iter().all(|way| way.link_name() == on.link().name) {
            return Ok(has);
        }
        nat::shut(host, steps, &ways, pins)?;
        ways
    };
    let addresses: Vec<_> = ways.iter().filter_map(Element::address).collect();
    nat::connections(host, steps, &addresses)?;
    Ok(host.net.firewall(has).map_err(refused)?.0)
}

/// What taps have in the sets that learn: asked first whether there is any, by one question. Their stations, their pins.
pub(crate) fn learned(fw: &mut Firewall, taps: &[&str]) -> Result<(Vec<Element>, Vec<Element>), Refused> {
    let has = |tap: &&str| [Element::link(Set::HasMac, tap), Element::link(Set::HasIp, tap)];
    let asked: Vec<Element> = taps.iter().flat_map(has).collect();
    let seen = fw.look(&asked)?;
    let those = |set| -> Vec<String> {
        let there = asked.iter().zip(&seen.there).filter(|(element, there)| element.set == set && **there);
        there.map(|(element, _)| element.link_name()).collect()
    };
    Ok((station(fw, &those(Set::HasMac))?, pins(fw, &those(Set::HasIp))?))
}

/// Forgets what was learned of the tap's last guest: its MAC, and its address where it has no way out.
pub(crate) fn fresh(net: &Net, tap: &str) -> Result<(), Refused> {
    net.firewall(|fw| {
        let (mut absent, pins) = learned(fw, &[tap])?;
        if guests(fw, &pins)?.is_empty() {
            absent.extend(pins);
        }
        if absent.is_empty() {
            return Ok(());
        }
        fw.apply(&Change { absent, ..Change::default() }).map(|_| ())
    })
}

/// Guests of these bridges see each other by the host as well, or not; where the tables are there.
pub(crate) fn together<'a>(net: &Net, bridges: impl Iterator<Item = &'a str>, on: bool) -> Result<(), Refused> {
    let elements: Vec<_> = bridges.map(Element::together).collect();
    let (present, absent) = if on { (elements, Vec::new()) } else { (Vec::new(), elements) };
    net.firewall(|fw| fw.apply(&Change { tables: Tables::AsTheyAre, present, absent })).map(|_| ())
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
