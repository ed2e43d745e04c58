//! A bridge of ours: made, marked, given its address; and how one of ours is told from anybody else's.

use super::link::{self, Address, Inet, Link};
use super::netlink::{Conn, Refused};
use super::{Net, refused, route};
use crate::fail::Fail;
use crate::host::Host;
use crate::mark::{BRIDGE, is_bridge as is_marked};
use crate::steps::Steps;
use std::cell::Cell;
use std::net::Ipv4Addr;
use std::rc::Rc;
use wire::name::addr::BridgeAddr;
use wire::name::link::{BridgeName, TapName};
use wire::net::Bridge;

/// The switches of a bridge: `IPV4_DEVCONF_*` and the value.
pub(crate) const SWITCHES: [Inet; 4] = [
    // accept_redirects, send_redirects: a guest has no say in the host's routes, nor the host in a guest's.
    Inet(4, 0),
    Inet(6, 0),
    // rp_filter: no source but the bridge's own subnet.
    Inet(8, 1),
    // arp_ignore: a guest does not learn the host's other addresses.
    Inet(19, 1),
];

/// A bridge that is proven to be ours.
#[derive(Clone, Debug)]
pub(crate) struct Ours(Link, Vec<Address>);

impl Ours {
    pub(crate) fn link(&self) -> &Link {
        &self.0
    }

    /// Its addresses, where they were read with it.
    pub(crate) fn addresses(&self) -> &[Address] {
        &self.1
    }

    /// Reads the mark; no addresses.
    pub(crate) fn prove(link: Link) -> Option<Ours> {
        (is_marked(&link)).then_some(Ours(link, Vec::new()))
    }
}

fn alias(addr: &BridgeAddr) -> String {
    format!("{BRIDGE} {addr}")
}

/// The address that we gave a bridge, by its alias.
fn given(link: &Link) -> Option<(Ipv4Addr, u8)> {
    let (ip, prefix) = link.alias.strip_prefix(BRIDGE)?.trim_start().split_once('/')?;
    Some((ip.parse().ok()?, prefix.parse().ok()?))
}

/// A bridge's MAC: fixed at its making, so that it does not follow the lowest port's; locally administered, and the
/// same for the same name.
pub(crate) fn mac(name: &BridgeName) -> [u8; 6] {
    let hash =
        name.as_str().bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let [a, b, c, d] = hash.to_be_bytes();
    [0x02, 0x62, 0x61, a ^ d, b, c]
}

/// What has the name now.
enum Found {
    Nothing,
    /// A bridge, ours by its mark or by its shape.
    Bridge(Link, Vec<Address>),
}

/// Looks; what is not ours is refused.
fn look(conn: &mut Conn, bridge: &Bridge) -> Result<Result<Found, Fail>, Refused> {
    let name = bridge.name.as_str();
    let Some(found) = link::by_name(conn, name)? else { return Ok(Ok(Found::Nothing)) };
    let foreign = |why: String| Ok(Err(Fail::new(format!("{why}: choose another bridge, or remove it"))));
    if found.name != name {
        return foreign(format!("{name} is another name of the link {}", found.name));
    }
    if found.kind != "bridge" {
        return foreign(format!("{name} is there and is not a bridge"));
    }
    let addresses = link::addresses(conn, Some(found.index))?;
    if is_marked(&found) {
        return Ok(Ok(Found::Bridge(found, addresses)));
    }
    let ports = link::list(conn, Some(found.index))?;
    let half_made =
        found.mac == mac(&bridge.name) && ports.is_empty() && addresses.is_empty() && found.alias.is_empty();
    let exactly = addresses == [wanted(found.index, &bridge.addr)] && ports.iter().all(super::tap::is_ours);
    if half_made || (exactly && found.alias.is_empty()) {
        return Ok(Ok(Found::Bridge(found, addresses)));
    }
    foreign(format!("the bridge {name} is not banger's"))
}

fn wanted(index: u32, addr: &BridgeAddr) -> Address {
    Address { index, ip: addr.ip(), prefix: addr.prefix().get() }
}

/// Whether nothing is left to do.
fn is_right(link: &Link, addresses: &[Address], bridge: &Bridge) -> bool {
    link.up
        && link.alias == alias(&bridge.addr)
        && link.ipv6_mode.is_none_or(|mode| mode == link::NO_IPV6)
        && link.learns_from_its_own != Some(true)
        && SWITCHES.iter().all(|&Inet(number, value)| link.inet(number) == Some(value))
        && addresses.contains(&wanted(link.index, &bridge.addr))
}

/// The bridge, where nothing is left to do, and what link has the name of a tap, if one is asked for: two questions.
pub(crate) fn if_right(
    net: &Net,
    bridge: &Bridge,
    tap: Option<&TapName>,
) -> Result<(Option<Ours>, Option<Link>), Fail> {
    let name = bridge.name.as_str();
    let names: Vec<&str> = [name].into_iter().chain(tap.map(TapName::as_str)).collect();
    net.links
        .with(|conn| {
            let mut links = link::by_names(conn, &names)?.into_iter();
            let (found, tap) = (links.next().flatten(), links.next().flatten());
            let Some(found) = found.filter(|found| found.name == name && is_marked(found)) else {
                return Ok((None, tap));
            };
            let addresses = link::addresses(conn, Some(found.index))?;
            Ok((is_right(&found, &addresses, bridge).then_some(Ours(found, addresses)), tap))
        })
        .map_err(refused)
}

/// Makes the bridge, or puts right what there is of it. Who calls holds the lock of bridges for writing.
pub(crate) fn put_right<'a>(host: &'a Host, steps: &mut Steps<'a>, bridge: &Bridge) -> Result<(), Fail> {
    let net = &host.net;
    let ask = |conn: &mut Conn| look(conn, bridge);
    let (was, addresses, ports) = match net.links.with(ask).map_err(refused)?? {
        Found::Bridge(link, addresses) if is_right(&link, &addresses, bridge) => return Ok(()),
        Found::Bridge(link, addresses) => {
            let ports = net.links.with(|conn| link::list(conn, Some(link.index))).map_err(refused)?;
            (link, addresses, ports)
        }
        Found::Nothing => {
            is_free(host, bridge, None)?;
            limit(host)?;
            (make(host, steps, bridge)?, Vec::new(), Vec::new())
        }
    };
    let before = Before { index: was.index, ports: ports.iter().map(|port| port.index).collect() };
    // The old address is ours by the alias; others are somebody's, who put them there on purpose.
    let new = wanted(was.index, &bridge.addr);
    let old = given(&was).map(|(ip, prefix)| Address { index: was.index, ip, prefix }).filter(|old| *old != new);
    if old.is_some() || !addresses.contains(&new) {
        is_free(host, bridge, Some(was.index))?;
    }
    if let Some(old) = old {
        is_empty(bridge, &ports, old)?;
    }
    let old = old.filter(|old| addresses.contains(old));
    let there = addresses.contains(&new);
    address(host, steps, &before, new, old, there)?;
    if !there {
        // Who took the subnet between our look and our address is named now, and ours goes again.
        is_free(host, bridge, Some(was.index))?;
    }
    mark(host, steps, &before, &was, bridge)?;
    up(host, steps, &before, &was)
}

/// A bridge and its ports before a change.
#[derive(Clone)]
struct Before {
    index: u32,
    ports: Vec<u32>,
}

impl Before {
    /// Says how a step is taken back. Where another's tap came onto the bridge since, it is in use as it is, and stays.
    fn undo<'a>(
        &self,
        host: &'a Host,
        steps: &mut Steps<'a>,
        what: &'static str,
        back: impl FnOnce(&mut Conn) -> Result<(), Refused> + 'a,
    ) {
        let Before { index, ports } = self.clone();
        steps.undo(what, move || {
            let _alone = host.net.bridges.write().unwrap_or_else(std::sync::PoisonError::into_inner);
            let undone = host.net.links.with(|conn| {
                let now = link::list(conn, Some(index))?;
                if now.iter().any(|port| !ports.contains(&port.index)) { Ok(()) } else { back(conn) }
            });
            match undone {
                // The bridge itself went.
                Err(gone) if !gone.is(libc::ENODEV) => Err(refused(gone)),
                _ => Ok(()),
            }
        });
    }
}

fn make<'a>(host: &'a Host, steps: &mut Steps<'a>, bridge: &Bridge) -> Result<Link, Fail> {
    let links = &host.net.links;
    let name = bridge.name.clone();
    let made = steps.act("bridge", || {
        links
            .with(|conn| {
                link::make_bridge(conn, name.as_str(), mac(&name))?;
                link::by_name(conn, name.as_str())
            })
            .map_err(|error| {
                let message = match error.is(libc::EEXIST) {
                    true => format!("somebody made a link {name} at this moment: choose another bridge, or remove it"),
                    false => format!("the bridge {name} could not be made"),
                };
                Fail::new(message).because(error)
            })
    })?;
    // Another could be in its place by now.
    let made = made.filter(|made| made.kind == "bridge" && made.mac == mac(&name) && made.alias.is_empty());
    let made = made.ok_or_else(|| Fail::new(format!("the bridge {name} went as soon as it was made: try again")))?;
    let index = made.index;
    let before = Before { index, ports: Vec::new() };
    before.undo(host, steps, "the new bridge", move |conn| link::remove(conn, index));
    Ok(made)
}

fn address<'a>(
    host: &'a Host,
    steps: &mut Steps<'a>,
    before: &Before,
    new: Address,
    old: Option<Address>,
    there: bool,
) -> Result<(), Fail> {
    if there && old.is_none() {
        return Ok(());
    }
    let links = &host.net.links;
    // Somebody may give the bridge the same address meanwhile: then it is his, and stays where we fail.
    let added = Rc::new(Cell::new(false));
    let by_us = Rc::clone(&added);
    before.undo(host, steps, "the bridge's address", move |conn| {
        if by_us.get() {
            link::remove_address(conn, new)?;
        }
        old.map_or(Ok(()), |old| link::add_address(conn, old).map(|_| ()))
    });
    steps.act("bridge_address", || {
        let set = |conn: &mut Conn| {
            if let Some(old) = old {
                link::remove_address(conn, old)?;
            }
            added.set(link::add_address(conn, new)? && !there);
            Ok(())
        };
        links.with(set).map_err(|error| Fail::new(format!("the bridge could not be given {new}")).because(error))
    })?;
    match old {
        Some(old) => super::rules::forget_address(host, steps, old.ip),
        None => Ok(()),
    }
}

fn mark<'a>(host: &'a Host, steps: &mut Steps<'a>, before: &Before, was: &Link, bridge: &Bridge) -> Result<(), Fail> {
    let links = &host.net.links;
    let old = was.clone();
    before.undo(host, steps, "the bridge's mark", move |conn| {
        let change = link::Change {
            alias: Some(&old.alias),
            inet: &old.switches(&SWITCHES),
            ipv6: old.ipv6_mode,
            learns_from_its_own: old.learns_from_its_own,
            ..link::Change::default()
        };
        link::change(conn, old.index, &change)
    });
    steps.act("bridge_mark", || {
        let change = link::Change {
            alias: Some(&alias(&bridge.addr)),
            inet: &SWITCHES,
            ipv6: was.ipv6_mode.map(|_| link::NO_IPV6),
            // A guest would name its neighbour as the sender, and get what is for that one.
            learns_from_its_own: was.learns_from_its_own.map(|_| false),
            ..link::Change::default()
        };
        links
            .with(|conn| link::change(conn, was.index, &change))
            .map_err(|error| Fail::new(format!("the bridge {} could not be marked", bridge.name)).because(error))
    })
}

fn up<'a>(host: &'a Host, steps: &mut Steps<'a>, before: &Before, was: &Link) -> Result<(), Fail> {
    if was.up {
        return Ok(());
    }
    let index = was.index;
    let set = move |conn: &mut Conn, up| {
        let change = link::Change { up: Some(up), ..link::Change::default() };
        link::change(conn, index, &change)
    };
    before.undo(host, steps, "the bridge's being up", move |conn| set(conn, false));
    steps.act("bridge_up", || {
        let up = host.net.links.with(|conn| set(conn, true));
        up.map_err(|error| Fail::new("the bridge could not be switched on").because(error))
    })
}

/// Refuses a subnet that somebody has already.
fn is_free(host: &Host, bridge: &Bridge, mine: Option<u32>) -> Result<(), Fail> {
    match host.net.links.with(|conn| route::taken(conn, &bridge.addr, mine)).map_err(refused)? {
        None => Ok(()),
        Some(whose) => Err(Fail::new(format!(
            "the subnet of {} is in use: {whose}. Choose another subnet for {}",
            bridge.addr, bridge.name
        ))),
    }
}

/// Refuses to change the address under the taps of a bridge.
fn is_empty(bridge: &Bridge, ports: &[Link], old: Address) -> Result<(), Fail> {
    match ports.first() {
        None => Ok(()),
        Some(port) => Err(Fail::new(format!(
            "the bridge {} has the address {old} and {} taps on it ({}, …): delete them first, or ask for {old}",
            bridge.name,
            ports.len(),
            port.name
        ))),
    }
}

fn limit(host: &Host) -> Result<(), Fail> {
    let most = host.settings.limits.bridges;
    let links = host.net.links.with(|conn| link::list(conn, None)).map_err(refused)?;
    if links.iter().filter(|link| is_marked(link)).count() < most {
        return Ok(());
    }
    Err(Fail::new(format!("there are {most} bridges of banger's, the limit: remove one, or raise limits.bridges")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_that_we_gave_is_in_the_alias() {
        let link = |kind: &str, alias: &str| Link { kind: kind.into(), alias: alias.into(), ..Link::default() };
        assert_eq!(given(&link("bridge", "banger bridge 172.16.0.1/24")), Some((Ipv4Addr::new(172, 16, 0, 1), 24)));
        assert_eq!(given(&link("bridge", "banger bridge")), None);
    }

    #[test]
    fn each_name_has_its_mac() {
        let of = |text: &str| mac(&BridgeName::new(text).unwrap());
        assert_ne!(of("br-fc"), of("br-fc-1"));
        assert_eq!(of("br-fc")[0] & 3, 2, "locally administered, one station");
    }
}
