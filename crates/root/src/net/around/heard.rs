//! Our links as the kernel told them last.
//!
//! It tells of a new alias and of switches set by netlink only while a link is up (`netdev_state_change`), of all else
//! always, also that it goes down: so one that is down is not known, and asked about each time.

use super::of_all_or;
use crate::links::link::{DELLINK, IFLA_IFALIAS, Link, NEWLINK};
use crate::links::message::{attr, u32_at};
use crate::mark;
use crate::net::around::{DELNETCONF, NEWNETCONF};
use std::collections::HashMap;

/// More are not kept: then what is known is gathered anew.
const MOST: usize = 4096;

/// Taps by their names, bridges by their numbers; each carries our mark, and is up.
#[derive(Debug, Default)]
pub(super) struct Links {
    taps: HashMap<String, Tap>,
    bridges: HashMap<u32, Link>,
    /// The taps' names by their numbers.
    names: HashMap<u32, String>,
}

#[derive(Debug)]
struct Tap {
    index: u32,
    master: u32,
}

impl Links {
    /// The bridge that a tap is a port of, where both are known.
    pub(super) fn bridge_of(&self, tap: &str) -> Option<&Link> {
        self.bridges.get(&self.taps.get(tap)?.master)
    }

    /// A message of the kernel's: of links those that tell a link whole (`ifi_family` 0).
    pub(super) fn hear(&mut self, kind: u16, body: &[u8]) {
        match kind {
            NEWLINK | DELLINK => {
                self.forget(u32_at(body, 4).unwrap_or_default());
                let alias = body.get(16..).and_then(|inner| attr(inner, IFLA_IFALIAS));
                if kind == NEWLINK && alias.is_some_and(|alias| alias.starts_with(b"banger")) {
                    Link::read(body).iter().for_each(|link| self.learn(link));
                }
            }
            NEWNETCONF | DELNETCONF => self.bridges.retain(|&number, _| !of_all_or(body, |index| index == number)),
            _ => {}
        }
    }

    /// A link as it is now.
    pub(super) fn learn(&mut self, link: &Link) {
        self.forget(link.index);
        if self.taps.len() + self.bridges.len() >= MOST {
            *self = Links::default();
        }
        if link.up && mark::is_tap(link) {
            self.names.insert(link.index, link.name.clone());
            self.taps.insert(link.name.clone(), Tap { index: link.index, master: link.master });
        } else if link.up && mark::is_bridge(link) {
            self.bridges.insert(link.index, link.clone());
        }
    }

    fn forget(&mut self, index: u32) {
        self.bridges.remove(&index);
        // Another may have the name by now.
        if let Some(name) = self.names.remove(&index)
            && self.taps.get(&name).is_some_and(|tap| tap.index == index)
        {
            self.taps.remove(&name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::links::link::{Tun, header};

    fn known() -> Links {
        let bridge = Link {
            index: 4,
            name: "br-fc".into(),
            kind: "bridge".into(),
            alias: mark::BRIDGE.into(),
            up: true,
            ..Link::default()
        };
        let mut links = Links::default();
        links.learn(&bridge);
        links.learn(&tap(5, "tap-fc-1"));
        assert_eq!(links.bridge_of("tap-fc-1"), Some(&bridge));
        links
    }

    fn tap(index: u32, name: &str) -> Link {
        let tun = Some(Tun { is_tap: true, ..Tun::default() });
        Link {
            index,
            name: name.into(),
            kind: "tun".into(),
            alias: mark::TAP.into(),
            up: true,
            master: 4,
            tun,
            ..Link::default()
        }
    }

    #[test]
    fn what_has_no_mark_or_is_down_is_not_known() {
        for change in [
            Link { up: false, ..tap(5, "tap-fc-1") },
            Link { alias: "mine".into(), ..tap(5, "tap-fc-1") },
            Link { master: 0, ..tap(5, "tap-fc-1") },
            Link { master: 7, ..tap(5, "tap-fc-1") },
            tap(5, "tap-fc-2"),
        ] {
            let mut links = known();
            links.learn(&change);
            assert_eq!(links.bridge_of("tap-fc-1"), None, "{change:?}");
        }
        let mut links = known();
        links.learn(&Link { up: false, index: 4, ..Link::default() });
        assert_eq!(links.bridge_of("tap-fc-1"), None);
    }

    #[test]
    fn a_name_goes_with_the_link_that_has_it_last() {
        let mut links = known();
        links.learn(&tap(6, "tap-fc-1"));
        links.learn(&tap(5, "tap-fc-old"));
        assert!(links.bridge_of("tap-fc-1").is_some() && links.bridge_of("tap-fc-old").is_some());
        links.hear(DELLINK, &header(6, 0, 0));
        assert!(links.bridge_of("tap-fc-1").is_none() && links.bridge_of("tap-fc-old").is_some());
    }

    #[test]
    fn messages_end_what_they_are_about() {
        let netconf = |index: i32| [vec![2, 0, 0, 0, 8, 0, 1, 0], index.to_ne_bytes().to_vec()].concat();
        let ends = |kind, body: &[u8]| {
            let mut links = known();
            links.hear(kind, body);
            links.bridge_of("tap-fc-1").is_none()
        };
        for (kind, body) in [(NEWLINK, header(4, 1, 0)), (DELLINK, header(4, 1, 0)), (NEWLINK, header(5, 1, 0))] {
            assert!(ends(kind, &body), "{kind} {body:?}");
        }
        assert!(ends(NEWNETCONF, &netconf(4)) && ends(NEWNETCONF, &netconf(-1)) && ends(DELNETCONF, &[]));
        assert!(!ends(NEWNETCONF, &netconf(5)) && !ends(NEWLINK, &header(6, 1, 0)), "another's");
    }
}
