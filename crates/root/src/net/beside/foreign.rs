//! Others' chains and rules as the kernel lists them.

use crate::net::firewall::Firewall;
use crate::net::message::{DUMP, Requests, attr, attrs, text};
use crate::net::netlink::{QUESTION, Refused};
use crate::net::ruleset::{header, nft};
use crate::net::sets::TABLE;

const GETTABLE: u16 = 1;
const GETCHAIN: u16 = 4;
const GETRULE: u16 = 7;

/// `NF_INET_FORWARD`.
const FORWARD: u32 = 2;
/// `NF_ACCEPT`.
pub(super) const ACCEPTS: i32 = 1;
const DROPS: i32 = 0;
const JUMPS: i32 = -3;

/// A chain that is not ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) family: u8,
    pub(super) table: String,
    pub(super) name: String,
    hook: Option<u32>,
    /// Its policy is drop.
    pub(super) drops: bool,
}

impl Chain {
    /// Whether packets that are forwarded come by.
    pub(super) fn is_forward(&self) -> bool {
        self.hook == Some(FORWARD)
    }

    fn read(body: &[u8]) -> Option<Chain> {
        let inner = body.get(4..)?;
        let hook = attr(inner, 4).filter(|hook| !hook.is_empty());
        Some(Chain {
            family: *body.first()?,
            table: text(attr(inner, 1)?),
            name: text(attr(inner, 3)?),
            hook: hook.and_then(|hook| attr(hook, 1)).and_then(be32),
            drops: hook.is_some() && attr(inner, 5).and_then(be32) == Some(0),
        })
    }
}

fn be32(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_be_bytes)
}

/// A rule that is not in our tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) handle: u64,
    /// Names and data of its expressions.
    pub(crate) exprs: Vec<(String, Vec<u8>)>,
    /// Its comment, as nft keeps one, with the NUL.
    pub(crate) comment: Vec<u8>,
}

impl Rule {
    fn read(body: &[u8]) -> Option<Rule> {
        let inner = body.get(4..)?;
        let exprs = attrs(attr(inner, 4).unwrap_or_default())
            .filter_map(|(_, expr)| Some((text(attr(expr, 1)?), attr(expr, 2).unwrap_or_default().to_vec())))
            .collect();
        // Type, length, value; type 0 is a comment.
        let comment = match attr(inner, 7) {
            Some([0, length, value @ ..]) => value.get(..usize::from(*length)).unwrap_or_default().to_vec(),
            _ => Vec::new(),
        };
        Some(Rule { handle: u64::from_be_bytes(attr(inner, 3)?.try_into().ok()?), exprs, comment })
    }

    fn verdict_attr(&self, kind: u16) -> Option<&[u8]> {
        let (_, data) = self.exprs.iter().rev().find(|(name, _)| name == "immediate")?;
        attr(attr(attr(data, 2)?, 2)?, kind)
    }

    /// Where it sends a packet.
    pub(super) fn verdict(&self) -> Option<i32> {
        self.verdict_attr(1).and_then(be32).map(u32::cast_signed)
    }

    /// Whether it jumps to that chain.
    pub(super) fn jumps_to(&self, chain: &str) -> bool {
        self.verdict() == Some(JUMPS) && self.verdict_attr(2).map(text).as_deref() == Some(chain)
    }

    /// Whether it drops or rejects what comes to its end.
    pub(super) fn drops(&self) -> bool {
        self.verdict() == Some(DROPS)
            || self.exprs.last().is_some_and(|(name, data)| match name.as_str() {
                "reject" => true,
                "target" => matches!(attr(data, 1).map(text).as_deref(), Some("REJECT" | "DROP")),
                _ => false,
            })
    }

    /// Whether everything comes to its end.
    pub(super) fn is_unconditional(&self) -> bool {
        let conditions = &self.exprs[..self.exprs.len().saturating_sub(1)];
        conditions.iter().all(|(name, _)| name == "counter" || name == "log")
    }
}

/// All chains of `ip` and `inet` tables but our own.
pub(super) fn chains(fw: &mut Firewall) -> Result<Vec<Chain>, Refused> {
    let mut ask = Requests::default();
    ask.push(nft(GETCHAIN), DUMP, &header(0));
    let mut chains: Vec<_> =
        fw.dump("NFT_MSG_GETCHAIN", &mut ask)?.iter().filter_map(|body| Chain::read(body)).collect();
    chains.retain(|chain| matches!(chain.family, super::IP | super::INET) && chain.table != TABLE);
    Ok(chains)
}

/// The tables that belong to a process: nobody else may change them.
pub(super) fn owned(fw: &mut Firewall, chains: &[Chain]) -> Result<Vec<(u8, String)>, Refused> {
    const OWNER: u32 = 2;
    if !chains.iter().any(|chain| chain.table == "firewalld") {
        return Ok(Vec::new());
    }
    let mut ask = Requests::default();
    ask.push(nft(GETTABLE), DUMP, &header(0));
    let tables = fw.dump("NFT_MSG_GETTABLE", &mut ask)?;
    let owned = tables.iter().filter_map(|body| {
        let inner = body.get(4..)?;
        let flags = attr(inner, 2).and_then(be32)?;
        (flags & OWNER != 0).then_some((*body.first()?, text(attr(inner, 1)?)))
    });
    Ok(owned.collect())
}

/// One rule of anybody's; `None` where it is gone.
pub(crate) fn rule(
    fw: &mut Firewall,
    family: u8,
    table: &str,
    chain: &str,
    handle: u64,
) -> Result<Option<Rule>, Refused> {
    let mut ask = Requests::default();
    ask.push(nft(GETRULE), QUESTION, &header(family)).text(1, table).text(2, chain).bytes(3, &handle.to_be_bytes());
    match fw.dump(format_args!("NFT_MSG_GETRULE {table} {chain} {handle}"), &mut ask) {
        Ok(bodies) => Ok(bodies.first().and_then(|body| Rule::read(body))),
        Err(refused) if refused.is(libc::ENOENT) => Ok(None),
        Err(refused) => Err(refused),
    }
}

/// The rules of a chain, in their order.
pub(super) fn rules(fw: &mut Firewall, chain: &Chain) -> Result<Vec<Rule>, Refused> {
    let mut ask = Requests::default();
    ask.push(nft(GETRULE), DUMP, &header(chain.family)).text(1, &chain.table).text(2, &chain.name);
    let bodies = fw.dump(format_args!("NFT_MSG_GETRULE {} {}", chain.table, chain.name), &mut ask)?;
    Ok(bodies.iter().filter_map(|body| Rule::read(body)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn nothing_that_is_listed_panics(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Chain::read(&body);
            if let Some(rule) = Rule::read(&body) {
                let _ = (rule.drops(), rule.is_unconditional(), rule.jumps_to("x"), super::super::is_ours(&rule));
            }
        }
    }
}
