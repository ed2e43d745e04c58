//! Every step of every network operation fails once, and is where the helper is killed once.

#![allow(clippy::disallowed_methods, reason = "the bans are the helper's; a test sets its world up by paths")]

mod common;
#[path = "net/world.rs"]
mod world;

use common::{Helper, Start, log_text};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use world::{bridge, difference, ip, named, nat, snapshot, tap, uplink};

/// The operations and their steps; `off` is `ensure_nat` that takes away, `mend` what puts right what is there.
const STEPS: [(&str, &[&str]); 9] = [
    ("ensure_bridge", &["bridge", "bridge_address", "bridge_mark", "bridge_up"]),
    (
        "create_tap",
        &[
            "bridge",
            "bridge_address",
            "bridge_mark",
            "bridge_up",
            "tap",
            "tap_owner",
            "tap_mark",
            "rules",
            "port",
            "keep",
        ],
    ),
    ("create_tap, mend", &["bridge_address", "bridge_mark", "bridge_up", "tap_owner", "tap_mark", "rules", "port"]),
    ("create_tap, moved", &["guest_record", "forwarding", "record", "connections", "rules", "port"]),
    ("delete_tap", &["detach", "guest_record", "forwarding", "rules", "record", "connections", "link"]),
    ("delete_taps", &["detach", "guest_record", "forwarding", "rules", "record", "connections", "group", "link"]),
    ("ensure_nat", &["record", "rules", "forwarding", "guest_record"]),
    ("ensure_nat, off", &["guest_record", "forwarding", "rules", "record", "connections"]),
    ("probe_network", &["probe_rules", "probe_tap", "probe_send"]),
];

/// Brings about what the operation finds.
fn ground(helper: &Helper, case: &str) {
    match case {
        "ensure_bridge" | "create_tap" => {}
        "create_tap, mend" => {
            helper.ok("priv.create_tap", &tap("tap-fc-1"));
            for change in [
                "addr flush dev br-fc",
                "link set br-fc down",
                "link set tap-fc-1 nomaster",
                "link set tap-fc-1 addrgenmode eui64",
            ] {
                ip(change);
            }
            world::set_sysctl("br-fc", "arp_ignore", "0");
            // Another user's, as an earlier helper with another owner left it.
            ip("link del tap-fc-1");
            ip(&format!("tuntap add tap-fc-1 mode tap user {} vnet_hdr", common::OTHER));
            common::output("ip", &["link", "set", "tap-fc-1", "alias", "banger tap"]);
        }
        "ensure_nat" => {
            helper.ok("priv.create_tap", &tap("tap-fc-1"));
        }
        "create_tap, moved" => {
            helper.ok("priv.ensure_bridge", &bridge("br-fc-b", "172.16.1.1"));
            helper.ok("priv.create_tap", &tap("tap-fc-1"));
            helper.ok("priv.ensure_nat", &nat("172.16.0.2", "tap-fc-1", true));
        }
        _ => {
            if case == "delete_taps" {
                helper.ok("priv.create_tap", &tap("tap-fc-2"));
                helper.ok("priv.ensure_nat", &nat("172.16.0.3", "tap-fc-2", true));
            }
            helper.ok("priv.create_tap", &tap("tap-fc-1"));
            helper.ok("priv.ensure_nat", &nat("172.16.0.2", "tap-fc-1", true));
        }
    }
}

/// The operation's request.
fn request(case: &str) -> (&'static str, Value) {
    match case {
        "ensure_bridge" => ("priv.ensure_bridge", bridge("br-fc", "172.16.0.1")),
        "create_tap, moved" => {
            let mut params = tap("tap-fc-1");
            params["bridge_name"] = "br-fc-b".into();
            params["bridge_ip"] = "172.16.1.1".into();
            ("priv.create_tap", params)
        }
        "create_tap" | "create_tap, mend" => ("priv.create_tap", tap("tap-fc-1")),
        "delete_tap" => ("priv.delete_tap", named("tap-fc-1")),
        "delete_taps" => ("priv.delete_taps", json!({"tap_names": ["tap-fc-1", "tap-fc-2"]})),
        "ensure_nat" => ("priv.ensure_nat", nat("172.16.0.2", "tap-fc-1", true)),
        "probe_network" => ("priv.probe_network", json!({"guest_ip": "172.16.0.2", "tap": "tap-fc-1"})),
        _ => ("priv.ensure_nat", nat("172.16.0.2", "tap-fc-1", false)),
    }
}

fn operation(case: &str) -> &str {
    case.split(',').next().expect("a part")
}

fn with_fault(fault: &str) -> Helper {
    Start::new().config(&format!("fault = {fault:?}\n")).start()
}

/// Takes everything away again, so that the next case begins from nothing.
fn clear(helper: &Helper) {
    helper.ok("priv.ensure_nat", &nat("172.16.0.2", "tap-fc-1", false));
    helper.ok("priv.delete_tap", &named("tap-fc-1"));
    for name in ["br-fc", "br-fc-b"] {
        if world::link(name).is_some() {
            ip(&format!("link del {name}"));
        }
    }
}

#[test]
fn no_step_is_forgotten() {
    let listed: BTreeSet<_> = STEPS.iter().flat_map(|(_, steps)| *steps).map(|step| step.to_string()).collect();
    let sources = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/net");
    let mut written = BTreeSet::new();
    for entry in std::fs::read_dir(sources).unwrap() {
        let path = entry.unwrap().path();
        // The resolver's steps, and the folder of its parts: tests/resolver.rs.
        if path.is_dir() || path.file_stem().is_some_and(|name| name == "resolver") {
            continue;
        }
        let text = std::fs::read_to_string(path).unwrap();
        for (at, _) in text.match_indices(".act(") {
            let rest = text[at + 5..].trim_start();
            written.insert(rest.trim_start_matches('"').split('"').next().unwrap().to_owned());
        }
    }
    assert_eq!(written, listed);
}

isolated! { fn a_step_that_fails_leaves_everything_as_it_was() {
    uplink();
    for (case, steps) in STEPS {
        for step in steps {
            let helper = Helper::start();
            ground(&helper, case);
            let before = snapshot();
            assert!(helper.stop().success());
            let helper = with_fault(&format!("{}.{step}:fail", operation(case)));
            let (method, params) = request(case);
            let (_, message) = helper.err(method, &params);
            assert!(message.contains(&format!("{}.{step} failed", operation(case))), "{case}: {message}");
            assert!(!message.contains("undone"), "{case}.{step}: {message}\n{}", log_text());
            // A way out that is closed can't be opened again for its connections: the next call ends them.
            if !(case == "ensure_nat, off" && *step == "connections") {
                assert_eq!(difference(&before, &snapshot()), "", "{case}.{step}: {message}");
            }
            assert!(helper.stop().success());
            let helper = Helper::start();
            helper.ok(method, &params);
            clear(&helper);
        }
    }
} }

isolated! { fn a_helper_killed_at_a_step_carries_on() {
    uplink();
    let nothing = snapshot();
    for (case, steps) in STEPS {
        let (method, params) = request(case);
        let helper = Helper::start();
        ground(&helper, case);
        helper.ok(method, &params);
        let whole = without_numbers(snapshot());
        clear(&helper);
        drop(helper);
        for step in steps {
            let helper = Helper::start();
            ground(&helper, case);
            assert!(helper.stop().success());
            let mut killed = with_fault(&format!("{}.{step}:kill", operation(case)));
            let reply = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| killed.ok(method, &params)));
            let status = killed.wait();
            assert!(reply.is_err() && !status.success(), "{case}.{step}: {reply:?} {status}");
            let again = Helper::start();
            again.ok(method, &params);
            assert_eq!(difference(&whole, &without_numbers(snapshot())), "", "{case}.{step}");
            clear(&again);
            assert_eq!(difference(&nothing, &snapshot()), "", "{case}.{step}, cleared away");
        }
    }
} }

/// Links are made anew in each round: their numbers and random MACs count for nothing.
fn without_numbers(
    mut state: std::collections::BTreeMap<&'static str, String>,
) -> std::collections::BTreeMap<&'static str, String> {
    for key in ["links", "addresses", "record", "rules"] {
        let text = state.remove(key).expect("the part");
        let own = |line: &&str| {
            let words = [
                "\"ifindex\"",
                "\"address\"",
                "\"link_index\"",
                "\"port_id\"",
                "\"port_no\"",
                "bridge_id",
                "\"root_id\"",
                "\"bridge\"",
                "_port\"",
                "\"no\":",
                "\"id\":",
            ];
            key != "record" && !words.iter().any(|word| line.contains(word))
        };
        let names: String =
            text.lines().map(|line| line.split_once(' ').map_or("", |(_, name)| name).to_owned() + "\n").collect();
        let kept: String = text.lines().filter(own).map(|line| format!("{line}\n")).collect();
        state.insert(key, if key == "record" { names } else { kept });
    }
    state
}

#[test]
fn requests_are_json() {
    assert_eq!(request("delete_tap").1, json!({"tap_name": "tap-fc-1"}));
}
