//! What lies around a guest's way and seldom changes: the links that gateways lie behind, whether the whole host
//! forwards, the addresses of bridges, our links themselves. Read once, and believed as long as the kernel tells of no
//! change.
//!
//! A socket hears of every such change. The kernel puts its message there before the change's own caller goes on: so
//! where nothing lies there, what was read is what a new question would give. Where a message could not be made or had
//! no room, reading says so, and all is forgotten.

mod heard;

use super::link::{self, Address, DELLINK, Link, NEWLINK};
use super::message::{answers, attr, u32_at};
use super::netlink::{Conn, Refused};
use super::{Net, forward, refused, route, tap};
use crate::fail::Fail;
use std::collections::HashMap;
use sys::netlink::Family;
use sys::netlink_events::Events;

const NEWNETCONF: u16 = 80;
const DELNETCONF: u16 = 81;
/// RTNLGRP_LINK, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE, IPV4_NETCONF.
const GROUPS: [u32; 5] = [1, 5, 7, 8, 24];

/// What is known, and who hears that it is not so any more.
#[derive(Debug, Default)]
pub(crate) struct Around {
    events: Option<Events>,
    buffer: Vec<u8>,
    uplinks: Option<Vec<Link>>,
    host_forwards: Option<bool>,
    addresses: HashMap<u32, Vec<Address>>,
    links: heard::Links,
}

impl Around {
    /// What changed since the last time is forgotten. Asked once for an operation, at its start.
    pub(crate) fn hear(&mut self) {
        let Some(events) = &self.events else {
            self.forget();
            self.links = heard::Links::default();
            // Without it nothing is believed for longer than this operation.
            let open = Events::open(Family::Route, &GROUPS);
            self.events = open.and_then(|events| events.whole_links().map(|()| events)).ok();
            self.buffer.resize(if self.events.is_some() { 32 << 10 } else { 0 }, 0);
            return;
        };
        let (mut changed, mut lost) = (false, false);
        loop {
            match events.receive(&mut self.buffer) {
                Ok(None) => break,
                Ok(Some(length)) => {
                    for told in answers(&self.buffer[..length]) {
                        self.links.hear(told.kind, told.body);
                        changed |= matters(&self.uplinks, told.kind, told.body);
                    }
                }
                // For want of room, so anything may have changed. What is read after this may be older than what was lost.
                Err(_) => lost = true,
            }
        }
        if changed || lost {
            self.forget();
        }
        if lost {
            self.links = heard::Links::default();
        }
    }

    fn forget(&mut self) {
        self.uplinks = None;
        self.host_forwards = None;
        self.addresses.clear();
    }

    /// The links that a gateway lies behind.
    pub(crate) fn uplinks(&mut self, net: &Net) -> Result<&[Link], Fail> {
        match &mut self.uplinks {
            Some(known) => Ok(known),
            unknown => Ok(unknown.insert(net.links.with(route::uplinks).map_err(refused)?)),
        }
    }

    /// Whether somebody opened the whole host.
    pub(crate) fn host_forwards(&mut self) -> Result<bool, Fail> {
        match self.host_forwards {
            Some(known) => Ok(known),
            None => Ok(*self.host_forwards.insert(forward::read("all")?)),
        }
    }

    /// The addresses of a bridge.
    pub(crate) fn addresses(&mut self, conn: &mut Conn, index: u32) -> Result<&[Address], Refused> {
        use std::collections::hash_map::Entry;
        match self.addresses.entry(index) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(unknown) => Ok(unknown.insert(link::addresses(conn, Some(index))?)),
        }
    }

    /// What the tap of that name is a port of, where the tap is ours: at this moment, for nobody told of a change since.
    pub(crate) fn master(&mut self, conn: &mut Conn, name: &str) -> Result<Option<Link>, Refused> {
        if let Some(bridge) = self.links.bridge_of(name) {
            return Ok(Some(bridge.clone()));
        }
        let tap = link::by_name(conn, name)?.filter(|tap| tap::is_ours(tap) && tap.name == name);
        // The kernel refuses a question for number 0: a tap that is on no bridge.
        let Some(tap) = tap.filter(|tap| tap.master != 0) else { return Ok(None) };
        let master = link::by_index(conn, tap.master)?;
        if self.events.is_some() {
            [Some(&tap), master.as_ref()].into_iter().flatten().for_each(|link| self.links.learn(link));
        }
        Ok(master)
    }
}

/// Whether switches are all links' (and those' to come), or that one's.
fn of_all_or(body: &[u8], is: impl Fn(u32) -> bool) -> bool {
    // NETCONFA_IFINDEX (1): negative for all links and for those to come.
    let index = body.get(4..).and_then(|inner| attr(inner, 1)).and_then(|it| u32_at(it, 0));
    index.is_none_or(|index| index.cast_signed() < 0 || is(index))
}

/// Whether a message tells of something that is believed here. Switches of a link that no gateway lies behind come and
/// go with every tap; its address and its route as an uplink are told by messages of their own.
fn matters(uplinks: &Option<Vec<Link>>, kind: u16, body: &[u8]) -> bool {
    let is_uplink = |index: u32| uplinks.as_ref().is_none_or(|all| all.iter().any(|link| link.index == index));
    match kind {
        NEWLINK | DELLINK => false,
        NEWNETCONF | DELNETCONF => of_all_or(body, is_uplink),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32) -> Link {
        Link { index, ..Link::default() }
    }

    #[test]
    fn only_what_is_believed_is_forgotten() {
        let uplinks = Some(vec![link(3)]);
        let about = |index: u32| link::header(index, 0, 0);
        let netconf = |index: i32| [vec![2, 0, 0, 0, 8, 0, 1, 0], index.to_ne_bytes().to_vec()].concat();
        assert!(!matters(&uplinks, NEWNETCONF, &netconf(4)) && matters(&uplinks, NEWNETCONF, &netconf(3)));
        assert!(matters(&None, NEWNETCONF, &netconf(4)), "nothing is known yet of which ones count");
        assert!(matters(&uplinks, NEWNETCONF, &netconf(-1)) && matters(&uplinks, DELNETCONF, &[]));
        // An address, a route, a rule: whatever it says.
        for kind in [20, 21, 24, 25, 32, 33] {
            assert!(matters(&uplinks, kind, &about(4)), "{kind}");
        }
        for kind in [NEWLINK, DELLINK] {
            assert!(!matters(&uplinks, kind, &about(3)), "{kind}");
        }
    }
}
