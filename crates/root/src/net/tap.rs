//! A tap of ours: it stays only from its last step on, so that a helper that dies before leaves none.

use super::bridge::{self, Ours};
use super::link::{self, Change, Inet, Link, NO_IPV6, Port};
use super::netlink::Conn;
use super::{forward, nat, refused, rules};
use crate::fail::Fail;
use crate::host::Host;
use crate::mark;
pub(crate) use crate::mark::is_tap as is_ours;
use crate::steps::{self, Steps};
use std::sync::{PoisonError, RwLockReadGuard};
use sys::tun::Tap;
use wire::name::link::TapName;
use wire::net::{Bridge, NewTap};

/// So many links, or taps' rules, are spoken of in one datagram: their answers find room in a socket.
pub(crate) const AT_ONCE: usize = 64;

/// A tap that is on no bridge any more (the bridge was deleted under it) speaks to the host itself: by these switches
/// it gets no answer. No forwarding, rp_filter where no address is, arp_ignore of everything.
const SWITCHES: [Inet; 3] = [Inet(1, 0), Inet(8, 1), Inet(19, 8)];

/// Makes a tap, or puts right one that is there.
pub(crate) fn create(host: &Host, new: &NewTap) -> Result<(), Fail> {
    let name = new.tap.as_str();
    let _tap = host.net.locks.hold(format!("tap:{name}"));
    steps::run("create_tap", &host.faults, |steps| {
        let bridges = host.net.bridges.read().unwrap_or_else(PoisonError::into_inner);
        let (on, there) = bridge::if_right(&host.net, &new.bridge, Some(&new.tap))?;
        let there = ours(&new.tap, there)?;
        if there.is_none() {
            limit(host)?;
        }
        let (_bridges, on) = match on {
            Some(on) => (bridges, on),
            None => {
                drop(bridges);
                bridge(host, steps, &new.bridge)?
            }
        };
        match there {
            Some(there) => put_right(host, steps, &there, &on),
            None => make(host, steps, new, &on),
        }
    })
}

/// The bridge, right, and nobody changes bridges meanwhile.
fn bridge<'a>(host: &'a Host, steps: &mut Steps<'a>, wanted: &Bridge) -> Result<(RwLockReadGuard<'a, ()>, Ours), Fail> {
    for _ in 0..5 {
        {
            let shared = host.net.bridges.read().unwrap_or_else(PoisonError::into_inner);
            if let (Some(ours), _) = bridge::if_right(&host.net, wanted, None)? {
                return Ok((shared, ours));
            }
        }
        let _alone = host.net.bridges.write().unwrap_or_else(PoisonError::into_inner);
        bridge::put_right(host, steps, wanted)?;
    }
    Err(Fail::new(format!("somebody changes the bridge {} again and again: find out who", wanted.name)))
}

/// The tap of that name, where it is ours.
pub(crate) fn find(host: &Host, name: &TapName) -> Result<Option<Link>, Fail> {
    ours(name, host.net.links.with(|conn| link::by_name(conn, name.as_str())).map_err(refused)?)
}

/// What has that name, where it is a tap of ours.
fn ours(name: &TapName, link: Option<Link>) -> Result<Option<Link>, Fail> {
    match link {
        Some(link) if link.name != name.as_str() => {
            Err(Fail::new(format!("{name} is another name of the link {}: choose another tap", link.name)))
        }
        Some(link) if !is_ours(&link) => Err(foreign(name)),
        other => Ok(other),
    }
}

fn foreign(name: &TapName) -> Fail {
    Fail::new(format!("there is a link {name} that is not a tap of banger's: choose another name, or remove it"))
}

fn limit(host: &Host) -> Result<(), Fail> {
    let most = host.settings.limits.taps;
    let count = host.net.firewall(|fw| {
        let seen = fw.look(&[])?;
        fw.count(&seen)
    });
    if count.map_err(refused)?.ports < most { Ok(()) } else { Err(full(most)) }
}

/// The limit is reached.
pub(crate) fn full(most: usize) -> Fail {
    Fail::new(format!("there are {most} taps of banger's, the limit: delete one, or raise limits.taps"))
}

fn make<'a>(host: &'a Host, steps: &mut Steps<'a>, new: &NewTap, on: &Ours) -> Result<(), Fail> {
    let name = new.tap.as_str();
    let failed = |what: &str| format!("the tap {name} could not be {what}");
    let tap = steps.act("tap", || {
        Tap::make(name).map_err(|error| {
            // Somebody made a link of that name since we looked: his is not touched.
            let fail =
                if error.raw_os_error() == Some(libc::EBUSY) { foreign(&new.tap) } else { Fail::new(failed("made")) };
            fail.because(format!("TUNSETIFF {name}: {error}"))
        })
    })?;
    // A link that is up and loses its carrier costs who asks for it next a grace period of the kernel's, 0.1 ms: this one
    // never has any before a VMM opens it. The question below takes note of it while the link is down, for nothing.
    let _ = tap.unplug();
    let link = host.net.links.with(|conn| link::by_name(conn, name)).map_err(refused)?;
    // Ours goes with its descriptor; one that stays was made in the place of ours, which somebody renamed or removed.
    let is_new =
        |link: &Link| link.alias.is_empty() && link.tun.is_some_and(|tun| !tun.persists && tun.owner.is_none());
    let link = link.filter(is_new).ok_or_else(|| foreign(&new.tap))?;
    steps.act("tap_owner", || {
        let (uid, gid) = (host.owner.uid, host.owner.gid);
        tap.give_to(uid, gid).map_err(|error| {
            Fail::new(failed("given to its owner")).because(format!("TUNSETOWNER {name} {uid}:{gid}: {error}"))
        })
    })?;
    let change = |change: Change<'_>| host.net.links.with(|conn| link::change(conn, link.index, &change));
    steps.act("tap_mark", || {
        let ipv6 = link.ipv6_mode.map(|_| NO_IPV6);
        change(Change { alias: Some(mark::TAP), inet: &SWITCHES, ipv6, ..Change::default() })
            .map_err(|error| Fail::new(failed("marked")).because(error))?;
        if ipv6.is_some() {
            // The kernel gives each link that is up a multicast route, and walks all of them for the next one. Where it can't
            // be written only that is so: the mode above is what keeps addresses away.
            let _ = forward::write(&format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), true);
        }
        Ok(())
    })?;
    rules::admit(host, steps, name, on, host.settings.limits.taps)?;
    let port = Port { master: on.link().index, isolated: host.settings.isolate_guests, up: true };
    steps.act("port", || {
        host.net
            .links
            .with(|conn| link::attach(conn, link.index, Port::of(&link), port))
            .map_err(|error| port_failed(error, name, on))
    })?;
    steps.act("keep", || {
        tap.keep().map_err(|error| Fail::new(failed("made to stay")).because(format!("TUNSETPERSIST {name}: {error}")))
    })
}

fn port_failed(error: super::netlink::Refused, tap: &str, on: &Ours) -> Fail {
    let bridge = &on.link().name;
    let message = match error.is(libc::EXFULL) {
        true => format!(
            "the bridge {bridge} is full: it holds 1,023 ports, the kernel's limit. Use another bridge, or delete a tap of it"
        ),
        false => format!("the tap {tap} could not be put on the bridge {bridge}"),
    };
    Fail::new(message).because(error)
}

/// A tap that is there is kept, open or not: only what is wrong with it is changed.
fn put_right<'a>(host: &'a Host, steps: &mut Steps<'a>, there: &Link, on: &Ours) -> Result<(), Fail> {
    rules::admit(host, steps, &there.name, on, usize::MAX)?;
    let links = &host.net.links;
    let index = there.index;
    let set = move |inet: &[Inet], ipv6| {
        links.with(|conn| link::change(conn, index, &Change { inet, ipv6, ..Change::default() })).map_err(refused)
    };
    let (ipv6, inet) = (there.ipv6_mode, there.switches(&SWITCHES));
    if ipv6.is_some_and(|mode| mode != NO_IPV6) || inet != SWITCHES {
        steps.act("tap_mark", || set(&SWITCHES, ipv6.map(|_| NO_IPV6)))?;
        steps.undo("the tap's switches", move || set(&inet, ipv6));
    }
    let port = Port { master: on.link().index, isolated: host.settings.isolate_guests, up: true };
    if Port::of(there) != port {
        onto(host, steps, there, on, port)?;
    }
    // The last step: the kernel takes no user or group away again.
    owner(host, steps, there)
}

fn onto<'a>(host: &'a Host, steps: &mut Steps<'a>, there: &Link, on: &Ours, port: Port) -> Result<(), Fail> {
    let links = &host.net.links;
    // A refused master has taken the tap off its old bridge already: so the undo stands before the act.
    undo_port(host, steps, there);
    steps.act("port", || {
        links
            .with(|conn| link::attach(conn, there.index, Port::of(there), port))
            .map_err(|error| port_failed(error, &there.name, on))
    })
}

/// Says how a tap comes back onto its bridge as it hung there; one that is gone stays gone.
fn undo_port<'a>(host: &'a Host, steps: &mut Steps<'a>, there: &Link) {
    let (links, index, was) = (&host.net.links, there.index, Port::of(there));
    let back = move |conn: &mut Conn| {
        // How far it came is not known.
        let now = link::by_index(conn, index)?;
        now.map_or(Ok(()), |now| link::attach(conn, index, Port::of(&now), was))
    };
    steps.undo("the tap's bridge", move || match links.with(back) {
        Err(error) if !error.is(libc::ENODEV) => Err(refused(error)),
        _ => Ok(()),
    });
}

fn owner<'a>(host: &'a Host, steps: &mut Steps<'a>, there: &Link) -> Result<(), Fail> {
    let (uid, gid) = (host.owner.uid, host.owner.gid);
    let tun = there.tun.unwrap_or_default();
    if (tun.owner, tun.group) == (Some(uid), Some(gid)) {
        return Ok(());
    }
    let name = &there.name;
    steps.act("tap_owner", || {
        Tap::open(name).and_then(|tap| tap.give_to(uid, gid)).map_err(|error| {
            Fail::new(format!(
                "the tap {name} is another user's and could not be given to the owner: stop what has it open"
            ))
            .because(format!("TUNSETOWNER {name} {uid}:{gid}: {error}"))
        })
    })
}

/// Taps of an earlier helper are isolated as the settings say now, and so is what is routed back onto their bridge.
pub(crate) fn isolate_all(host: &Host) -> Result<(), Fail> {
    let net = &host.net;
    let links = net.links.with(|conn| link::list(conn, None)).map_err(refused)?;
    let bridges: Vec<_> = links.iter().cloned().filter_map(Ours::prove).collect();
    if bridges.is_empty() {
        return Ok(());
    }
    let isolated = host.settings.isolate_guests;
    let on_ours = |tap: &&Link| is_ours(tap) && bridges.iter().any(|bridge| bridge.link().index == tap.master);
    for tap in links.iter().filter(on_ours).filter(|tap| tap.isolated != isolated) {
        let port = Port { isolated, ..Port::of(tap) };
        match net.links.with(|conn| link::attach(conn, tap.index, Port::of(tap), port)) {
            Err(error) if !error.is(libc::ENODEV) => {
                return Err(
                    Fail::new(format!("the tap {} could not be isolated, or no longer", tap.name)).because(error)
                );
            }
            _ => {}
        }
    }
    let names = bridges.iter().map(|bridge| bridge.link().name.as_str());
    rules::together(net, names, !isolated).map_err(refused)
}

/// Takes a tap away with all that the tables hold of it. Where there is none, what a dead helper left of it goes.
///
/// The kernel takes 15 to 21 ms to end a link. Nothing is held meanwhile but this tap's own name.
pub(crate) fn delete(host: &Host, name: &TapName) -> Result<(), Fail> {
    let _tap = host.net.locks.hold(format!("tap:{name}"));
    let there = find(host, name)?;
    steps::run("delete_tap", &host.faults, |steps| {
        detach(host, steps, there.as_slice())?;
        nat::forget(host, steps, &[name.as_str()])?;
        let Some(there) = &there else { return Ok(()) };
        steps.act("link", || match host.net.links.with(|conn| link::remove(conn, there.index)) {
            Err(error) if !error.is(libc::ENODEV) => {
                Err(Fail::new(format!("the tap {name} could not be removed")).because(error))
            }
            _ => Ok(()),
        })
    })
}

/// Off the bridge first: no frame passes once its rules are gone. And down before that: a tap that is up and on no
/// bridge hands its frames to the host itself.
pub(crate) fn detach<'a>(host: &'a Host, steps: &mut Steps<'a>, taps: &[Link]) -> Result<(), Fail> {
    let ports: Vec<&Link> = taps.iter().filter(|tap| tap.master != 0).collect();
    // What failed half-way is put back too.
    ports.iter().for_each(|port| undo_port(host, steps, port));
    for some in ports.chunks(AT_ONCE) {
        let indexes: Vec<u32> = some.iter().map(|port| port.index).collect();
        steps.act("detach", || {
            host.net.links.with(|conn| link::detach(conn, &indexes)).map_err(|error| {
                let names: Vec<&str> = some.iter().map(|port| port.name.as_str()).collect();
                Fail::new(format!("{} could not be taken off the bridge", names.join(", "))).because(error)
            })
        })?;
    }
    Ok(())
}
