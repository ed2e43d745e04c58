//! `priv.probe_network`: a packet as a guest would send it, and where it ended.
//!
//! A tap of our own, on the guest's bridge while the probe runs, sends one UDP packet with the guest's address; the
//! kernel's tracing tells which rules it meets. It never leaves: whatever comes through all rules ends in a last chain
//! of ours. Who asks has no say in what it holds or where it goes, and one probe runs at a time.
//!
//! Tap and tables go with the helper's descriptors, so also where it dies.

mod packet;
mod table;
mod text;
mod trace;

use super::bridge::Ours;
use super::link::{self, Address, Link, NO_IPV6};
use super::message::{ACK, Requests, attr, u32_at};
use super::netlink::{Conn, QUESTION, Refused};
use super::sets::{Element, Set};
use super::{beside, forward, refused, tap};
use crate::fail::Fail;
use crate::host::Host;
use crate::log::{Level, Value};
use crate::steps::{self, Steps};
use std::net::Ipv4Addr;
use std::sync::PoisonError;
use std::time::Duration;
use sys::tun::Tap;
use trace::{Ended, Event, Traces};
use wire::name::addr::BridgeAddr;
use wire::probe::{End, EndedBy, Probe, Probed};

/// The tap's name: no caller can ask for it.
const NAME: &str = "banger-probe";
/// Its mark.
const MARK: &str = "banger probe";
/// How long the packet is waited for where nothing says that it has ended. It is forwarded while it is sent, unless
/// somebody queues it.
const PATIENCE: Duration = Duration::from_millis(300);

/// What an older kernel may have kept of a probe that a dead helper began.
pub(crate) fn clear(host: &Host) {
    if let Err(fail) = table::sweep(&host.net) {
        let fields = [("message", Value::Text(&fail.message, 256)), ("causes", Value::List(&fail.causes, 512))];
        host.log.own(Level::Warn, "what a probe left could not be taken away", &fields);
    }
}

/// Sends the packet and says where it ended.
pub(crate) fn run(host: &Host, probe: &Probe) -> Result<Probed, Fail> {
    let _one = host.net.probe.lock().unwrap_or_else(PoisonError::into_inner);
    let _tap = host.net.locks.hold(format!("tap:{}", probe.tap));
    let on = find(host, probe)?;
    let has_way = is_guests(host, probe, &on)?;
    if has_way {
        // Nobody tells of changes to iptables-legacy's tables.
        let _ways = host.net.ways.lock().unwrap_or_else(PoisonError::into_inner);
        beside::open(host);
    }
    let followed = steps::run("probe_network", &host.faults, |steps| send(host, steps, probe, &on))?;
    judge(host, probe, &on, has_way, followed)
}

/// The bridge that the guest's tap is on, both ours, and the address one of its guests'.
fn find(host: &Host, probe: &Probe) -> Result<Ours, Fail> {
    let found = host.net.links.with(|conn| {
        let there = link::by_name(conn, probe.tap.as_str())?;
        let there = there.filter(|link| tap::is_ours(link) && link.name == probe.tap.as_str() && link.master != 0);
        let Some(there) = there else { return Ok(None) };
        let Some(on) = link::by_index(conn, there.master)?.and_then(Ours::prove) else { return Ok(None) };
        let addresses = link::addresses(conn, Some(on.link().index))?;
        Ok(Some((on, addresses)))
    });
    let (on, addresses) = found.map_err(refused)?.ok_or_else(|| {
        Fail::new(format!("there is no tap {} of banger's on a bridge: make it with priv.create_tap", probe.tap))
    })?;
    let bridge = &on.link().name;
    if !on.link().up {
        return Err(Fail::new(format!("the bridge {bridge} is down: priv.ensure_bridge sets it up")));
    }
    let host_of = |address: &Address| {
        let subnet = BridgeAddr::new(&address.ip.to_string(), &address.prefix.to_string());
        subnet.is_ok_and(|subnet| subnet.has_host(probe.guest))
    };
    let is_own = addresses.iter().any(|address| address.ip == probe.guest.ip());
    if is_own || !addresses.iter().any(host_of) {
        return Err(Fail::new(format!("{} is no guest's address on the bridge {bridge}", probe.guest)));
    }
    Ok(on)
}

/// Refuses an address that is another tap's, or not this one's. Says whether it has a way out.
fn is_guests(host: &Host, probe: &Probe, on: &Ours) -> Result<bool, Fail> {
    let (tap, ip) = (probe.tap.as_str(), probe.guest.ip());
    let asked = [
        Element::at(Set::Guests, &on.link().name, ip),
        Element::at(Set::Addresses, tap, ip),
        Element::ip(ip),
        Element::link(Set::HasIp, tap),
    ];
    let seen = host.net.firewall(|fw| fw.look(&asked)).map_err(refused)?;
    let [way, mine, taken, has_another] = seen.there[..] else { return Ok(false) };
    if mine || !(taken || has_another) {
        return Ok(way);
    }
    Err(Fail::new(match has_another {
        true => format!("the guest on {tap} has another address than {ip}: banger helper list says which"),
        false => format!("{ip} is the address of a guest on another tap"),
    }))
}

/// What came of the packet.
struct Followed {
    ended: Ended,
    out: Option<u32>,
    missed: bool,
}

fn send<'a>(host: &'a Host, steps: &mut Steps<'a>, probe: &Probe, on: &Ours) -> Result<Followed, Fail> {
    let mut nonce = packet::Nonce::default();
    let mut mac = [0; 6];
    random(&mut nonce)?;
    random(&mut mac)?;
    // Of one station, administered locally.
    mac[0] = (mac[0] | 2) & !1;
    let to = <[u8; 6]>::try_from(on.link().mac.as_slice())
        .map_err(|_| Fail::new(format!("the bridge {} has no MAC", on.link().name)))?;
    let frame = packet::frame(mac, to, probe.guest.ip(), &nonce);
    let mut traces =
        Traces::open().map_err(|error| Fail::new("the kernel's tracing of rules could not be heard").because(error))?;
    let tables = steps.act("probe_rules", || table::Tables::make(&host.net, &nonce))?;
    let tap = steps.act("probe_tap", || port(host, on))?;
    let ended = steps.act("probe_send", || {
        tap.send(&frame).map_err(|error| {
            Fail::new("the packet could not be sent").because(format!("write to the tap {NAME}: {error}"))
        })?;
        traces.follow(PATIENCE).map_err(|error| Fail::new("the packet could not be followed").because(error))
    })?;
    drop(tap);
    tables.end()?;
    Ok(Followed { ended, out: traces.out(), missed: traces.missed_some() })
}

fn random(bytes: &mut [u8]) -> Result<(), Fail> {
    let got = rustix::rand::getrandom(&mut *bytes, rustix::rand::GetRandomFlags::empty());
    if got == Ok(bytes.len()) {
        Ok(())
    } else {
        Err(Fail::new("there are no random numbers").because(format!("{got:?}")))
    }
}

/// A tap of our own on the bridge. It goes with its descriptor.
fn port(host: &Host, on: &Ours) -> Result<Tap, Fail> {
    let bridge = &on.link().name;
    let tap = Tap::open(NAME).map_err(|error| {
        Fail::new(format!("the probe's tap could not be made: is there a link {NAME}?")).because(error)
    })?;
    let is_new = |link: &Link| {
        link.name == NAME && link.alias.is_empty() && link.tun.is_some_and(|tun| !tun.persists && tun.owner.is_none())
    };
    let put = |conn: &mut Conn| {
        let Some(link) = link::by_name(conn, NAME)?.filter(is_new) else { return Ok(false) };
        // A bridge takes over its smallest port's.
        let mtu = mtu(conn, on.link().index)?;
        set_mtu(conn, link.index, mtu)?;
        let ipv6 = link.ipv6_mode.map(|_| NO_IPV6);
        link::change(conn, link.index, &link::Change { alias: Some(MARK), ipv6, ..link::Change::default() })?;
        let change = link::Change { master: Some(on.link().index), up: Some(true), ..link::Change::default() };
        link::change(conn, link.index, &change).map(|()| true)
    };
    match host.net.links.with(put) {
        Ok(true) => Ok(tap),
        Ok(false) => Err(Fail::new(format!("there is a link {NAME} that is not banger's: remove it"))),
        Err(error) if error.is(libc::EXFULL) => {
            Err(Fail::new(format!("the bridge {bridge} is full, and the probe needs a port: delete a tap"))
                .because(error))
        }
        Err(error) => Err(Fail::new(format!("the probe's tap could not be put on the bridge {bridge}")).because(error)),
    }
}

const IFLA_MTU: u16 = 4;

fn mtu(conn: &mut Conn, index: u32) -> Result<u32, Refused> {
    let mut ask = Requests::default();
    ask.push(18, QUESTION, &link::header(index, 0, 0));
    let answer = conn.one(format_args!("RTM_GETLINK index {index}"), &mut ask)?;
    let mtu = answer.first().and_then(|body| attr(body.get(16..)?, IFLA_MTU)).and_then(|mtu| u32_at(mtu, 0));
    Ok(mtu.unwrap_or(1500))
}

fn set_mtu(conn: &mut Conn, index: u32, mtu: u32) -> Result<(), Refused> {
    let mut ask = Requests::default();
    ask.push(16, ACK, &link::header(index, 0, 0)).u32(IFLA_MTU, mtu);
    conn.all(format_args!("RTM_NEWLINK index {index} mtu {mtu}"), &mut ask)
}

/// What it means.
fn judge(host: &Host, probe: &Probe, on: &Ours, has_way: bool, followed: Followed) -> Result<Probed, Fail> {
    let Followed { ended, out, missed } = followed;
    let guest = probe.guest;
    let uplink = match out {
        Some(index) => host.net.links.with(|conn| link::by_index(conn, index)).map_err(refused)?,
        None => None,
    };
    let found =
        Probed { uplink: uplink.as_ref().map(|link| link.name.clone()).unwrap_or_default(), ..Probed::default() };
    let end = |end: End, why: String| Probed { end, why, ..found.clone() };
    let no_way = || format!("{guest} has no way out: priv.ensure_nat gives it one");
    Ok(match ended {
        Ended::Open => match uplink.filter(|link| link.inet(forward::FORWARDING) == Some(0)) {
            Some(link) => end(
                End::NotForwarded,
                format!("the packet would leave, but forwarding is off on {}: no answer comes back", link.name),
            ),
            None => end(End::Open, String::new()),
        },
        Ended::Dropped(by) if by.table == super::sets::TABLE && !has_way => {
            Probed { by: Some(name(host, &by)), ..end(End::Dropped, no_way()) }
        }
        Ended::Dropped(by) => {
            Probed { by: Some(name(host, &by)), ..end(End::Dropped, dropped(&by, !found.uplink.is_empty())) }
        }
        Ended::Queued(by) => {
            Probed { by: Some(name(host, &by)), ..end(End::Queued, "another program decides, and has not yet".into()) }
        }
        _ if missed => end(End::Lost, "the kernel had more to tell than there was room for: try again".into()),
        Ended::BehindForward => end(End::Lost, behind_rules()),
        Ended::BeforeForward if on.link().inet(forward::FORWARDING) == Some(0) && !has_way => {
            end(End::NotForwarded, no_way())
        }
        Ended::BeforeForward => before_forward(host, on, guest.ip(), end)?,
        Ended::Unseen => end(
            End::Lost,
            format!(
                "the bridge {} did not take the packet: is spanning tree or a filter of its ports on?",
                on.link().name
            ),
        ),
    })
}

/// Our mark is there from where packets are forwarded on.
fn dropped(by: &Event, is_forwarded: bool) -> String {
    match (by.table == super::sets::TABLE, is_forwarded) {
        (true, _) => "banger's own rules forbid it; the rule's comment says why",
        (false, true) => "another firewall drops it: have it accept packets with the mark 0x62000000/0xff000000 before",
        (false, false) => "another firewall drops it before it is forwarded: have it let the guests' addresses through",
    }
    .into()
}

fn behind_rules() -> String {
    match beside::legacy_tables() {
        tables if tables.is_empty() => {
            "it passed nftables and did not leave: an IPsec policy or a program in the kernel took it".into()
        }
        tables => format!(
            "it passed nftables and did not leave; iptables-legacy has tables here ({}), which tell nobody: look for what counts in `iptables-legacy -nvL`",
            tables.join(", ")
        ),
    }
}

/// It was not forwarded: because nothing is, or there is no way, or its sender is not believed.
fn before_forward(host: &Host, on: &Ours, from: Ipv4Addr, end: impl Fn(End, String) -> Probed) -> Result<Probed, Fail> {
    let bridge = &on.link().name;
    if on.link().inet(forward::FORWARDING) == Some(0) {
        return Ok(end(
            End::NotForwarded,
            format!("forwarding is off on {bridge}: priv.ensure_nat switches it on for a guest"),
        ));
    }
    let to = packet::TO;
    let number = |asked: Result<(), Refused>| match asked {
        Err(error) if error.errno != 0 => Ok(Some(error.errno)),
        other => other.map(|()| None),
    };
    let index = on.link().index;
    let asked = host.net.links.with(|conn| match number(route(conn, Some((index, from))))? {
        // Newer kernels say EINVAL for a sender that is not believed, all say it for a black hole.
        Some(libc::EINVAL) => Ok(Some(number(route(conn, None))?.unwrap_or(libc::EXDEV))),
        other => Ok(other),
    });
    Ok(match asked.map_err(refused)? {
        Some(libc::EXDEV) => end(
            End::NotForwarded,
            format!("{from} is not believed to be behind {bridge} (rp_filter): another route leads there"),
        ),
        Some(errno) => end(
            End::NoRoute,
            format!("no route leads from {bridge} to {to}: {}", std::io::Error::from_raw_os_error(errno)),
        ),
        None => end(
            End::Lost,
            match beside::legacy_tables() {
                tables if tables.is_empty() => format!("it came in by {bridge} and was not forwarded"),
                tables => format!(
                    "it came in by {bridge} and was not forwarded; iptables-legacy has tables here ({}), which tell nobody",
                    tables.join(", ")
                ),
            },
        ),
    })
}

/// Asks for the way of a packet that comes in by a link, or of the host's own.
fn route(conn: &mut Conn, incoming: Option<(u32, Ipv4Addr)>) -> Result<(), Refused> {
    const GETROUTE: u16 = 26;
    // struct rtmsg: AF_INET, whole addresses.
    let mut header = [0; 12];
    (header[0], header[1]) = (2, 32);
    header[2] = if incoming.is_some() { 32 } else { 0 };
    let mut ask = Requests::default();
    let mut attrs = ask.push(GETROUTE, QUESTION, &header);
    attrs.bytes(1, &packet::TO.octets());
    if let Some((by, from)) = incoming {
        attrs.bytes(2, &from.octets()).u32(3, by);
    }
    conn.one("RTM_GETROUTE", &mut ask).map(|_| ())
}

/// The names of what it met last, with the rule's text.
fn name(host: &Host, by: &Event) -> EndedBy {
    let rule = match by.handle {
        0 => Some("policy drop".to_owned()),
        // It may be gone by now: then its place has to do.
        _ => host
            .net
            .firewall(|fw| beside::rule(fw, by.family, &by.table, &by.chain, by.handle))
            .ok()
            .flatten()
            .map(|rule| text::of(&rule)),
    };
    EndedBy {
        family: family(by.family).to_owned(),
        table: by.table.clone(),
        chain: by.chain.clone(),
        handle: by.handle,
        rule: rule.unwrap_or_default(),
    }
}

fn family(number: u8) -> &'static str {
    match number {
        1 => "inet",
        2 => "ip",
        3 => "arp",
        5 => "netdev",
        7 => "bridge",
        _ => "ip6",
    }
}
