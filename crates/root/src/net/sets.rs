//! The sets of our two tables, and their elements: all that changes as taps and guests come and go.

use std::net::Ipv4Addr;

/// A table's family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Table {
    /// `inet banger`: who gets out.
    Inet,
    /// `bridge banger`: who says that he is whom.
    Bridge,
}

/// Both tables' name.
pub(crate) const TABLE: &str = "banger";

impl Table {
    /// The number of its family (`NFPROTO_*`).
    pub(crate) fn family(self) -> u8 {
        match self {
            Table::Inet => 1,
            Table::Bridge => 7,
        }
    }
}

/// A set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Set {
    Bridges,
    Together,
    Guests,
    Opened,
    Elsewhere,
    Ports,
    Stations,
    Addresses,
    Macs,
    Ips,
    HasMac,
    HasIp,
    Nobody,
}

// nft's numbers for the types of a key, by which it prints elements.
const IPV4: u32 = 7;
const MAC: u32 = 9;
/// nft's number for a link's name.
pub(crate) const IFNAME: u32 = 41;

impl Set {
    /// All of them, in the order in which they are made.
    pub(crate) const ALL: [Set; 13] = [
        Set::Bridges,
        Set::Together,
        Set::Guests,
        Set::Opened,
        Set::Elsewhere,
        Set::Ports,
        Set::Stations,
        Set::Addresses,
        Set::Macs,
        Set::Ips,
        Set::HasMac,
        Set::HasIp,
        Set::Nobody,
    ];

    /// Its name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Set::Bridges => "bridges",
            Set::Together => "together",
            Set::Guests => "guests",
            Set::Opened => "opened",
            Set::Elsewhere => "elsewhere",
            Set::Ports => "ports",
            Set::Stations => "stations",
            Set::Addresses => "addresses",
            Set::Macs => "macs",
            Set::Ips => "ips",
            Set::HasMac => "has_mac",
            Set::HasIp => "has_ip",
            Set::Nobody => "nobody",
        }
    }

    /// What an administrator reads beside it.
    pub(crate) fn comment(self) -> &'static str {
        match self {
            Set::Bridges => "bridges of banger's",
            Set::Together => "bridges whose guests see each other",
            Set::Guests => "bridge . address with a way out",
            Set::Opened => "links on which banger switched forwarding on",
            Set::Elsewhere => "no guest's business: metadata, loopback, multicast",
            Set::Ports => "taps of banger's",
            Set::Stations => "tap . MAC, the first one seen",
            Set::Addresses => "tap . address, given or the first one seen",
            Set::Macs => "taken: the bridges' and those in stations",
            Set::Ips => "taken: the bridges' and those in addresses",
            Set::HasMac => "taps in stations",
            Set::HasIp => "taps in addresses",
            Set::Nobody => "addresses that are nobody's",
        }
    }

    /// The table that it is in.
    pub(crate) fn table(self) -> Table {
        match self {
            Set::Bridges | Set::Together | Set::Guests | Set::Opened | Set::Elsewhere => Table::Inet,
            _ => Table::Bridge,
        }
    }

    /// The type and length of its keys. Parts are aligned to 4.
    pub(crate) fn key(self) -> (u32, u32) {
        match self {
            Set::Bridges | Set::Opened | Set::Ports | Set::HasMac | Set::HasIp => (IFNAME, 16),
            Set::Together => (IFNAME << 6 | IFNAME, 32),
            Set::Guests | Set::Addresses => (IFNAME << 6 | IPV4, 20),
            Set::Stations => (IFNAME << 6 | MAC, 24),
            Set::Macs => (MAC, 6),
            Set::Ips | Set::Elsewhere | Set::Nobody => (IPV4, 4),
        }
    }

    /// How many elements packets may put into it; 0 where they don't.
    pub(crate) fn learns(self) -> u32 {
        match self {
            Set::Stations | Set::Addresses | Set::Macs | Set::Ips | Set::HasMac | Set::HasIp => 4096,
            _ => 0,
        }
    }

    /// Where it holds ranges, which never change: each first address, and the first one behind.
    pub(crate) fn ranges(self) -> &'static [(Ipv4Addr, Option<Ipv4Addr>)] {
        const fn to(first: u8, second: u8, end: (u8, u8)) -> (Ipv4Addr, Option<Ipv4Addr>) {
            (Ipv4Addr::new(first, second, 0, 0), Some(Ipv4Addr::new(end.0, end.1, 0, 0)))
        }
        const ALL: &[(Ipv4Addr, Option<Ipv4Addr>)] =
            &[to(0, 0, (1, 0)), to(127, 0, (128, 0)), to(169, 254, (169, 255)), (Ipv4Addr::new(224, 0, 0, 0), None)];
        match self {
            Set::Nobody | Set::Elsewhere => ALL,
            _ => &[],
        }
    }
}

/// A key, in place: no key of a set of ours is longer than two links' names, and elements are copied a lot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    bytes: [u8; Key::MOST],
    length: u8,
}

impl Key {
    const MOST: usize = 32;

    /// Of parts, one behind the other.
    pub(crate) fn of(parts: &[&[u8]]) -> Key {
        let mut key = Key { bytes: [0; Key::MOST], length: 0 };
        for (to, from) in key.bytes.iter_mut().zip(parts.iter().copied().flatten()) {
            *to = *from;
            key.length += 1;
        }
        key
    }
}

impl std::ops::Deref for Key {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.length)).unwrap_or_default()
    }
}

/// An element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Element {
    pub(crate) set: Set,
    pub(crate) key: Key,
}

impl Element {
    /// Of a set of links.
    pub(crate) fn link(set: Set, name: &str) -> Element {
        Element { set, key: Key::of(&[&ifname(name)]) }
    }

    /// Two guests' links, the same one.
    pub(crate) fn together(name: &str) -> Element {
        Element { set: Set::Together, key: Key::of(&[&ifname(name), &ifname(name)]) }
    }

    /// Link and address.
    pub(crate) fn at(set: Set, link: &str, ip: Ipv4Addr) -> Element {
        Element { set, key: Key::of(&[&ifname(link), &ip.octets()]) }
    }

    /// An address.
    pub(crate) fn ip(ip: Ipv4Addr) -> Element {
        Element { set: Set::Ips, key: Key::of(&[&ip.octets()]) }
    }

    /// A MAC.
    pub(crate) fn mac(mac: &[u8]) -> Element {
        Element { set: Set::Macs, key: Key::of(&[mac]) }
    }

    /// The link's name that it begins with.
    pub(crate) fn link_name(&self) -> String {
        super::message::text(self.key.get(..16).unwrap_or_default())
    }

    /// The address behind the link's name.
    pub(crate) fn address(&self) -> Option<Ipv4Addr> {
        <[u8; 4]>::try_from(self.key.get(16..20)?).ok().map(Ipv4Addr::from)
    }

    /// The MAC behind the link's name.
    pub(crate) fn station(&self) -> &[u8] {
        self.key.get(16..22).unwrap_or_default()
    }
}

fn ifname(name: &str) -> [u8; 16] {
    let mut padded = [0; 16];
    // A link's name has at most 15 bytes: the last one stays NUL.
    for (to, from) in padded[..15].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    padded
}
