//! The record of guests with a way out: by it their ways come back when somebody else took our tables away. Only root
//! writes it: a symlink `guest-ADDRESS` each among the records, to `bridge tap`, which is nothing's name. One call makes
//! it, whole or not at all, and one reads it.

use super::firewall::Firewall;
use super::netlink::Refused;
use super::sets::{Element, Set};
use crate::fail::Fail;
use crate::host::Host;
use rustix::io::Errno;
use std::net::Ipv4Addr;
use sys::dir::CallError;

/// A guest with a way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Guest {
    pub(crate) address: Ipv4Addr,
    pub(crate) bridge: String,
    pub(crate) tap: String,
}

impl Guest {
    fn file(address: Ipv4Addr) -> String {
        format!("guest-{address}")
    }

    fn parse(address: Ipv4Addr, text: &str) -> Option<Guest> {
        let (bridge, tap) = text.split_once(' ')?;
        Some(Guest { address, bridge: bridge.to_owned(), tap: tap.to_owned() })
    }

    /// What the tables hold of it.
    pub(crate) fn elements(&self) -> [Element; 4] {
        [
            Element::at(Set::Guests, &self.bridge, self.address),
            Element::at(Set::Addresses, &self.tap, self.address),
            Element::ip(self.address),
            Element::link(Set::HasIp, &self.tap),
        ]
    }
}

fn failed(what: &str) -> impl FnOnce(CallError) -> Fail {
    let message = format!("the record of a guest could not be {what}");
    |error| Fail::new(message).because(error)
}

/// The guest that is recorded for an address.
pub(crate) fn read(host: &Host, address: Ipv4Addr) -> Result<Option<Guest>, Fail> {
    match host.records.dir().read_link(&Guest::file(address)) {
        Ok(text) => Ok(Guest::parse(address, &text)),
        Err(error) if error.is_missing() => Ok(None),
        Err(error) => Err(failed("read")(error)),
    }
}

/// All of them.
pub(crate) fn all(host: &Host) -> Result<Vec<Guest>, Fail> {
    let mut guests = Vec::new();
    for name in host.records.dir().names().map_err(failed("read"))? {
        if let Some(address) = name.strip_prefix("guest-").and_then(|address| address.parse().ok()) {
            guests.extend(read(host, address)?);
        }
    }
    Ok(guests)
}

/// Writes one down, in place of another with its address.
pub(crate) fn write(host: &Host, guest: &Guest) -> Result<(), Fail> {
    let (records, name) = (host.records.dir(), Guest::file(guest.address));
    let text = format!("{} {}", guest.bridge, guest.tap);
    let written = match records.symlink(&text, &name) {
        Err(error) if error.errno() == Errno::EXIST => {
            let fresh = format!(".{name}.new");
            // One that a helper left who died here.
            records
                .unlink(&fresh)
                .and_then(|_| records.symlink(&text, &fresh))
                .and_then(|()| records.rename(&fresh, &name))
        }
        other => other,
    };
    written.map_err(failed("written"))
}

/// Strikes one out.
pub(crate) fn strike(host: &Host, address: Ipv4Addr) -> Result<(), Fail> {
    host.records.dir().unlink(&Guest::file(address)).map(|_| ()).map_err(failed("removed"))
}

/// The guests that the tables hold now: what counts when a helper starts and finds them whole.
pub(crate) fn in_tables(fw: &mut Firewall) -> Result<Vec<Guest>, Refused> {
    let (ways, pins) = (fw.elements(Set::Guests)?, fw.elements(Set::Addresses)?);
    let guest = |way: &Element| {
        let address = way.address()?;
        let pin = pins.iter().find(|pin| pin.address() == Some(address))?;
        Some(Guest { address, bridge: way.link_name(), tap: pin.link_name() })
    };
    Ok(ways.iter().filter_map(guest).collect())
}
