//! Addresses: a bridge's own with its prefix, a guest's, a name server's.

use super::Invalid;
use crate::code::shown;
use crate::units::PrefixLen;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The blocks that a bridge or a guest may have an address of: private use (RFC 1918) and shared space (RFC 6598).
const BLOCKS: [(Ipv4Addr, u8); 4] = [
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
];

/// A bridge's address with its prefix: a host address of a subnet that lies in one of the private blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BridgeAddr {
    ip: Ipv4Addr,
    prefix: PrefixLen,
}

impl BridgeAddr {
    /// Checks an address and its prefix, which may be a length ("24") or a whole network ("172.16.0.0/24").
    pub fn new(ip: &str, cidr: &str) -> Result<BridgeAddr, Invalid> {
        let address = plain_v4(ip).ok_or_else(|| Invalid::new(format!("{} is not an IPv4 address", shown(ip))))?;
        let (network, length) = match cidr.split_once('/') {
            Some((network, length)) => (Some(network), length),
            None => (None, cidr),
        };
        let prefix = PrefixLen::new(length)?;
        let bridge = BridgeAddr { ip: address, prefix };
        if let Some(text) = network
            && plain_v4(text) != Some(bridge.network())
        {
            return Err(Invalid::new(format!("{} is not the network of {address}/{prefix}", shown(cidr))));
        }
        if !BLOCKS.iter().any(|&(block, len)| len <= prefix.get() && same_network(block, address, len)) {
            return Err(Invalid::new(format!(
                "{address}/{prefix} is not inside 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 or 100.64.0.0/10"
            )));
        }
        if address == bridge.network() || address == bridge.broadcast() {
            return Err(Invalid::new(format!("{address} is the network's or the broadcast address of its /{prefix}")));
        }
        Ok(bridge)
    }

    /// The address.
    pub fn ip(&self) -> Ipv4Addr {
        self.ip
    }

    /// The prefix's length.
    pub fn prefix(&self) -> PrefixLen {
        self.prefix
    }

    /// The subnet's first address.
    pub fn network(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.ip) & self.prefix.mask())
    }

    /// The subnet's last address.
    pub fn broadcast(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.ip) | !self.prefix.mask())
    }

    /// Whether `guest` may be a guest's on this bridge: inside, and none of network, broadcast and the bridge's own.
    pub fn has_host(&self, guest: GuestAddr) -> bool {
        same_network(self.ip, guest.0, self.prefix.get())
            && ![self.ip, self.network(), self.broadcast()].contains(&guest.0)
    }
}

impl std::fmt::Display for BridgeAddr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}

/// A guest's address: IPv4, in one of the private blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GuestAddr(Ipv4Addr);

impl GuestAddr {
    /// Checks a guest's address. An IPv4 address mapped into IPv6 is taken for the IPv4 one, as today.
    pub fn new(text: &str) -> Result<GuestAddr, Invalid> {
        let address = plain_v4(text)
            .or_else(|| text.parse::<Ipv6Addr>().ok()?.to_ipv4_mapped())
            .ok_or_else(|| Invalid::new(format!("invalid IPv4 address {}", shown(text))))?;
        if BLOCKS.iter().any(|&(block, len)| same_network(block, address, len)) {
            return Ok(GuestAddr(address));
        }
        Err(Invalid::new(format!(
            "guest address {address} is not in 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 or 100.64.0.0/10"
        )))
    }

    /// The address.
    pub fn ip(&self) -> Ipv4Addr {
        self.0
    }
}

impl std::fmt::Display for GuestAddr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// A name server: an address, with a port where it is not 53.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ServerAddr {
    /// The server's address.
    pub ip: IpAddr,
    /// Its port; `None` is the usual one.
    pub port: Option<u16>,
}

impl ServerAddr {
    /// Checks `IP`, `IPv4:PORT` or `[IPv6]:PORT`; a scope (`%eth0`) is refused, and port 0.
    pub fn new(text: &str) -> Result<ServerAddr, Invalid> {
        let invalid = || Invalid::new(format!("invalid resolver address {}: an IP, or an IP and a port", shown(text)));
        if text.contains('%') {
            return Err(invalid());
        }
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(ServerAddr { ip, port: None });
        }
        match text.parse::<SocketAddr>() {
            Ok(address) if address.port() != 0 => Ok(ServerAddr { ip: address.ip(), port: Some(address.port()) }),
            _ => Err(invalid()),
        }
    }
}

impl std::fmt::Display for ServerAddr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.port {
            None => self.ip.fmt(f),
            Some(port) => SocketAddr::new(self.ip, port).fmt(f),
        }
    }
}

fn plain_v4(text: &str) -> Option<Ipv4Addr> {
    text.parse().ok()
}

fn same_network(a: Ipv4Addr, b: Ipv4Addr, prefix: u8) -> bool {
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
    (u32::from(a) ^ u32::from(b)) & mask == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bridge_addresses() {
        let bridge = BridgeAddr::new("172.16.0.1", "24").unwrap();
        assert_eq!(bridge, BridgeAddr::new("172.16.0.1", "172.16.0.0/24").unwrap());
        assert_eq!(
            (bridge.to_string().as_str(), bridge.broadcast()),
            ("172.16.0.1/24", Ipv4Addr::new(172, 16, 0, 255))
        );
        for (ip, cidr) in [
            ("172.16.0.1", "0"),
            ("172.16.0.1", "7"),
            ("172.16.0.1", "31"),
            ("172.16.0.1", "24 dev eth0"),
            ("172.16.0.1", " 24"),
            ("172.16.0.1", "024"),
            ("172.16.0.1", "+24"),
            ("172.16.0.1", ""),
            ("8.8.8.8", "24"),
            ("172.16.0.1", "8"),
            ("172.16.0.1", "172.16.1.0/24"),
            ("172.16.0.1", "172.16.0.1/24"),
            ("172.16.0.0", "24"),
            ("172.16.0.255", "24"),
            ("172.016.0.1", "24"),
            ("fe80::1", "24"),
            ("172.16.0.1 ", "24"),
        ] {
            assert!(BridgeAddr::new(ip, cidr).is_err(), "{ip} {cidr}");
        }
        assert!(BridgeAddr::new("10.255.0.1", "8").is_ok() && BridgeAddr::new("100.127.0.1", "30").is_ok());
    }

    #[test]
    fn guests() {
        let bridge = BridgeAddr::new("172.16.0.1", "24").unwrap();
        let at = |text| GuestAddr::new(text).unwrap();
        assert!(bridge.has_host(at("172.16.0.2")) && bridge.has_host(at("::ffff:172.16.0.254")));
        for no in ["172.16.0.1", "172.16.0.0", "172.16.0.255", "172.16.1.2"] {
            assert!(!bridge.has_host(at(no)), "{no}");
        }
        for bad in ["", "8.8.8.8", "0.0.0.0", "127.0.0.1", "172.16.0.2/32", "172.16.0.02", "::1", "100.63.255.255"] {
            assert!(GuestAddr::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn servers() {
        for good in ["172.16.0.1", "127.0.0.1:42069", "::1", "[::1]:53"] {
            assert_eq!(ServerAddr::new(good).unwrap().to_string(), good);
        }
        for bad in
            ["", "localhost", "127.0.0.1:0", "127.0.0.1:99999", "fe80::1%eth0", "[fe80::1%2]:53", " ::1", "1.1.1.1:"]
        {
            assert!(ServerAddr::new(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_bridge_and_its_guests_agree(ip in any::<u32>(), prefix in 0u8..40, guest in any::<u32>()) {
            if let Ok(bridge) = BridgeAddr::new(&Ipv4Addr::from(ip).to_string(), &prefix.to_string()) {
                prop_assert!(u32::from(bridge.network()) < ip && ip < u32::from(bridge.broadcast()));
                let near = Ipv4Addr::from(u32::from(bridge.network()) | (guest & !bridge.prefix().mask()));
                if let Ok(guest) = GuestAddr::new(&near.to_string()) {
                    let own = [bridge.ip(), bridge.network(), bridge.broadcast()].contains(&near);
                    prop_assert_eq!(bridge.has_host(guest), !own);
                } else {
                    prop_assert!(false, "{} is inside the bridge's block", near);
                }
            }
        }
    }
}
