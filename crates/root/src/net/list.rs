//! What of ours is in the kernel, for `priv.list_resources`: each with what makes it ours.

use super::forward;
use super::link::{self, Address, Inet, Link};
use super::sets::Set;
use super::{bridge, refused, tap};
use crate::fail::Fail;
use crate::host::Host;
use wire::reply::{BridgeFound, GuestFound, Resources, SysctlFound, TapFound};

/// Fills in bridges, taps, guests, rules elsewhere, sysctls.
pub(crate) fn list(host: &Host, found: &mut Resources) -> Result<(), Fail> {
    let net = &host.net;
    let (mut links, addresses) =
        net.links.with(|conn| Ok((link::list(conn, None)?, link::addresses(conn, None)?))).map_err(refused)?;
    links.sort_by(|a, b| a.name.cmp(&b.name));
    let bridges: Vec<&Link> = links.iter().filter(|link| crate::mark::is_bridge(link)).collect();
    found.bridges = bridges.iter().map(|link| bridge(link, &links, &addresses)).collect();
    found.taps = links.iter().filter(|link| tap::is_ours(link)).map(|link| tap(link, &links)).collect();
    found.guests = guests(host)?;
    (found.rules_elsewhere, found.blocked_by) = super::beside::list(net).map_err(refused)?;
    found.sysctls = forwarding(&forward::recorded(host)?, &links);
    found.sysctls.extend(bridges.iter().flat_map(|link| switches(link)));
    Ok(())
}

fn bridge(link: &Link, links: &[Link], addresses: &[Address]) -> BridgeFound {
    BridgeFound {
        name: link.name.clone(),
        addresses: addresses.iter().filter(|on| on.index == link.index).map(ToString::to_string).collect(),
        up: link.up,
        ports: links.iter().filter(|port| port.master == link.index).count() as u32,
        why: format!("a bridge whose alias is {:?}", link.alias),
    }
}

fn tap(link: &Link, links: &[Link]) -> TapFound {
    let bridge = links.iter().find(|bridge| bridge.index == link.master);
    TapFound {
        name: link.name.clone(),
        bridge: bridge.map(|bridge| bridge.name.clone()).unwrap_or_default(),
        up: link.up,
        carrier: link.carrier,
        isolated: link.isolated,
        why: format!("a tap whose alias is {:?}", link.alias),
    }
}

fn guests(host: &Host) -> Result<Vec<GuestFound>, Fail> {
    let (ways, pins) =
        host.net.firewall(|fw| Ok((fw.elements(Set::Guests)?, fw.elements(Set::Addresses)?))).map_err(refused)?;
    let mut ways: Vec<_> = ways.iter().filter_map(|way| Some((way.address()?, way.link_name()))).collect();
    ways.sort();
    let bound = |ip| pins.iter().find(|pin| pin.address() == Some(ip)).map(|pin| pin.link_name()).unwrap_or_default();
    let guest = |(ip, bridge)| GuestFound {
        address: format!("{ip}"),
        bridge,
        tap: bound(ip),
        why: "an element of the set guests in banger's own table".to_owned(),
    };
    Ok(ways.into_iter().map(guest).collect())
}

/// Forwarding where we switched it on, by our record: links that are the same still.
fn forwarding(recorded: &[forward::Opened], links: &[Link]) -> Vec<SysctlFound> {
    let found = recorded.iter().filter_map(|opened| {
        let link = links.iter().find(|link| (link.index, &link.name) == (opened.index, &opened.name))?;
        let why = match crate::mark::is_bridge(link) {
            true => "guests with a way out are on this bridge; switched off with the last of them",
            false => "answers to guests come in here; switched off with the last guest",
        };
        sysctl(link, Inet(forward::FORWARDING, 1), "forwarding", why)
    });
    found.collect()
}

/// The switches of a bridge of ours.
fn switches(link: &Link) -> Vec<SysctlFound> {
    let found = bridge::SWITCHES.into_iter().filter_map(|switch| {
        let (name, why) = match switch.0 {
            4 => ("accept_redirects", "a guest has no say in the host's routes; goes with the bridge"),
            6 => ("send_redirects", "the host has no say in a guest's; goes with the bridge"),
            8 => ("rp_filter", "no source but the bridge's own subnet; goes with the bridge"),
            19 => ("arp_ignore", "a guest does not learn the host's other addresses; goes with the bridge"),
            _ => return None,
        };
        sysctl(link, switch, name, why)
    });
    found.collect()
}

fn sysctl(link: &Link, Inet(number, set): Inet, switch: &str, why: &str) -> Option<SysctlFound> {
    // A dot in a link's name is a slash for `sysctl`: dots part its own words.
    let name = format!("net.ipv4.conf.{}.{switch}", link.name.replace('.', "/"));
    Some(SysctlFound { name, value: link.inet(number)?, set, why: why.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_switch_of_a_bridge_has_its_name_and_its_reason() {
        let link = Link { name: "br-fc-a.1".into(), inet: vec![0; 32], ..Link::default() };
        let found = switches(&link);
        assert_eq!(found.len(), bridge::SWITCHES.len());
        assert_eq!((found[0].name.as_str(), found[0].value), ("net.ipv4.conf.br-fc-a/1.accept_redirects", 0));
    }
}
