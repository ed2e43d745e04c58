//! What no request reaches by itself, each in a network namespace of its own; read back by `conntrack` and `nft`.

use super::firewall::{Change, Tables};
use super::sets::{Element, Key, Set};
use super::{Net, conntrack, rules};
use crate::settings::Settings;
use std::net::Ipv4Addr;
use std::process::Command;
use sys::netlink::Family;

/// Runs this very test once more, in a network namespace that goes with it. True where that is where we are.
fn isolated(test: &str) -> bool {
    const INSIDE: &str = "BANGER_TEST_INSIDE";
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    assert!(rustix::process::geteuid().is_root(), "this test needs root");
    let output = Command::new("unshare")
        .arg("--net")
        .arg(std::env::current_exe().unwrap())
        .args([&format!("net::tests::{test}"), "--exact", "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    false
}

fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The way of a kernel that deletes by no filter (6.1): the same connections go, one by one, and no others.
#[test]
fn connections_go_one_by_one_too() {
    if !isolated("connections_go_one_by_one_too") {
        return;
    }
    let guest = Ipv4Addr::new(172, 16, 0, 2);
    let tuples =
        [("172.16.0.2", "9.9.9.9"), ("9.9.9.9", "172.16.0.2"), ("172.16.0.3", "9.9.9.9"), ("9.9.9.9", "172.16.0.20")];
    for (from, to) in tuples {
        for port in 1..=40 {
            run(
                "conntrack",
                &format!("-I -s {from} -d {to} -p tcp --sport {port} --dport 4000 --state ESTABLISHED -t 100"),
            );
        }
    }
    let mut conn = super::netlink::Conn::open(Family::Netfilter).unwrap();
    conntrack::forget_one_by_one(&mut conn, guest).unwrap();
    let left = run("conntrack", "-L");
    assert_eq!(left.lines().count(), 80, "{left}");
    assert!(!left.contains("=172.16.0.2 "), "{left}");
    conntrack::forget_one_by_one(&mut conn, guest).unwrap();
    conntrack::forget(&mut conn, Ipv4Addr::new(172, 16, 0, 3)).unwrap();
    assert_eq!(run("conntrack", "-C").trim(), "40");
}

/// A new VM on an old tap: what was learned goes, what was given stays, and other taps keep theirs.
#[test]
fn a_port_is_fresh_for_its_next_guest() {
    if !isolated("a_port_is_fresh_for_its_next_guest") {
        return;
    }
    let net = Net::open(&Settings::default()).unwrap();
    rules::fresh(&net, "tap-fc-1").unwrap();
    let [learned, given, other] = ["tap-fc-1", "tap-fc-2", "tap-fc-3"];
    let mut present = Vec::new();
    for (nth, tap) in [learned, given, other].into_iter().enumerate() {
        let ip = Ipv4Addr::new(172, 16, 0, 2 + nth as u8);
        let mac = [2, 0, 0, 0, 0, nth as u8];
        let station =
            Element { set: Set::Stations, key: Key::of(&[&Element::link(Set::Ports, tap).key, &mac, &[0; 2]]) };
        present.extend([
            Element::link(Set::Ports, tap),
            Element::link(Set::HasMac, tap),
            Element::mac(&mac),
            station,
            Element::link(Set::HasIp, tap),
            Element::ip(ip),
            Element::at(Set::Addresses, tap, ip),
        ]);
    }
    present.push(Element::at(Set::Guests, "br-fc", Ipv4Addr::new(172, 16, 0, 3)));
    let change = Change { tables: Tables::Made, present, absent: Vec::new() };
    net.firewall(|fw| fw.apply(&change)).unwrap();
    for tap in [learned, given] {
        rules::fresh(&net, tap).unwrap();
        rules::fresh(&net, tap).unwrap();
    }
    let list = |set: &str| run("nft", &format!("list set bridge banger {set}"));
    for set in ["stations", "has_mac"] {
        let text = list(set);
        assert!(text.contains(other) && !text.contains(learned) && !text.contains(given), "{text}");
    }
    assert!(!list("macs").contains("02:00:00:00:00:01") && list("macs").contains("02:00:00:00:00:02"));
    for set in ["addresses", "has_ip"] {
        let text = list(set);
        assert!(text.contains(other) && text.contains(given) && !text.contains(learned), "{text}");
    }
    assert!(!list("ips").contains("172.16.0.2"));
    assert_eq!(list("ports").matches("tap-fc-").count(), 3);
}
