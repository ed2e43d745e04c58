//! What the kernel tells of our packet: each rule that took it, each policy.
//!
//! Others may trace packets of theirs at the same time. Ours is told by its ids, which are those of the messages about
//! the probe's own tables: nobody else's packet gets there with the nonce.

use super::table;
use crate::net::message::{answers, attr, text};
use crate::net::ruleset::nft;
use crate::net::sets::TABLE;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io;
use std::time::{Duration, Instant};
use sys::netlink::Family;
use sys::netlink_events::Events;

/// `NFNLGRP_NFTRACE`
const GROUP: u32 = 9;
const TRACE: u16 = 17;
/// A packet that passes a thousand rules of somebody's is told of a thousand times.
const ROOM: usize = 4 << 20;
/// More than that are not kept.
const MOST: usize = 16_384;

const POLICY: u32 = 1;
const RULE: u32 = 3;
const DROP: u32 = 0;
const STOLEN: u32 = 2;
const QUEUE: u32 = 3;

/// Somebody who listens.
pub(super) struct Traces {
    events: Events,
    heard: Vec<Event>,
    lost: bool,
}

/// One message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) family: u8,
    pub(super) table: String,
    pub(super) chain: String,
    /// The rule's; 0 for a chain's policy.
    pub(super) handle: u64,
    id: u32,
    kind: u32,
    /// What became of the packet.
    verdict: u32,
    /// The link's number that it was about to leave by; 0 where that is not known yet.
    pub(super) out: u32,
}

/// Where the packet ended, as far as rules say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// It came by our last chain.
    Open,
    Dropped(Event),
    Queued(Event),
    /// It was let through by our own table, and was not seen at the end.
    BehindForward,
    /// It was seen, but not where packets are forwarded.
    BeforeForward,
    /// It was not seen.
    Unseen,
}

impl Event {
    fn read(body: &[u8]) -> Option<Event> {
        let inner = body.get(4..)?;
        let number = |kind| attr(inner, kind).and_then(be32);
        let name = |kind| attr(inner, kind).map(text).unwrap_or_default();
        let kind = number(4)?;
        Some(Event {
            family: *body.first()?,
            table: name(1),
            chain: name(2),
            handle: match attr(inner, 3).map(<[u8; 8]>::try_from) {
                Some(Ok(handle)) if kind != POLICY => u64::from_be_bytes(handle),
                _ => 0,
            },
            id: number(6)?,
            kind,
            verdict: match kind {
                POLICY => number(16)?,
                _ => attr(inner, 5).and_then(|verdict| attr(verdict, 1)).and_then(be32)?,
            },
            out: number(12).unwrap_or(0),
        })
    }

    fn is_probes(&self) -> bool {
        self.table == table::NAME
    }

    /// The lower half: above it the kernel may say why.
    fn is(&self, verdict: u32) -> bool {
        matches!(self.kind, POLICY | RULE) && self.verdict & 0xffff == verdict
    }
}

fn be32(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_be_bytes)
}

impl Traces {
    /// Begins to listen.
    pub(super) fn open() -> io::Result<Traces> {
        let events = Events::open(Family::Netfilter, &[GROUP])?;
        // Without CAP_NET_ADMIN the usual room has to do.
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size_force(&events, ROOM);
        Ok(Traces { events, heard: Vec::new(), lost: false })
    }

    /// Reads until the packet's end is known, or the time is over.
    pub(super) fn follow(&mut self, limit: Duration) -> io::Result<Ended> {
        let end = Instant::now() + limit;
        let mut buffer = vec![0; 64 << 10];
        loop {
            self.hear(&mut buffer)?;
            let ended = ended(&self.heard);
            let left = end.saturating_duration_since(Instant::now());
            if matches!(ended, Ended::Open | Ended::Dropped(_)) || left.is_zero() {
                return Ok(ended);
            }
            let time = Timespec { tv_sec: 0, tv_nsec: left.subsec_nanos().into() };
            // A signal that comes between is as good as a message.
            let _ = poll(&mut [PollFd::new(&self.events, PollFlags::IN)], Some(&time));
        }
    }

    fn hear(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        loop {
            match self.events.receive(buffer) {
                Ok(Some(length)) => {
                    let told = answers(&buffer[..length]).filter(|message| message.kind == nft(TRACE));
                    let room = MOST.saturating_sub(self.heard.len());
                    self.heard.extend(told.filter_map(|message| Event::read(message.body)).take(room));
                }
                Ok(None) => return Ok(()),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => self.lost = true,
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether the kernel had more to tell than there was room for.
    pub(super) fn missed_some(&self) -> bool {
        self.lost
    }

    /// The number of the link that the packet was about to leave by, as far as it came.
    pub(super) fn out(&self) -> Option<u32> {
        ours(&self.heard).map(|event| event.out).filter(|out| *out != 0).last()
    }
}

fn ours(heard: &[Event]) -> impl Iterator<Item = &Event> {
    let ids: Vec<u32> = heard.iter().filter(|event| event.is_probes()).map(|event| event.id).collect();
    heard.iter().filter(move |event| ids.contains(&event.id))
}

fn ended(heard: &[Event]) -> Ended {
    let (mut seen, mut forwarded, mut queued) = (false, false, None);
    for event in ours(heard) {
        seen = true;
        // The link that it leaves by is known where it is forwarded, and not before.
        forwarded |= event.table == TABLE && event.out != 0;
        match event.is_probes() {
            true if event.is(DROP) => return Ended::Open,
            true => {}
            false if event.is(DROP) => return Ended::Dropped(event.clone()),
            false if event.is(QUEUE) || event.is(STOLEN) => queued = Some(event.clone()),
            false => {}
        }
    }
    match queued {
        Some(event) => Ended::Queued(event),
        None if forwarded => Ended::BehindForward,
        None if seen => Ended::BeforeForward,
        None => Ended::Unseen,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::message::Requests;
    use proptest::prelude::*;

    fn rule(table: &str, id: u32, verdict: i32) -> Event {
        Event {
            family: 1,
            table: table.into(),
            chain: "c".into(),
            handle: 7,
            id,
            kind: RULE,
            verdict: verdict.cast_unsigned(),
            out: 0,
        }
    }

    #[test]
    fn only_what_is_told_of_our_packet_counts() {
        let mine = rule(table::NAME, 1, -1);
        assert_eq!(ended(&[]), Ended::Unseen);
        assert_eq!(ended(&[rule("other", 2, 0)]), Ended::Unseen, "another's packet");
        assert_eq!(ended(&[rule("other", 2, 0), mine.clone()]), Ended::BeforeForward);
        // It may be told of before we know its number.
        assert_eq!(ended(&[rule("other", 1, 0), mine.clone()]), Ended::Dropped(rule("other", 1, 0)));
        assert_eq!(ended(&[mine.clone(), rule("other", 1, -3)]), Ended::BeforeForward, "a jump is no end");
        assert_eq!(ended(&[mine.clone(), rule("other", 1, 3)]), Ended::Queued(rule("other", 1, 3)));
        assert_eq!(ended(&[mine.clone(), rule("other", 1, 3), rule(table::NAME, 1, 0)]), Ended::Open);
        let reason = Event { verdict: 0xffff_0000, ..rule("other", 1, 0) };
        assert_eq!(ended(&[mine.clone(), reason.clone()]), Ended::Dropped(reason), "with an error's number above");
        let forward = Event { out: 3, ..rule(TABLE, 1, 1) };
        assert_eq!(ended(&[mine.clone(), forward]), Ended::BehindForward);
        let policy = Event { kind: POLICY, handle: 0, ..rule("other", 1, 0) };
        assert_eq!(ended(&[mine, policy.clone()]), Ended::Dropped(policy));
    }

    #[test]
    fn a_message_is_read() {
        let mut bytes = Requests::default();
        let mut attrs = bytes.push(nft(TRACE), 0, &[2, 0, 0, 0]);
        attrs.text(1, "filter").text(2, "FORWARD").bytes(3, &9u64.to_be_bytes()).be32(4, RULE).be32(6, 5).be32(12, 3);
        attrs.nest(5, |verdict| {
            verdict.be32(1, 0);
        });
        let event = Event::read(answers(bytes.numbered(1)).next().unwrap().body).unwrap();
        assert_eq!((event.family, event.handle, event.out, event.id), (2, 9, 3, 5));
        assert!(event.is(DROP));
    }

    proptest! {
        #[test]
        fn no_message_panics(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = ended(&Event::read(&body).into_iter().collect::<Vec<_>>());
        }
    }
}
