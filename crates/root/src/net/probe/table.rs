//! Two tables that stand while a probe is under way: they have the kernel tell of our packet alone, and let it end
//! here. The packet is known by its nonce, which no other one carries.
//!
//! They belong to the helper's socket where the kernel can do that (5.12): a helper that dies leaves none. Elsewhere
//! the next start takes them away.

use super::packet::Nonce;
use crate::fail::Fail;
use crate::net::firewall::Firewall;
use crate::net::message::{Attrs, CREATE, Requests, attr};
use crate::net::netlink::{QUESTION, Refused};
use crate::net::ruleset::{header, nft};
use crate::net::sets::Table;
use crate::net::{Net, refused};

/// Both tables' name.
pub(super) const NAME: &str = "banger_probe";
/// What an administrator who looks at that moment reads; by it they are ours.
const NOTE: &str = "banger: a probe is under way";

const NEWTABLE: u16 = 0;
const GETTABLE: u16 = 1;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const NEWRULE: u16 = 6;
const APPEND: u16 = 0x800;
/// `NFT_TABLE_F_OWNER`
const OWNER: u32 = 2;

const BOTH: [Table; 2] = [Table::Inet, Table::Bridge];

/// Where a chain is hooked in, and what it does with our packet.
struct Chain {
    table: Table,
    name: &'static str,
    hook: u32,
    priority: i32,
    protocol: u8,
    /// Where the nonce lies behind the transport header's begin.
    offset: u32,
    then: Then,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    Trace,
    Drop,
}

const UDP: u8 = 17;
const ICMP: u8 = 1;

const CHAINS: [Chain; 4] = [
    // Before everybody.
    Chain {
        table: Table::Bridge,
        name: "in",
        hook: 0,
        priority: i32::MIN,
        protocol: UDP,
        offset: 8,
        then: Then::Trace,
    },
    Chain { table: Table::Inet, name: "in", hook: 0, priority: i32::MIN, protocol: UDP, offset: 8, then: Then::Trace },
    // Behind everybody, but before the connection is kept.
    Chain {
        table: Table::Inet,
        name: "out",
        hook: 4,
        priority: i32::MAX - 1,
        protocol: UDP,
        offset: 8,
        then: Then::Drop,
    },
    // The guest did not send it, so it need not hear that it was rejected: ICMP quotes the packet behind its header.
    Chain {
        table: Table::Inet,
        name: "answer",
        hook: 3,
        priority: i32::MIN,
        protocol: ICMP,
        offset: 8 + 20 + 8,
        then: Then::Drop,
    },
];

/// The tables, while this lives.
pub(super) struct Tables<'a> {
    net: &'a Net,
    stand: bool,
}

impl<'a> Tables<'a> {
    /// Makes them.
    pub(super) fn make(net: &'a Net, nonce: &Nonce) -> Result<Tables<'a>, Fail> {
        sweep(net)?;
        let made = net.firewall(|fw| match commit(fw, |batch| write(batch, nonce, OWNER)) {
            // A kernel that knows no owners.
            Err(error) if error.is(libc::EOPNOTSUPP) || error.is(libc::EINVAL) => {
                commit(fw, |batch| write(batch, nonce, 0))
            }
            other => other,
        });
        made.map_err(|error| Fail::new("the probe's rules could not be made").because(error))?;
        Ok(Tables { net, stand: true })
    }

    /// Takes them away.
    pub(super) fn end(mut self) -> Result<(), Fail> {
        self.stand = false;
        sweep(self.net)
    }
}

impl Drop for Tables<'_> {
    fn drop(&mut self) {
        // The step that failed is what is told; what may be left here the next probe or start takes away.
        if self.stand {
            let _ = sweep(self.net);
        }
    }
}

/// Takes away what of the tables is there. Refused where another has one of that name.
pub(crate) fn sweep(net: &Net) -> Result<(), Fail> {
    let there = net.firewall(|fw| {
        let mut there = Vec::new();
        for table in BOTH {
            match is_ours(fw, table)? {
                Some(true) => there.push(table),
                Some(false) => return Ok(Err(table)),
                None => {}
            }
        }
        if !there.is_empty() {
            commit(fw, |batch| {
                for table in &there {
                    batch.push(nft(DELTABLE), 0, &header(table.family())).text(1, NAME);
                }
            })?;
        }
        Ok(Ok(()))
    });
    there.map_err(refused)?.map_err(|table| {
        let family = if table == Table::Inet { "inet" } else { "bridge" };
        Fail::new(format!("there is a table {family} {NAME} that is not banger's: remove it"))
    })
}

/// Whether there is such a table, and whether it is ours.
fn is_ours(fw: &mut Firewall, table: Table) -> Result<Option<bool>, Refused> {
    let mut ask = Requests::default();
    ask.push(nft(GETTABLE), QUESTION, &header(table.family())).text(1, NAME);
    match fw.dump("NFT_MSG_GETTABLE banger_probe", &mut ask) {
        Ok(bodies) => {
            let noted = |body: &Vec<u8>| attr(body.get(4..)?, 6).map(|found| found == note());
            Ok(Some(bodies.first().and_then(noted).unwrap_or(false)))
        }
        Err(refused) if refused.is(libc::ENOENT) => Ok(None),
        Err(refused) => Err(refused),
    }
}

fn commit(fw: &mut Firewall, fill: impl Fn(&mut Requests)) -> Result<(), Refused> {
    let mut tries = 0;
    loop {
        let generation = fw.generation()?;
        match fw.commit(generation, &fill) {
            Err(refused) if refused.is(libc::ERESTART) && tries < 20 => tries += 1,
            other => return other,
        }
    }
}

fn write(batch: &mut Requests, nonce: &Nonce, flags: u32) {
    for table in BOTH {
        batch.push(nft(NEWTABLE), CREATE, &header(table.family())).text(1, NAME).be32(2, flags).bytes(6, &note());
    }
    for chain in &CHAINS {
        batch
            .push(nft(NEWCHAIN), CREATE, &header(chain.table.family()))
            .text(1, NAME)
            .text(3, chain.name)
            .nest(4, |hook| {
                hook.be32(1, chain.hook).be32(2, chain.priority.cast_unsigned());
            })
            .text(7, "filter")
            .be32(5, 1);
        batch
            .push(nft(NEWRULE), CREATE | APPEND, &header(chain.table.family()))
            .text(1, NAME)
            .text(2, chain.name)
            .nest(4, |list| rule(list, chain, nonce));
    }
}

/// `meta l4proto PROTOCOL @th,OFFSET,128 NONCE meta nftrace set 1`, or `drop`.
fn rule(list: &mut Attrs<'_>, chain: &Chain, nonce: &Nonce) {
    const META_L4PROTO: u32 = 16;
    const META_NFTRACE: u32 = 12;
    const TRANSPORT: u32 = 2;
    expr(list, "meta", |data| {
        data.be32(2, META_L4PROTO).be32(1, 1);
    });
    equals(list, &[chain.protocol]);
    expr(list, "payload", |data| {
        data.be32(1, 1).be32(2, TRANSPORT).be32(3, chain.offset).be32(4, nonce.len() as u32);
    });
    equals(list, nonce);
    match chain.then {
        Then::Trace => {
            expr(list, "immediate", |data| {
                data.be32(1, 1).nest(2, |value| {
                    value.bytes(1, &[1]);
                });
            });
            expr(list, "meta", |data| {
                data.be32(2, META_NFTRACE).be32(3, 1);
            });
        }
        Then::Drop => expr(list, "immediate", |data| {
            data.be32(1, 0).nest(2, |value| {
                value.nest(2, |verdict| {
                    verdict.be32(1, 0);
                });
            });
        }),
    }
}

fn equals(list: &mut Attrs<'_>, bytes: &[u8]) {
    expr(list, "cmp", |data| {
        data.be32(1, 1).be32(2, 0).nest(3, |value| {
            value.bytes(1, bytes);
        });
    });
}

fn expr(list: &mut Attrs<'_>, name: &str, fill: impl FnOnce(&mut Attrs<'_>)) {
    list.nest(1, |expr| {
        expr.text(1, name).nest(2, fill);
    });
}

/// A comment as nft stores one: type, length, text with its NUL.
fn note() -> Vec<u8> {
    let mut note = vec![0, NOTE.len() as u8 + 1];
    note.extend(NOTE.as_bytes());
    note.push(0);
    note
}
