//! Whose a subnet is already: another link's address, a route of any table, a rule. And which links are uplinks.

use super::link::{self, Link};
use super::message::{DUMP, Requests, attr, attrs, u32_at};
use super::netlink::{Conn, Refused};
use std::net::Ipv4Addr;
use wire::name::addr::BridgeAddr;

const GETROUTE: u16 = 26;
const GETRULE: u16 = 34;
const AF_INET: u8 = 2;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;
const RTN_UNICAST: u8 = 1;

/// A route: where to, and by which links.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Route {
    /// Packets are sent on by it: neither refused nor for the host itself.
    forwards: bool,
    to: Ipv4Addr,
    prefix: u8,
    table: u32,
    /// Each way's link, and whether a gateway lies behind it.
    ways: Vec<(u32, bool)>,
}

impl Route {
    fn read(body: &[u8]) -> Option<Route> {
        let inner = body.get(12..)?;
        let ip = |value: &[u8]| <[u8; 4]>::try_from(value).ok().map(Ipv4Addr::from);
        let mut ways = Vec::new();
        if let Some(index) = attr(inner, RTA_OIF).and_then(|value| u32_at(value, 0)) {
            ways.push((index, attr(inner, RTA_GATEWAY).is_some() || attr(inner, RTA_VIA).is_some()));
        }
        // struct rtnexthop: length, flags, hops, index, then attributes.
        let mut hops = attr(inner, RTA_MULTIPATH).unwrap_or_default();
        while let Some(&[low, high, ..]) = hops.get(..8) {
            let length = usize::from(u16::from_ne_bytes([low, high]));
            let Some(hop) = hops.get(8..length) else { break };
            let gateway = attrs(hop).any(|(kind, _)| kind == RTA_GATEWAY || kind == RTA_VIA);
            ways.push((u32_at(hops, 4)?, gateway));
            hops = hops.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Some(Route {
            forwards: body[7] == RTN_UNICAST,
            to: attr(inner, RTA_DST).and_then(ip).unwrap_or(Ipv4Addr::UNSPECIFIED),
            prefix: body[1],
            table: attr(inner, RTA_TABLE).and_then(|value| u32_at(value, 0)).unwrap_or(body[4].into()),
            ways,
        })
    }
}

fn routes(conn: &mut Conn) -> Result<Vec<Route>, Refused> {
    let mut header = [0; 12];
    header[0] = AF_INET;
    let mut ask = Requests::default();
    ask.push(GETROUTE, DUMP, &header);
    match conn.one("RTM_GETROUTE, all tables", &mut ask) {
        Ok(bodies) => Ok(bodies.iter().filter_map(|body| Route::read(body)).collect()),
        Err(refused) if refused.is(libc::ENOENT) => Ok(Vec::new()),
        Err(refused) => Err(refused),
    }
}

/// A default route in two halves, as VPNs set it, or in any more: nobody has private addresses by it.
const DEFAULT_BELOW: u8 = 8;

/// Says who has addresses of the subnet already, `mine` (the bridge's own index) apart. `None`: nobody.
pub(crate) fn taken(conn: &mut Conn, subnet: &BridgeAddr, mine: Option<u32>) -> Result<Option<String>, Refused> {
    let all = link::list(conn, None)?;
    let name = |index: u32| all.iter().find(|link| link.index == index).map_or("a link", |link| link.name.as_str());
    for address in link::addresses(conn, None)? {
        if Some(address.index) != mine && overlaps(subnet, address.ip, address.prefix) {
            return Ok(Some(format!("{} has the address {address}", name(address.index))));
        }
    }
    for route in routes(conn)? {
        let own = !route.ways.is_empty() && route.ways.iter().all(|&(index, _)| Some(index) == mine);
        if route.prefix >= DEFAULT_BELOW && !own && overlaps(subnet, route.to, route.prefix) {
            let by = route.ways.first().map_or(String::new(), |&(index, _)| format!(" by {}", name(index)));
            return Ok(Some(format!("a route of table {} leads to {}/{}{by}", route.table, route.to, route.prefix)));
        }
    }
    rule(conn, subnet)
}

/// A policy rule that names addresses of the subnet.
fn rule(conn: &mut Conn, subnet: &BridgeAddr) -> Result<Option<String>, Refused> {
    const FRA_DST: u16 = 1;
    const FRA_SRC: u16 = 2;
    const FRA_PRIORITY: u16 = 6;
    let mut header = [0; 12];
    header[0] = AF_INET;
    let mut ask = Requests::default();
    ask.push(GETRULE, DUMP, &header);
    let bodies = match conn.one("RTM_GETRULE", &mut ask) {
        Ok(bodies) => bodies,
        // A kernel without policy routing.
        Err(refused) if refused.is(libc::EOPNOTSUPP) => return Ok(None),
        Err(refused) => return Err(refused),
    };
    for body in &bodies {
        let Some(inner) = body.get(12..) else { continue };
        for (kind, prefix, word) in [(FRA_DST, body[1], "to"), (FRA_SRC, body[2], "from")] {
            let Some(ip) = attr(inner, kind).and_then(|value| <[u8; 4]>::try_from(value).ok()) else { continue };
            if prefix >= DEFAULT_BELOW && overlaps(subnet, ip.into(), prefix) {
                let priority = attr(inner, FRA_PRIORITY).and_then(|value| u32_at(value, 0)).unwrap_or(0);
                return Ok(Some(format!(
                    "the rule of priority {priority} names {word} {}/{prefix}",
                    Ipv4Addr::from(ip)
                )));
            }
        }
    }
    Ok(None)
}

fn overlaps(subnet: &BridgeAddr, ip: Ipv4Addr, prefix: u8) -> bool {
    let shorter = prefix.min(subnet.prefix().get());
    let mask = u32::MAX.checked_shl(32 - u32::from(shorter)).unwrap_or(0);
    (u32::from(subnet.ip()) ^ u32::from(ip)) & mask == 0
}

/// The links that others than their neighbours lie behind, in any table: answers to a guest come in by them. A gateway
/// tells that, or a default route, which needs none on a link with two ends (VPNs).
pub(crate) fn uplinks(conn: &mut Conn) -> Result<Vec<Link>, Refused> {
    let beyond = |route: &Route| route.prefix < DEFAULT_BELOW && route.forwards && route.to.octets()[0] < 224;
    let ways = |route: &Route| {
        let all = beyond(route);
        route.ways.iter().filter(|(_, gateway)| *gateway || all).map(|(index, _)| *index).collect::<Vec<_>>()
    };
    let mut indexes: Vec<u32> = routes(conn)?.iter().flat_map(ways).collect();
    indexes.sort_unstable();
    indexes.dedup();
    let mut links = Vec::new();
    for index in indexes {
        links.extend(link::by_index(conn, index)?);
    }
    Ok(links)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn overlap_is_by_the_shorter_prefix() {
        let subnet = BridgeAddr::new("10.20.30.1", "24").unwrap();
        assert!(overlaps(&subnet, Ipv4Addr::new(10, 20, 0, 0), 16));
        assert!(overlaps(&subnet, Ipv4Addr::new(10, 20, 30, 77), 32));
        assert!(!overlaps(&subnet, Ipv4Addr::new(10, 20, 31, 0), 24));
    }

    proptest! {
        #[test]
        fn no_route_panics(body in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = Route::read(&body);
        }
    }
}
