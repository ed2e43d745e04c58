//! A guest's way out: an element of a set, and forwarding where it goes through.

use super::around::Around;
use super::firewall::{Change, Changed, Firewall, Seen, Tables};
use super::forward::{self, Opened};
use super::guests::{self, Guest};
use super::link::{self, Address, Link};
use super::netlink::Refused;
use super::sets::{Element, Set};
use super::{Net, beside, bridge, conntrack, refused, rules, tap};
use crate::fail::Fail;
use crate::host::Host;
use crate::steps::{self, Steps};
use std::net::Ipv4Addr;
use std::sync::PoisonError;
use wire::name::link::BridgeName;
use wire::net::{Nat, Switch};

/// Switches a guest's way out on or off.
pub(crate) fn ensure(host: &Host, nat: &Nat) -> Result<(), Fail> {
    let _tap = host.net.locks.hold(format!("tap:{}", nat.tap));
    let bridges = host.net.bridges.read().unwrap_or_else(PoisonError::into_inner);
    let mut ways = host.net.ways.lock().unwrap_or_else(PoisonError::into_inner);
    ways.hear();
    let gone = steps::run("ensure_nat", &host.faults, |steps| match nat.switch {
        Switch::On => on(host, &mut ways, steps, nat),
        Switch::Off => off(host, &mut ways, steps, nat),
    })?;
    if nat.switch == Switch::On {
        beside::open(host);
    }
    drop((ways, bridges));
    // The kernel walks its whole table of connections: nobody else waits for that.
    steps::run("ensure_nat", &host.faults, |steps| connections(host, steps, &gone))
}

/// The bridge of the tap, where both are ours, with its addresses; `None` where one is missing or somebody else's.
fn find(net: &Net, around: &mut Around, nat: &Nat) -> Result<Option<(bridge::Ours, Vec<Address>)>, Refused> {
    net.links.with(|conn| {
        let master = around.master(conn, nat.tap.as_str())?;
        let Some(ours) = master.and_then(bridge::Ours::prove) else { return Ok(None) };
        let addresses = around.addresses(conn, ours.link().index)?.to_vec();
        Ok(Some((ours, addresses)))
    })
}

fn on<'a>(host: &'a Host, around: &mut Around, steps: &mut Steps<'a>, nat: &Nat) -> Result<Vec<Ipv4Addr>, Fail> {
    let net = &host.net;
    let found = find(net, around, nat).map_err(refused)?;
    let (on, addresses) = found.ok_or_else(|| {
        Fail::new(format!("there is no tap {} of banger's on a bridge: make it with priv.create_tap", nat.tap))
    })?;
    is_host(nat.guest.ip(), &addresses, on.link())?;
    let ways = forward::among(around.uplinks(net)?, &on);
    let needed = forward::needed(&ways);
    let recorded = forward::recorded(host)?;
    // A link that went, or a host that somebody opened whole since: not ours to close, nor to shield.
    let mut open = match recorded.is_empty() || around.host_forwards()? {
        true => Vec::new(),
        false => forward::open_of(net, &recorded, &ways)?,
    };
    open.extend(needed.iter().cloned());
    let closed = recorded.iter().filter(|was| open.iter().all(|link| link.name != was.name));
    let closed: Vec<_> = closed.map(|link| Element::link(Set::Opened, &link.name)).collect();
    let planned = |may_guess| {
        let plan = net.firewall(|fw| plan(host, fw, nat, &on, &addresses, &open, may_guess)).map_err(refused)?;
        plan.map(|mut plan| {
            plan.change.absent.extend(&closed);
            plan
        })
    };
    let mut plan = planned(closed.is_empty())?;
    if open != recorded {
        steps.act("record", || forward::record(host, &open))?;
        steps.undo("the record of forwarding", move || forward::record(host, &recorded));
    }
    let changed = steps.act("rules", || {
        let apply = |Plan { change, seen, .. }: &Plan| net.firewall(|fw| fw.apply_seen(change, Some(seen)));
        let mut changed = apply(&plan);
        // Something of the guest's is there after all.
        if plan.seen.is_guess() && changed.as_ref().is_err_and(|refused| refused.is(libc::EEXIST)) {
            plan = planned(false)?;
            changed = apply(&plan);
        }
        changed.map_err(|error| Fail::new(format!("the way out of {} could not be opened", nat.guest)).because(error))
    })?;
    let Plan { goes, is_new, .. } = plan;
    steps.undo("the guest's rules", move || rules::take_back(net, changed));
    if !needed.is_empty() {
        let back = needed.clone();
        steps.undo("forwarding", move || forward::switch(&back, false));
        steps.act("forwarding", || forward::switch(&needed, true))?;
    }
    strike(host, steps, &goes)?;
    let guest = Guest { address: nat.guest.ip(), bridge: on.link().name.clone(), tap: nat.tap.as_str().to_owned() };
    if is_new || guests::read(host, guest.address)?.as_ref() != Some(&guest) {
        steps.act("guest_record", || guests::write(host, &guest))?;
    }
    Ok(goes.iter().filter_map(Element::address).collect())
}

/// Strikes guests out of the record: before their ways go, or they would come back with the next repair.
fn strike<'a>(host: &'a Host, steps: &mut Steps<'a>, ways: &[Element]) -> Result<(), Fail> {
    for address in ways.iter().filter_map(Element::address) {
        if let Some(guest) = guests::read(host, address)? {
            steps.undo("the record of a guest", move || guests::write(host, &guest));
            steps.act("guest_record", || guests::strike(host, address))?;
        }
    }
    Ok(())
}

/// Refuses an address that is no guest's on this bridge.
fn is_host(guest: Ipv4Addr, addresses: &[Address], bridge: &Link) -> Result<(), Fail> {
    if addresses.iter().any(|address| address.ip == guest) {
        return Err(Fail::new(format!("{guest} is the address of the bridge {}: take another", bridge.name)));
    }
    if addresses.iter().any(|address| host_of(guest, address)) {
        return Ok(());
    }
    let subnets: Vec<_> = addresses.iter().map(Address::to_string).collect();
    Err(Fail::new(format!("{guest} is no guest's address on the bridge {} ({})", bridge.name, subnets.join(", "))))
}

/// Whether it lies in that address's subnet, and is neither the network nor its broadcast.
fn host_of(guest: Ipv4Addr, address: &Address) -> bool {
    let mask = u32::MAX.checked_shl(32 - u32::from(address.prefix)).unwrap_or(0);
    let (own, guest) = (u32::from(address.ip), u32::from(guest));
    (own ^ guest) & mask == 0 && guest & !mask != 0 && guest & !mask != !mask
}

/// Whether it is an address for guests of a bridge of ours. Nobody's connections end because the owner names them.
fn is_a_guests(net: &Net, guest: Ipv4Addr) -> Result<bool, Refused> {
    net.links.with(|conn| {
        let all = link::addresses(conn, None)?;
        if all.iter().any(|address| address.ip == guest) {
            return Ok(false);
        }
        for address in all.iter().filter(|address| host_of(guest, address)) {
            if link::by_index(conn, address.index)?.and_then(bridge::Ours::prove).is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    })
}

/// How a way out is opened.
struct Plan {
    /// What the tables are to hold.
    change: Change,
    /// Guests that lose their way by it.
    goes: Vec<Element>,
    /// What there was.
    seen: Seen,
    /// The guest had no way before.
    is_new: bool,
}

/// Plans it, by a guess where it may. Refused where the address is another guest's.
fn plan(
    host: &Host,
    fw: &mut Firewall,
    nat: &Nat,
    on: &bridge::Ours,
    addresses: &[Address],
    open: &[Opened],
    may_guess: bool,
) -> Result<Result<Plan, Fail>, Refused> {
    let (tap, ip, bridge) = (nat.tap.as_str(), nat.guest.ip(), on.link().name.as_str());
    let way = Element::at(Set::Guests, bridge, ip);
    let pin = Element::at(Set::Addresses, tap, ip);
    let wanted = [way, pin, Element::ip(ip), Element::link(Set::HasIp, tap)];
    let mut standing = rules::of_bridge(&host.net, on.link(), addresses);
    standing.push(Element::link(Set::Ports, tap));
    let uplinks = open.iter().filter(|link| link.name != bridge && BridgeName::new(&link.name).is_err());
    standing.extend(uplinks.map(|link| Element::link(Set::Opened, &link.name)));
    let mac = Element::link(Set::HasMac, tap);
    let seen = match may_guess.then(|| fw.guess(&wanted, mac, &standing)).transpose()?.flatten() {
        Some(guess) => guess,
        None => fw.look(&[&wanted[..], &[mac], &standing].concat())?,
    };
    let there = &seen.there;
    let (net, most) = (&host.net, host.settings.limits.guests);
    let mut change = Change { tables: Tables::Made, ..Change::default() };
    let mut goes = Vec::new();
    // A new guest has a MAC of its own: what was learned of the one before goes.
    if !there[0] && there[4] {
        change.absent = rules::station(fw, &[tap.to_owned()])?;
    }
    if !there[1] && (there[2] || there[3]) {
        let pins = fw.elements(Set::Addresses)?;
        let others = pins.iter().filter(|other| other.address() == Some(ip) && other.link_name() != tap);
        for other in others {
            let name = other.link_name();
            if there[0] && net.links.with(|conn| link::by_name(conn, &name))?.is_some_and(|link| tap::is_ours(&link)) {
                return Ok(Err(Fail::new(format!("{ip} is the address of the guest on {name}: take another"))));
            }
            // Learned from the first that used it, or left by a guest without a way out: what is asked for wins.
            change.absent.extend([*other, Element::link(Set::HasIp, &name)]);
        }
        let mine: Vec<_> = pins.into_iter().filter(|mine| mine.link_name() == tap).collect();
        goes = rules::guests(fw, &mine)?;
        change.absent.extend(mine.iter().filter_map(Element::address).map(Element::ip));
        change.absent.extend(mine);
        change.absent.extend(&goes);
    }
    if !there[0] && fw.count(&seen)?.guests >= most + goes.len() {
        return Ok(Err(Fail::new(format!(
            "there are {most} guests with a way out, the limit: take one away, or raise limits.guests"
        ))));
    }
    if !seen.stands() {
        change.present = rules::survey(net)?;
    }
    change.present.extend(standing);
    change.present.extend(wanted);
    let kept = change.present.clone();
    change.absent.retain(|element| !kept.contains(element));
    Ok(Ok(Plan { change, goes, is_new: !seen.there[0], seen }))
}

fn off<'a>(host: &'a Host, around: &mut Around, steps: &mut Steps<'a>, nat: &Nat) -> Result<Vec<Ipv4Addr>, Fail> {
    let ip = nat.guest.ip();
    let found = find(&host.net, around, nat).map_err(refused)?;
    let ways = host.net.firewall(|fw| {
        let pin = Element::at(Set::Addresses, nat.tap.as_str(), ip);
        if let Some((on, _)) = found {
            let way = Element::at(Set::Guests, &on.link().name, ip);
            if fw.look(&[way, pin])?.there == [true, true] {
                return Ok(Some(vec![way]));
            }
        }
        // The tap or its bridge went, or the guest is another tap's.
        let ways: Vec<_> = fw.elements(Set::Guests)?.into_iter().filter(|way| way.address() == Some(ip)).collect();
        if ways.is_empty() || fw.look(&[pin])?.there == [true] {
            return Ok(Some(ways));
        }
        // Another tap's guest keeps its way; an element that nothing is bound to is nobody's.
        let bound = fw.elements(Set::Addresses)?.iter().any(|pin| pin.address() == Some(ip));
        Ok(if bound { None } else { Some(ways) })
    });
    let ways = ways.map_err(refused)?;
    if let Some(known) = guests::read(host, ip)?.filter(|known| known.tap == nat.tap.as_str()) {
        strike(host, steps, &known.elements()[..1])?;
    }
    shut(host, steps, ways.as_deref().unwrap_or_default(), Vec::new())?;
    // Also where no way is left: a helper may have died before the connections went.
    let theirs = match &ways {
        None => false,
        Some(ways) => !ways.is_empty() || is_a_guests(&host.net, ip).map_err(refused)?,
    };
    Ok(if theirs { vec![ip] } else { Vec::new() })
}

/// Takes everything of taps out of the tables; with the last tap the tables go.
pub(crate) fn forget<'a>(host: &'a Host, steps: &mut Steps<'a>, taps: &[&str]) -> Result<(), Fail> {
    let ways = {
        let _ways = host.net.ways.lock().unwrap_or_else(PoisonError::into_inner);
        let (mine, ways) = host
            .net
            .firewall(|fw| {
                let (mut mine, pins) = rules::learned(fw, taps)?;
                let ways = rules::guests(fw, &pins)?;
                mine.extend(pins);
                mine.extend(taps.iter().map(|tap| Element::link(Set::Ports, tap)));
                Ok((mine, ways))
            })
            .map_err(refused)?;
        shut(host, steps, &ways, mine)?;
        ways
    };
    let addresses: Vec<_> = ways.iter().filter_map(Element::address).collect();
    connections(host, steps, &addresses)
}

/// Takes guests' ways and other elements out of the tables. With the last guest forwarding is put back: before the
/// rules that shield the opened links go.
pub(crate) fn shut<'a>(
    host: &'a Host,
    steps: &mut Steps<'a>,
    ways: &[Element],
    mut absent: Vec<Element>,
) -> Result<(), Fail> {
    let net = &host.net;
    let recorded = forward::recorded(host)?;
    absent.extend(ways);
    let opened: Vec<_> = recorded.iter().map(|link| Element::link(Set::Opened, &link.name)).collect();
    // One question for all that the change may be about.
    let asked = [&absent[..], &opened].concat();
    let (count, seen) = net
        .firewall(|fw| {
            let seen = fw.look(&asked)?;
            Ok((fw.count(&seen)?, seen))
        })
        .map_err(refused)?;
    let going = asked.iter().zip(&seen.there).filter(|(element, there)| element.set == Set::Ports && **there).count();
    let (is_last, no_taps, stands) = (count.guests == ways.len(), count.ports == going, seen.stands());
    strike(host, steps, ways)?;
    if !stands {
        // Somebody took the tables away a moment ago: who goes now does not come back with them.
        for guest in guests::all(host)?.iter().filter(|guest| absent.contains(&Element::link(Set::Ports, &guest.tap))) {
            strike(host, steps, &guest.elements()[..1])?;
        }
    }
    if is_last && !recorded.is_empty() {
        absent.extend(opened);
        let open = forward::still_open(net, &recorded, &[])?;
        let back = open.clone();
        steps.undo("forwarding", move || forward::switch(&back, true));
        steps.act("forwarding", || forward::switch(&open, false))?;
    }
    let change =
        Change { tables: if no_taps { Tables::GoneWithLast } else { Tables::AsTheyAre }, absent, ..Change::default() };
    if no_taps || !change.absent.is_empty() {
        let changed = steps.act("rules", || {
            net.firewall(|fw| fw.apply_seen(&change, Some(&seen)))
                .map_err(|error| Fail::new("the rules could not be taken away").because(error))
        })?;
        if changed != Changed::Nothing {
            steps.undo("the rules", move || rules::take_back(net, changed));
        }
    }
    if is_last && !recorded.is_empty() {
        steps.act("record", || forward::record(host, &[]))?;
        steps.undo("the record of forwarding", move || forward::record(host, &recorded));
    }
    if is_last && stands {
        beside::close(host);
        steps.undo("the rule in another's table", move || {
            beside::open(host);
            Ok(())
        });
    }
    Ok(())
}

/// The connections of guests that lost their way.
pub(crate) fn connections<'a>(host: &'a Host, steps: &mut Steps<'a>, guests: &[Ipv4Addr]) -> Result<(), Fail> {
    if guests.is_empty() {
        return Ok(());
    }
    steps.act("connections", || {
        host.net
            .tracks
            .with(|conn| guests.iter().try_for_each(|ip| conntrack::forget(conn, *ip)))
            .map_err(|error| Fail::new("the guest's connections could not be ended: try again").because(error))
    })
}
