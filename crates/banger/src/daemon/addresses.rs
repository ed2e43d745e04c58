//! Which address, CID and id a new VM gets: the lowest that is free, so that the same VMs have the same addresses.

use super::error::exit;
use crate::api::Fault;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use wire::name::addr::BridgeAddr;
use wire::vm::FIRST_CID;

/// The lowest host address of the bridge's network that no VM has and that is not the bridge's own.
///
/// # Errors
/// `no_address`, where none is left.
pub fn address(bridge: &BridgeAddr, taken: &BTreeSet<Ipv4Addr>) -> Result<Ipv4Addr, Fault> {
    let own = bridge.ip().to_bits();
    let hosts = u32::MAX >> bridge.prefix().get();
    let network = own & !hosts;
    // The first is the network's own, the last its broadcast.
    let free = (1..hosts)
        .map(|host| Ipv4Addr::from_bits(network | host))
        .find(|address| address.to_bits() != own && !taken.contains(address));
    free.ok_or_else(|| {
        Fault::new("no_address", exit::ROOM, format!("all {} addresses of the bridge's network are taken", hosts - 2))
            .fix("banger vm rm NAME of a VM that isn't needed")
    })
}

/// The lowest CID that no VM has.
pub fn cid(taken: &BTreeSet<u32>) -> u32 {
    (FIRST_CID..).find(|cid| !taken.contains(cid)).unwrap_or(FIRST_CID)
}

/// A new VM's id: 12 random hex digits.
///
/// # Errors
/// What the kernel says of its randomness.
pub fn id() -> Result<String, Fault> {
    let mut bytes = [0; 6];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|errno| Fault::bug(std::io::Error::from(errno)))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_one() {
        let bridge = BridgeAddr::new("172.16.0.2", "30").unwrap();
        let mut taken = BTreeSet::new();
        let first = address(&bridge, &taken).unwrap();
        assert_eq!(first, Ipv4Addr::new(172, 16, 0, 1));
        taken.insert(first);
        assert_eq!(address(&bridge, &taken).unwrap_err().code, "no_address");
        assert_eq!(cid(&BTreeSet::from([3, 5])), 4);
        assert_ne!(id().unwrap(), id().unwrap());
    }
}
