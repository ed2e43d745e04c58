//! Whose a table called `banger` is, and making ours the helper's alone.
//!
//! Ours says so in its comment, which begins with `banger: `; any other is somebody else's and is left alone. Where the
//! kernel has both table flags (owner since 5.12, persist since 6.9) a table belongs to the socket that made it:
//! `nft flush ruleset` passes it by, a change by another is EPERM. When the helper goes the table stays, free for
//! everybody; the next helper claims it (`nf_tables_updtable` in the kernel: NFT_MSG_NEWTABLE with the same flags).

use super::Net;
use super::firewall::{Firewall, Seen};
use super::message::{CREATE, Requests, attr, u32_at};
use super::netlink::Refused;
use super::ruleset::{header, nft};
use super::sets::{TABLE, Table};
use crate::fail::Fail;
use std::fmt;

impl Table {
    pub(crate) const BOTH: [Table; 2] = [Table::Inet, Table::Bridge];
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Table::Inet => "inet",
            Table::Bridge => "bridge",
        })
    }
}

const NEWTABLE: u16 = 0;
const DELTABLE: u16 = 2;

/// `NFT_TABLE_F_DORMANT`: somebody put the table to sleep.
const DORMANT: u32 = 0x1;
/// `NFT_TABLE_F_OWNER`
const OWNER: u32 = 0x2;
/// `NFT_TABLE_F_PERSIST`
const PERSIST: u32 = 0x4;
/// The flags of a table that is the helper's alone.
pub(crate) const OWNED: u32 = OWNER | PERSIST;

/// With what our tables' comments begin.
const MARK: &[u8] = b"banger: ";

/// Whose a table is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Whose {
    /// There is none.
    #[default]
    Nobodys,
    /// It carries our mark; its flags.
    Ours(u32),
    /// It has our tables' name, and is somebody else's.
    Anothers,
}

impl Whose {
    /// By the kernel's answer to the question for it.
    pub(crate) fn told(answer: Result<Vec<Vec<u8>>, Refused>) -> Result<Whose, Refused> {
        let bodies = match answer {
            Ok(bodies) => bodies,
            Err(refused) if refused.is(libc::ENOENT) => return Ok(Whose::Nobodys),
            Err(refused) => return Err(refused),
        };
        let table = bodies.first().and_then(|body| body.get(4..)).unwrap_or_default();
        let flags = attr(table, 2).and_then(|value| u32_at(value, 0)).map_or(0, u32::from_be);
        Ok(if attr(table, 6).is_some_and(is_marked) { Whose::Ours(flags) } else { Whose::Anothers })
    }

    /// Whether it is there and ours.
    pub(crate) fn is_ours(self) -> bool {
        matches!(self, Whose::Ours(_))
    }
}

/// Whether nft's notes beside a table (type and length a byte each) hold our comment.
fn is_marked(mut notes: &[u8]) -> bool {
    const COMMENT: u8 = 0;
    while let [kind, length, rest @ ..] = notes {
        let Some(value) = rest.get(..usize::from(*length)) else { return false };
        if *kind == COMMENT {
            return value.starts_with(MARK);
        }
        notes = &rest[usize::from(*length)..];
    }
    false
}

/// What is said of a table that stands in our tables' place.
pub(crate) fn anothers(table: Table) -> Refused {
    Refused { call: format!("NFT_MSG_NEWTABLE {table} {TABLE}"), errno: libc::EEXIST, words: in_the_way(table) }
}

fn in_the_way(table: Table) -> String {
    let delete = format!("nft delete table {table} {TABLE}");
    format!(
        "the nftables table {table} {TABLE} is somebody else's, and banger's has that name: take it away ({delete})"
    )
}

/// Why an operation failed, for the client, where another's table is the reason.
pub(crate) fn explain(net: &Net, fail: Fail) -> Fail {
    let anothers = net.firewall(|fw| {
        let whose = fw.look(&[])?.whose();
        Ok(whose.into_iter().zip(Table::BOTH).find(|(whose, _)| *whose == Whose::Anothers))
    });
    match anothers {
        Ok(Some((_, table))) => {
            let causes = [vec![fail.message], fail.causes].concat();
            Fail { code: fail.code, message: in_the_way(table), causes }
        }
        _ => fail,
    }
}

impl Firewall {
    /// The flags that our tables get on this kernel. Asked once, by a transaction that can't come true: a table with
    /// the flags, and the end of one that is not there.
    pub(crate) fn flags(&mut self) -> Result<u32, Refused> {
        if !self.owned {
            return Ok(0);
        }
        let mut tries = 0;
        while self.persists.is_none() {
            let generation = self.generation()?;
            let asked = self.commit(generation, |batch| {
                write_table(batch, Table::Inet, "banger_asks", OWNED);
                batch.push(nft(DELTABLE), 0, &header(Table::Inet.family())).text(1, "banger_never");
            });
            match asked {
                Err(refused) if refused.is(libc::ENOENT) => self.persists = Some(true),
                Err(refused) if refused.is(libc::EOPNOTSUPP) || refused.is(libc::EINVAL) => self.persists = Some(false),
                // Another changed rules between our look and our change.
                Err(refused) if refused.is(libc::ERESTART) && tries < 20 => tries += 1,
                other => other?,
            }
        }
        Ok(if self.persists == Some(true) { OWNED } else { 0 })
    }

    /// Makes tables that stand this socket's alone, where they can be and are to be. `false`: they have to be written
    /// anew for that, or because somebody put them to sleep.
    pub(crate) fn claim(&mut self) -> Result<bool, Refused> {
        let wanted = self.flags()?;
        let seen = self.look(&[])?;
        let mut free = false;
        for whose in seen.whose() {
            match whose {
                Whose::Ours(flags) if flags & DORMANT != 0 => return Ok(false),
                Whose::Ours(flags) if wanted == 0 || flags & OWNED == wanted => {}
                Whose::Ours(flags) if flags & OWNED == PERSIST => free = true,
                _ => return Ok(false),
            }
        }
        if free {
            self.commit(self.bound_to(&seen), |batch| claim_too(batch, &seen, true))?;
        }
        Ok(true)
    }
}

/// Appends the claim of tables that a helper left behind, where they are to be this socket's.
pub(crate) fn claim_too(batch: &mut Requests, seen: &Seen, owned: bool) {
    orphans(seen, owned).for_each(|table| write_table(batch, table, TABLE, OWNED));
}

/// The tables that a helper left behind, where they are to be this socket's.
pub(crate) fn orphans(seen: &Seen, owned: bool) -> impl Iterator<Item = Table> + use<> {
    let left =
        move |(whose, _): &(Whose, Table)| owned && matches!(whose, Whose::Ours(flags) if flags & OWNED == PERSIST);
    seen.whose().into_iter().zip(Table::BOTH).filter(left).map(|(_, table)| table)
}

fn write_table(batch: &mut Requests, table: Table, name: &str, flags: u32) {
    batch.push(nft(NEWTABLE), CREATE, &header(table.family())).text(1, name).be32(2, flags);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(notes: &[u8]) -> Whose {
        let mut requests = Requests::default();
        requests.push(nft(NEWTABLE), 0, &header(1)).text(1, TABLE).be32(2, 6).be32(7, 77).bytes(6, notes);
        let body = requests.numbered(0)[16..].to_vec();
        Whose::told(Ok(vec![body])).expect("an answer")
    }

    #[test]
    fn a_table_is_ours_by_its_comment_alone() {
        let ours = Whose::Ours(6);
        assert_eq!(told(b"\0\x0abanger: x\0"), ours);
        assert_eq!(told(b"\x05\x01z\0\x0abanger: x\0"), ours, "behind another note");
        for notes in [
            &b""[..],
            b"\0",
            b"\0\x08bangers\0",
            b"\0\x20banger: cut",
            b"\x01\x0abanger: x\0",
            b"\x09\xff\0\x0abanger: x\0",
        ] {
            assert_eq!(told(notes), Whose::Anothers, "{notes:?}");
        }
        assert_eq!(Whose::told(Ok(vec![])).unwrap(), Whose::Anothers, "an answer without a table");
        assert_eq!(Whose::told(Ok(vec![vec![1, 0]])).unwrap(), Whose::Anothers, "a cut one");
        let errno = |errno| Err(Refused { call: String::new(), errno, words: String::new() });
        assert_eq!(Whose::told(errno(libc::ENOENT)).unwrap(), Whose::Nobodys);
        assert!(Whose::told(errno(libc::EPERM)).is_err());
    }
}
