//! nftables' expressions as the kernel takes them: the few that our rules are made of.
//!
//! Numbers from `include/uapi/linux/netfilter/nf_tables.h`; what stands behind each other is what `nft --debug=netlink`
//! shows for the same rule. Register 1 holds 16 bytes, register 2 follows it: an interface's name fills the first.

use super::message::Attrs;
use super::sets::Set;

/// What a rule looks at.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Meta {
    Protocol = 1,
    Mark = 3,
    Iifname = 6,
    Oifname = 7,
    Nfproto = 15,
    L4proto = 16,
}

/// Where in the packet.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Base {
    Link = 0,
    Network = 1,
    Transport = 2,
}

/// Where a packet goes on.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Verdict {
    Drop,
    Accept,
    Jump(&'static str),
    Goto(&'static str),
}

/// One expression.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Expr {
    /// A property of the packet into a register.
    Load(Meta, u32),
    /// Bytes of the packet into a register.
    Payload(Base, u32, u32, u32),
    /// Register 1 is these bytes.
    Is(&'static [u8]),
    /// Register 1 is not these bytes.
    IsNot(&'static [u8]),
    /// Register 1 `& mask ^ xor`.
    Bits(&'static [u8], &'static [u8]),
    /// Register 1 is this word, in the host's byte order.
    IsWord(u32),
    /// Register 1 `& mask ^ xor`, words in the host's byte order.
    WordBits(u32, u32),
    /// What begins in register 1 is in the set.
    In(Set),
    /// It is not in the set.
    NotIn(Set),
    /// What begins in register 1 is put into the set.
    AddTo(Set),
    /// The connection's state into register 1.
    CtState,
    /// What the destination is to the host, by the link that it came in by, into register 1.
    DestinationType,
    /// Register 1 becomes the packet's mark.
    SetMark,
    Count,
    Masquerade,
    Then(Verdict),
}

const NAME: u16 = 1;
const DATA: u16 = 2;
const VALUE: u16 = 1;

impl Expr {
    /// Writes it as an element of a rule's list.
    pub(crate) fn write(&self, list: &mut Attrs<'_>) {
        const LIST_ELEM: u16 = 1;
        list.nest(LIST_ELEM, |expr| {
            expr.text(NAME, self.name()).nest(DATA, |data| self.data(data));
        });
    }

    fn name(&self) -> &'static str {
        match self {
            Expr::Load(..) | Expr::SetMark => "meta",
            Expr::Payload(..) => "payload",
            Expr::Is(_) | Expr::IsNot(_) | Expr::IsWord(_) => "cmp",
            Expr::Bits(..) | Expr::WordBits(..) => "bitwise",
            Expr::In(_) | Expr::NotIn(_) => "lookup",
            Expr::AddTo(_) => "dynset",
            Expr::CtState => "ct",
            Expr::DestinationType => "fib",
            Expr::Count => "counter",
            Expr::Masquerade => "masq",
            Expr::Then(_) => "immediate",
        }
    }

    fn data(&self, data: &mut Attrs<'_>) {
        let value = |data: &mut Attrs<'_>, kind, bytes: &[u8]| {
            data.nest(kind, |data| {
                data.bytes(VALUE, bytes);
            });
        };
        match *self {
            Expr::Load(what, register) => {
                data.be32(2, what as u32).be32(1, register);
            }
            Expr::SetMark => {
                data.be32(2, Meta::Mark as u32).be32(3, 1);
            }
            Expr::Payload(base, offset, length, register) => {
                data.be32(1, register).be32(2, base as u32).be32(3, offset).be32(4, length);
            }
            Expr::Is(bytes) | Expr::IsNot(bytes) => {
                let op = u32::from(matches!(self, Expr::IsNot(_)));
                data.be32(1, 1).be32(2, op);
                value(data, 3, bytes);
            }
            Expr::IsWord(word) => {
                data.be32(1, 1).be32(2, 0);
                value(data, 3, &word.to_ne_bytes());
            }
            Expr::WordBits(mask, xor) => {
                data.be32(1, 1).be32(2, 1).be32(3, 4);
                value(data, 4, &mask.to_ne_bytes());
                value(data, 5, &xor.to_ne_bytes());
            }
            Expr::Bits(mask, xor) => {
                data.be32(1, 1).be32(2, 1).be32(3, mask.len() as u32);
                value(data, 4, mask);
                value(data, 5, xor);
            }
            Expr::In(set) => {
                data.text(1, set.name()).be32(2, 1);
            }
            Expr::NotIn(set) => {
                data.text(1, set.name()).be32(2, 1).be32(5, 1);
            }
            Expr::AddTo(set) => {
                data.text(1, set.name()).be32(3, 0).be32(4, 1);
            }
            Expr::CtState => {
                data.be32(2, 0).be32(1, 1);
            }
            Expr::DestinationType => {
                const DADDR: u32 = 2;
                const IIF: u32 = 8;
                const ADDRTYPE: u32 = 3;
                data.be32(3, DADDR | IIF).be32(2, ADDRTYPE).be32(1, 1);
            }
            Expr::Count => {
                data.bytes(1, &[0; 8]).bytes(2, &[0; 8]);
            }
            Expr::Masquerade => {}
            Expr::Then(verdict) => {
                let (code, chain) = verdict.parts();
                data.be32(1, 0).nest(2, |data| {
                    data.nest(2, |verdict| {
                        verdict.be32(1, code.cast_unsigned());
                        if let Some(chain) = chain {
                            verdict.text(2, chain);
                        }
                    });
                });
            }
        }
    }
}

impl Verdict {
    fn parts(self) -> (i32, Option<&'static str>) {
        match self {
            Verdict::Drop => (0, None),
            Verdict::Accept => (1, None),
            Verdict::Jump(chain) => (-3, Some(chain)),
            Verdict::Goto(chain) => (-4, Some(chain)),
        }
    }
}
