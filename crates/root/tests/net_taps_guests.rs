//! Guests of one bridge, parted and not, and the mark that their packets carry; each with packets.

#![allow(clippy::disallowed_methods, reason = "the bans are the helper's; a test sets its world up by paths")]

mod common;
#[path = "net/world.rs"]
mod world;

use common::{Helper, Start, log_lines, output};
use serde_json::json;
use world::{Guest, OUTSIDE, echo, ip, link, links, named, nat, set, snapshot, tap, uplink};

const ISOLATED: &str = "isolate_guests = true\n";

/// Two guests of one bridge, each with a way out, and a host behind the uplink that answers.
fn two_guests(helper: &Helper) -> (Guest, Guest) {
    for (address, name) in [("172.16.0.2", "tap-fc-1"), ("172.16.0.3", "tap-fc-2")] {
        helper.ok("priv.create_tap", &tap(name));
        helper.ok("priv.ensure_nat", &nat(address, name, true));
    }
    let one = Guest::boot("one", "tap-fc-1", "172.16.0.2/24", "172.16.0.1");
    let two = Guest::boot("two", "tap-fc-2", "172.16.0.3/24", "172.16.0.1");
    echo("one", 7000);
    echo("two", 7000);
    (one, two)
}

fn web() -> String {
    format!("{OUTSIDE}:7000")
}

/// Host and outside answer a guest.
fn others_answer(guest: &Guest) {
    assert!(guest.tcp(&web(), "x").is_some_and(|answer| answer.starts_with("198.51.100.2")), "the outside");
    assert!(guest.udp(&web(), "x").is_some(), "the outside, by UDP");
    assert!(guest.connect("172.16.0.1:7002").is_some(), "the host");
}

fn listen() {
    let listener = std::net::TcpListener::bind(("0.0.0.0", 7002)).expect("a port");
    std::thread::spawn(move || listener.incoming().for_each(drop));
}

fn isolated_ports() -> Vec<String> {
    let ports = links().into_iter().filter(|link| link["linkinfo"]["info_slave_data"]["isolated"] == json!(true));
    ports.map(|link| link["ifname"].as_str().expect("a name").to_owned()).collect()
}

isolated! { fn guests_are_parted_where_the_settings_say_so() {
    uplink();
    echo("outside", 7000);
    listen();
    let helper = Start::new().config(ISOLATED).start();
    let (one, two) = two_guests(&helper);
    assert_eq!(isolated_ports(), ["tap-fc-1", "tap-fc-2"]);
    others_answer(&one);
    others_answer(&two);
    assert_eq!(one.tcp("172.16.0.3:7000", "x"), None, "by the bridge");
    assert_eq!(one.udp("172.16.0.3:7000", "x"), None);
    // And round the bridge: the host would route what comes for its own MAC back onto it.
    let mac = link("br-fc").unwrap()["address"].as_str().unwrap().to_owned();
    ip(&format!("-n one neigh replace 172.16.0.3 lladdr {mac} dev eth0 nud permanent"));
    ip(&format!("-n two neigh replace 172.16.0.2 lladdr {mac} dev eth0 nud permanent"));
    assert_eq!(one.tcp("172.16.0.3:7000", "x"), None, "by the host");
    assert_eq!(one.udp("172.16.0.3:7000", "x"), None);
    assert!(set("inet", "together").is_empty());
} }

isolated! { fn guests_see_each_other_by_bridge_and_host_unless_parted() {
    uplink();
    echo("outside", 7000);
    listen();
    let helper = Helper::start();
    let (one, two) = two_guests(&helper);
    assert_eq!(isolated_ports(), Vec::<String>::new());
    others_answer(&one);
    others_answer(&two);
    assert_eq!(one.tcp("172.16.0.3:7000", "x").as_deref(), Some("172.16.0.2 said x"));
    let mac = link("br-fc").unwrap()["address"].as_str().unwrap().to_owned();
    ip(&format!("-n one neigh replace 172.16.0.3 lladdr {mac} dev eth0 nud permanent"));
    ip(&format!("-n two neigh replace 172.16.0.2 lladdr {mac} dev eth0 nud permanent"));
    assert!(one.tcp("172.16.0.3:7000", "x").is_some(), "by the host: what parts them above is no accident");
} }

isolated! { fn a_change_of_the_setting_holds_at_the_start_and_for_the_next_create_tap() {
    uplink();
    echo("outside", 7000);
    listen();
    // Ordinary tables: below somebody changes one of them.
    let helper = Start::new().config("own_tables = false\n").start();
    let (one, two) = two_guests(&helper);
    assert!(one.tcp("172.16.0.3:7000", "x").is_some());
    assert!(helper.stop().success());
    // Taps that are there, with VMs on them, follow at the start.
    let helper = Start::new().config("isolate_guests = true\nown_tables = false\n").start();
    // Before the first request is looked at.
    helper.ok("priv.delete_taps", &json!({}));
    assert_eq!(isolated_ports(), ["tap-fc-1", "tap-fc-2"]);
    assert!(set("inet", "together").is_empty());
    assert_eq!(one.tcp("172.16.0.3:7000", "x"), None);
    others_answer(&one);
    others_answer(&two);
    // Somebody switched it off at one, and gave the bridge's guests to each other: the next create_tap mends both.
    ip("link set tap-fc-1 type bridge_slave isolated off");
    common::output("nft", &["add", "element", "inet", "banger", "together", "{ \"br-fc\" . \"br-fc\" }"]);
    helper.ok("priv.create_tap", &tap("tap-fc-1"));
    assert_eq!(isolated_ports(), ["tap-fc-1", "tap-fc-2"]);
    assert!(set("inet", "together").is_empty());
    // It goes with the tap to another bridge, and is put back where that fails.
    helper.ok("priv.create_tap", &json!({"bridge_name": "br-fc-2", "bridge_ip": "172.16.1.1", "cidr": "24", "tap_name": "tap-fc-1"}));
    assert_eq!((isolated_ports().len(), &link("tap-fc-1").unwrap()["master"]), (2, &json!("br-fc-2")));
    helper.ok("priv.create_tap", &tap("tap-fc-1"));
    assert!(helper.stop().success());
    let helper = Start::new().config("isolate_guests = true\nfault = \"delete_tap.link:fail\"\n").start();
    // Moved taps hold to no MAC until their guests have sent something: not in the midst of what is compared.
    for guest in [&one, &two] {
        assert!(guest.connect("172.16.0.1:7002").is_some(), "the host");
    }
    let before = snapshot();
    let (_, message) = helper.err("priv.delete_tap", &named("tap-fc-1"));
    assert!(message.contains("delete_tap.link"), "{message}");
    assert_eq!(world::difference(&before, &snapshot()), "");
    assert!(helper.stop().success());
    let helper = Helper::start();
    helper.ok("priv.delete_taps", &json!({}));
    assert_eq!(isolated_ports(), Vec::<String>::new());
    assert_eq!(set("inet", "together").len(), 2, "both bridges");
    helper.ok("priv.create_tap", &tap("tap-fc-2"));
    let errors: Vec<_> = log_lines().into_iter().filter(|line| line["level"] == "ERROR").collect();
    assert!(errors.iter().all(|line| line["msg"] == "helper rpc failed"), "{errors:?}");
} }

fn counted(chain: &str) -> u64 {
    let text = output("nft", &["list", "chain", "ip", "other", chain]);
    let behind = text.split("packets ").nth(1).expect("a counter");
    behind.split(' ').next().and_then(|number| number.parse().ok()).expect("a number")
}

fn forward_rules() -> Vec<String> {
    let listed = output("iptables-nft", &["-S", "FORWARD"]);
    listed.lines().filter(|line| line.contains("banger")).map(str::to_owned).collect()
}

isolated! { fn the_mark_is_the_settings_and_leaves_others_bits() {
    uplink();
    echo("outside", 7000);
    output("iptables-nft", &["-P", "FORWARD", "DROP"]);
    // Others mark packets too: theirs is there when ours is set, and there when ours is gone.
    output("nft", &["add table ip other; \
        add chain ip other before { type filter hook prerouting priority -150; }; add rule ip other before iifname br-fc meta mark set 0x62000a05; \
        add chain ip other within { type filter hook forward priority 300; }; add rule ip other within iifname br-fc meta mark 0x62000a15 counter; \
        add chain ip other behind { type filter hook postrouting priority 400; }; add rule ip other behind oifname eth0 meta mark 0x62000a05 counter"]);
    let helper = Start::new().config("mark = 0x10\nmark_mask = 0xf0\n").start();
    helper.ok("priv.create_tap", &tap("tap-fc-1"));
    helper.ok("priv.ensure_nat", &nat("172.16.0.2", "tap-fc-1", true));
    let guest = Guest::boot("guest", "tap-fc-1", "172.16.0.2/24", "172.16.0.1");
    assert!(guest.tcp(&web(), "x").is_some() && guest.udp(&web(), "x").is_some());
    assert!(counted("within") > 0 && counted("behind") > 0, "{} {}", counted("within"), counted("behind"));
    assert_eq!(forward_rules(), ["-A FORWARD -m mark --mark 0x10/0xf0 -m comment --comment banger -j ACCEPT"]);
    assert!(helper.stop().success());
    // The same settings find their tables as they wrote them.
    let helper = Start::new().config("mark = 0x10\nmark_mask = 0xf0\n").start();
    let before = snapshot();
    helper.ok("priv.ensure_nat", &nat("172.16.0.2", "tap-fc-1", true));
    assert_eq!(world::difference(&before, &snapshot()), "");
    assert!(helper.stop().success());
    // Others: tables and the rule elsewhere follow, and go with the last guest.
    for (config, rule) in [
        ("", "0x62000000/0xff000000"),
        ("mark = 0xffffffff\nmark_mask = 0xffffffff\n", "0xffffffff"),
        ("mark = 0x8000\nmark_mask = 0x8000\n", "0x8000/0x8000"),
    ] {
        let helper = Start::new().config(config).start();
        helper.ok("priv.ensure_nat", &nat("172.16.0.2", "tap-fc-1", true));
        assert_eq!(forward_rules(), [format!("-A FORWARD -m mark --mark {rule} -m comment --comment banger -j ACCEPT")]);
        assert!(guest.tcp(&web(), "x").is_some(), "{rule}");
        // As iptables writes it again, it is ours still.
        std::fs::write("/mnt/rules", output("iptables-nft-save", &[])).unwrap();
        output("iptables-nft-restore", &["/mnt/rules"]);
        helper.ok("priv.ensure_nat", &nat("172.16.0.2", "tap-fc-1", true));
        assert_eq!(forward_rules().len(), 1);
        assert!(helper.stop().success());
    }
    let helper = Helper::start();
    helper.ok("priv.ensure_nat", &nat("172.16.0.2", "tap-fc-1", false));
    assert!(forward_rules().is_empty());
} }
