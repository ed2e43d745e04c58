//! A guest that writes its frames itself: each kind that is not its own reaches nobody and teaches the bridge nothing.

#![allow(clippy::disallowed_methods, reason = "the bans are the helper's; a test sets its world up by paths")]

mod common;
#[path = "net/world.rs"]
mod world;

use common::{Helper, eventually, output};
use std::fs::File;
use std::io::{Read, Write};
use std::time::{Duration, Instant};
use world::{nat, set, tap, uplink};

const MINE: [u8; 6] = [2, 0, 0, 0, 0, 0x11];
const VICTIM: [u8; 6] = [2, 0, 0, 0, 0, 0x22];
const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 0x33];
const ALL: [u8; 6] = [0xff; 6];
const MARKER: &[u8] = b"marker of a frame";

/// A guest's end of a tap, frame by frame.
struct Port(File);

impl Port {
    fn open(tap: &str) -> Port {
        Port(File::from(sys::tapfd::attach(tap).expect("the tap")))
    }

    fn send(&mut self, frame: &[u8]) {
        // virtio-net's header before each frame: nothing to be done for it.
        let written = self.0.write(&[&[0; 10], frame].concat()).expect("a frame");
        assert_eq!(written, frame.len() + 10);
    }

    /// Whether a frame with the marker comes within a moment.
    fn hears(&mut self) -> bool {
        let end = Instant::now() + Duration::from_millis(60);
        let mut frame = [0; 4096];
        while Instant::now() < end {
            match self.0.read(&mut frame) {
                Ok(length) if frame[..length].windows(MARKER.len()).any(|part| part == MARKER) => return true,
                Ok(_) => {}
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        }
        false
    }
}

fn frame(to: [u8; 6], from: [u8; 6], behind: &[&[u8]]) -> Vec<u8> {
    let mut bytes = [&to[..], &from].concat();
    behind.iter().for_each(|part| bytes.extend_from_slice(part));
    bytes.resize(bytes.len().max(60), 0);
    bytes
}

/// An IPv4 packet of UDP; its type stands before it.
fn ipv4(from: [u8; 4], to: [u8; 4], source_port: u16) -> Vec<u8> {
    let length = 28 + MARKER.len() as u16;
    let mut ip = vec![0x45, 0];
    ip.extend(length.to_be_bytes());
    ip.extend([0, 1, 0, 0, 64, 17, 0, 0]);
    ip.extend(from);
    ip.extend(to);
    let sum: u32 = ip.chunks(2).map(|two| u32::from(u16::from_be_bytes([two[0], two[1]]))).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    ip.extend(source_port.to_be_bytes());
    ip.extend(9999_u16.to_be_bytes());
    ip.extend((8 + MARKER.len() as u16).to_be_bytes());
    ip.extend([0, 0]);
    ip.extend(MARKER);
    [&[8, 0][..], &ip].concat()
}

fn arp(mac: [u8; 6], ip: [u8; 4], asks: [u8; 4]) -> Vec<u8> {
    [&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1][..], &mac, &ip, &[0; 6], &asks, MARKER].concat()
}

/// MACs that the bridge has learned on a port.
fn learned(port: &str) -> Vec<String> {
    let all: serde_json::Value =
        serde_json::from_str(&output("bridge", &["-j", "fdb", "show", "dev", port])).expect("JSON");
    let learned = all.as_array().expect("a list").iter().filter(|entry| entry["state"] != "permanent");
    learned.map(|entry| entry["mac"].as_str().expect("a MAC").to_owned()).collect()
}

fn two() -> (Helper, Port, Port) {
    uplink();
    let helper = Helper::start();
    for (ip, name) in [("172.16.0.2", "tap-fc-1"), ("172.16.0.3", "tap-fc-2")] {
        helper.ok("priv.create_tap", &tap(name));
        helper.ok("priv.ensure_nat", &nat(ip, name, true));
    }
    let (mut mine, mut victim) = (Port::open("tap-fc-1"), Port::open("tap-fc-2"));
    // A port forwards a moment after its carrier came.
    common::eventually("what is its own passes", || {
        victim.send(&frame(ALL, VICTIM, &[&arp(VICTIM, [172, 16, 0, 3], [172, 16, 0, 9])]));
        mine.send(&frame(ALL, MINE, &[&arp(MINE, [172, 16, 0, 2], [172, 16, 0, 9])]));
        mine.hears() && victim.hears()
    });
    while mine.hears() || victim.hears() {}
    (helper, mine, victim)
}

isolated! { fn what_a_guest_forges_reaches_nobody() {
    let (_helper, mut mine, mut victim) = two();
    let gateway: Vec<u8> = world::link("br-fc").unwrap()["address"].as_str().unwrap().split(':').map(|hex| u8::from_str_radix(hex, 16).unwrap()).collect();
    let gateway: [u8; 6] = gateway.try_into().unwrap();
    let (me, him, host) = ([172, 16, 0, 2], [172, 16, 0, 3], [172, 16, 0, 1]);
    let own = ipv4(me, him, 1000);
    let ra = [&[0x86, 0xdd, 0x60, 0, 0, 0, 0, 40, 58, 255, 0xfe, 0x80][..], &[0; 14], &[0xff, 2], &[0; 13], &[1], &[134, 0], MARKER].concat();
    let mut long_arp = arp(MINE, me, him);
    long_arp[7] = 16;
    let forged: &[(&str, Vec<u8>)] = &[
        ("another's MAC", frame(VICTIM, VICTIM, &[&own])),
        ("the bridge's MAC", frame(VICTIM, gateway, &[&own])),
        ("a second MAC", frame(VICTIM, OTHER, &[&own])),
        ("a group's MAC", frame(VICTIM, [3, 0, 0, 0, 0, 1], &[&own])),
        ("another's address", frame(VICTIM, MINE, &[&ipv4(him, him, 1000)])),
        ("the bridge's address", frame(VICTIM, MINE, &[&ipv4(host, him, 1000)])),
        ("a free address", frame(VICTIM, MINE, &[&ipv4([172, 16, 0, 50], him, 1000)])),
        ("no address", frame(ALL, MINE, &[&ipv4([0; 4], [255; 4], 68)])),
        ("loopback", frame(VICTIM, MINE, &[&ipv4([127, 0, 0, 1], him, 1000)])),
        ("link-local", frame(VICTIM, MINE, &[&ipv4([169, 254, 1, 1], him, 1000)])),
        ("a DHCP offer", frame(VICTIM, MINE, &[&ipv4(me, him, 67)])),
        ("ARP for the bridge", frame(ALL, MINE, &[&arp(MINE, host, him)])),
        ("ARP for another", frame(ALL, MINE, &[&arp(MINE, him, host)])),
        ("another's MAC in ARP", frame(ALL, MINE, &[&arp(VICTIM, me, him)])),
        ("an address probe", frame(ALL, MINE, &[&arp(MINE, [0; 4], him)])),
        ("ARP of another length", frame(ALL, MINE, &[&long_arp])),
        ("RARP", frame(ALL, MINE, &[&[0x80, 0x35], &arp(MINE, me, him)[2..]])),
        ("a router advertisement", frame([0x33, 0x33, 0, 0, 0, 1], MINE, &[&ra])),
        ("VLAN 5", frame(VICTIM, MINE, &[&[0x81, 0, 0, 5], &own])),
        ("VLAN 0", frame(VICTIM, MINE, &[&[0x81, 0, 0, 0], &own])),
        ("802.1ad", frame(VICTIM, MINE, &[&[0x88, 0xa8, 0, 5], &own])),
        ("802.1ad, VLAN", frame(VICTIM, MINE, &[&[0x88, 0xa8, 0, 0, 0x81, 0, 0, 0], &own])),
        ("MPLS", frame(VICTIM, MINE, &[&[0x88, 0x47], MARKER])),
        ("spanning tree", frame([1, 0x80, 0xc2, 0, 0, 0], MINE, &[&[0, 38, 0x42, 0x42, 3], MARKER])),
        ("LLDP", frame([1, 0x80, 0xc2, 0, 0, 0x0e], MINE, &[&[0x88, 0xcc], MARKER])),
        ("half a packet", frame(VICTIM, MINE, &[&[8, 0, 0x45, 0, 0], MARKER])),
    ];
    for (what, bytes) in forged {
        mine.send(bytes);
        assert!(!victim.hears(), "{what} arrived");
    }
    mine.send(&frame(VICTIM, MINE, &[&own]));
    assert!(victim.hears(), "what is its own passes still");
    assert_eq!((learned("tap-fc-1"), learned("tap-fc-2")), (vec!["02:00:00:00:00:11".to_owned()], vec!["02:00:00:00:00:22".to_owned()]));
    assert_eq!(set("bridge", "stations").len(), 2);
} }

isolated! { fn no_frame_teaches_the_bridge_anothers_mac() {
    let (_helper, mut mine, mut victim) = two();
    // What is for the bridge itself takes a way of its own through the kernel, past the prerouting hook.
    for last in 0..16 {
        mine.send(&frame([1, 0x80, 0xc2, 0, 0, last], VICTIM, &[&[0x88, 0xcc], MARKER]));
        mine.send(&frame([1, 0x80, 0xc2, 0, 0, last], OTHER, &[&[0, 38, 0x42, 0x42, 3], MARKER]));
    }
    assert_eq!((learned("tap-fc-1"), learned("tap-fc-2")), (vec!["02:00:00:00:00:11".to_owned()], vec!["02:00:00:00:00:22".to_owned()]));
    mine.send(&frame(VICTIM, MINE, &[&ipv4([172, 16, 0, 2], [172, 16, 0, 3], 1)]));
    assert!(victim.hears(), "the victim still gets what is for it");
} }

isolated! { fn a_full_set_lets_nothing_through() {
    uplink();
    // A test fills the sets.
    let helper = common::Start::new().config("own_tables = false\n").start();
    for name in ["tap-fc-1", "tap-fc-2"] {
        helper.ok("priv.create_tap", &tap(name));
    }
    helper.ok("priv.ensure_nat", &nat("172.16.0.3", "tap-fc-2", true));
    let fill = |set: &str, at: fn(u32) -> String| {
        let all: Vec<String> = (0..4096).map(at).collect();
        std::fs::write("/mnt/fill", format!("add element bridge banger {set} {{ {} }}\n", all.join(", "))).unwrap();
        let _ = std::process::Command::new("nft").args(["-f", "/mnt/fill"]).output();
    };
    let (mut mine, mut victim) = (Port::open("tap-fc-1"), Port::open("tap-fc-2"));
    let own = frame(ALL, MINE, &[&ipv4([172, 16, 0, 2], [172, 16, 0, 3], 1)]);
    let asks = frame(ALL, MINE, &[&arp(MINE, [172, 16, 0, 2], [172, 16, 0, 3])]);
    let full = |set: &str| {
        let listed = output("nft", &["-j", "list", "set", "bridge", "banger", set]);
        listed.matches("172.20.").count() + listed.matches("06:00:").count()
    };
    // A learned set that is full refuses the element: the frame must not pass for that.
    let taken = set("bridge", "ips").len() as u32;
    assert_eq!(taken, 2);
    fill("ips", |n| format!("172.20.{}.{}", n >> 8, n & 255));
    if full("ips") == 0 {
        let rest: Vec<String> = (0..4096 - taken).map(|n| format!("172.20.{}.{}", n >> 8, n & 255)).collect();
        std::fs::write("/mnt/fill", format!("add element bridge banger ips {{ {} }}\n", rest.join(", "))).unwrap();
        output("nft", &["-f", "/mnt/fill"]);
    }
    assert!(full("ips") > 4000);
    for bytes in [&own, &asks] {
        mine.send(bytes);
        assert!(!victim.hears(), "an address that could not be learned passes");
    }
    output("nft", &["flush", "set", "bridge", "banger", "stations"]);
    output("nft", &["flush", "set", "bridge", "banger", "has_mac"]);
    output("nft", &["flush", "set", "bridge", "banger", "macs"]);
    // The bridge's own comes back by itself.
    eventually("the bridge's MAC", || set("bridge", "macs").len() == 1);
    let macs: Vec<String> = (0..4095).map(|n| format!("06:00:00:00:{:02x}:{:02x}", n >> 8, n & 255)).collect();
    std::fs::write("/mnt/fill", format!("add element bridge banger macs {{ {} }}\n", macs.join(", "))).unwrap();
    output("nft", &["-f", "/mnt/fill"]);
    mine.send(&frame(ALL, MINE, &[&[0x86, 0xdd], MARKER]));
    assert!(!victim.hears(), "a MAC that could not be learned passes");
} }

isolated! { fn a_tap_without_its_bridge_speaks_to_no_host() {
    let (helper, mut mine, _victim) = two();
    let socket = std::net::UdpSocket::bind("0.0.0.0:9999").unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let hears = || socket.recv_from(&mut [0; 99]).is_ok();
    let mac = |name: &str| -> [u8; 6] {
        let link = world::link(name).unwrap();
        let bytes: Vec<u8> = link["address"].as_str().unwrap().split(':').map(|hex| u8::from_str_radix(hex, 16).unwrap()).collect();
        bytes.try_into().unwrap()
    };
    mine.send(&frame(mac("br-fc"), MINE, &[&ipv4([172, 16, 0, 2], [172, 16, 0, 1], 1)]));
    assert!(hears(), "the bridge's address is heard");
    world::ip("link del br-fc");
    let to = mac("tap-fc-1");
    for (from, at) in [([172, 16, 0, 2], [198, 51, 100, 2]), ([198, 51, 100, 1], [198, 51, 100, 2])] {
        mine.send(&frame(to, MINE, &[&ipv4(from, at, 1)]));
        assert!(!hears(), "the host's own address is heard");
    }
    // A helper that died when the tap was off its bridge: it is down.
    for name in ["tap-fc-1", "tap-fc-2"] {
        helper.ok("priv.create_tap", &tap(name));
    }
    drop(helper);
    let killed = common::Start::new().config("fault = \"delete_tap.detach:kill\"\n").start();
    let gone = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| killed.ok("priv.delete_tap", &world::named("tap-fc-1"))));
    let left = world::link("tap-fc-1").unwrap();
    assert!(gone.is_err() && left["master"].is_null());
    assert!(!left["flags"].as_array().unwrap().contains(&serde_json::json!("UP")));
} }
