//! What of ours is in the kernel, for `priv.list_resources`.

use super::link::{self, Link};
use super::sets::Set;
use super::{bridge, refused, tap};
use crate::fail::Fail;
use crate::host::Host;
use wire::reply::{BridgeFound, GuestFound, Resources, TapFound};

/// Fills in bridges, taps, guests.
pub(crate) fn list(host: &Host, found: &mut Resources) -> Result<(), Fail> {
    let net = &host.net;
    let (links, addresses) =
        net.links.with(|conn| Ok((link::list(conn, None)?, link::addresses(conn, None)?))).map_err(refused)?;
    let name = |index: u32| links.iter().find(|link| link.index == index).map_or("", |link| link.name.as_str());
    let is_bridge = |link: &&Link| bridge::Ours::prove((*link).clone()).is_some();
    found.bridges = links
        .iter()
        .filter(is_bridge)
        .map(|link| BridgeFound {
            name: link.name.clone(),
            addresses: addresses.iter().filter(|on| on.index == link.index).map(ToString::to_string).collect(),
            up: link.up,
            ports: links.iter().filter(|port| port.master == link.index).count() as u32,
        })
        .collect();
    found.taps = links
        .iter()
        .filter(|link| tap::is_ours(link))
        .map(|link| TapFound {
            name: link.name.clone(),
            bridge: name(link.master).to_owned(),
            up: link.up,
            carrier: link.carrier,
        })
        .collect();
    found.guests = guests(host)?;
    (found.rules_elsewhere, found.blocked_by) = super::beside::list(net).map_err(refused)?;
    found.bridges.sort_by(|a, b| a.name.cmp(&b.name));
    found.taps.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(())
}

fn guests(host: &Host) -> Result<Vec<GuestFound>, Fail> {
    let (ways, pins) =
        host.net.firewall(|fw| Ok((fw.elements(Set::Guests)?, fw.elements(Set::Addresses)?))).map_err(refused)?;
    let mut ways: Vec<_> = ways.iter().filter_map(|way| Some((way.address()?, way.link_name()))).collect();
    ways.sort();
    let bound = |ip| pins.iter().find(|pin| pin.address() == Some(ip)).map(|pin| pin.link_name()).unwrap_or_default();
    Ok(ways.into_iter().map(|(ip, bridge)| GuestFound { address: ip.to_string(), bridge, tap: bound(ip) }).collect())
}
