//! A tap of ours: it stays only from its last step on, so that a helper that dies before leaves none.

use super::bridge::{self, Ours};
use super::link::{self, Change, Inet, Link, NO_IPV6};
use super::{nat, refused, rules};
use crate::fail::Fail;
use crate::host::Host;
use crate::steps::{self, Steps};
use std::sync::{PoisonError, RwLockReadGuard};
use sys::tun::Tap;
use wire::name::link::TapName;
use wire::net::{Bridge, NewTap};

/// Our mark: a tap's alias.
const MARK: &str = "banger tap";

/// A tap that is on no bridge any more (the bridge was deleted under it) speaks to the host itself: by these switches
/// it gets no answer. No forwarding, rp_filter where no address is, arp_ignore of everything.
const SWITCHES: [Inet; 3] = [Inet(1, 0), Inet(8, 1), Inet(19, 8)];

/// Whether a link is a tap with our mark.
pub(crate) fn is_ours(link: &Link) -> bool {
    link.kind == "tun" && link.alias == MARK && link.tun.is_some_and(|tun| tun.is_tap)
}

/// Makes a tap, or puts right one that is there.
pub(crate) fn create(host: &Host, new: &NewTap) -> Result<(), Fail> {
    let name = new.tap.as_str();
    let _tap = host.net.locks.hold(format!("tap:{name}"));
    steps::run("create_tap", &host.faults, |steps| {
        let there = find(host, &new.tap)?;
        if there.is_none() {
            limit(host)?;
        }
        let (_bridges, on) = bridge(host, steps, &new.bridge)?;
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
            if let Some(ours) = bridge::if_right(&host.net, wanted)? {
                return Ok((shared, ours));
            }
        }
        let _alone = host.net.bridges.write().unwrap_or_else(PoisonError::into_inner);
        bridge::put_right(host, steps, wanted)?;
    }
    Err(Fail::new(format!("somebody changes the bridge {} again and again: find out who", wanted.name)))
}

/// The tap of that name, where it is ours.
fn find(host: &Host, name: &TapName) -> Result<Option<Link>, Fail> {
    match host.net.links.with(|conn| link::by_name(conn, name.as_str())).map_err(refused)? {
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
        Tap::open(name).map_err(|error| Fail::new(failed("made")).because(format!("TUNSETIFF {name}: {error}")))
    })?;
    let link = host.net.links.with(|conn| link::by_name(conn, name)).map_err(refused)?;
    // Somebody may have made a tap of that name a moment ago: then it is his that we opened.
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
        change(Change { alias: Some(MARK), inet: &SWITCHES, ipv6, ..Change::default() })
            .map_err(|error| Fail::new(failed("marked")).because(error))
    })?;
    rules::admit(host, steps, name, on, host.settings.limits.taps)?;
    steps.act("port", || {
        change(Change { master: Some(on.link().index), up: Some(true), ..Change::default() })
            .map_err(|error| port_failed(error, name, on))
    })?;
    steps.act("keep", || {
        tap.keep().map_err(|error| Fail::new(failed("made to stay")).because(format!("TUNSETPERSIST {name}: {error}")))
    })
}

fn port_failed(error: super::netlink::Refused, tap: &str, on: &Ours) -> Fail {
    let bridge = &on.link().name;
    let message = match error.is(libc::EXFULL) {
        true => format!("the bridge {bridge} is full: it holds 1,023 taps. Use another bridge, or delete a tap"),
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
    if there.master != on.link().index || !there.up {
        onto(host, steps, there, on)?;
    }
    // The last step: the kernel takes no user or group away again.
    owner(host, steps, there)
}

fn onto<'a>(host: &'a Host, steps: &mut Steps<'a>, there: &Link, on: &Ours) -> Result<(), Fail> {
    let (links, index) = (&host.net.links, there.index);
    let set = move |master, up| {
        let change = Change { master: Some(master), up: Some(up), ..Change::default() };
        links.with(|conn| link::change(conn, index, &change))
    };
    let (master, up) = (there.master, there.up);
    // A refused master has taken the tap off its old bridge already: so the undo stands before the act.
    steps.undo("the tap's bridge", move || set(master, up).map_err(refused));
    steps.act("port", || set(on.link().index, true).map_err(|error| port_failed(error, &there.name, on)))
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

/// Takes a tap away with all that the tables hold of it. Where there is none, what a dead helper left of it goes.
///
/// The kernel takes 15 to 21 ms to end a link. Nothing is held meanwhile but this tap's own name.
pub(crate) fn delete(host: &Host, name: &TapName) -> Result<(), Fail> {
    let _tap = host.net.locks.hold(format!("tap:{name}"));
    let there = find(host, name)?;
    steps::run("delete_tap", &host.faults, |steps| {
        if let Some(there) = there.as_ref().filter(|there| there.master != 0) {
            detach(host, steps, there)?;
        }
        nat::forget(host, steps, name.as_str())?;
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
fn detach<'a>(host: &'a Host, steps: &mut Steps<'a>, there: &Link) -> Result<(), Fail> {
    let links = &host.net.links;
    let (index, master, was_up) = (there.index, there.master, there.up);
    let back = move || {
        let change = Change { master: Some(master), up: Some(was_up), ..Change::default() };
        links.with(|conn| link::change(conn, index, &change))
    };
    // What failed half-way is put back too.
    steps.undo("the tap's bridge", move || match back() {
        Err(error) if !error.is(libc::ENODEV) => Err(refused(error)),
        _ => Ok(()),
    });
    steps.act("detach", || match links.with(|conn| link::detach(conn, index)) {
        Err(error) if !error.is(libc::ENODEV) => {
            Err(Fail::new(format!("the tap {} could not be taken off its bridge", there.name)).because(error))
        }
        _ => Ok(()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::link::Tun;

    #[test]
    fn the_mark_is_the_alias_of_a_tap() {
        let tun = |is_tap| Some(Tun { is_tap, ..Tun::default() });
        let ours = Link { kind: "tun".into(), alias: MARK.into(), tun: tun(true), ..Link::default() };
        assert!(is_ours(&ours));
        assert!(!is_ours(&Link { tun: tun(false), ..ours.clone() }));
        assert!(!is_ours(&Link { alias: String::new(), ..ours.clone() }));
        assert!(!is_ours(&Link { kind: "veth".into(), tun: None, ..ours }));
    }
}
