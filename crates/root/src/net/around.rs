//! What lies around a guest's way and seldom changes: the links that gateways lie behind, whether the whole host
//! forwards, the addresses of bridges. Read once, and believed as long as the kernel tells of no change.
//!
//! A socket hears of every such change. The kernel puts its message there before the change's own caller goes on: so
//! where nothing lies there, what was read is what a new question would give. Whose a link is, is asked each time.

use super::link::{self, Address, GETLINK, IFLA_EXT_MASK, IFLA_IFNAME, Link, SKIP_STATS, found, header};
use super::message::{Requests, answers, u32_at};
use super::netlink::{Conn, QUESTION, Refused};
use super::{Net, forward, refused, route};
use crate::fail::Fail;
use std::collections::HashMap;
use sys::netlink::Family;
use sys::netlink_events::Events;

const NEWLINK: u16 = 16;
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
    /// The bridge that was asked about last: the next tap is most likely on it too.
    bridge: u32,
}

impl Around {
    /// What changed since the last time is forgotten. Asked once for an operation, at its start.
    pub(crate) fn hear(&mut self) {
        let Some(events) = &self.events else {
            self.forget();
            // Without it nothing is believed for longer than this operation.
            self.events = Events::open(Family::Route, &GROUPS).ok();
            self.buffer.resize(if self.events.is_some() { 32 << 10 } else { 0 }, 0);
            return;
        };
        let mut changed = false;
        loop {
            match events.receive(&mut self.buffer) {
                Ok(None) => break,
                Ok(Some(length)) => {
                    changed |= answers(&self.buffer[..length]).any(|told| matters(&self.uplinks, told.kind, told.body));
                }
                // Lost for want of room, so anything may have changed.
                Err(_) => changed = true,
            }
        }
        if changed {
            self.forget();
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

    /// The tap of that name and what it is a port of, as they are at this moment: in one question where it is on the
    /// bridge that the last one was on.
    pub(crate) fn port(&mut self, conn: &mut Conn, tap: &str) -> Result<Option<(Link, Option<Link>)>, Refused> {
        let call = "RTM_GETLINK of a tap and its bridge";
        let mut ask = Requests::default();
        ask.push(GETLINK, QUESTION, &header(0, 0, 0)).text(IFLA_IFNAME, tap).u32(IFLA_EXT_MASK, SKIP_STATS);
        if self.bridge != 0 {
            ask.push(GETLINK, QUESTION, &header(self.bridge, 0, 0)).u32(IFLA_EXT_MASK, SKIP_STATS);
        }
        let mut said = conn.ask(call, &mut ask)?.into_iter().map(|said| found(said.good(call)));
        let Some(tap) = said.next().transpose()?.flatten() else { return Ok(None) };
        let guessed = said.next().transpose()?.flatten();
        // The kernel refuses a question for number 0: a tap that is on no bridge.
        let master = match guessed.filter(|guessed| guessed.index == tap.master) {
            None if tap.master != 0 => link::by_index(conn, tap.master)?,
            guessed => guessed,
        };
        if tap.master != 0 {
            self.bridge = tap.master;
        }
        Ok(Some((tap, master)))
    }
}

/// Whether a message tells of something that is believed here. A link that no gateway lies behind comes, changes and
/// goes with every tap; its address, its route, its end as an uplink are told by messages of their own.
fn matters(uplinks: &Option<Vec<Link>>, kind: u16, body: &[u8]) -> bool {
    let is_uplink = |index: u32| uplinks.as_ref().is_none_or(|all| all.iter().any(|link| link.index == index));
    match kind {
        // struct ifinfomsg: the index behind family, type.
        NEWLINK => u32_at(body, 4).is_none_or(is_uplink),
        // NETCONFA_IFINDEX (1): negative for all links and for those to come.
        NEWNETCONF | DELNETCONF => {
            let index = body.get(4..).and_then(|inner| super::message::attr(inner, 1)).and_then(|it| u32_at(it, 0));
            index.is_none_or(|index| index.cast_signed() < 0 || is_uplink(index))
        }
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
        let about = |index: u32| header(index, 0, 0);
        assert!(matters(&uplinks, NEWLINK, &about(3)) && !matters(&uplinks, NEWLINK, &about(4)));
        assert!(matters(&None, NEWLINK, &about(4)), "nothing is known yet of which ones count");
        let netconf = |index: i32| [vec![2, 0, 0, 0, 8, 0, 1, 0], index.to_ne_bytes().to_vec()].concat();
        assert!(!matters(&uplinks, NEWNETCONF, &netconf(4)) && matters(&uplinks, NEWNETCONF, &netconf(3)));
        assert!(matters(&uplinks, NEWNETCONF, &netconf(-1)) && matters(&uplinks, DELNETCONF, &[]));
        // An address, a route, a rule, a link's end: whatever it says.
        for kind in [17, 20, 21, 24, 25, 32, 33] {
            assert!(matters(&uplinks, kind, &about(4)), "{kind}");
        }
    }
}
