//! The network methods over the built helper, in fresh namespaces; what they did is read back by `ip` and `nft`.

#![allow(clippy::disallowed_methods, reason = "the bans are the helper's; a test sets its world up by paths")]

mod common;
#[path = "net/world.rs"]
mod world;

use common::{Helper, OWNER, Start};
use serde_json::{Value, json};
use world::{addresses, bridge, ip, link, links, named, nat, set, set_sysctl, snapshot, sysctl, tap, uplink};

fn failed(helper: &Helper, method: &str, params: &Value, word: &str) {
    let before = snapshot();
    let (code, message) = helper.err(method, params);
    assert_eq!(code, "operation_failed", "{message}");
    assert!(message.contains(word), "{message:?} does not name {word:?}");
    assert_eq!(world::difference(&before, &snapshot()), "", "{method} {params}");
}

isolated! { fn a_bridge_is_made_marked_and_left_alone() {
    let helper = Helper::start();
    helper.ok("priv.ensure_bridge", &bridge("br-fc", "172.16.0.1"));
    let made = link("br-fc").unwrap();
    assert_eq!((&made["linkinfo"]["info_kind"], &made["ifalias"]), (&json!("bridge"), &json!("banger bridge 172.16.0.1/24")));
    let data = &made["linkinfo"]["info_data"];
    assert_eq!((&data["forward_delay"], &data["stp_state"]), (&json!(0), &json!(0)));
    assert!(made["flags"].as_array().unwrap().contains(&json!("UP")));
    assert_eq!(made["inet6_addr_gen_mode"], "none");
    assert_eq!(addresses("br-fc"), ["172.16.0.1/24"]);
    for (name, value) in [("arp_ignore", "1"), ("rp_filter", "1"), ("accept_redirects", "0"), ("send_redirects", "0"), ("forwarding", "0")] {
        assert_eq!(sysctl("br-fc", name), value, "{name}");
    }
    let before = snapshot();
    helper.ok("priv.ensure_bridge", &json!({"bridge_name": "br-fc", "bridge_ip": "172.16.0.1", "cidr": "172.16.0.0/24"}));
    assert_eq!(world::difference(&before, &snapshot()), "");
    helper.ok("priv.create_tap", &tap("tap-fc-1"));
    assert_eq!(link("br-fc").unwrap()["address"], made["address"], "the MAC stays as taps come");
} }

isolated! { fn a_bridge_is_mended() {
    let helper = Helper::start();
    helper.ok("priv.ensure_bridge", &bridge("br-fc", "172.16.0.1"));
    let index = link("br-fc").unwrap()["ifindex"].clone();
    ip("addr flush dev br-fc");
    ip("link set br-fc down");
    set_sysctl("br-fc", "arp_ignore", "0");
    helper.ok("priv.ensure_bridge", &bridge("br-fc", "172.16.0.1"));
    assert_eq!(addresses("br-fc"), ["172.16.0.1/24"]);
    assert!(link("br-fc").unwrap()["flags"].as_array().unwrap().contains(&json!("UP")));
    assert_eq!(sysctl("br-fc", "arp_ignore"), "1");
    // What an administrator set on purpose is kept; only our address changes.
    ip("addr add 192.168.9.1/24 dev br-fc");
    ip("link set br-fc mtu 1400");
    helper.ok("priv.ensure_bridge", &bridge("br-fc", "172.17.0.1"));
    assert_eq!(addresses("br-fc"), ["192.168.9.1/24", "172.17.0.1/24"]);
    let now = link("br-fc").unwrap();
    assert_eq!((&now["mtu"], &now["ifindex"], &now["ifalias"]), (&json!(1400), &index, &json!("banger bridge 172.17.0.1/24")));
    // With a tap on it, it keeps its address; a missing one is given again.
    helper.ok("priv.create_tap", &json!({"bridge_name": "br-fc", "bridge_ip": "172.17.0.1", "cidr": "24", "tap_name": "tap-fc-1"}));
    failed(&helper, "priv.ensure_bridge", &bridge("br-fc", "172.18.0.1"), "tap-fc-1");
    ip("addr del 172.17.0.1/24 dev br-fc");
    helper.ok("priv.ensure_bridge", &bridge("br-fc", "172.17.0.1"));
    assert!(addresses("br-fc").contains(&"172.17.0.1/24".to_owned()));
} }

isolated! { fn what_is_not_ours_is_refused_and_left() {
    let helper = Helper::start();
    ip("link add br-fc-a type bridge");
    ip("link add br-fc-b type veth peer name bp");
    ip("link add br-fc-c type bridge");
    ip("addr add 172.16.3.1/24 dev br-fc-c");
    ip("link add p0 type veth peer name p1");
    ip("link set p0 master br-fc-c");
    ip("link set p0 alias banger");
    ip("link add lan type veth peer name lanp");
    ip("link property add dev lan altname br-fc-d");
    for (name, net) in [("br-fc-a", "172.16.1.1"), ("br-fc-b", "172.16.2.1"), ("br-fc-c", "172.16.3.1"), ("br-fc-d", "172.16.4.1")] {
        failed(&helper, "priv.ensure_bridge", &bridge(name, net), name);
        let params = json!({"bridge_name": name, "bridge_ip": net, "cidr": "24", "tap_name": "tap-fc-1"});
        failed(&helper, "priv.create_tap", &params, name);
    }
    ip("tuntap add tap-fc-1 mode tap");
    ip("tuntap add tap-fc-2 mode tun");
    ip("link set tap-fc-2 alias banger tap".replace("banger tap", "banger").as_str());
    ip("link add tap-fc-3 type veth peer name p3");
    ip("link property add dev lan altname tap-fc-4");
    for name in ["tap-fc-1", "tap-fc-2", "tap-fc-3", "tap-fc-4"] {
        failed(&helper, "priv.create_tap", &tap(name), name);
        failed(&helper, "priv.delete_tap", &named(name), name);
    }
    assert!(link("br-fc").is_none(), "refused before the bridge was made");
} }

isolated! { fn an_unmarked_bridge_is_taken_in_by_its_shape_alone() {
    let helper = Helper::start();
    helper.ok("priv.create_tap", &tap("tap-fc-1"));
    let index = link("br-fc").unwrap()["ifindex"].clone();
    common::output("ip", &["link", "set", "br-fc", "alias", ""]);
    assert!(link("br-fc").unwrap()["ifalias"].is_null());
    failed(&helper, "priv.ensure_bridge", &bridge("br-fc", "172.18.0.1"), "br-fc");
    helper.ok("priv.ensure_bridge", &bridge("br-fc", "172.16.0.1"));
    let now = link("br-fc").unwrap();
    assert_eq!((&now["ifindex"], &now["ifalias"]), (&index, &json!("banger bridge 172.16.0.1/24")));
} }

isolated! { fn a_subnet_that_somebody_has_is_refused_by_name() {
    uplink();
    let helper = Helper::start();
    ip("link add lan type veth peer name lanp");
    ip("addr add 10.1.2.3/20 dev lan");
    ip("link set lan up");
    ip("link set lanp up");
    ip("route add 10.7.0.0/16 dev lan table 77");
    ip("route add blackhole 10.8.0.0/16");
    ip("rule add to 10.9.0.0/16 table 77 priority 900");
    ip("rule add from 10.10.0.0/16 table 77 priority 901");
    // A VPN's halves of the default route are nobody's subnet.
    ip("route add 0.0.0.0/1 dev lan");
    ip("route add 128.0.0.0/1 dev lan");
    for (net, word) in [("10.1.5.1", "lan"), ("10.7.1.1", "table 77"), ("10.8.1.1", "10.8.0.0/16"), ("10.9.1.1", "900"), ("10.10.1.1", "901")] {
        failed(&helper, "priv.ensure_bridge", &bridge("br-fc", net), word);
    }
    helper.ok("priv.ensure_bridge", &bridge("br-fc", "172.16.0.1"));
    failed(&helper, "priv.ensure_bridge", &bridge("br-fc-2", "172.16.0.9"), "br-fc");
    failed(&helper, "priv.ensure_bridge", &bridge("br-fc", "10.7.1.1"), "table 77");
    helper.ok("priv.ensure_bridge", &bridge("br-fc-2", "172.16.1.1"));
} }

isolated! { fn a_tap_is_the_owners_and_is_kept() {
    let helper = Helper::start();
    helper.ok("priv.create_tap", &tap("tap-fc-1"));
    let made = link("tap-fc-1").unwrap();
    let data = &made["linkinfo"]["info_data"];
    assert_eq!((&data["type"], &data["persist"], &data["vnet_hdr"]), (&json!("tap"), &json!(true), &json!(true)));
    assert_eq!((&data["user"], &data["group"]), (&json!("bowner"), &json!("bowner")));
    assert_eq!((&made["master"], &made["ifalias"], &made["inet6_addr_gen_mode"]), (&json!("br-fc"), &json!("banger tap"), &json!("none")));
    assert!(made["flags"].as_array().unwrap().contains(&json!("UP")));
    assert!(addresses("tap-fc-1").is_empty());
    assert_eq!(set("bridge", "ports"), ["tap-fc-1"]);
    assert_eq!(set("inet", "bridges"), ["br-fc"]);
    assert_eq!(set("bridge", "ips"), ["172.16.0.1"]);

    // A VM that has it open keeps it, and its carrier.
    let vm = sys::tapfd::attach("tap-fc-1").unwrap();
    let carrier = |link: &Value| link["flags"].as_array().unwrap().contains(&json!("LOWER_UP"));
    let before = link("tap-fc-1").unwrap();
    assert!(carrier(&before));
    helper.ok("priv.create_tap", &tap("tap-fc-1"));
    let after = link("tap-fc-1").unwrap();
    assert_eq!((&after["ifindex"], carrier(&after)), (&before["ifindex"], true));
    drop(vm);

    ip("link set tap-fc-1 nomaster");
    ip("link set tap-fc-1 down");
    helper.ok("priv.create_tap", &tap("tap-fc-1"));
    assert_eq!(link("tap-fc-1").unwrap()["master"], "br-fc");
    let moved = json!({"bridge_name": "br-fc-2", "bridge_ip": "172.16.1.1", "cidr": "24", "tap_name": "tap-fc-1"});
    helper.ok("priv.create_tap", &moved);
    assert_eq!(link("tap-fc-1").unwrap()["master"], "br-fc-2");
    assert_eq!(set("inet", "bridges").len(), 2);
} }

isolated! { fn another_owners_tap_is_put_right_unless_it_is_open() {
    let helper = Helper::start();
    helper.ok("priv.ensure_bridge", &bridge("br-fc", "172.16.0.1"));
    ip(&format!("tuntap add tap-fc-1 mode tap user {} vnet_hdr", common::OTHER));
    common::output("ip", &["link", "set", "tap-fc-1", "alias", "banger tap"]);
    let vm = sys::tapfd::attach("tap-fc-1").unwrap();
    failed(&helper, "priv.create_tap", &tap("tap-fc-1"), "another user");
    drop(vm);
    helper.ok("priv.create_tap", &tap("tap-fc-1"));
    assert_eq!(link("tap-fc-1").unwrap()["linkinfo"]["info_data"]["user"], "bowner");
    assert_eq!(OWNER, 5501);
} }

isolated! { fn nothing_is_left_after_the_last_tap() {
    uplink();
    let helper = Helper::start();
    helper.ok("priv.ensure_bridge", &bridge("br-fc", "172.16.0.1"));
    let before = snapshot();
    for name in ["tap-fc-1", "tap-pool-2"] {
        helper.ok("priv.create_tap", &tap(name));
    }
    helper.ok("priv.ensure_nat", &nat("172.16.0.2", "tap-fc-1", true));
    assert_eq!(set("inet", "guests"), ["br-fc . 172.16.0.2"]);
    assert_eq!(set("bridge", "addresses"), ["tap-fc-1 . 172.16.0.2"]);
    assert_eq!(set("inet", "opened"), ["eth0"]);
    assert_eq!((sysctl("eth0", "forwarding"), sysctl("br-fc", "forwarding"), sysctl("all", "forwarding")), ("1".into(), "1".into(), "0".into()));
    // The tap takes its guest with it, and forwarding goes with the last guest.
    helper.ok("priv.delete_tap", &named("tap-fc-1"));
    assert!(link("tap-fc-1").is_none());
    assert_eq!(set("bridge", "ports"), ["tap-pool-2"]);
    assert!(set("inet", "guests").is_empty() && set("bridge", "addresses").is_empty() && set("inet", "opened").is_empty());
    assert_eq!(sysctl("eth0", "forwarding"), "0");
    helper.ok("priv.delete_tap", &named("tap-pool-2"));
    helper.ok("priv.delete_tap", &named("tap-pool-2"));
    assert_eq!(world::difference(&before, &snapshot()), "");
} }

isolated! { fn a_guests_address_is_a_host_of_its_bridge_and_its_own() {
    uplink();
    let helper = Helper::start();
    for name in ["tap-fc-1", "tap-fc-2"] {
        helper.ok("priv.create_tap", &tap(name));
    }
    for (address, word) in [("172.16.0.1", "address of the bridge"), ("172.16.0.0", "no guest's"), ("172.16.0.255", "no guest's"), ("172.16.1.2", "no guest's"), ("10.0.0.2", "no guest's")] {
        failed(&helper, "priv.ensure_nat", &nat(address, "tap-fc-1", true), word);
    }
    failed(&helper, "priv.ensure_nat", &nat("172.16.0.2", "tap-fc-none", true), "priv.create_tap");
    helper.ok("priv.ensure_nat", &nat("172.16.0.2", "tap-fc-1", true));
    failed(&helper, "priv.ensure_nat", &nat("172.16.0.2", "tap-fc-2", true), "tap-fc-1");
    let before = snapshot();
    helper.ok("priv.ensure_nat", &nat("172.16.0.2", "tap-fc-1", true));
    // Off for a tap that the guest is not on: it is not there, so nothing goes.
    helper.ok("priv.ensure_nat", &nat("172.16.0.2", "tap-fc-2", false));
    helper.ok("priv.ensure_nat", &nat("172.16.0.9", "tap-fc-9", false));
    assert_eq!(world::difference(&before, &snapshot()), "");
    // A tap that is used again has the new address alone.
    helper.ok("priv.ensure_nat", &nat("172.16.0.3", "tap-fc-1", true));
    assert_eq!((set("inet", "guests"), set("bridge", "addresses")), (vec!["br-fc . 172.16.0.3".to_owned()], vec!["tap-fc-1 . 172.16.0.3".to_owned()]));
    assert_eq!(set("bridge", "ips"), ["172.16.0.1", "172.16.0.3"]);
    // Without its way out it gives its address up to who asks.
    helper.ok("priv.ensure_nat", &nat("172.16.0.3", "tap-fc-1", false));
    helper.ok("priv.ensure_nat", &nat("172.16.0.3", "tap-fc-2", true));
    assert_eq!(set("bridge", "addresses"), ["tap-fc-2 . 172.16.0.3"]);
    // Off when tap, bridge and uplink are gone.
    for gone in ["tap-fc-2", "br-fc", "eth0"] {
        ip(&format!("link del {gone}"));
    }
    helper.ok("priv.ensure_nat", &nat("172.16.0.3", "tap-fc-2", false));
    assert!(set("inet", "guests").is_empty());
    for name in ["tap-fc-1", "tap-fc-2"] {
        helper.ok("priv.delete_tap", &named(name));
    }
    assert!(world::ruleset().is_empty(), "{:?}", world::ruleset());
} }

isolated! { fn forwarding_is_put_back_where_nobody_changed_it() {
    uplink();
    let helper = Helper::start();
    helper.ok("priv.create_tap", &tap("tap-fc-1"));
    helper.ok("priv.ensure_nat", &nat("172.16.0.2", "tap-fc-1", true));
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
    helper.ok("priv.ensure_nat", &nat("172.16.0.2", "tap-fc-1", false));
    assert_eq!((sysctl("eth0", "forwarding"), sysctl("all", "forwarding")), ("1".into(), "1".into()));
    // What was on before us is not ours to switch off.
    helper.ok("priv.ensure_nat", &nat("172.16.0.2", "tap-fc-1", true));
    assert!(set("inet", "opened").is_empty());
    helper.ok("priv.ensure_nat", &nat("172.16.0.2", "tap-fc-1", false));
    assert_eq!(sysctl("eth0", "forwarding"), "1");
} }

isolated! { fn without_an_uplink_it_succeeds_in_its_own_part() {
    let helper = Helper::start();
    helper.ok("priv.create_tap", &tap("tap-fc-1"));
    helper.ok("priv.ensure_nat", &nat("172.16.0.2", "tap-fc-1", true));
    assert_eq!(set("inet", "guests"), ["br-fc . 172.16.0.2"]);
} }

isolated! { fn tables_that_somebody_flushed_are_made_again_with_all_that_is_ours() {
    uplink();
    let helper = Start::new().config("own_tables = false\n").start();
    for name in ["tap-fc-1", "tap-fc-2"] {
        helper.ok("priv.create_tap", &tap(name));
    }
    helper.ok("priv.ensure_nat", &nat("172.16.0.2", "tap-fc-1", true));
    let before = snapshot();
    for broken in [&["flush", "ruleset"][..], &["delete", "table", "bridge", "banger"]] {
        common::output("nft", broken);
        helper.ok("priv.ensure_nat", &nat("172.16.0.2", "tap-fc-1", true));
        assert_eq!(world::difference(&before, &snapshot()), "");
    }
} }

isolated! { fn many_at_once() {
    uplink();
    let helper = Helper::start();
    helper.ok("priv.ensure_bridge", &bridge("br-fc", "172.16.0.1"));
    let before = snapshot();
    std::thread::scope(|scope| {
        for thread in 0..4u32 {
            let helper = &helper;
            scope.spawn(move || {
                for nth in 0..8 {
                    let (name, ip) = (format!("tap-fc-{thread}-{nth}"), format!("172.16.0.{}", 10 + thread * 8 + nth));
                    helper.ok("priv.create_tap", &tap(&name));
                    helper.ok("priv.ensure_nat", &nat(&ip, &name, true));
                }
            });
        }
    });
    assert_eq!((set("inet", "guests").len(), set("bridge", "ports").len()), (32, 32));
    let listed = helper.ok("priv.list_resources", &json!({}));
    assert_eq!((listed["taps"].as_array().unwrap().len(), listed["guests"].as_array().unwrap().len()), (32, 32));
    assert_eq!((&listed["bridges"][0]["name"], &listed["bridges"][0]["ports"]), (&json!("br-fc"), &json!(32)));
    assert_eq!(listed["guests"][0], json!({"address": "172.16.0.10", "bridge": "br-fc", "tap": "tap-fc-0-0", "why": "an element of the set guests in banger's own table"}));
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let helper = &helper;
            scope.spawn(move || (0..8).for_each(|nth| {
                helper.ok("priv.delete_tap", &named(&format!("tap-fc-{thread}-{nth}")));
            }));
        }
    });
    assert_eq!(world::difference(&before, &snapshot()), "");
} }

isolated! { fn limits_are_named() {
    let helper = Start::new().config("[limits]\nbridges = 1\ntaps = 2\nguests = 1\n").start();
    for name in ["tap-fc-1", "tap-fc-2"] {
        helper.ok("priv.create_tap", &tap(name));
    }
    failed(&helper, "priv.create_tap", &tap("tap-fc-3"), "limits.taps");
    failed(&helper, "priv.ensure_bridge", &bridge("br-fc-2", "172.16.1.1"), "limits.bridges");
    helper.ok("priv.ensure_nat", &nat("172.16.0.2", "tap-fc-1", true));
    helper.ok("priv.ensure_nat", &nat("172.16.0.2", "tap-fc-1", true));
    failed(&helper, "priv.ensure_nat", &nat("172.16.0.3", "tap-fc-2", true), "limits.guests");
    assert_eq!(links().iter().filter(|link| link["ifname"].as_str().unwrap().starts_with("tap-fc-")).count(), 2);
} }

isolated! { fn what_was_changed_is_listed_with_its_reason() {
    uplink();
    // A dot in a link's name is a slash for sysctl.
    ip("link add vpn.5 type veth peer name vpnp");
    ip("addr add 198.51.101.2/24 dev vpn.5");
    ip("link set vpn.5 up");
    ip("link set vpnp up");
    ip("route add 203.0.113.0/24 via 198.51.101.1");
    let helper = Helper::start();
    helper.ok("priv.create_tap", &tap("tap-fc-1"));
    let bridge_alone = helper.ok("priv.list_resources", &json!({}));
    helper.ok("priv.ensure_nat", &nat("172.16.0.2", "tap-fc-1", true));
    let found = helper.ok("priv.list_resources", &json!({}));
    for part in ["bridges", "taps", "guests", "sysctls"] {
        let all = found[part].as_array().unwrap();
        assert!(!all.is_empty() && all.iter().all(|one| one["why"].as_str().is_some_and(|why| !why.is_empty())), "{part}: {found}");
    }
    let sysctls = |found: &Value| -> Vec<(String, u64)> {
        let all = found["sysctls"].as_array().unwrap().clone();
        all.iter().map(|one| (one["name"].as_str().unwrap().to_owned(), one["value"].as_u64().unwrap())).collect()
    };
    let mut listed = sysctls(&found);
    // All that differs from before, by the program that administrators read it with.
    for (name, value) in &listed {
        assert_eq!(common::output("sysctl", &["-n", name]).trim(), value.to_string(), "{name}");
    }
    listed.retain(|(name, _)| name.ends_with(".forwarding"));
    listed.sort();
    let on = |link: &str| (format!("net.ipv4.conf.{link}.forwarding"), 1);
    assert_eq!(listed, [on("br-fc"), on("eth0"), on("vpn/5")]);
    // Somebody changes one: it is shown as it is now, beside what was set.
    let nothing = common::output("sysctl", &["-w", "net.ipv4.conf.br-fc.arp_ignore=0"]);
    let now = helper.ok("priv.list_resources", &json!({}));
    let changed = now["sysctls"].as_array().unwrap().iter().find(|one| one["name"] == "net.ipv4.conf.br-fc.arp_ignore").unwrap();
    assert_eq!((&changed["value"], &changed["set"]), (&json!(0), &json!(1)), "{nothing}");
    helper.ok("priv.ensure_nat", &nat("172.16.0.2", "tap-fc-1", false));
    let mut after = sysctls(&helper.ok("priv.list_resources", &json!({})));
    after.iter_mut().filter(|(name, _)| name.ends_with("arp_ignore")).for_each(|one| one.1 = 1);
    assert_eq!(after, sysctls(&bridge_alone));
} }
