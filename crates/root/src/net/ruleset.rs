//! Our ruleset: two tables, tried with packets beside other firewalls. Rules stand still; only elements of
//! sets come and go, so a packet's way is as long with one guest as with a thousand.
//!
//! `inet banger` lets guests out, answers in, and nothing else; it marks what it let through, by which other
//! firewalls can accept it. `bridge banger` holds each tap to one MAC and one address.

use super::expr::{Base, Expr, Meta, Verdict};
use super::message::{Attrs, CREATE, Requests};
use super::sets::{IFNAME, Set, TABLE, Table};
use crate::settings::Mark;
use Expr::{
    AddTo, Bits, Count, CtState, DestinationType, In, Is, IsNot, IsWord, Load, Masquerade, NotIn, Payload, SetMark,
    Then, WordBits,
};
use Verdict::{Accept, Drop, Goto, Jump};

/// Where a chain is hooked in.
struct Hook {
    kind: &'static str,
    number: u32,
    priority: i32,
}

/// A chain and its rules.
struct Chain {
    table: Table,
    name: &'static str,
    hook: Option<Hook>,
    comment: &'static str,
    rules: Vec<Rule>,
}

/// A rule: expressions one behind the other, and what an administrator reads beside them.
struct Rule(Vec<Expr>, &'static str);

/// Before every usual firewall.
const FIRST: i32 = -310;

const IPV4: &[u8] = &[2];
const ETHER_IP: &[u8] = &[8, 0];
const ETHER_ARP: &[u8] = &[8, 6];

fn rule(parts: &[&[Expr]], comment: &'static str) -> Rule {
    Rule(parts.concat(), comment)
}

const IIFNAME: Expr = Load(Meta::Iifname, 1);
const OIFNAME: Expr = Load(Meta::Oifname, 1);
/// `meta nfproto ipv4`: what an IPv4 field needs before it in `inet`.
const IS_IPV4: &[Expr] = &[Load(Meta::Nfproto, 1), Is(IPV4)];
/// `meta protocol ip`: the same in `bridge`.
const IS_IP: &[Expr] = &[Load(Meta::Protocol, 1), Is(ETHER_IP)];
const IS_ARP: &[Expr] = &[Payload(Base::Link, 12, 2, 1), Is(ETHER_ARP)];
const DROP: &[Expr] = &[Count, Then(Drop)];
/// A set that is full takes nothing more, and its rule ends there: the frame must not pass for that.
const UNLEARNED: &str = "could not be learned: a set is full";

/// `meta mark set meta mark & 0x00ffffff | 0x62000000 accept`: checked by us; the other bits of a mark stay.
fn pass(mark: Mark) -> [Expr; 4] {
    [Load(Meta::Mark, 1), WordBits(!mark.mask, mark.value), SetMark, Then(Accept)]
}

/// Our mark is there: it goes, and nobody's later rule sees it.
fn unmark(mark: Mark) -> [Expr; 6] {
    let load = Load(Meta::Mark, 1);
    [load, WordBits(mark.mask, 0), IsWord(mark.value), load, WordBits(!mark.mask, 0), SetMark]
}

/// `ct state established,related`
#[cfg(target_endian = "little")]
const ANSWERS: &[Expr] = &[CtState, Bits(&[6, 0, 0, 0], &[0; 4]), IsNot(&[0; 4])];
/// `fib daddr . iif type != local`
#[cfg(target_endian = "little")]
const NOT_LOCAL: &[Expr] = &[DestinationType, IsNot(&[2, 0, 0, 0])];

fn inet(mark: Mark) -> Vec<Chain> {
    let pass = &pass(mark);
    let chain = |name, hook, comment, rules| Chain { table: Table::Inet, name, hook, comment, rules };
    let hook = |kind, number, priority| Some(Hook { kind, number, priority });
    // iifname or oifname, then the address at its offset, as one key.
    let guest = |way: Expr, offset| [way, Payload(Base::Network, offset, 4, 2), In(Set::Guests)];
    vec![
        chain(
            "forward",
            hook("filter", 2, FIRST),
            "",
            vec![
                rule(&[&[IIFNAME, In(Set::Bridges), Then(Jump("leaving"))]], ""),
                rule(&[&[OIFNAME, In(Set::Bridges), Then(Jump("entering"))]], ""),
                rule(&[&[IIFNAME, In(Set::Opened)], DROP], "forwarding is on here for guests only"),
            ],
        ),
        chain(
            "leaving",
            None,
            "from a guest",
            vec![
                rule(&[&[OIFNAME, In(Set::Bridges), Then(Jump("between"))]], ""),
                rule(&[&[Load(Meta::Nfproto, 1), IsNot(IPV4)], DROP], "IPv6 of a guest"),
                rule(
                    &[IS_IPV4, &[Payload(Base::Network, 16, 4, 1), In(Set::Elsewhere)], DROP],
                    "metadata, loopback, multicast",
                ),
                rule(&[IS_IPV4, &guest(IIFNAME, 12), pass], ""),
                rule(&[DROP], "no way out was asked for"),
            ],
        ),
        chain(
            "between",
            None,
            "from a guest to a guest",
            vec![
                rule(&[&[IIFNAME, Load(Meta::Oifname, 2), In(Set::Together)], pass], ""),
                rule(&[DROP], "from one bridge to another"),
            ],
        ),
        chain(
            "entering",
            None,
            "to a guest",
            vec![rule(&[IS_IPV4, &guest(OIFNAME, 16), ANSWERS, pass], ""), rule(&[DROP], "only answers come in")],
        ),
        chain(
            "input",
            hook("filter", 1, FIRST),
            "",
            vec![rule(&[&[IIFNAME, In(Set::Bridges)], NOT_LOCAL, DROP], "not the address of its bridge")],
        ),
        chain(
            "postrouting",
            hook("nat", 4, 90),
            "",
            vec![rule(&[IS_IPV4, &guest(IIFNAME, 12), &[OIFNAME, NotIn(Set::Bridges), Masquerade]], "")],
        ),
        chain("unmark", hook("filter", 4, 350), "", vec![rule(&[&unmark(mark)], "")]),
    ]
}

fn bridge() -> Vec<Chain> {
    let chain = |name, hook, comment, rules| Chain { table: Table::Bridge, name, hook, comment, rules };
    const MAC: Expr = Payload(Base::Link, 6, 6, 1);
    const STATION: [Expr; 2] = [IIFNAME, Payload(Base::Link, 6, 6, 2)];
    vec![
        // Before the bridge learns: a frame that is dropped leaves no entry in its table.
        chain(
            "prerouting",
            Some(Hook { kind: "filter", number: 0, priority: FIRST }),
            "",
            vec![rule(&[&[IIFNAME, In(Set::Ports), Then(Jump("from_tap"))]], "")],
        ),
        // 01:80:c2:00:00:00 to 0f are for the bridge itself: they pass the prerouting hook by, and the bridge would
        // learn whatever sender they name.
        chain(
            "input",
            Some(Hook { kind: "filter", number: 1, priority: FIRST }),
            "",
            vec![rule(
                &[
                    &[IIFNAME, In(Set::Ports), Payload(Base::Link, 0, 6, 1)],
                    &[Bits(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xf0], &[0; 6]), Is(&[1, 0x80, 0xc2, 0, 0, 0])],
                    DROP,
                ],
                "LLDP, pause, EAPOL: not a guest's",
            )],
        ),
        chain(
            "from_tap",
            None,
            "one MAC for a tap",
            vec![
                rule(&[&STATION, &[In(Set::Stations), Then(Goto("known"))]], ""),
                rule(&[&[IIFNAME, In(Set::HasMac)], DROP], "a second MAC on this tap"),
                rule(&[&[MAC, In(Set::Macs)], DROP], "another's MAC, or the bridge's"),
                rule(&[&[MAC, Bits(&[1, 0, 0, 0, 0, 0], &[0; 6]), IsNot(&[0; 6])], DROP], "a group is no sender"),
                rule(
                    &[
                        &[MAC, AddTo(Set::Macs), IIFNAME, AddTo(Set::HasMac)],
                        &STATION,
                        &[AddTo(Set::Stations), Then(Goto("known"))],
                    ],
                    "",
                ),
                rule(&[DROP], UNLEARNED),
            ],
        ),
        chain(
            "known",
            None,
            "IPv4, and ARP from whom it is",
            vec![
                rule(&[&[Payload(Base::Link, 12, 2, 1), Is(ETHER_IP), Then(Goto("ip4"))]], ""),
                rule(
                    &[
                        IS_ARP,
                        &[
                            Payload(Base::Network, 0, 4, 1),
                            Is(&[0, 1, 8, 0]),
                            Payload(Base::Network, 4, 2, 1),
                            Is(&[6, 4]),
                        ],
                        &[IIFNAME, Payload(Base::Network, 8, 6, 2), In(Set::Stations), Then(Goto("arp4"))],
                    ],
                    "",
                ),
                rule(&[DROP], "forged ARP, IPv6, RA, VLAN or STP from a guest"),
            ],
        ),
        chain("ip4", None, "one address for a tap", pinned(IS_IP, 12)),
        chain("arp4", None, "the same in ARP", pinned(IS_ARP, 14)),
    ]
}

/// The rules that hold a tap to its address, which stands at `offset` of an IPv4 packet or of an ARP message.
fn pinned(family: &[Expr], offset: u32) -> Vec<Rule> {
    let ip = Payload(Base::Network, offset, 4, 1);
    let mine = [IIFNAME, Payload(Base::Network, offset, 4, 2)];
    let is_arp = offset == 14;
    let dhcp = rule(
        &[&[Load(Meta::L4proto, 1), Is(&[17]), Payload(Base::Transport, 0, 2, 1), Is(&[0, 67])], DROP],
        "no DHCP server",
    );
    let mut rules = if is_arp { vec![] } else { vec![dhcp] };
    rules.extend([
        rule(&[family, &mine, &[In(Set::Addresses), Then(Accept)]], ""),
        rule(&[&[IIFNAME, In(Set::HasIp)], DROP], if is_arp { "ARP for another" } else { "a second IPv4 on this tap" }),
        rule(&[family, &[ip, In(Set::Ips)], DROP], "another's address, or the bridge's"),
        rule(&[family, &[ip, In(Set::Nobody)], DROP], ""),
        rule(
            &[
                family,
                &[ip, AddTo(Set::Ips), IIFNAME, AddTo(Set::HasIp)],
                &mine,
                &[AddTo(Set::Addresses), Then(Accept)],
            ],
            "",
        ),
        rule(&[DROP], UNLEARNED),
    ]);
    rules
}

// Messages and attributes of include/uapi/linux/netfilter/nf_tables.h.
const NEWTABLE: u16 = 0;
const NEWCHAIN: u16 = 3;
const NEWRULE: u16 = 6;
const NEWSET: u16 = 9;
const NEWSETELEM: u16 = 12;

/// A message's type, with the subsystem's number before it.
pub(crate) fn nft(kind: u16) -> u16 {
    10 << 8 | kind
}

/// The header behind netlink's: `struct nfgenmsg`.
pub(crate) fn header(family: u8) -> [u8; 4] {
    [family, 0, 0, 0]
}

/// Appends the messages that make both tables with these flags, and all in them that stands still. `mark` is
/// what is let through.
pub(crate) fn write(batch: &mut Requests, flags: u32, mark: Mark) {
    for (table, comment) in
        [(Table::Inet, "banger: the guests' way out"), (Table::Bridge, "banger: no guest is another")]
    {
        batch
            .push(nft(NEWTABLE), CREATE, &header(table.family()))
            .text(1, TABLE)
            .be32(2, flags)
            .bytes(6, &note(0, comment));
    }
    for set in Set::ALL {
        write_set(batch, set);
    }
    let chains = || inet(mark).into_iter().chain(bridge());
    for chain in chains() {
        write_chain(batch, &chain);
    }
    for chain in chains() {
        for Rule(exprs, comment) in &chain.rules {
            let mut attrs = batch.push(nft(NEWRULE), CREATE | APPEND, &header(chain.table.family()));
            attrs.text(1, TABLE).text(2, chain.name).nest(4, |list| {
                for expr in exprs {
                    expr.write(list);
                }
            });
            if !comment.is_empty() {
                attrs.bytes(7, &note(0, comment));
            }
        }
    }
}

const APPEND: u16 = 0x800;

fn write_chain(batch: &mut Requests, chain: &Chain) {
    const ACCEPT: u32 = 1;
    let mut attrs = batch.push(nft(NEWCHAIN), CREATE, &header(chain.table.family()));
    attrs.text(1, TABLE).text(3, chain.name);
    if let Some(Hook { kind, number, priority }) = &chain.hook {
        attrs.nest(4, |hook| {
            hook.be32(1, *number).be32(2, priority.cast_unsigned());
        });
        attrs.text(7, kind).be32(5, ACCEPT);
    }
    if !chain.comment.is_empty() {
        attrs.bytes(12, &note(0, chain.comment));
    }
}

fn write_set(batch: &mut Requests, set: Set) {
    const CONSTANT: u32 = 0x2;
    const INTERVAL: u32 = 0x4;
    const EVAL: u32 = 0x20;
    let (key_type, key_length) = set.key();
    let flags = match (set.learns(), set.ranges()) {
        (0, []) => 0,
        (0, _) => CONSTANT | INTERVAL,
        _ => EVAL,
    };
    let id = 1 + Set::ALL.iter().position(|other| *other == set).unwrap_or(0) as u32;
    let mut attrs = batch.push(nft(NEWSET), CREATE, &header(set.table().family()));
    attrs.text(1, TABLE).text(2, set.name()).be32(3, flags).be32(4, key_type).be32(5, key_length).be32(10, id);
    if set.learns() > 0 {
        attrs.nest(9, |desc| {
            desc.be32(1, set.learns());
        });
    }
    // By the byte order of its key nft prints a name as a name: the host's for a link's name alone, else the network's.
    let order: u32 = if (key_type, key_length) == (IFNAME, 16) { 1 } else { 2 };
    let mut notes = vec![0, 4];
    notes.extend(order.to_ne_bytes());
    notes.extend(note(7, set.comment()));
    attrs.bytes(13, &notes);
    if !set.ranges().is_empty() {
        write_ranges(batch, set);
    }
}

fn write_ranges(batch: &mut Requests, set: Set) {
    const END: u32 = 1;
    let mut attrs = batch.push(nft(NEWSETELEM), CREATE, &header(set.table().family()));
    attrs.text(1, TABLE).text(2, set.name()).nest(3, |list| {
        let mut bound = |ip: std::net::Ipv4Addr, end: bool| {
            list.nest(1, |element| {
                element.nest(1, |key| {
                    key.bytes(1, &ip.octets());
                });
                if end {
                    element.be32(3, END);
                }
            });
        };
        for (first, behind) in set.ranges() {
            bound(*first, false);
            if let Some(behind) = behind {
                bound(*behind, true);
            }
        }
    });
}

/// A comment as nft stores it: type, length, text with its NUL.
fn note(kind: u8, text: &str) -> Vec<u8> {
    let mut note = vec![kind, text.len() as u8 + 1];
    note.extend(text.as_bytes());
    note.push(0);
    note
}

/// Writes an element's key into its set's list.
pub(crate) fn write_key(list: &mut Attrs<'_>, key: &[u8]) {
    list.nest(1, |element| {
        element.nest(1, |data| {
            data.bytes(1, key);
        });
    });
}
