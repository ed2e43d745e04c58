//! IPv6: a guest's packets go nowhere, and its router advertisements reach nobody, the host included. Each has its
//! counterpart: the same bytes where no rule of ours is in their way.

#![allow(clippy::disallowed_methods, reason = "the bans are the helper's; a test sets its world up by paths")]

mod common;
#[path = "net/watched.rs"]
mod watched;
#[path = "net/way_out.rs"]
mod way_out;
#[path = "net/world.rs"]
mod world;

use common::{eventually, output};
use std::fs::{self, File};
use std::io::Write;
use std::net::UdpSocket;
use std::time::Duration;
use watched::world;
use world::{ip, link};

/// An IPv6 switch of a link.
fn switch(link: &str, name: &str, value: &str) {
    fs::write(format!("/proc/sys/net/ipv6/conf/{link}/{name}"), value).expect(name);
}

/// Sends UDP over IPv6 out of a namespace, once.
fn send(namespace: &'static str) {
    world::within(namespace, || {
        let socket = UdpSocket::bind("[::]:0").expect("a socket");
        let _ = socket.send_to(b"over IPv6", "[2001:db8:1::1]:7006");
    })
    .join()
    .expect("joined");
}

/// How often a rule with that comment has dropped something.
fn dropped(family: &str, chain: &str, comment: &str) -> u64 {
    let listed = output("nft", &["list", "chain", family, "banger", chain]);
    let rule = listed.lines().find(|line| line.contains(comment)).unwrap_or_else(|| panic!("{comment}: {listed}"));
    let count = rule.split_once("packets ").and_then(|(_, behind)| behind.split(' ').next());
    count.expect("a counter").parse().expect("a number")
}

/// A router advertisement to all, from `mac`: a default route for half an hour, and a prefix.
fn advertisement(mac: [u8; 6], prefix: u8) -> Vec<u8> {
    let from = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, prefix];
    let to = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let mut message = vec![134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0];
    // RFC 4861, 4.6.2: a prefix of 64 bits, on the link and for addresses.
    message.extend([3, 4, 64, 0xc0, 0, 0, 0x0e, 0x10, 0, 0, 0x0e, 0x10, 0, 0, 0, 0]);
    message.extend([0x20, 1, 0x0d, 0xb8, 0, prefix, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let length = message.len() as u16;
    let pseudo = [&from[..], &to, &u32::from(length).to_be_bytes(), &[0, 0, 0, 58], &message].concat();
    let sum: u32 = pseudo.chunks(2).map(|two| u32::from(u16::from_be_bytes([two[0], two[1]]))).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let head = [&[0x60, 0, 0, 0][..], &length.to_be_bytes(), &[58, 255]].concat();
    [&[0x33, 0x33, 0, 0, 0, 1][..], &mac, &[0x86, 0xdd], &head, &from, &to, &message].concat()
}

fn write(tap: &mut File, frame: &[u8]) {
    // virtio-net's header before each frame: nothing to be done for it.
    tap.write_all(&[&[0; 10], frame].concat()).expect("a frame");
}

isolated! { fn ipv6_of_a_guest_is_not_forwarded() {
    let (_helper, _guest) = world("");
    // A host that forwards IPv6, and a bridge to which an administrator gave it.
    switch("all", "forwarding", "1");
    ip("addr add 2001:db8:1::2/64 dev eth0 nodad");
    ip("-n outside addr add 2001:db8:1::1/64 dev up0 nodad");
    ip("-n outside route add 2001:db8:2::/64 via 2001:db8:1::2");
    ip("-n outside route add 2001:db8:3::/64 via 2001:db8:1::2");
    switch("br-fc", "disable_ipv6", "0");
    ip("addr add 2001:db8:2::1/64 dev br-fc nodad");
    let mac = link("br-fc").unwrap()["address"].as_str().unwrap().to_owned();
    let heard = world::within("outside", || {
        let socket = UdpSocket::bind("[::]:7006").expect("a port");
        socket.set_read_timeout(Some(Duration::from_millis(300))).expect("set");
        socket
    })
    .join()
    .unwrap();
    let hears = || heard.recv_from(&mut [0; 99]).map(|(_, from)| from.ip().to_string()).ok();
    let speaks = |namespace: &str, address: &str, to: &str, mac: &str| {
        ip(&format!("-n {namespace} addr add {address}/64 dev eth0 nodad"));
        ip(&format!("-n {namespace} neigh replace {to} lladdr {mac} dev eth0"));
        ip(&format!("-n {namespace} route replace default via {to} dev eth0"));
    };
    speaks("guest", "2001:db8:2::2", "2001:db8:2::1", &mac);
    eventually("the bridge's table drops it", || {
        send("guest");
        dropped("bridge", "known", "IPv6, RA") > 0
    });
    assert_eq!(hears(), None);
    // A port that is no tap of ours: its frames pass the bridge, and are not forwarded either.
    ip("netns add other");
    ip("link add v0 type veth peer name eth0 netns other");
    ip("link set v0 master br-fc up");
    ip("-n other link set eth0 up");
    speaks("other", "2001:db8:2::3", "2001:db8:2::1", &mac);
    eventually("our forward chain drops it", || {
        send("other");
        dropped("inet", "leaving", "IPv6 of a guest") > 0
    });
    assert_eq!(hears(), None);
    // On another's bridge the same port's packets arrive.
    ip("link add br9 type bridge");
    ip("link set br9 up");
    ip("addr add 2001:db8:3::1/64 dev br9 nodad");
    ip("link set v0 master br9");
    let mac = link("br9").unwrap()["address"].as_str().unwrap().to_owned();
    speaks("other", "2001:db8:3::3", "2001:db8:3::1", &mac);
    let mut from = None;
    eventually("another's bridge forwards", || {
        send("other");
        from = hears();
        from.is_some()
    });
    assert_eq!(from.as_deref(), Some("2001:db8:3::3"));
} }

isolated! { fn a_router_advertisement_of_a_guest_reaches_not_even_the_host() {
    let (helper, _guest) = world("");
    switch("br-fc", "disable_ipv6", "0");
    switch("br-fc", "accept_ra", "2");
    helper.ok("priv.create_tap", &world::tap("tap-fc-2"));
    let mut evil = File::from(sys::tapfd::attach("tap-fc-2").unwrap());
    let before = dropped("bridge", "known", "IPv6, RA");
    eventually("it is dropped", || {
        write(&mut evil, &advertisement([2, 0, 0, 0, 0, 0x11], 0x66));
        dropped("bridge", "known", "IPv6, RA") > before
    });
    // A port that is no tap of ours: its frames pass the bridge, and our input chain keeps them from the host.
    ip("tuntap add dev foreign mode tap vnet_hdr");
    ip("link set foreign master br-fc up");
    let mut foreign = File::from(sys::tapfd::attach("foreign").unwrap());
    let before = dropped("inet", "input", "not the address");
    eventually("it is dropped there", || {
        write(&mut foreign, &advertisement([2, 0, 0, 0, 0, 0x77], 0x77));
        dropped("inet", "input", "not the address") > before
    });
    // On another's bridge the host believes it, as it was told to.
    ip("link add br9 type bridge");
    switch("br9", "accept_ra", "2");
    ip("link set br9 up");
    ip("link set foreign master br9");
    let routes = || ip("-6 route show");
    eventually("the host believes another's", || {
        write(&mut foreign, &advertisement([2, 0, 0, 0, 0, 0x77], 0x78));
        routes().contains("default via fe80::78") && routes().contains("2001:db8:78:")
    });
    for forged in ["fe80::66", "2001:db8:66:", "fe80::77", "2001:db8:77:"] {
        assert!(!routes().contains(forged), "{}", routes());
    }
} }
