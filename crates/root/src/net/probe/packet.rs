//! The packet: always the same, but for who sends it and a number that nobody can guess. Pure.

use std::net::Ipv4Addr;

/// Where it goes: nobody's, by RFC 5737.
pub(super) const TO: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// QUIC's port: what guests' ordinary traffic looks like.
const PORT: u16 = 443;
/// Should it leave after all, then not far.
const HOPS: u8 = 3;

const ETHER: usize = 14;
const IP: usize = 20;
const UDP: usize = 8;

/// By which the packet is known, and no other one is taken for it.
pub(super) type Nonce = [u8; 16];

/// The frame, without a virtio-net header.
pub(super) fn frame(from_mac: [u8; 6], to_mac: [u8; 6], from: Ipv4Addr, nonce: &Nonce) -> Vec<u8> {
    let mut frame = Vec::with_capacity(ETHER + IP + UDP + nonce.len());
    frame.extend(to_mac);
    frame.extend(from_mac);
    frame.extend([0x08, 0x00]);
    let length = (IP + UDP + nonce.len()) as u16;
    let mut ip = [0; IP];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&length.to_be_bytes());
    // Not to be cut in pieces.
    ip[6] = 0x40;
    ip[8] = HOPS;
    ip[9] = 17;
    ip[12..16].copy_from_slice(&from.octets());
    ip[16..20].copy_from_slice(&TO.octets());
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    frame.extend(ip);
    frame.extend(PORT.to_be_bytes());
    frame.extend(PORT.to_be_bytes());
    frame.extend(((UDP + nonce.len()) as u16).to_be_bytes());
    // No checksum: UDP over IPv4 may go without.
    frame.extend([0, 0]);
    frame.extend(nonce);
    frame
}

fn checksum(header: &[u8]) -> u16 {
    let sum: u32 = header.chunks_exact(2).map(|two| u32::from(u16::from_be_bytes([two[0], two[1]]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !(((sum & 0xffff) + (sum >> 16)) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_adds_up() {
        let frame = frame([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2], Ipv4Addr::new(172, 16, 0, 2), &[7; 16]);
        assert_eq!(frame.len(), 58);
        assert_eq!(checksum(&frame[ETHER..ETHER + IP]), 0);
        assert_eq!(frame[ETHER + IP + UDP..], [7; 16]);
        // A header from RFC 1071's family of examples.
        let known = [0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0, 0, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0, 0xc7];
        assert_eq!(checksum(&known), 0xb861);
    }
}
