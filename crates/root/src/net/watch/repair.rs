//! What has to be so, by the kernel's links and our records, and making it so again.

use crate::fail::Fail;
use crate::host::Host;
use crate::net::firewall::{Change, Changed, Tables};
use crate::net::guests::{self, Guest};
use crate::net::link::{self, Link};
use crate::net::sets::{Element, Set};
use crate::net::{beside, bridge, forward, refused, rules, tap};
use std::sync::PoisonError;
use wire::name::link::BridgeName;

/// Whether anything of ours is in the kernel, or recorded.
pub(super) fn anything(host: &Host) -> bool {
    let links = host.net.links.with(|conn| link::list(conn, None)).unwrap_or_default();
    links.into_iter().any(|link| tap::is_ours(&link) || bridge::Ours::prove(link).is_some())
        || guests::all(host).is_ok_and(|guests| !guests.is_empty())
}

/// A helper starts where another was: whole tables are believed, what went meanwhile is put back, and what nobody has
/// a use for any more goes. Gives what failed.
pub(super) fn adopt(host: &Host) -> Option<Fail> {
    let recorded = || -> Result<(), Fail> {
        let _ways = host.net.ways.lock().unwrap_or_else(PoisonError::into_inner);
        let found = host.net.firewall(|fw| match fw.stands_as_written()? {
            [true, true] => {
                fw.claim()?;
                guests::in_tables(fw).map(Some)
            }
            _ => Ok(None),
        });
        let Some(found) = found.map_err(refused)? else { return Ok(()) };
        for gone in guests::all(host)?.iter().filter(|guest| !found.contains(guest)) {
            guests::strike(host, gone.address)?;
        }
        found.iter().try_for_each(|guest| match guests::read(host, guest.address)? {
            Some(known) if known == *guest => Ok(()),
            _ => guests::write(host, guest),
        })
    };
    recorded().err().or(repair(host, Look::All).1)
}

/// A helper starts and nothing stands on our tables: one that died before its first tap was there left them.
pub(super) fn sweep(host: &Host) -> Option<Fail> {
    let gone = Change { tables: Tables::Gone, ..Change::default() };
    host.net.firewall(|fw| fw.apply(&gone)).map_err(refused).err()
}

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// Our tables.
    Tables,
    /// Forwarding of links.
    Links,
    /// Both, and our rules in others' tables.
    All,
}

/// Looks and puts back what is missing. Gives what that was, and why not all of it could be.
pub(super) fn repair(host: &Host, look: Look) -> (Vec<String>, Option<Fail>) {
    let mut repaired = Vec::new();
    let _ways = host.net.ways.lock().unwrap_or_else(PoisonError::into_inner);
    let mut all = || -> Result<(), Fail> {
        let surplus = if look == Look::Links { Vec::new() } else { changeable(host)? };
        let standing = standing(host, surplus)?;
        if look != Look::Links {
            tables(host, &standing, &mut repaired)?;
        }
        if look == Look::All {
            match standing.guests.is_empty() {
                true => beside::close(host),
                false if beside::open(host) => repaired.push("a rule in another's table".into()),
                false => {}
            }
        }
        if look == Look::Tables { Ok(()) } else { forwarding(host, &standing, &mut repaired) }
    };
    let failed = all().err();
    (repaired, failed)
}

/// What the sets hold that nobody but us may fill; nothing where nobody else can. Read before the links: what is in a
/// set has its link by then.
fn changeable(host: &Host) -> Result<Vec<Element>, Fail> {
    const OURS: [Set; 5] = [Set::Bridges, Set::Together, Set::Guests, Set::Opened, Set::Ports];
    host.net
        .firewall(|fw| {
            let mut all = Vec::new();
            // Without a need for it the kernel is not asked what it can do.
            if fw.look(&[])?.stands() && fw.flags()? == 0 {
                for set in OURS {
                    all.extend(fw.elements(set)?);
                }
            }
            Ok(all)
        })
        .map_err(refused)
}

/// What the kernel has of ours, and the guests that the record has and the kernel still has a tap for.
struct Standing {
    bridges: Vec<bridge::Ours>,
    elements: Vec<Element>,
    /// What somebody put into our sets.
    surplus: Vec<Element>,
    guests: Vec<Guest>,
}

fn standing(host: &Host, mut surplus: Vec<Element>) -> Result<Standing, Fail> {
    let (links, addresses) =
        host.net.links.with(|conn| Ok((link::list(conn, None)?, link::addresses(conn, None)?))).map_err(refused)?;
    let bridges: Vec<_> = links.iter().cloned().filter_map(bridge::Ours::prove).collect();
    let on = |tap: &Link| bridges.iter().find(|bridge| bridge.link().index == tap.master);
    // A tap that is on no bridge is one that comes or goes.
    let ports: Vec<_> = links.iter().filter(|link| tap::is_ours(link) && on(link).is_some()).collect();
    let (mut guests, recorded) = (guests::all(host)?, forward::recorded(host)?);
    surplus.retain(|element| {
        let link = element.link_name();
        !match element.set {
            Set::Guests => guests.iter().any(|guest| element.address() == Some(guest.address)),
            Set::Opened => recorded.iter().any(|opened| opened.name == link),
            Set::Ports => links.iter().any(|tap| tap.name == link && tap::is_ours(tap)),
            Set::Together => bridges.iter().any(|bridge| Element::together(&bridge.link().name) == *element),
            _ => bridges.iter().any(|bridge| bridge.link().name == link),
        }
    });
    guests.retain(|guest| {
        let tap = ports.iter().find(|tap| tap.name == guest.tap);
        tap.and_then(|tap| on(tap)).is_some_and(|bridge| bridge.link().name == guest.bridge)
    });
    let mut elements = Vec::new();
    if !ports.is_empty() {
        elements.extend(bridges.iter().flat_map(|bridge| rules::of_bridge(&host.net, bridge.link(), &addresses)));
        elements.extend(ports.iter().map(|tap| Element::link(Set::Ports, &tap.name)));
        elements.extend(guests.iter().flat_map(Guest::elements));
        let uplinks = forward::still_open(&host.net, &recorded, &links)?;
        elements
            .extend(uplinks.iter().filter(|link| is_uplink(link)).map(|link| Element::link(Set::Opened, &link.name)));
    }
    Ok(Standing { bridges, elements, surplus, guests })
}

fn is_uplink(link: &forward::Opened) -> bool {
    BridgeName::new(&link.name).is_err()
}

fn tables(host: &Host, standing: &Standing, repaired: &mut Vec<String>) -> Result<(), Fail> {
    let elements = &standing.elements;
    if elements.is_empty() {
        return Ok(());
    }
    let done = host.net.firewall(|fw| {
        if !fw.restore(elements)? {
            return Ok(Some("banger's tables"));
        }
        let change = Change { tables: Tables::AsTheyAre, present: elements.clone(), absent: standing.surplus.clone() };
        Ok((fw.apply(&change)? != Changed::Nothing).then_some("elements of banger's sets"))
    });
    repaired.extend(done.map_err(refused)?.map(str::to_owned));
    Ok(())
}

/// Answers come in by the links that gateways lie behind now: a VPN came up, a cable went.
fn forwarding(host: &Host, standing: &Standing, repaired: &mut Vec<String>) -> Result<(), Fail> {
    if standing.guests.is_empty() {
        return Ok(());
    }
    let recorded = forward::recorded(host)?;
    let mut needed = Vec::new();
    for bridge in
        standing.bridges.iter().filter(|on| standing.guests.iter().any(|guest| guest.bridge == on.link().name))
    {
        let more = forward::needed(&forward::ways(&host.net, bridge)?);
        for link in more {
            if !needed.contains(&link) {
                needed.push(link);
            }
        }
    }
    if needed.is_empty() {
        return shields(host, &recorded);
    }
    let mut open = recorded.clone();
    open.extend(needed.iter().filter(|link| !recorded.contains(link)).cloned());
    forward::record(host, &open)?;
    let present = needed.iter().filter(|link| is_uplink(link)).map(|link| Element::link(Set::Opened, &link.name));
    let change = Change { present: present.collect(), ..Change::default() };
    host.net.firewall(|fw| fw.apply(&change)).map_err(refused)?;
    forward::switch(&needed, true)?;
    repaired.extend(needed.iter().map(|link| format!("forwarding of {}", link.name)));
    Ok(())
}

/// Somebody opened the whole host (`ip_forward=1`, as Docker does): the links that we opened forward for others too.
fn shields(host: &Host, recorded: &[forward::Opened]) -> Result<(), Fail> {
    if recorded.is_empty() || !forward::read("all")? {
        return Ok(());
    }
    let absent = recorded.iter().filter(|link| is_uplink(link)).map(|link| Element::link(Set::Opened, &link.name));
    let change = Change { absent: absent.collect(), ..Change::default() };
    host.net.firewall(|fw| fw.apply(&change)).map_err(refused)?;
    forward::record(host, &[])
}
