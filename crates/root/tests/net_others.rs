//! Others at the same time: callers at a limit together, an administrator who opens the host, a helper that died midway.

#![allow(clippy::disallowed_methods, reason = "the bans are the helper's; a test sets its world up by paths")]

mod common;
#[path = "net/world.rs"]
mod world;

use common::{Helper, Start, output};
use serde_json::json;
use std::process::Command;
use world::{addresses, ip, link, named, nat, set, sysctl, tap, uplink};

isolated! { fn callers_at_the_limit_together_leave_the_bridge_to_the_one_that_got_in() {
    let helper = Start::new().config("[limits]\ntaps = 1\n").start();
    for round in 0..25 {
        let done: Vec<_> = std::thread::scope(|scope| {
            let one = |nth| {
                let helper = &helper;
                let request = json!({"method": "priv.create_tap", "params": tap(&format!("tap-fc-{nth}"))}).to_string();
                scope.spawn(move || helper.call(&request)["ok"] == true)
            };
            let all: Vec<_> = (0..6).map(one).collect();
            all.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(done.iter().filter(|done| **done).count(), 1, "round {round}: {done:?}");
        let bridge = link("br-fc").expect("the bridge of the tap that is there");
        assert_eq!(bridge["ifalias"], "banger bridge 172.16.0.1/24", "round {round}");
        assert!(bridge["flags"].as_array().unwrap().contains(&json!("UP")), "round {round}");
        assert_eq!(addresses("br-fc"), ["172.16.0.1/24"], "round {round}");
        for nth in 0..6 {
            helper.ok("priv.delete_tap", &named(&format!("tap-fc-{nth}")));
        }
        ip("link del br-fc");
    }
} }

isolated! { fn a_host_that_somebody_opened_is_no_longer_shielded() {
    uplink();
    let helper = Helper::start();
    for name in ["tap-fc-1", "tap-fc-2"] {
        helper.ok("priv.create_tap", &tap(name));
    }
    helper.ok("priv.ensure_nat", &nat("172.16.0.2", "tap-fc-1", true));
    assert_eq!(set("inet", "opened"), ["eth0"]);
    // Docker starts: what comes in by the uplink is for its containers by now.
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
    helper.ok("priv.ensure_nat", &nat("172.16.0.3", "tap-fc-2", true));
    assert!(set("inet", "opened").is_empty());
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
    helper.ok("priv.ensure_nat", &nat("172.16.0.3", "tap-fc-2", true));
    assert_eq!((set("inet", "opened"), sysctl("eth0", "forwarding")), (vec!["eth0".to_owned()], "1".to_owned()));
    // The uplink goes, and another of that name comes, whose forwarding is somebody else's.
    ip("link del eth0");
    ip("link add eth0 type veth peer name up1");
    world::set_sysctl("eth0", "forwarding", "1");
    helper.ok("priv.ensure_nat", &nat("172.16.0.3", "tap-fc-2", true));
    assert!(set("inet", "opened").is_empty());
    for name in ["tap-fc-1", "tap-fc-2"] {
        helper.ok("priv.delete_tap", &named(name));
    }
    assert_eq!(sysctl("eth0", "forwarding"), "1", "another link of that name");
} }

isolated! { fn connections_that_stayed_go_with_the_next_off() {
    uplink();
    let helper = Helper::start();
    helper.ok("priv.create_tap", &tap("tap-fc-1"));
    helper.ok("priv.create_tap", &tap("tap-fc-2"));
    helper.ok("priv.ensure_nat", &nat("172.16.0.2", "tap-fc-1", true));
    helper.ok("priv.ensure_nat", &nat("172.16.0.3", "tap-fc-2", true));
    let track = |from: &str, to: &str| {
        output("conntrack", &["-I", "-s", from, "-d", to, "-p", "tcp", "--sport", "1", "--dport", "2", "--state", "ESTABLISHED", "-t", "100"]);
    };
    let all = || output("conntrack", &["-L"]);
    for (from, to) in [("172.16.0.2", "198.51.100.1"), ("198.51.100.1", "172.16.0.2"), ("172.16.0.3", "198.51.100.1"), ("172.16.0.1", "198.51.100.1"), ("10.99.0.5", "198.51.100.1"), ("198.51.100.2", "198.51.100.1")] {
        track(from, to);
    }
    assert!(helper.stop().success());
    let helper = Start::new().config("fault = \"ensure_nat.connections:fail\"\n").start();
    helper.err("priv.ensure_nat", &nat("172.16.0.2", "tap-fc-1", false));
    assert!(set("inet", "guests") == ["br-fc . 172.16.0.3"] && all().contains("172.16.0.2"));
    assert!(helper.stop().success());
    let helper = Helper::start();
    helper.ok("priv.ensure_nat", &nat("172.16.0.2", "tap-fc-1", false));
    assert!(!all().contains("172.16.0.2"), "{}", all());
    // Whom the owner names, and who is no guest of this tap's, keeps his.
    for (address, name) in [("10.99.0.5", "tap-fc-1"), ("172.16.0.1", "tap-fc-1"), ("172.16.0.3", "tap-fc-1"), ("10.99.0.5", "tap-fc-9")] {
        let request = json!({"method": "priv.ensure_nat", "params": nat(address, name, false)}).to_string();
        helper.call(&request);
    }
    assert_eq!(Command::new("conntrack").args(["-C"]).output().unwrap().stdout, b"4\n", "{}", all());
    // The tap went meanwhile.
    track("172.16.0.2", "198.51.100.1");
    helper.ok("priv.ensure_nat", &nat("172.16.0.2", "tap-fc-9", false));
    assert!(!all().contains("172.16.0.2"), "{}", all());
} }

isolated! { fn who_finds_the_bridge_full_takes_nothing_of_the_others_away() {
    let helper = Start::new().config("[limits]\ntaps = 5000\n").start();
    helper.ok("priv.ensure_bridge", &world::bridge("br-fc", "172.16.0.1"));
    let pair = |nth| format!("link add a{nth} type veth peer name b{nth}\nlink set a{nth} master br-fc\nlink set b{nth} master br-fc\n");
    let batch: String = (0..511).map(pair).collect();
    common::make_file("/mnt/batch", batch.as_bytes(), 0, 0o600);
    ip("-batch /mnt/batch");
    for round in 0..15 {
        let done: Vec<_> = std::thread::scope(|scope| {
            let one = |nth| {
                let helper = &helper;
                let request = json!({"method": "priv.create_tap", "params": tap(&format!("tap-fc-{nth}"))}).to_string();
                scope.spawn(move || helper.call(&request)["ok"] == true)
            };
            let all: Vec<_> = (0..4).map(one).collect();
            all.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let won = done.iter().position(|done| *done).expect("one has the place");
        assert_eq!(done.iter().filter(|done| **done).count(), 1, "round {round}: {done:?}");
        assert_eq!(set("bridge", "ports"), [format!("tap-fc-{won}")], "round {round}");
        assert_eq!((set("inet", "bridges"), set("bridge", "ips")), (vec!["br-fc".to_owned()], vec!["172.16.0.1".to_owned()]), "round {round}");
        assert_eq!(set("bridge", "macs").len(), 1, "round {round}");
        helper.ok("priv.delete_tap", &named(&format!("tap-fc-{won}")));
        assert!(world::ruleset().is_empty());
    }
} }

isolated! { fn a_way_out_is_closed_for_a_tap_that_lost_its_bridge() {
    uplink();
    let helper = Helper::start();
    helper.ok("priv.create_tap", &tap("tap-fc-1"));
    helper.ok("priv.ensure_nat", &nat("172.16.0.2", "tap-fc-1", true));
    ip("link del br-fc");
    let (_, message) = helper.err("priv.ensure_nat", &nat("172.16.0.2", "tap-fc-1", true));
    assert!(message.contains("priv.create_tap"), "{message}");
    helper.ok("priv.ensure_nat", &nat("172.16.0.2", "tap-fc-1", false));
    assert!(set("inet", "guests").is_empty() && set("inet", "opened").is_empty());
    assert_eq!(sysctl("eth0", "forwarding"), "0");
} }
