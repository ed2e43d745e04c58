//! Links as the kernel tells them: what one is, whose it is; and the few changes that we make.

use std::fmt::Display;

use super::message::{ACK, CREATE, DUMP, EXCL, Requests, attr, attrs, text, u32_at};
use super::netlink::{Conn, QUESTION, Refused};

// Each of them is a link's.
pub(crate) use super::address::{Address, add_address, addresses, remove_address};

// include/uapi/linux/rtnetlink.h, if_link.h
pub(crate) const NEWLINK: u16 = 16;
pub(crate) const DELLINK: u16 = 17;
pub(crate) const GETLINK: u16 = 18;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
pub(crate) const IFLA_IFALIAS: u16 = 20;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_GROUP: u16 = 27;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_CARRIER: u16 = 33;
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
const INFO_SLAVE_KIND: u16 = 4;
const INFO_SLAVE_DATA: u16 = 5;
const BRPORT_ISOLATED: u16 = 33;
const MULTI_BOOLOPT: u16 = 46;
/// `BR_BOOLOPT_NO_LL_LEARN`, as a mask.
const NO_LL_LEARN: u32 = 1;
const SKIP_STATS: u32 = 1 << 3;

const AF_INET: u8 = 2;
const AF_INET6: u16 = 10;
const INET_CONF: u16 = 1;
const INET6_ADDR_GEN_MODE: u16 = 8;

/// The link makes itself no IPv6 address (`IN6_ADDR_GEN_MODE_NONE`).
pub(crate) const NO_IPV6: u8 = 1;

const UP: u32 = 1;

/// A link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) up: bool,
    /// Whether something has the other end: for a tap, whether it is open.
    pub(crate) carrier: bool,
    pub(crate) mac: Vec<u8>,
    /// The text that an administrator reads in `ip link`; our mark stands there.
    pub(crate) alias: String,
    /// The driver's name: `bridge`, `tun`, `veth`, …; empty for hardware.
    pub(crate) kind: String,
    /// The bridge's, bond's or VRF's index that this link is a port of; 0 for none.
    pub(crate) master: u32,
    /// The port is isolated: its bridge carries nothing between it and other isolated ones.
    pub(crate) isolated: bool,
    /// The number by which links are meant together; 0 unless somebody set one.
    pub(crate) group: u32,
    pub(crate) tun: Option<Tun>,
    /// The IPv4 switches, `IPV4_DEVCONF_*` less one.
    pub(crate) inet: Vec<u32>,
    /// How the link makes itself IPv6 addresses (`IFLA_INET6_ADDR_GEN_MODE`); `None` where the kernel has no IPv6.
    pub(crate) ipv6_mode: Option<u8>,
    /// Of a bridge: whether it learns senders from frames that are for itself; `None` where the kernel has no such switch.
    pub(crate) learns_from_its_own: Option<bool>,
}

/// What a tun device says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tun {
    /// Frames, not packets.
    pub(crate) is_tap: bool,
    pub(crate) owner: Option<u32>,
    pub(crate) group: Option<u32>,
    pub(crate) persists: bool,
}

/// IPv4 switches of a link, by the numbers of `include/uapi/linux/ip.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Inet(pub(crate) u16, pub(crate) u32);

impl Link {
    /// A switch's value.
    pub(crate) fn inet(&self, number: u16) -> Option<u32> {
        self.inet.get(usize::from(number).checked_sub(1)?).copied()
    }

    /// What it has of these switches.
    pub(crate) fn switches(&self, of: &[Inet]) -> Vec<Inet> {
        of.iter().filter_map(|&Inet(number, _)| self.inet(number).map(|value| Inet(number, value))).collect()
    }

    pub(crate) fn read(body: &[u8]) -> Option<Link> {
        let mut link = Link { index: u32_at(body, 4)?, up: u32_at(body, 8)? & UP != 0, ..Link::default() };
        for (kind, value) in attrs(body.get(16..)?) {
            match kind {
                IFLA_ADDRESS => link.mac = value.to_vec(),
                IFLA_IFNAME => link.name = text(value),
                IFLA_MASTER => link.master = u32_at(value, 0).unwrap_or(0),
                IFLA_GROUP => link.group = u32_at(value, 0).unwrap_or(0),
                IFLA_IFALIAS => link.alias = text(value),
                IFLA_CARRIER => link.carrier = value == [1],
                IFLA_LINKINFO => link.read_info(value),
                IFLA_AF_SPEC => link.read_families(value),
                _ => {}
            }
        }
        Some(link)
    }

    fn read_info(&mut self, info: &[u8]) {
        self.kind = attr(info, INFO_KIND).map(text).unwrap_or_default();
        let data = attr(info, INFO_DATA).unwrap_or_default();
        if attr(info, INFO_SLAVE_KIND).map(text).as_deref() == Some("bridge") {
            self.isolated = attr(info, INFO_SLAVE_DATA).and_then(|port| attr(port, BRPORT_ISOLATED)) == Some(&[1]);
        }
        if self.kind == "bridge" {
            self.learns_from_its_own =
                attr(data, MULTI_BOOLOPT).and_then(|options| u32_at(options, 0)).map(|on| on & NO_LL_LEARN == 0);
        }
        if self.kind == "tun" {
            self.tun = Some(Tun {
                owner: attr(data, 1).and_then(|value| u32_at(value, 0)),
                group: attr(data, 2).and_then(|value| u32_at(value, 0)),
                is_tap: attr(data, 3) == Some(&[2]),
                persists: attr(data, 6) == Some(&[1]),
            });
        }
    }

    fn read_families(&mut self, families: &[u8]) {
        if let Some(conf) = attr(families, AF_INET.into()).and_then(|inet| attr(inet, INET_CONF)) {
            self.inet.reserve_exact(conf.len() / 4);
            self.inet.extend(conf.chunks_exact(4).filter_map(|four| u32_at(four, 0)));
        }
        self.ipv6_mode = attr(families, AF_INET6)
            .and_then(|inet6| attr(inet6, INET6_ADDR_GEN_MODE))
            .and_then(|mode| mode.first().copied());
    }
}

pub(crate) fn header(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..].copy_from_slice(&change.to_ne_bytes());
    header
}

/// The link of that name; `None` where there is none. An alternative name finds its link too: compare the name.
pub(crate) fn by_name(conn: &mut Conn, name: &str) -> Result<Option<Link>, Refused> {
    let mut ask = Requests::default();
    push_name(&mut ask, name);
    found(conn.one(format_args!("RTM_GETLINK {name}"), &mut ask))
}

/// The same of several names, in one question.
pub(crate) fn by_names(conn: &mut Conn, names: &[&str]) -> Result<Vec<Option<Link>>, Refused> {
    let mut ask = Requests::default();
    names.iter().for_each(|name| push_name(&mut ask, name));
    let call = format_args!("RTM_GETLINK {names:?}");
    conn.ask(call, &mut ask)?.into_iter().map(|said| found(said.good(call))).collect()
}

fn push_name(ask: &mut Requests, name: &str) {
    ask.push(GETLINK, QUESTION, &header(0, 0, 0)).text(IFLA_IFNAME, name).u32(IFLA_EXT_MASK, SKIP_STATS);
}

/// The link of that index.
pub(crate) fn by_index(conn: &mut Conn, index: u32) -> Result<Option<Link>, Refused> {
    let mut ask = Requests::default();
    ask.push(GETLINK, QUESTION, &header(index, 0, 0)).u32(IFLA_EXT_MASK, SKIP_STATS);
    found(conn.one(format_args!("RTM_GETLINK index {index}"), &mut ask))
}

fn found(answer: Result<Vec<Vec<u8>>, Refused>) -> Result<Option<Link>, Refused> {
    match answer {
        Ok(bodies) => Ok(bodies.first().and_then(|body| Link::read(body))),
        Err(refused) if refused.is(libc::ENODEV) => Ok(None),
        Err(refused) => Err(refused),
    }
}

/// All links; with a master, its ports alone.
pub(crate) fn list(conn: &mut Conn, master: Option<u32>) -> Result<Vec<Link>, Refused> {
    let mut ask = Requests::default();
    let mut attrs = ask.push(GETLINK, DUMP, &header(0, 0, 0));
    attrs.u32(IFLA_EXT_MASK, SKIP_STATS);
    if let Some(index) = master {
        attrs.u32(IFLA_MASTER, index);
    }
    let links = conn.one("RTM_GETLINK, all", &mut ask)?;
    // A filter that a kernel does not know it may pass over: look again.
    Ok(links
        .iter()
        .filter_map(|body| Link::read(body))
        .filter(|link| master.is_none_or(|is| link.master == is))
        .collect())
}

/// A change to a link.
#[derive(Debug, Default)]
pub(crate) struct Change<'a> {
    pub(crate) alias: Option<&'a str>,
    pub(crate) up: Option<bool>,
    /// A port of the bridge with this index; 0 of none.
    pub(crate) master: Option<u32>,
    pub(crate) inet: &'a [Inet],
    /// How it makes itself IPv6 addresses; left alone where the kernel has no IPv6.
    pub(crate) ipv6: Option<u8>,
    /// Whether a bridge learns senders from frames that are for itself (LLDP and its like), which no rule sees.
    pub(crate) learns_from_its_own: Option<bool>,
}

/// Changes a link, in one message.
pub(crate) fn change(conn: &mut Conn, index: u32, change: &Change<'_>) -> Result<(), Refused> {
    let mut ask = Requests::default();
    let (flags, mask) = match change.up {
        None => (0, 0),
        Some(true) => (UP, UP),
        Some(false) => (0, UP),
    };
    let mut attrs = ask.push(NEWLINK, ACK, &header(index, flags, mask));
    if let Some(alias) = change.alias {
        // With a length of 0 the kernel takes the alias away; the NUL is not part of it.
        attrs.bytes(IFLA_IFALIAS, alias.as_bytes());
    }
    if let Some(master) = change.master {
        attrs.u32(IFLA_MASTER, master);
    }
    if let Some(learns) = change.learns_from_its_own {
        attrs.nest(IFLA_LINKINFO, |info| {
            info.text(INFO_KIND, "bridge").nest(INFO_DATA, |data| no_learning(data, !learns));
        });
    }
    if !change.inet.is_empty() || change.ipv6.is_some() {
        attrs.nest(IFLA_AF_SPEC, |families| {
            if !change.inet.is_empty() {
                families.nest(AF_INET.into(), |inet| {
                    inet.nest(INET_CONF, |conf| {
                        for Inet(number, value) in change.inet {
                            conf.u32(*number, *value);
                        }
                    });
                });
            }
            if let Some(mode) = change.ipv6 {
                families.nest(AF_INET6, |inet6| {
                    inet6.u8(INET6_ADDR_GEN_MODE, mode);
                });
            }
        });
    }
    conn.all(format_args!("RTM_NEWLINK index {index} {change:?}"), &mut ask)
}

/// How a link hangs on a bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Port {
    /// The bridge's index; 0 for none.
    pub(crate) master: u32,
    pub(crate) isolated: bool,
    pub(crate) up: bool,
}

impl Port {
    /// As it hangs now.
    pub(crate) fn of(link: &Link) -> Port {
        Port { master: link.master, isolated: link.isolated, up: link.up }
    }
}

/// Puts a link on a bridge that hung as `was`, in one datagram. A link has a port's flags only once it is one: it is
/// up there no earlier than it has them.
pub(crate) fn attach(conn: &mut Conn, index: u32, was: Port, port: Port) -> Result<(), Refused> {
    let mut ask = Requests::default();
    let moves = was.master != port.master;
    // A link that comes onto a bridge is not isolated there.
    let parts = port.master != 0 && port.isolated != (was.isolated && !moves);
    if moves && parts {
        if was.up {
            ask.push(NEWLINK, ACK, &header(index, 0, UP));
        }
        ask.push(NEWLINK, ACK, &header(index, 0, 0)).u32(IFLA_MASTER, port.master);
    }
    let mut attrs = ask.push(NEWLINK, ACK, &header(index, if port.up { UP } else { 0 }, UP));
    if moves && !parts {
        attrs.u32(IFLA_MASTER, port.master);
    }
    if parts {
        attrs.nest(IFLA_LINKINFO, |info| {
            info.text(INFO_SLAVE_KIND, "bridge").nest(INFO_SLAVE_DATA, |data| {
                data.u8(BRPORT_ISOLATED, port.isolated.into());
            });
        });
    }
    conn.all(format_args!("RTM_NEWLINK index {index} {port:?}"), &mut ask)
}

/// Switches ports off, then takes them off their bridges, in one datagram.
pub(crate) fn detach(conn: &mut Conn, ports: &[u32]) -> Result<(), Refused> {
    let mut ask = Requests::default();
    for &index in ports {
        ask.push(NEWLINK, ACK, &header(index, 0, UP));
        ask.push(NEWLINK, ACK, &header(index, 0, 0)).u32(IFLA_MASTER, 0);
    }
    gone_is_done(conn, format_args!("RTM_NEWLINK indexes {ports:?} down, master 0"), &mut ask)
}

/// Puts links into groups, in one datagram: index and group of each.
pub(crate) fn set_groups(conn: &mut Conn, links: &[(u32, u32)]) -> Result<(), Refused> {
    let mut ask = Requests::default();
    for &(index, group) in links {
        ask.push(NEWLINK, ACK, &header(index, 0, 0)).u32(IFLA_GROUP, group);
    }
    gone_is_done(conn, format_args!("RTM_NEWLINK groups {links:?}"), &mut ask)
}

/// All of it is done where the kernel refuses but what is about links that are gone.
fn gone_is_done(conn: &mut Conn, call: impl Display + Copy, ask: &mut Requests) -> Result<(), Refused> {
    for said in conn.ask(call, ask)? {
        match said.good(call) {
            Err(refused) if !refused.is(libc::ENODEV) => return Err(refused),
            _ => {}
        }
    }
    Ok(())
}

/// `struct br_boolopt_multi`: the values, and which of them are meant.
fn no_learning(data: &mut super::message::Attrs<'_>, on: bool) {
    data.bytes(MULTI_BOOLOPT, &[u32::from(on).to_ne_bytes(), NO_LL_LEARN.to_ne_bytes()].concat());
}

/// Makes a bridge, down, with that MAC: spanning tree off, no delay before a port forwards.
pub(crate) fn make_bridge(conn: &mut Conn, name: &str, mac: [u8; 6]) -> Result<(), Refused> {
    const FORWARD_DELAY: u16 = 1;
    const STP_STATE: u16 = 5;
    const MCAST_SNOOPING: u16 = 23;
    let mut ask = Requests::default();
    ask.push(NEWLINK, ACK | CREATE | EXCL, &header(0, 0, 0)).text(IFLA_IFNAME, name).bytes(IFLA_ADDRESS, &mac).nest(
        IFLA_LINKINFO,
        |info| {
            info.text(INFO_KIND, "bridge").nest(INFO_DATA, |data| {
                // No snooping: the bridge would speak MLD and IGMP by itself, and guests' multicast is dropped anyway.
                data.u32(FORWARD_DELAY, 0).u32(STP_STATE, 0).u8(MCAST_SNOOPING, 0);
            });
        },
    );
    conn.all(format_args!("RTM_NEWLINK {name} type bridge"), &mut ask)
}

/// Removes a link; answers when it is gone.
pub(crate) fn remove(conn: &mut Conn, index: u32) -> Result<(), Refused> {
    let mut ask = Requests::default();
    ask.push(DELLINK, ACK, &header(index, 0, 0));
    conn.all(format_args!("RTM_DELLINK index {index}"), &mut ask)
}

/// Removes all links of a group at once; answers when they are gone. There must be one.
pub(crate) fn remove_group(conn: &mut Conn, group: u32) -> Result<(), Refused> {
    let mut ask = Requests::default();
    ask.push(DELLINK, ACK, &header(0, 0, 0)).u32(IFLA_GROUP, group);
    conn.all(format_args!("RTM_DELLINK group {group}"), &mut ask)
}

#[cfg(test)]
mod tests {
    use super::super::message::answers;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_answer_panics(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Link::read(&body);
            for answer in answers(&body) {
                let _ = Link::read(answer.body);
            }
        }
    }

    #[test]
    fn a_tap_is_read() {
        let mut bytes = Requests::default();
        bytes
            .push(NEWLINK, 0, &header(7, UP, 0))
            .text(IFLA_IFNAME, "tap-fc-1")
            .u32(IFLA_MASTER, 3)
            .u8(IFLA_CARRIER, 1)
            .nest(IFLA_LINKINFO, |info| {
                info.text(INFO_KIND, "tun").nest(INFO_DATA, |data| {
                    data.u32(1, 1000).u8(3, 2).u8(6, 1);
                });
            });
        let link = Link::read(answers(bytes.numbered(1)).next().unwrap().body).unwrap();
        assert_eq!(
            (link.index, link.name.as_str(), link.up, link.carrier, link.master),
            (7, "tap-fc-1", true, true, 3)
        );
        assert_eq!(link.tun, Some(Tun { is_tap: true, owner: Some(1000), group: None, persists: true }));
        assert_eq!((link.ipv6_mode, link.inet(8)), (None, None));
    }
}
