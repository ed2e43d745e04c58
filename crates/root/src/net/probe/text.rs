//! A rule in words like nft's: the expressions that people's firewalls are made of. What is not known here is named
//! in brackets, never left out. Pure.

use crate::net::beside::Rule;
use crate::net::message::{attr, text};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// A rule has at most 128 expressions; a reader wants to see which one it is.
const LONGEST: usize = 400;

/// What a register holds.
#[derive(Clone, Debug)]
struct Loaded {
    name: String,
    kind: Kind,
    /// What was taken of it.
    mask: Option<Vec<u8>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Name,
    /// In the machine's order.
    Host,
    /// In the network's.
    Number,
    Address,
    Mac,
    Protocol,
    Family,
    State,
    Bytes,
}

/// The rule's text, on one line.
pub(super) fn of(rule: &Rule) -> String {
    let mut words = Vec::new();
    let mut registers = BTreeMap::new();
    let mut comment = match rule.comment.as_slice() {
        [] => None,
        note => Some(text(note)),
    };
    for (name, data) in &rule.exprs {
        if name == "match" && attr(data, 1).map(text).as_deref() == Some("comment") {
            comment = attr(data, 3).map(text);
            continue;
        }
        words.extend(expr(name, data, &mut registers));
    }
    words.extend(comment.map(|comment| format!("comment {comment:?}")));
    let all = words.join(" ");
    match all.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{}…", &all[..at]),
        None => all,
    }
}

fn expr(name: &str, data: &[u8], registers: &mut BTreeMap<u32, Loaded>) -> Option<String> {
    let number = |kind| attr(data, kind).and_then(be32);
    let target = |kind| number(kind).map_or(0, first_word);
    match name {
        "meta" if number(1).is_some() => {
            let (name, kind) = meta(number(2)?);
            registers.insert(target(1), Loaded { name, kind, mask: None });
            None
        }
        "payload" if number(1).is_some() => {
            let (name, kind) = payload(number(2)?, number(3)?, number(4)?);
            registers.insert(target(1), Loaded { name, kind, mask: None });
            None
        }
        "ct" if number(1).is_some() => {
            let loaded = match number(2)? {
                0 => Loaded { name: "ct state".into(), kind: Kind::State, mask: None },
                3 => Loaded { name: "ct mark".into(), kind: Kind::Host, mask: None },
                key => Loaded { name: format!("[ct {key}]"), kind: Kind::Bytes, mask: None },
            };
            registers.insert(target(1), loaded);
            None
        }
        "bitwise" => {
            let mut loaded = registers.get(&target(1))?.clone();
            loaded.mask = attr(data, 4).and_then(|mask| attr(mask, 1)).map(<[u8]>::to_vec);
            registers.insert(target(2), loaded);
            None
        }
        "cmp" => {
            let value = attr(data, 3).and_then(|value| attr(value, 1))?;
            let loaded = registers.get(&target(1));
            Some(compare(loaded, number(2)?, value))
        }
        "lookup" => {
            let set = attr(data, 1).map(text)?;
            let set = if set.starts_with("__") { "{ … }".to_owned() } else { format!("@{set}") };
            let not = if number(5).unwrap_or(0) & 1 == 0 { "" } else { "!= " };
            let name = registers.get(&target(2)).map_or("[…]", |loaded| loaded.name.as_str());
            Some(format!("{name} {not}{set}"))
        }
        "immediate" => verdict(data),
        "match" => Some(format!("-m {}", attr(data, 1).map(text)?)),
        "target" => Some(format!("-j {}", attr(data, 1).map(text)?)),
        "counter" | "reject" | "log" | "queue" | "limit" | "notrack" | "quota" => Some(name.to_owned()),
        "masq" => Some("masquerade".to_owned()),
        other => Some(format!("[{other}]")),
    }
}

/// Registers are numbered in two ways: 1 to 4 of 16 bytes, 8 to 23 of 4.
fn first_word(register: u32) -> u32 {
    if (1..=4).contains(&register) { 8 + (register - 1) * 4 } else { register }
}

fn be32(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_be_bytes)
}

fn meta(key: u32) -> (String, Kind) {
    let (name, kind) = match key {
        1 => ("meta protocol", Kind::Number),
        3 => ("meta mark", Kind::Host),
        4 => ("iif", Kind::Host),
        5 => ("oif", Kind::Host),
        6 => ("iifname", Kind::Name),
        7 => ("oifname", Kind::Name),
        15 => ("meta nfproto", Kind::Family),
        16 => ("meta l4proto", Kind::Protocol),
        17 => ("meta ibrname", Kind::Name),
        18 => ("meta obrname", Kind::Name),
        key => return (format!("[meta {key}]"), Kind::Bytes),
    };
    (name.to_owned(), kind)
}

fn payload(base: u32, offset: u32, length: u32) -> (String, Kind) {
    let (name, kind) = match (base, offset, length) {
        (0, 0, 6) => ("ether daddr", Kind::Mac),
        (0, 6, 6) => ("ether saddr", Kind::Mac),
        (0, 12, 2) => ("ether type", Kind::Number),
        (1, 9, 1) => ("ip protocol", Kind::Protocol),
        (1, 8, 1) => ("ip ttl", Kind::Number),
        // Where less than all of an address was loaded, its prefix was meant.
        (1, 12, 1..=4) => ("ip saddr", Kind::Address),
        (1, 16, 1..=4) => ("ip daddr", Kind::Address),
        (2, 0, 2) => ("th sport", Kind::Number),
        (2, 2, 2) => ("th dport", Kind::Number),
        _ => {
            let base = ["ll", "nh", "th", "ih"].get(base as usize).unwrap_or(&"?");
            return (format!("@{base},{},{}", u64::from(offset) * 8, u64::from(length) * 8), Kind::Bytes);
        }
    };
    (name.to_owned(), kind)
}

fn compare(loaded: Option<&Loaded>, op: u32, value: &[u8]) -> String {
    let Some(Loaded { name, kind, mask }) = loaded else { return "[cmp]".into() };
    let op = ["", "!= ", "< ", "<= ", "> ", ">= "].get(op as usize).copied().unwrap_or("? ");
    match (kind, mask) {
        // `ct state established,related` is "these bits are not none".
        (Kind::State, Some(mask)) if op == "!= " && value.iter().all(|byte| *byte == 0) => {
            format!("{name} {}", show(Kind::State, mask))
        }
        (Kind::Address, Some(mask)) => {
            let bits: u32 = mask.iter().map(|byte| byte.count_ones()).sum();
            format!("{name} {op}{}/{bits}", show(*kind, value))
        }
        (kind, Some(mask)) => {
            let op = if op.is_empty() { "== " } else { op };
            format!("{name} & {} {op}{}", show(*kind, mask), show(*kind, value))
        }
        (Kind::Address, None) if value.len() < 4 => {
            format!("{name} {op}{}/{}", show(*kind, value), value.len() * 8)
        }
        (Kind::Name, None) if !value.contains(&0) => format!("{name} {op}\"{}*\"", String::from_utf8_lossy(value)),
        (kind, None) => format!("{name} {op}{}", show(*kind, value)),
    }
}

fn show(kind: Kind, value: &[u8]) -> String {
    let number = || value.iter().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
    match (kind, value.len()) {
        (Kind::Name, _) => format!("{:?}", text(value)),
        (Kind::Address, 1..=4) => {
            let mut octets = [0; 4];
            octets[..value.len()].copy_from_slice(value);
            Ipv4Addr::from(octets).to_string()
        }
        (Kind::Mac, 6) => value.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":"),
        (Kind::Host, 4) => {
            let number = value.first_chunk().map_or(0, |four| u32::from_ne_bytes(*four));
            format!("{number:#010x}")
        }
        (Kind::Number, 1 | 2) => number().to_string(),
        (Kind::Protocol, 1) => match value[0] {
            1 => "icmp".into(),
            6 => "tcp".into(),
            17 => "udp".into(),
            58 => "ipv6-icmp".into(),
            other => other.to_string(),
        },
        (Kind::Family, 1) => match value[0] {
            2 => "ipv4".into(),
            10 => "ipv6".into(),
            other => other.to_string(),
        },
        (Kind::State, 4) => {
            const STATES: [(u32, &str); 5] =
                [(1, "invalid"), (2, "established"), (4, "related"), (8, "new"), (64, "untracked")];
            let bits = value.first_chunk().map_or(0, |four| u32::from_ne_bytes(*four));
            STATES.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| *name).collect::<Vec<_>>().join(",")
        }
        _ => value.iter().fold("0x".to_owned(), |text, byte| format!("{text}{byte:02x}")),
    }
}

fn verdict(data: &[u8]) -> Option<String> {
    let verdict = attr(data, 2).and_then(|value| attr(value, 2));
    let Some(verdict) = verdict else { return Some("[immediate]".into()) };
    let chain = attr(verdict, 2).map(text).unwrap_or_default();
    Some(match attr(verdict, 1).and_then(be32)?.cast_signed() {
        0 => "drop".into(),
        1 => "accept".into(),
        -1 => "continue".into(),
        -3 => format!("jump {chain}"),
        -4 => format!("goto {chain}"),
        -5 => "return".into(),
        other => format!("[verdict {other}]"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::message::{Attrs, Requests, answers};
    use proptest::prelude::*;

    fn rule(comment: &str, fill: impl FnOnce(&mut Vec<(String, Vec<u8>)>)) -> Rule {
        let mut exprs = Vec::new();
        fill(&mut exprs);
        let comment = if comment.is_empty() { vec![] } else { [comment.as_bytes(), b"\0"].concat() };
        Rule { handle: 1, exprs, comment }
    }

    fn data(fill: impl FnOnce(&mut Attrs<'_>)) -> Vec<u8> {
        let mut bytes = Requests::default();
        fill(&mut bytes.push(1, 0, &[]));
        answers(bytes.numbered(0)).next().unwrap().body.to_vec()
    }

    #[test]
    fn what_people_write_is_told_as_they_wrote_it() {
        let rule = rule("no guests", |exprs| {
            let mut add = |name: &str, data| exprs.push((name.to_owned(), data));
            add(
                "meta",
                data(|data| {
                    data.be32(2, 6).be32(1, 1);
                }),
            );
            add(
                "cmp",
                data(|data| {
                    data.be32(1, 1).be32(2, 0).nest(3, |value| {
                        value.bytes(1, b"br-fc\0\0\0");
                    });
                }),
            );
            add(
                "payload",
                data(|data| {
                    data.be32(1, 1).be32(2, 1).be32(3, 12).be32(4, 4);
                }),
            );
            add(
                "bitwise",
                data(|data| {
                    data.be32(1, 1).be32(2, 1).be32(3, 4).nest(4, |value| {
                        value.bytes(1, &[255, 255, 0, 0]);
                    });
                }),
            );
            add(
                "cmp",
                data(|data| {
                    data.be32(1, 1).be32(2, 1).nest(3, |value| {
                        value.bytes(1, &[10, 1, 0, 0]);
                    });
                }),
            );
            add(
                "lookup",
                data(|data| {
                    data.text(1, "bad").be32(2, 1);
                }),
            );
            add("counter", vec![]);
            add(
                "match",
                data(|data| {
                    data.text(1, "conntrack");
                }),
            );
            add("new thing", vec![]);
            add(
                "immediate",
                data(|data| {
                    data.be32(1, 0).nest(2, |value| {
                        value.nest(2, |verdict| {
                            verdict.be32(1, 0);
                        });
                    });
                }),
            );
        });
        assert_eq!(
            of(&rule),
            "iifname \"br-fc\" ip saddr != 10.1.0.0/16 ip saddr @bad counter -m conntrack [new thing] drop comment \"no guests\""
        );
    }

    proptest! {
        #[test]
        fn no_rule_panics(
            exprs in proptest::collection::vec(
                ("meta|payload|ct|bitwise|cmp|lookup|immediate|match|target", proptest::collection::vec(any::<u8>(), 0..64)),
                0..12,
            ),
            comment in proptest::collection::vec(any::<u8>(), 0..32),
        ) {
            let _ = of(&Rule { handle: 1, exprs, comment });
        }
    }
}
