//! `banger doctor`, beside a helper and a daemon that serve: a guest runs, and what drops its packets is named.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]
#![allow(dead_code, reason = "the world has more than this test needs")]

mod world;

use serde_json::Value;
use std::process::Command;
use world::*;

/// A check's state, and all that is told of it.
fn check(id: &str) -> (String, String) {
    let told: Value = serde_json::from_slice(&run(&["doctor", "--only", id, "--json"]).stdout).unwrap();
    let check = &told["checks"][0];
    (check["state"].as_str().unwrap().to_owned(), check.to_string())
}

#[test]
fn a_guest_runs_and_the_rule_that_drops_its_packets_is_named() {
    isolated("a_guest_runs_and_the_rule_that_drops_its_packets_is_named", |_| {
        let shell = |script: &str| assert!(Command::new("sh").args(["-ec", script]).status().unwrap().success());
        shell(
            "ip link add wan type veth peer name far; ip addr add 198.51.100.2/24 dev wan; ip link set wan up
             ip link set far up; ip route add default via 198.51.100.1",
        );
        for id in ["helper", "daemon", "vmm", "guest", "way-out"] {
            let (found, told) = check(id);
            assert_eq!(found, "ok", "{told}");
        }
        shell(
            "nft 'add table inet site; add chain inet site forward { type filter hook forward priority 0; }; \
             add rule inet site forward counter drop'",
        );
        let (found, told) = check("way-out");
        assert!(found == "fail" && told.contains("site") && told.contains("forward"), "{told}");
    });
}
