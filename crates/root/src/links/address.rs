//! The IPv4 addresses of links.

use super::message::{ACK, CREATE, DUMP, EXCL, Requests, attr, u32_at};
use super::netlink::{Conn, Refused};
use std::net::Ipv4Addr;

// include/uapi/linux/rtnetlink.h, if_addr.h
const NEWADDR: u16 = 20;
const DELADDR: u16 = 21;
const GETADDR: u16 = 22;
const AF_INET: u8 = 2;

/// An IPv4 address of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) index: u32,
    pub(crate) ip: Ipv4Addr,
    pub(crate) prefix: u8,
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;

fn address_header(prefix: u8, index: u32) -> [u8; 8] {
    let mut header = [AF_INET, prefix, 0, 0, 0, 0, 0, 0];
    header[4..].copy_from_slice(&index.to_ne_bytes());
    header
}

/// The IPv4 addresses of a link, or of all.
pub(crate) fn addresses(conn: &mut Conn, index: Option<u32>) -> Result<Vec<Address>, Refused> {
    let mut ask = Requests::default();
    ask.push(GETADDR, DUMP, &address_header(0, index.unwrap_or(0)));
    match conn.one("RTM_GETADDR", &mut ask) {
        Ok(bodies) => {
            let all = bodies.iter().filter_map(|body| read_address(body));
            Ok(all.filter(|address| index.is_none_or(|is| address.index == is)).collect())
        }
        // The link went meanwhile.
        Err(refused) if refused.is(libc::ENODEV) => Ok(Vec::new()),
        Err(refused) => Err(refused),
    }
}

fn read_address(body: &[u8]) -> Option<Address> {
    let inner = body.get(8..)?;
    let value = attr(inner, IFA_LOCAL).or_else(|| attr(inner, IFA_ADDRESS))?;
    let ip: [u8; 4] = value.try_into().ok()?;
    (body[0] == AF_INET).then_some(Address { index: u32_at(body, 4)?, ip: ip.into(), prefix: body[1] })
}

fn change_address(conn: &mut Conn, kind: u16, flags: u16, address: Address) -> Result<(), Refused> {
    let ip = address.ip.octets();
    let host = u32::MAX.checked_shr(address.prefix.into()).unwrap_or(0);
    let mut ask = Requests::default();
    ask.push(kind, ACK | flags, &address_header(address.prefix, address.index))
        .bytes(IFA_LOCAL, &ip)
        .bytes(IFA_ADDRESS, &ip)
        .be32(IFA_BROADCAST, u32::from(address.ip) | host);
    let what = if kind == NEWADDR { "RTM_NEWADDR" } else { "RTM_DELADDR" };
    conn.all(format_args!("{what} {address} index {}", address.index), &mut ask)
}

/// Gives a link an address. Says whether it got it by this: `false` where it has it already, by whomever.
pub(crate) fn add_address(conn: &mut Conn, address: Address) -> Result<bool, Refused> {
    match change_address(conn, NEWADDR, CREATE | EXCL, address) {
        Err(refused) if refused.is(libc::EEXIST) => Ok(false),
        other => other.map(|()| true),
    }
}

/// Takes an address from a link; success where it does not have it.
pub(crate) fn remove_address(conn: &mut Conn, address: Address) -> Result<(), Refused> {
    match change_address(conn, DELADDR, 0, address) {
        Err(refused) if refused.is(libc::EADDRNOTAVAIL) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_answer_panics(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read_address(&body);
        }
    }
}
