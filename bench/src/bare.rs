//! The least that a tap on a bridge can cost: the kernel calls alone, no check, no mark read back, no rules.

use crate::world::OWNER;
use anyhow::{Context, Result, ensure};
use sys::netlink::{Family, Socket};
use sys::tun::Tap;

const RTM_NEWLINK: u16 = 16;
const NLM_F_REQUEST_ACK: u16 = 1 | 4;
const IFLA_MASTER: u16 = 10;
const IFLA_IFNAME: u16 = 3;
const IFLA_IFALIAS: u16 = 20;
const IFF_UP: u32 = 1;

/// A netlink socket that stays open, as a helper's does.
pub(crate) struct Bare {
    links: Socket,
    seq: u32,
}

impl Bare {
    pub(crate) fn open() -> Result<Bare> {
        Ok(Bare { links: Socket::open(Family::Route)?, seq: 0 })
    }

    /// A tap of the owner's, on the bridge, up, to stay: four ioctls and one message.
    pub(crate) fn tap(&mut self, name: &str, bridge: u32) -> Result<()> {
        let tap = Tap::open(name)?;
        tap.give_to(OWNER, OWNER)?;
        self.port(name, bridge)?;
        tap.keep()?;
        Ok(())
    }

    fn port(&mut self, name: &str, bridge: u32) -> Result<()> {
        self.seq += 1;
        let mut message = vec![0; 16];
        // ifinfomsg: family and type 0, no index (the name says which), up.
        message.extend([0; 8]);
        message.extend(IFF_UP.to_ne_bytes());
        message.extend(IFF_UP.to_ne_bytes());
        attribute(&mut message, IFLA_IFNAME, &[name.as_bytes(), &[0]].concat());
        attribute(&mut message, IFLA_IFALIAS, b"banger tap");
        attribute(&mut message, IFLA_MASTER, &bridge.to_ne_bytes());
        let length = u32::try_from(message.len())?;
        message[..4].copy_from_slice(&length.to_ne_bytes());
        message[4..6].copy_from_slice(&RTM_NEWLINK.to_ne_bytes());
        message[6..8].copy_from_slice(&NLM_F_REQUEST_ACK.to_ne_bytes());
        message[8..12].copy_from_slice(&self.seq.to_ne_bytes());
        self.links.send(&message)?;
        let mut answer = [0; 4096];
        let length = self.links.receive(&mut answer)?;
        let code = answer.get(16..20).filter(|_| length >= 20).context("a short answer")?;
        ensure!(code == [0; 4], "the kernel refused the port: {code:?}");
        Ok(())
    }
}

fn attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(value.len() + 4).unwrap_or(4);
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

/// A link's index.
pub(crate) fn index(link: &str) -> Result<u32> {
    Ok(std::fs::read_to_string(format!("/sys/class/net/{link}/ifindex"))?.trim().parse()?)
}
