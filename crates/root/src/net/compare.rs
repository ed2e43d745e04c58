//! Whether our tables are still as we wrote them, and writing them anew: what is left when somebody else flushed a
//! chain looks like a table that works.

use super::firewall::{Firewall, Seen};
use super::message::{self, DUMP, Requests, answers, attr, attrs};
use super::netlink::Refused;
use super::ruleset::{self, header, nft};
use super::sets::{Element, Set, TABLE, Table};

const NEWCHAIN: u16 = 3;
const GETCHAIN: u16 = 4;
const NEWRULE: u16 = 6;
const GETRULE: u16 = 7;
const NEWSET: u16 = 9;
const GETSET: u16 = 10;

/// Which parts of a message have to be as we wrote them.
const CHAIN: &[u16] = &[3, 4, 5, 7];
const RULE: &[u16] = &[2, 4];
const SET: &[u16] = &[2, 4, 5];

impl Firewall {
    /// Whether every chain, rule and set of each table stands as we write it, and no other.
    pub(crate) fn stands_as_written(&mut self) -> Result<[bool; 2], Refused> {
        let seen = self.look(&[])?;
        self.compare(&seen)
    }

    /// The same of what was `seen`: a table that is not there is not asked for.
    fn compare(&mut self, seen: &Seen) -> Result<[bool; 2], Refused> {
        let mut stand = seen.tables();
        if stand == [false, false] {
            return Ok(stand);
        }
        let mut written = Requests::default();
        ruleset::write(&mut written, 0, self.mark);
        let bytes = written.numbered(0).to_vec();
        for (stands, table) in stand.iter_mut().zip(Table::BOTH).filter(|(stands, _)| **stands) {
            for (new, get, parts) in [(NEWCHAIN, GETCHAIN, CHAIN), (NEWRULE, GETRULE, RULE), (NEWSET, GETSET, SET)] {
                let ours: Vec<_> = answers(&bytes)
                    .filter(|message| message.kind == nft(new) && message.body.first() == Some(&table.family()))
                    .map(|message| message.body.get(4..).unwrap_or_default())
                    .collect();
                let theirs = self.listed(get, table)?;
                *stands &= same(ours, &theirs, new, parts);
            }
        }
        Ok(stand)
    }

    fn listed(&mut self, get: u16, table: Table) -> Result<Vec<Vec<u8>>, Refused> {
        let mut ask = Requests::default();
        ask.push(nft(get), DUMP, &header(table.family())).text(1, TABLE);
        let bodies = match self.dump("our tables, all", &mut ask) {
            Err(refused) if refused.is(libc::ENOENT) => return Ok(Vec::new()),
            other => other?,
        };
        let own = |body: Vec<u8>| {
            let inner = body.get(4..)?;
            (attr(inner, 1).map(message::text).as_deref() == Some(TABLE)).then(|| inner.to_vec())
        };
        Ok(bodies.into_iter().filter_map(own).collect())
    }

    /// Makes both tables stand as we write them, this socket's alone where that can be, and gives whether they did. Else
    /// they are written anew with these elements, in one transaction; what was learned of taps stays where its table
    /// was whole.
    pub(crate) fn restore(&mut self, elements: &[Element]) -> Result<bool, Refused> {
        let mut tries = 0;
        loop {
            match self.restore_once(elements) {
                // Another changed rules between our look and our change.
                Err(refused) if refused.is(libc::ERESTART) && tries < 20 => tries += 1,
                other => return other,
            }
        }
    }

    fn restore_once(&mut self, elements: &[Element]) -> Result<bool, Refused> {
        let seen = self.look(&[])?;
        let whole = self.compare(&seen)?;
        if whole == [true, true] && self.claim()? {
            return Ok(true);
        }
        let mut all = elements.to_vec();
        if whole[1] {
            for set in Set::ALL.into_iter().filter(|set| set.learns() > 0) {
                all.extend(self.elements(set)?);
            }
        }
        let mut known = std::collections::HashSet::new();
        all.retain(|element| known.insert(*element));
        self.write_tables(&seen, all.iter())?;
        Ok(false)
    }
}

fn same(ours: Vec<&[u8]>, theirs: &[Vec<u8>], kind: u16, parts: &[u16]) -> bool {
    if ours.len() != theirs.len() {
        return false;
    }
    let name = |body: &[u8]| attr(body, if kind == NEWCHAIN { 3 } else { 2 }).map(<[u8]>::to_vec);
    // The order within a chain counts, that among chains does not.
    let (mut ours, mut theirs): (Vec<_>, Vec<_>) = (ours, theirs.iter().map(Vec::as_slice).collect());
    ours.sort_by_key(|body| name(body));
    theirs.sort_by_key(|body| name(body));
    ours.iter().zip(theirs).all(|(ours, theirs)| {
        parts.iter().all(|part| match (attr(ours, *part), attr(theirs, *part)) {
            (Some(ours), Some(theirs)) if *part == 4 && kind == NEWRULE => same_exprs(ours, theirs),
            (Some(ours), Some(theirs)) => ours == theirs || (kind == NEWCHAIN && *part == 4 && holds(theirs, ours)),
            (ours, theirs) => ours.is_none() && (theirs.is_none() || *part == 4),
        })
    })
}

fn same_exprs(ours: &[u8], theirs: &[u8]) -> bool {
    attrs(ours).count() == attrs(theirs).count()
        && attrs(ours).zip(attrs(theirs)).all(|((_, ours), (_, theirs))| {
            let is_counter = attr(ours, 1).is_some_and(|name| name.starts_with(b"counter\0"));
            attr(ours, 1) == attr(theirs, 1)
                && (is_counter || holds(attr(theirs, 2).unwrap_or_default(), attr(ours, 2).unwrap_or_default()))
        })
}

/// Whether all that was written is there with the same value; the kernel says more than it was told.
fn holds(theirs: &[u8], ours: &[u8]) -> bool {
    attrs(ours).all(|(kind, ours)| attr(theirs, kind).is_some_and(|theirs| theirs == ours || nested(theirs, ours)))
}

/// The same, where the value is a list itself: bytes are never taken for one unless all of them are.
fn nested(theirs: &[u8], ours: &[u8]) -> bool {
    let whole = |bytes: &[u8]| {
        let length: usize = attrs(bytes).map(|(_, value)| 4 + value.len().next_multiple_of(4)).sum();
        length == bytes.len().next_multiple_of(4) && length > 4
    };
    whole(ours) && whole(theirs) && holds(theirs, ours)
}
