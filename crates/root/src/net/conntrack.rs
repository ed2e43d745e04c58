//! A guest's connections in the kernel's table: they go with its way out, or the address's next guest would inherit them.

use super::message::{ACK, DUMP, Requests, attr};
use super::netlink::{Conn, Refused};
use std::net::Ipv4Addr;

// include/uapi/linux/netfilter/nfnetlink_conntrack.h
const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
const TUPLE_ORIG: u16 = 1;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;
const TUPLE_IP: u16 = 1;
const FILTER_ORIG_FLAGS: u16 = 1;

/// `AF_INET`, version 1: with version 0 the kernel would pass the family over.
const HEADER: [u8; 4] = [2, 1, 0, 0];

/// Which end of a connection the guest is: the attribute of the address, and its bit in a filter.
const ENDS: [(u16, u32); 2] = [(1, 1 << 0), (2, 1 << 1)];

/// Forgets every connection that the guest began or that was begun to it.
pub(crate) fn forget(conn: &mut Conn, guest: Ipv4Addr) -> Result<(), Refused> {
    for (end, bit) in ENDS {
        let mut ask = Requests::default();
        filtered(&mut ask, DELETE, ACK, guest, end, bit);
        match conn.all(format_args!("IPCTNL_MSG_CT_DELETE {guest}"), &mut ask) {
            Ok(()) => {}
            Err(refused) if refused.is(libc::ENOENT) => {}
            // Before 6.x a filter is only for lists: read, then one by one.
            Err(refused) if refused.is(libc::EINVAL) || refused.is(libc::EOPNOTSUPP) => {
                one_by_one(conn, guest, end, bit)?;
            }
            Err(refused) => return Err(refused),
        }
    }
    Ok(())
}

/// The same on a kernel that deletes by no filter.
#[cfg(test)]
pub(crate) fn forget_one_by_one(conn: &mut Conn, guest: Ipv4Addr) -> Result<(), Refused> {
    ENDS.into_iter().try_for_each(|(end, bit)| one_by_one(conn, guest, end, bit))
}

fn filtered(ask: &mut Requests, kind: u16, flags: u16, guest: Ipv4Addr, end: u16, bit: u32) {
    ask.push(kind, flags, &HEADER)
        .nest(TUPLE_ORIG, |tuple| {
            tuple.nest(TUPLE_IP, |ip| {
                ip.bytes(end, &guest.octets());
            });
        })
        .nest(FILTER, |filter| {
            filter.u32(FILTER_ORIG_FLAGS, bit);
        });
}

fn one_by_one(conn: &mut Conn, guest: Ipv4Addr, end: u16, bit: u32) -> Result<(), Refused> {
    let mut ask = Requests::default();
    filtered(&mut ask, GET, DUMP, guest, end, bit);
    for body in conn.one(format_args!("IPCTNL_MSG_CT_GET {guest}, all"), &mut ask)? {
        let Some(attributes) = body.get(4..) else { continue };
        let Some(tuple) = attr(attributes, TUPLE_ORIG) else { continue };
        // A kernel that passes the filter over lists others' too: look again.
        if attr(tuple, TUPLE_IP).and_then(|ip| attr(ip, end)) != Some(&guest.octets()) {
            continue;
        }
        let mut ask = Requests::default();
        let mut request = ask.push(DELETE, ACK, &HEADER);
        request.bytes(TUPLE_ORIG | 0x8000, tuple);
        for kind in [ZONE, ID] {
            if let Some(value) = attr(attributes, kind) {
                request.bytes(kind, value);
            }
        }
        match conn.all(format_args!("IPCTNL_MSG_CT_DELETE {guest}, one"), &mut ask) {
            Err(refused) if !refused.is(libc::ENOENT) => return Err(refused),
            _ => {}
        }
    }
    Ok(())
}
