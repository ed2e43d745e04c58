//! The record of guests with a way out: by it their ways come back when somebody else took our tables away. Only root
//! writes it: a file `guest-ADDRESS` each among the records, with `bridge tap`.

use super::firewall::Firewall;
use super::netlink::Refused;
use super::sets::{Element, Set};
use crate::fail::Fail;
use crate::host::Host;
use rustix::fs::OFlags;
use std::io::Read as _;
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
        let (bridge, tap) = text.trim_end().split_once(' ')?;
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
    let file = match host.records.dir().open_at(&Guest::file(address), OFlags::RDONLY, 0) {
        Ok(file) => file,
        Err(error) if error.is_missing() => return Ok(None),
        Err(error) => return Err(failed("read")(error)),
    };
    let mut text = String::new();
    std::fs::File::from(file)
        .take(256)
        .read_to_string(&mut text)
        .map_err(|error| Fail::new("the record of a guest could not be read").because(error))?;
    Ok(Guest::parse(address, &text))
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

/// Writes one down.
pub(crate) fn write(host: &Host, guest: &Guest) -> Result<(), Fail> {
    let text = format!("{} {}\n", guest.bridge, guest.tap);
    let file = Guest::file(guest.address);
    host.records.dir().write_whole(&file, text.as_bytes(), 0o600).map_err(failed("written"))
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
