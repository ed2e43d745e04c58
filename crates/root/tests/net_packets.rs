//! Packets: a guest behind a tap, a host behind the uplink, and the helper's rules between them.

#![allow(clippy::disallowed_methods, reason = "the bans are the helper's; a test sets its world up by paths")]

mod common;
#[path = "net/world.rs"]
mod world;

use common::{Helper, eventually, output};
use std::io::{Read, Write};
use world::{Guest, OUTSIDE, bridge, echo, ip, nat, set, tap, uplink};

fn web() -> String {
    format!("{OUTSIDE}:7000")
}

/// The host listens on all its addresses.
fn listen(port: u16) {
    let listener = std::net::TcpListener::bind(("0.0.0.0", port)).expect("a port");
    std::thread::spawn(move || listener.incoming().for_each(drop));
}

isolated! { fn a_guest_gets_out_and_only_answers_come_in() {
    uplink();
    echo("outside", 7000);
    let helper = Helper::start();
    helper.ok("priv.create_tap", &tap("tap-fc-1"));
    let guest = Guest::boot("guest", "tap-fc-1", "172.16.0.2/24", "172.16.0.1");
    assert_eq!(guest.tcp(&web(), "hello"), None, "no way out was asked for");
    helper.ok("priv.ensure_nat", &nat("172.16.0.2", "tap-fc-1", true));
    assert_eq!(guest.tcp(&web(), "hello").as_deref(), Some("198.51.100.2 said hello"), "masqueraded");
    assert_eq!(guest.udp(&web(), "hello").as_deref(), Some("198.51.100.2 said hello"));
    // From outside nothing reaches the guest that it did not ask for, though the way is known there.
    ip("-n outside route add 172.16.0.0/24 via 198.51.100.2");
    echo("guest", 7001);
    let into = world::within("outside", || std::net::TcpStream::connect_timeout(&"172.16.0.2:7001".parse().unwrap(), world::PATIENCE).is_ok());
    assert!(!into.join().unwrap());
    // Of the host it reaches what listens on the bridge's address, and no other address.
    listen(7002);
    assert!(guest.connect("172.16.0.1:7002").is_some());
    assert!(guest.connect("198.51.100.2:7002").is_none(), "the host's own address on the uplink");
} }

isolated! { fn a_way_out_that_is_closed_ends_what_is_open() {
    uplink();
    echo("outside", 7000);
    let helper = Helper::start();
    helper.ok("priv.create_tap", &tap("tap-fc-1"));
    helper.ok("priv.create_tap", &tap("tap-fc-2"));
    for (address, name) in [("172.16.0.2", "tap-fc-1"), ("172.16.0.3", "tap-fc-2")] {
        helper.ok("priv.ensure_nat", &nat(address, name, true));
    }
    let guest = Guest::boot("guest", "tap-fc-1", "172.16.0.2/24", "172.16.0.1");
    let other = Guest::boot("other", "tap-fc-2", "172.16.0.3/24", "172.16.0.1");
    let mut open = guest.connect(&web()).expect("a connection");
    let mut others = other.connect(&web()).expect("a connection");
    let say = |stream: &mut std::net::TcpStream| {
        let mut answer = [0; 64];
        stream.write_all(b"x").is_ok() && stream.read(&mut answer).is_ok_and(|length| length > 0)
    };
    assert!(say(&mut open) && say(&mut others));
    let entries = || output("conntrack", &["-L", "-s", "172.16.0.2"]).lines().count();
    assert_eq!(entries(), 1);
    helper.ok("priv.ensure_nat", &nat("172.16.0.2", "tap-fc-1", false));
    assert_eq!(entries(), 0, "the next guest of that address inherits none");
    assert!(!say(&mut open), "the connection goes on");
    assert_eq!(guest.tcp(&web(), "x"), None);
    assert!(say(&mut others), "the other guest's connection ended too");
    helper.ok("priv.ensure_nat", &nat("172.16.0.2", "tap-fc-1", true));
    assert!(guest.tcp(&web(), "x").is_some());
} }

isolated! { fn guests_see_each_other_on_one_bridge_and_not_on_two() {
    uplink();
    let helper = Helper::start();
    helper.ok("priv.create_tap", &tap("tap-fc-1"));
    helper.ok("priv.create_tap", &tap("tap-fc-2"));
    helper.ok("priv.create_tap", &serde_json::json!({"bridge_name": "br-fc-2", "bridge_ip": "172.16.1.1", "cidr": "24", "tap_name": "tap-fc-3"}));
    for (address, name) in [("172.16.0.2", "tap-fc-1"), ("172.16.0.3", "tap-fc-2"), ("172.16.1.2", "tap-fc-3")] {
        helper.ok("priv.ensure_nat", &nat(address, name, true));
    }
    let one = Guest::boot("one", "tap-fc-1", "172.16.0.2/24", "172.16.0.1");
    let _two = Guest::boot("two", "tap-fc-2", "172.16.0.3/24", "172.16.0.1");
    let three = Guest::boot("three", "tap-fc-3", "172.16.1.2/24", "172.16.1.1");
    for name in ["one", "two", "three"] {
        echo(name, 7000);
    }
    assert_eq!(one.tcp("172.16.0.3:7000", "x").as_deref(), Some("172.16.0.2 said x"));
    assert_eq!(three.tcp("172.16.0.3:7000", "x"), None, "from one bridge to another");
    assert_eq!(three.tcp("172.16.0.1:7000", "x"), None, "another bridge's address");
} }

isolated! { fn a_guest_is_held_to_one_mac_and_one_address() {
    uplink();
    echo("outside", 7000);
    let helper = Helper::start();
    helper.ok("priv.create_tap", &tap("tap-fc-1"));
    helper.ok("priv.ensure_nat", &nat("172.16.0.2", "tap-fc-1", true));
    let guest = Guest::boot("guest", "tap-fc-1", "172.16.0.2/24", "172.16.0.1");
    assert!(guest.tcp(&web(), "x").is_some());
    assert_eq!(set("bridge", "has_mac"), ["tap-fc-1"]);
    ip("-n guest addr flush dev eth0");
    ip("-n guest addr add 172.16.0.77/24 dev eth0");
    ip("-n guest route replace default via 172.16.0.1");
    assert_eq!(guest.tcp(&web(), "x"), None, "another address");
    ip("-n guest addr flush dev eth0");
    ip("-n guest addr add 172.16.0.2/24 dev eth0");
    ip("-n guest route replace default via 172.16.0.1");
    assert!(guest.tcp(&web(), "x").is_some());
    ip("-n guest link set eth0 down");
    ip("-n guest link set eth0 address 02:00:00:00:00:99");
    ip("-n guest link set eth0 up");
    ip("-n guest route replace default via 172.16.0.1");
    assert_eq!(guest.tcp(&web(), "x"), None, "another MAC");
    // The next guest on that tap has a MAC of its own.
    helper.ok("priv.create_tap", &tap("tap-fc-1"));
    assert_eq!(set("bridge", "addresses"), ["tap-fc-1 . 172.16.0.2"], "its address stays: it has a way out");
    eventually("a new MAC is learned", || guest.tcp(&web(), "x").is_some());
} }

isolated! { fn what_is_asked_for_wins_over_what_was_learned() {
    uplink();
    echo("outside", 7000);
    let helper = Helper::start();
    helper.ok("priv.create_tap", &tap("tap-fc-1"));
    helper.ok("priv.create_tap", &tap("tap-fc-2"));
    helper.ok("priv.ensure_bridge", &bridge("br-fc", "172.16.0.1"));
    // A squatter speaks first.
    let squatter = Guest::boot("squatter", "tap-fc-2", "172.16.0.2/24", "172.16.0.1");
    assert_eq!(squatter.tcp(&web(), "x"), None);
    assert_eq!(set("bridge", "addresses"), ["tap-fc-2 . 172.16.0.2"]);
    helper.ok("priv.ensure_nat", &nat("172.16.0.2", "tap-fc-1", true));
    assert_eq!(set("bridge", "addresses"), ["tap-fc-1 . 172.16.0.2"]);
    assert_eq!(squatter.tcp(&web(), "x"), None, "another's way out");
    let guest = Guest::boot("guest", "tap-fc-1", "172.16.0.2/24", "172.16.0.1");
    assert!(guest.tcp(&web(), "x").is_some());
} }

isolated! { fn a_default_route_without_a_gateway_is_a_way_out() {
    uplink();
    ip("link add vpn0 type veth peer name vpn1 netns outside");
    ip("addr add 203.0.113.2/32 dev vpn0");
    ip("link set vpn0 up");
    ip("-n outside addr add 203.0.113.1/32 dev vpn1");
    ip("-n outside link set vpn1 up");
    ip("-n outside route add 203.0.113.2 dev vpn1");
    ip("route replace default dev vpn0");
    echo("outside", 7000);
    let helper = Helper::start();
    helper.ok("priv.create_tap", &tap("tap-fc-1"));
    helper.ok("priv.ensure_nat", &nat("172.16.0.2", "tap-fc-1", true));
    assert_eq!(set("inet", "opened"), ["vpn0"]);
    let guest = Guest::boot("guest", "tap-fc-1", "172.16.0.2/24", "172.16.0.1");
    assert_eq!(guest.tcp("203.0.113.1:7000", "hello").as_deref(), Some("203.0.113.2 said hello"));
    helper.ok("priv.ensure_nat", &nat("172.16.0.2", "tap-fc-1", false));
    assert_eq!(world::sysctl("vpn0", "forwarding"), "0");
    // A table for what is the host's own anyway, as transparent proxies have it, is no way out.
    ip("route del default dev vpn0");
    ip("route add local default dev vpn0 table 100");
    helper.ok("priv.ensure_nat", &nat("172.16.0.2", "tap-fc-1", true));
    assert_eq!(set("inet", "opened"), [""; 0]);
} }
