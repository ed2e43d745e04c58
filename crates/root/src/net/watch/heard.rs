//! What the kernel tells of others' changes, and what of it is for us.

use crate::net::message::{attr, attrs, text, u16_at, u32_at};
use crate::net::ruleset::nft;
use crate::net::sets::TABLE;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::time::Duration;
use sys::netlink::Family;
use sys::netlink_events::Events;

/// What is listened to.
pub(super) struct Sources {
    rules: Events,
    routes: Events,
    buffer: Vec<u8>,
}

/// At most so many datagrams one after the other: between them there is something to do.
const AT_ONCE: usize = 512;

impl Sources {
    pub(super) fn open(own: Option<u32>) -> std::io::Result<Sources> {
        // NFNLGRP_NFTABLES; RTNLGRP_IPV4_ROUTE, IPV4_RULE, IPV4_NETCONF. Not of links: one is a guest's way only by a
        // route, and its switches are told by the last group. With each tap a dozen messages would come for nothing.
        let rules = Events::open(Family::Netfilter, &[7])?;
        if let Some(port) = own {
            // Nobody is woken for what we do ourselves; where that can't be had it is passed over when it is read.
            let _ = rules.pass_over(port);
        }
        let routes = Events::open(Family::Route, &[7, 8, 24])?;
        // A tap that comes wakes nobody; likewise. Whoever makes it waits for his processor meanwhile.
        let _ = routes.no_links_coming(NETCONFA_RP_FILTER);
        Ok(Sources { rules, routes, buffer: vec![0; 64 << 10] })
    }

    /// Waits for a message; `false` where the time was over.
    pub(super) fn wait(&self, time: Option<Duration>) -> bool {
        let time =
            time.map(|time| Timespec { tv_sec: time.as_secs().cast_signed(), tv_nsec: time.subsec_nanos().into() });
        let mut fds = [PollFd::new(&self.rules, PollFlags::IN), PollFd::new(&self.routes, PollFlags::IN)];
        // A signal that comes between is as good as a message.
        poll(&mut fds, time.as_ref()).unwrap_or(1) > 0
    }

    /// Reads what came.
    pub(super) fn hear(&mut self, heard: &mut Heard) {
        for _ in 0..AT_ONCE {
            match self.rules.receive(&mut self.buffer) {
                Ok(Some(length)) => heard.read(&self.buffer[..length]),
                Ok(None) => break,
                Err(_) => heard.lost(),
            }
        }
        for _ in 0..AT_ONCE {
            match self.routes.receive(&mut self.buffer) {
                Ok(None) => return,
                Ok(Some(length)) => heard.read_routes(&self.buffer[..length]),
                // Whatever was lost.
                Err(_) => heard.routes = true,
            }
        }
    }
}

/// What was heard and not answered yet.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// Somebody changed our tables.
    pub(super) tables: bool,
    /// Somebody changed rules.
    pub(super) rules: bool,
    /// Routes or forwarding changed.
    pub(super) routes: bool,
    /// Who changed rules last.
    pub(super) by: String,
    /// The socket that our own changes come by.
    own: Option<u32>,
    /// The commit whose end did not come yet changes our tables.
    named: bool,
}

// include/uapi/linux/rtnetlink.h, netconf.h
const NEWNETCONF: u16 = 80;
const DELNETCONF: u16 = 81;
const NETCONFA_FORWARDING: u16 = 2;
const NETCONFA_RP_FILTER: u16 = 3;

const NEWGEN: u16 = 15;
const NFTABLES: u16 = 10;

impl Heard {
    pub(super) fn new(own: Option<u32>) -> Heard {
        Heard { own, ..Heard::default() }
    }

    /// Messages were lost: anything can have happened.
    fn lost(&mut self) {
        (self.tables, self.rules, self.by) = (true, true, String::new());
    }

    /// A datagram about routes, their rules, or links' switches.
    fn read_routes(&mut self, datagram: &[u8]) {
        self.routes |= messages(datagram).any(|(kind, _, body)| match kind {
            NEWNETCONF => {
                let switch = |number| body.get(4..).is_none_or(|inner| attr(inner, number).is_some());
                // Somebody switched forwarding. A link that is new says all that it has, and no route leads by it yet.
                switch(NETCONFA_FORWARDING) && !switch(NETCONFA_RP_FILTER)
            }
            DELNETCONF => false,
            _ => true,
        });
    }

    /// A datagram of nftables' notifications.
    fn read(&mut self, datagram: &[u8]) {
        for (kind, port, body) in messages(datagram) {
            if Some(port) == self.own || kind >> 8 != NFTABLES {
                continue;
            }
            let body = body.get(4..).unwrap_or_default();
            if kind == nft(NEWGEN) {
                self.rules = true;
                self.tables |= std::mem::take(&mut self.named);
                self.by = attr(body, 3).map(text).unwrap_or_default();
            } else {
                // Every message names its table in its first attribute.
                self.named |= attrs(body).any(|(kind, name)| kind == 1 && text(name) == TABLE);
            }
        }
    }
}

/// The messages of a datagram: type, who caused it, body.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, u32, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32_at(bytes, 0)? as usize;
        let message = bytes.get(..length).filter(|message| message.len() >= 16)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16_at(message, 4)?, u32_at(message, 12)?, &message[16..]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::message::Requests;

    /// A notification of the socket 77's, about a table or with a name.
    fn of(kind: u16, attribute: u16, name: &str) -> Vec<u8> {
        let mut requests = Requests::default();
        requests.push(kind, 0, &[1, 0, 0, 0]).u32(9, 1).text(attribute, name);
        let mut bytes = requests.numbered(0).to_vec();
        bytes[12..16].copy_from_slice(&77_u32.to_ne_bytes());
        bytes
    }

    fn heard(own: u32, datagram: &[u8]) -> Heard {
        let mut heard = Heard::new(Some(own));
        heard.read(datagram);
        heard
    }

    #[test]
    fn a_commit_says_whose_it_is_and_what_it_is_about() {
        let (ours, others, end) = (of(nft(6), 1, "banger"), of(nft(6), 1, "filter"), of(nft(NEWGEN), 3, "dockerd"));
        let told = heard(1, &[&ours[..], &end].concat());
        assert!(told.rules && told.tables && told.by == "dockerd");
        let told = heard(1, &[&others[..], &end].concat());
        assert!(told.rules && !told.tables);
        let told = heard(77, &[&ours[..], &end].concat());
        assert!(!told.rules && !told.tables, "our own");
        let told = heard(1, &of(1 << 8 | 6, 1, "banger"));
        assert!(!told.rules && !told.named, "not of nftables");
        // The end comes in another datagram.
        let mut told = heard(1, &ours);
        assert!(!told.rules && !told.tables);
        told.read(&end);
        assert!(told.tables);
    }

    #[test]
    fn links_that_come_and_go_are_no_news_and_switches_are() {
        let told = |kind, switches: &[u16]| {
            let mut requests = Requests::default();
            let mut attrs = requests.push(kind, 0, &[2, 0, 0, 0]);
            attrs.u32(1, 7);
            switches.iter().for_each(|switch| _ = attrs.u32(*switch, 0));
            let mut heard = Heard::new(Some(1));
            heard.read_routes(requests.numbered(0));
            heard.routes
        };
        assert!(!told(NEWNETCONF, &[2, 3, 4, 7, 5, 6]), "a new link");
        assert!(!told(NEWNETCONF, &[3]) && !told(DELNETCONF, &[]));
        assert!(told(NEWNETCONF, &[2]), "forwarding");
        // A route, a rule, whatever comes next: looked at.
        assert!([24, 25, 32, 33, 16].into_iter().all(|kind| told(kind, &[])));
    }

    #[test]
    fn lies_are_no_commit() {
        let whole = of(nft(NEWGEN), 3, "nft");
        for cut in 0..whole.len() {
            let told = heard(1, &whole[..cut]);
            assert!(!told.rules, "{cut}");
        }
        for length in [0_u32, 1, 15, u32::MAX, 1 << 20] {
            let mut bytes = whole.clone();
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            assert!(!heard(1, &bytes).rules, "{length}");
        }
        // An end without a name, with attributes nobody knows, with one that says an impossible length.
        for mut body in
            [vec![], vec![0, 0, 0, 0], [vec![0; 4], vec![8, 0, 0xff, 0x3f, 1, 2, 3, 4], vec![0xff; 8]].concat()]
        {
            let mut bytes = whole[..16].to_vec();
            bytes.append(&mut body);
            let length = bytes.len() as u32;
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            let told = heard(1, &bytes);
            assert!(told.rules && told.by.is_empty());
        }
        let mut told = Heard::new(Some(1));
        told.lost();
        assert!(told.rules && told.tables);
    }
}
