//! A bridge of ours: made, marked, given its address; and how one of ours is told from anybody else's.

use super::link::{self, Address, Inet, Link};
use super::netlink::{Conn, Refused};
use super::{Net, refused, route};
use crate::fail::Fail;
use crate::host::Host;
use crate::steps::Steps;
use std::net::Ipv4Addr;
use wire::name::addr::BridgeAddr;
use wire::name::link::BridgeName;
use wire::net::Bridge;

/// What a bridge's alias begins with. Its address follows: the one that we gave it, among those that others did.
const MARK: &str = "banger bridge";

/// The switches of a bridge: `IPV4_DEVCONF_*` and the value.
const SWITCHES: [Inet; 4] = [
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
pub(crate) struct Ours(Link);

impl Ours {
    pub(crate) fn link(&self) -> &Link {
        &self.0
    }

    /// Reads the mark.
    pub(crate) fn prove(link: Link) -> Option<Ours> {
        (is_marked(&link)).then_some(Ours(link))
    }
}

fn is_marked(link: &Link) -> bool {
    link.kind == "bridge"
        && (link.alias == MARK || link.alias.strip_prefix(MARK).is_some_and(|rest| rest.starts_with(' ')))
}

fn alias(addr: &BridgeAddr) -> String {
    format!("{MARK} {addr}")
}

/// The address that we gave a bridge, by its alias.
fn given(link: &Link) -> Option<(Ipv4Addr, u8)> {
    let (ip, prefix) = link.alias.strip_prefix(MARK)?.trim_start().split_once('/')?;
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
        && SWITCHES.iter().all(|&Inet(number, value)| link.inet(number) == Some(value))
        && addresses.contains(&wanted(link.index, &bridge.addr))
}

/// The bridge, where nothing is left to do: two questions.
pub(crate) fn if_right(net: &Net, bridge: &Bridge) -> Result<Option<Ours>, Fail> {
    net.links
        .with(|conn| {
            let Some(found) = link::by_name(conn, bridge.name.as_str())? else { return Ok(None) };
            if found.name != bridge.name.as_str() || !is_marked(&found) {
                return Ok(None);
            }
            let addresses = link::addresses(conn, Some(found.index))?;
            Ok(is_right(&found, &addresses, bridge).then_some(Ours(found)))
        })
        .map_err(refused)
}

/// Makes the bridge, or puts right what there is of it. Who calls holds the lock of bridges for writing.
pub(crate) fn put_right<'a>(host: &'a Host, steps: &mut Steps<'a>, bridge: &Bridge) -> Result<(), Fail> {
    let net = &host.net;
    let ask = |conn: &mut Conn| look(conn, bridge);
    let (was, addresses) = match net.links.with(ask).map_err(refused)?? {
        Found::Bridge(link, addresses) => (link, addresses),
        Found::Nothing => {
            is_free(host, bridge, None)?;
            limit(host)?;
            (make(host, steps, bridge)?, Vec::new())
        }
    };
    if is_right(&was, &addresses, bridge) {
        return Ok(());
    }
    // The old address is ours by the alias; others are somebody's, who put them there on purpose.
    let new = wanted(was.index, &bridge.addr);
    let old = given(&was).map(|(ip, prefix)| Address { index: was.index, ip, prefix }).filter(|old| *old != new);
    if old.is_some() || !addresses.contains(&new) {
        is_free(host, bridge, Some(was.index))?;
    }
    if let Some(old) = old {
        is_empty(host, bridge, &was, old)?;
    }
    let old = old.filter(|old| addresses.contains(old));
    address(host, steps, new, old, addresses.contains(&new))?;
    mark(host, steps, &was, bridge)?;
    up(host, steps, &was)
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
            .map_err(|error| Fail::new(format!("the bridge {name} could not be made")).because(error))
    })?;
    let made = made.ok_or_else(|| Fail::new(format!("the bridge {name} went as soon as it was made: try again")))?;
    let index = made.index;
    steps.undo("the new bridge", move || {
        let _alone = host.net.bridges.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        // Another tap may be on it by now: then it is in use, and stays.
        let gone = links.with(|conn| match link::list(conn, Some(index))?.is_empty() {
            true => link::remove(conn, index),
            false => Ok(()),
        });
        gone.map_err(refused)
    });
    Ok(made)
}

fn address<'a>(
    host: &'a Host,
    steps: &mut Steps<'a>,
    new: Address,
    old: Option<Address>,
    there: bool,
) -> Result<(), Fail> {
    if there && old.is_none() {
        return Ok(());
    }
    let links = &host.net.links;
    steps.undo("the bridge's address", move || {
        let back = |conn: &mut Conn| {
            if !there {
                link::remove_address(conn, new)?;
            }
            old.map_or(Ok(()), |old| link::add_address(conn, old))
        };
        match links.with(back) {
            // The bridge itself was undone.
            Err(gone) if !gone.is(libc::ENODEV) => Err(refused(gone)),
            _ => Ok(()),
        }
    });
    steps.act("bridge_address", || {
        let set = |conn: &mut Conn| {
            if let Some(old) = old {
                link::remove_address(conn, old)?;
            }
            link::add_address(conn, new)
        };
        links.with(set).map_err(|error| Fail::new(format!("the bridge could not be given {new}")).because(error))
    })?;
    match old {
        Some(old) => super::rules::forget_address(host, steps, old.ip),
        None => Ok(()),
    }
}

fn mark<'a>(host: &'a Host, steps: &mut Steps<'a>, was: &Link, bridge: &Bridge) -> Result<(), Fail> {
    let links = &host.net.links;
    let before = was.clone();
    steps.undo("the bridge's mark", move || {
        let switches: Vec<Inet> = SWITCHES
            .iter()
            .filter_map(|&Inet(number, _)| before.inet(number).map(|value| Inet(number, value)))
            .collect();
        let change = link::Change {
            alias: Some(&before.alias),
            inet: &switches,
            ipv6: before.ipv6_mode,
            ..link::Change::default()
        };
        match links.with(|conn| link::change(conn, before.index, &change)) {
            Err(gone) if !gone.is(libc::ENODEV) => Err(refused(gone)),
            _ => Ok(()),
        }
    });
    steps.act("bridge_mark", || {
        let change = link::Change {
            alias: Some(&alias(&bridge.addr)),
            inet: &SWITCHES,
            ipv6: was.ipv6_mode.map(|_| link::NO_IPV6),
            ..link::Change::default()
        };
        links
            .with(|conn| link::change(conn, was.index, &change))
            .map_err(|error| Fail::new(format!("the bridge {} could not be marked", bridge.name)).because(error))
    })
}

fn up<'a>(host: &'a Host, steps: &mut Steps<'a>, was: &Link) -> Result<(), Fail> {
    let (links, index) = (&host.net.links, was.index);
    if was.up {
        return Ok(());
    }
    let set = move |up| {
        let change = link::Change { up: Some(up), ..link::Change::default() };
        links.with(|conn| link::change(conn, index, &change))
    };
    steps.undo("the bridge's being up", move || match set(false) {
        Err(gone) if !gone.is(libc::ENODEV) => Err(refused(gone)),
        _ => Ok(()),
    });
    steps
        .act("bridge_up", || set(true).map_err(|error| Fail::new("the bridge could not be switched on").because(error)))
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
fn is_empty(host: &Host, bridge: &Bridge, was: &Link, old: Address) -> Result<(), Fail> {
    let ports = host.net.links.with(|conn| link::list(conn, Some(was.index))).map_err(refused)?;
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
    fn the_mark_is_the_alias_of_a_bridge() {
        let link = |kind: &str, alias: &str| Link { kind: kind.into(), alias: alias.into(), ..Link::default() };
        for ours in ["banger bridge", "banger bridge 172.16.0.1/24"] {
            assert!(is_marked(&link("bridge", ours)));
            assert!(!is_marked(&link("veth", ours)));
        }
        assert!(!is_marked(&link("bridge", "banger bridges")) && !is_marked(&link("bridge", "")));
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
