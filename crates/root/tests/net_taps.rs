//! Many taps at once, a bridge that is full, and links that somebody else makes meanwhile.

#![allow(clippy::disallowed_methods, reason = "the bans are the helper's; a test sets its world up by paths")]

mod common;
#[path = "net/world.rs"]
mod world;

use common::{Helper, Start, eventually};
use rustix::process::Signal;
use serde_json::{Value, json};
use world::{bridge, difference, ip, link, nat, set, snapshot, sysctl, tap, uplink};

fn taps(names: &[&str]) -> Value {
    json!({"tap_names": names})
}

fn failed(helper: &Helper, method: &str, params: &Value, word: &str) {
    let before = snapshot();
    let (code, message) = helper.err(method, params);
    assert_eq!(code, "operation_failed", "{message}");
    assert!(message.contains(word), "{message:?} does not name {word:?}");
    assert_eq!(difference(&before, &snapshot()), "", "{method} {params}");
}

/// Asks on a thread of its own; where the helper stops by its fault, does `meanwhile`, and lets it go on.
fn with_a_stop(helper: &Helper, method: &str, params: &Value, meanwhile: impl FnOnce()) -> Value {
    let request = json!({"version": 1, "method": method, "params": params}).to_string();
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| helper.call(&request));
        let stat = format!("/proc/{}/stat", helper.pid());
        eventually("the helper stops", || std::fs::read_to_string(&stat).expect("stat").contains(") T "));
        meanwhile();
        helper.signal(Signal::CONT);
        asked.join().expect("an answer")
    })
}

fn stopping(step: &str) -> Helper {
    Start::new().config(&format!("fault = \"{step}:stop\"\n")).start()
}

fn told(reply: &Value) -> &str {
    assert_eq!(reply["error"]["code"], "operation_failed", "{reply}");
    reply["error"]["message"].as_str().expect("a message")
}

isolated! { fn a_tap_that_comes_while_the_last_one_goes_is_filtered() {
    let helper = Start::new().config("own_tables = false\nfault = \"delete_tap.rules:stop\"\n").start();
    helper.ok("priv.create_tap", &tap("tap-fc-1"));
    // Between the count and the change, as another call to the helper would.
    let reply = with_a_stop(&helper, "priv.delete_tap", &json!({"tap_name": "tap-fc-1"}), || {
        ip("tuntap add tap-fc-2 mode tap");
        common::output("ip", &["link", "set", "tap-fc-2", "alias", "banger tap"]);
        common::output("nft", &["add element bridge banger ports { tap-fc-2 }"]);
    });
    assert_eq!((reply["ok"].as_bool(), set("bridge", "ports")), (Some(true), vec!["tap-fc-2".to_owned()]), "{reply}");
    drop(helper);
    ip("link del tap-fc-2");

    let helper = Helper::start();
    helper.ok("priv.create_tap", &tap("tap-fc-1"));
    for round in 1..100 {
        let (goes, comes) = (format!("tap-fc-{round}"), format!("tap-fc-{}", round + 1));
        std::thread::scope(|scope| {
            scope.spawn(|| helper.ok("priv.delete_tap", &json!({"tap_name": goes})));
            std::thread::sleep(std::time::Duration::from_micros(round * 10));
            helper.ok("priv.create_tap", &tap(&comes));
        });
        assert_eq!(set("bridge", "ports"), [comes], "round {round}");
    }
} }

isolated! { fn many_taps_go_at_once_with_all_that_is_theirs() {
    uplink();
    let helper = Helper::start();
    helper.ok("priv.create_tap", &tap("tap-fc-keep"));
    helper.ok("priv.ensure_nat", &nat("172.16.0.99", "tap-fc-keep", true));
    let before = snapshot();
    let names: Vec<String> = (0..100).map(|nth| format!("tap-fc-{nth}")).collect();
    for (nth, name) in names.iter().enumerate() {
        helper.ok("priv.create_tap", &tap(name));
        if nth % 2 == 0 {
            helper.ok("priv.ensure_nat", &nat(&format!("172.16.0.{}", nth + 100), name, true));
        }
    }
    // One of another bridge, one that something has open, one on no bridge any more, one twice, one that never was.
    helper.ok("priv.create_tap", &json!({"bridge_name": "br-fc-2", "bridge_ip": "172.16.1.1", "cidr": "24", "tap_name": "tap-fc-7"}));
    let vm = sys::tapfd::attach("tap-fc-8").unwrap();
    ip("link set tap-fc-9 nomaster");
    let mut asked: Vec<&str> = names.iter().map(String::as_str).collect();
    asked.extend(["tap-fc-1", "tap-fc-never"]);
    helper.ok("priv.delete_taps", &taps(&asked));
    ip("link del br-fc-2");
    drop(vm);
    assert_eq!(set("bridge", "ports"), ["tap-fc-keep"]);
    assert_eq!(set("inet", "guests"), ["br-fc . 172.16.0.99"]);
    let mut after = snapshot();
    after.insert("rules", before["rules"].clone());
    assert_eq!(difference(&before, &after), "");
    // Asking again is asking for what is so.
    helper.ok("priv.delete_taps", &taps(&asked));
    helper.ok("priv.delete_taps", &taps(&[]));
    helper.ok("priv.delete_taps", &json!({}));
    helper.ok("priv.delete_taps", &taps(&["tap-fc-keep"]));
    assert!(world::ruleset().is_empty(), "the tables go with the last tap: {:?}", world::ruleset());
    assert_eq!(sysctl("eth0", "forwarding"), "0");
} }

isolated! { fn one_foreign_tap_refuses_all() {
    uplink();
    let helper = Helper::start();
    for (name, address) in [("tap-fc-1", "172.16.0.2"), ("tap-fc-2", "172.16.0.3")] {
        helper.ok("priv.create_tap", &tap(name));
        helper.ok("priv.ensure_nat", &nat(address, name, true));
    }
    ip("tuntap add tap-fc-3 mode tap");
    ip("link add tap-fc-4 type veth peer name p4");
    ip("link add lan type veth peer name lanp");
    ip("link property add dev lan altname tap-fc-5");
    ip("tuntap add tap-fc-6 mode tap");
    common::output("ip", &["link", "set", "tap-fc-6", "alias", "banger tap 2"]);
    for foreign in ["tap-fc-3", "tap-fc-4", "tap-fc-5", "tap-fc-6"] {
        failed(&helper, "priv.delete_taps", &taps(&["tap-fc-1", foreign, "tap-fc-2"]), foreign);
    }
    // A mark that was taken away is read again, and what an administrator grouped is no matter.
    common::output("ip", &["link", "set", "tap-fc-1", "alias", "mine now"]);
    failed(&helper, "priv.delete_taps", &taps(&["tap-fc-1", "tap-fc-2"]), "tap-fc-1");
    common::output("ip", &["link", "set", "tap-fc-1", "alias", "banger tap"]);
    for name in ["tap-fc-1", "tap-fc-3", "lan"] {
        ip(&format!("link set {name} group 77"));
    }
    helper.ok("priv.delete_taps", &taps(&["tap-fc-1", "tap-fc-2"]));
    assert!(link("tap-fc-1").is_none() && link("tap-fc-2").is_none());
    assert!(["tap-fc-3", "tap-fc-4", "lan", "lanp", "tap-fc-6"].iter().all(|name| link(name).is_some()));
} }

isolated! { fn who_joins_the_group_is_not_deleted_with_it() {
    let helper = stopping("delete_taps.link");
    for name in ["tap-fc-1", "tap-fc-2"] {
        helper.ok("priv.create_tap", &tap(name));
    }
    ip("link add precious type bridge");
    ip("link set tap-fc-2 group 5");
    let before = snapshot();
    let both = taps(&["tap-fc-1", "tap-fc-2"]);
    let reply = with_a_stop(&helper, "priv.delete_taps", &both, || {
        let group = link("tap-fc-1").unwrap()["group"].as_str().unwrap().to_owned();
        assert_eq!(link("tap-fc-2").unwrap()["group"], json!(group));
        ip(&format!("link set precious group {group}"));
    });
    assert!(told(&reply).contains("precious"), "{reply}");
    assert!(link("precious").is_some());
    ip("link set precious group default");
    assert_eq!(difference(&before, &snapshot()), "", "the taps have their groups again");
    // One that somebody takes over in that moment, one that he removes, one whose place a link of his has.
    let reply = with_a_stop(&helper, "priv.delete_taps", &both, || {
        common::output("ip", &["link", "set", "tap-fc-2", "alias", "mine now"]);
    });
    assert!(told(&reply).contains("tap-fc-2"), "{reply}");
    common::output("ip", &["link", "set", "tap-fc-2", "alias", "banger tap"]);
    let reply = with_a_stop(&helper, "priv.delete_taps", &both, || {
        ip("link del tap-fc-1");
        ip("link del tap-fc-2");
        ip("link add tap-fc-2 type bridge");
    });
    assert_eq!(reply["ok"], true, "{reply}");
    assert_eq!(link("tap-fc-2").unwrap()["linkinfo"]["info_kind"], "bridge");
} }

isolated! { fn many_callers_with_lists_that_cross() {
    let helper = Helper::start();
    helper.ok("priv.ensure_bridge", &bridge("br-fc", "172.16.0.1"));
    let before = snapshot();
    for _ in 0..3 {
        std::thread::scope(|scope| {
            for thread in 0..4usize {
                let helper = &helper;
                scope.spawn(move || {
                    let mut names: Vec<String> = (0..8).map(|nth| format!("tap-fc-{nth}")).collect();
                    names.rotate_left(thread * 2);
                    for name in &names {
                        helper.ok("priv.create_tap", &tap(name));
                    }
                    let names: Vec<&str> = names.iter().map(String::as_str).collect();
                    helper.ok("priv.delete_taps", &taps(&names));
                });
            }
        });
        helper.ok("priv.delete_taps", &taps(&["tap-fc-0", "tap-fc-1", "tap-fc-2", "tap-fc-3", "tap-fc-4", "tap-fc-5", "tap-fc-6", "tap-fc-7"]));
        assert_eq!(difference(&before, &snapshot()), "");
    }
} }

isolated! { fn a_full_bridge_says_so() {
    let helper = Start::new().config("[limits]\ntaps = 5000\n").start();
    for name in ["tap-fc-1", "tap-fc-3"] {
        helper.ok("priv.create_tap", &tap(name));
    }
    helper.ok("priv.create_tap", &json!({"bridge_name": "br-fc-2", "bridge_ip": "172.16.1.1", "cidr": "24", "tap_name": "tap-fc-3"}));
    // Both ends of each pair are ports: 1,022 in one batch, which taps would take far longer for.
    let pair = |nth| format!("link add a{nth} type veth peer name b{nth}\nlink set a{nth} master br-fc\nlink set b{nth} master br-fc\n");
    let batch: String = (0..511).map(pair).collect();
    common::make_file("/mnt/batch", batch.as_bytes(), 0, 0o600);
    ip("-batch /mnt/batch");
    // A new one, and one that is to move there: it stays where it was.
    failed(&helper, "priv.create_tap", &tap("tap-fc-2"), "holds 1,023 ports");
    failed(&helper, "priv.create_tap", &tap("tap-fc-3"), "holds 1,023 ports");
    assert_eq!(link("tap-fc-3").unwrap()["master"], "br-fc-2");
    helper.ok("priv.create_tap", &tap("tap-fc-1"));
    ip("link set a0 nomaster");
    helper.ok("priv.create_tap", &tap("tap-fc-2"));
} }

isolated! { fn a_bridge_is_read_anew_whichever_was_asked_for_before() {
    let helper = Helper::start();
    let on = |name: &str, bridge_ip: &str, tap: &str| {
        let new = json!({"bridge_name": name, "bridge_ip": bridge_ip, "cidr": "24", "tap_name": tap});
        helper.ok("priv.create_tap", &new);
        assert_eq!(link(tap).expect("a tap")["master"], name);
        assert_eq!(world::addresses(name), [format!("{bridge_ip}/24")], "{tap}");
    };
    on("br-fc", "172.16.0.1", "tap-fc-1");
    on("br-fc-2", "172.17.9.1", "tap-fc-2");
    on("br-fc", "172.16.0.1", "tap-fc-3");
    // Somebody takes the address of the one that was asked for last, then of the other.
    ip("addr flush dev br-fc");
    on("br-fc", "172.16.0.1", "tap-fc-4");
    ip("addr flush dev br-fc-2");
    on("br-fc-2", "172.17.9.1", "tap-fc-5");
    // The one that was asked for last is gone; then it is another link.
    ip("link del br-fc-2");
    on("br-fc", "172.16.0.1", "tap-fc-6");
    ip("link del br-fc");
    on("br-fc", "172.16.0.1", "tap-fc-7");
    assert!(link("tap-fc-6").expect("a tap that stays")["master"].is_null());
} }

isolated! { fn a_link_made_between_look_and_act_is_somebody_elses() {
    // A tap of root's, with flags that opening it would change.
    let helper = stopping("create_tap.tap");
    helper.ok("priv.ensure_bridge", &bridge("br-fc", "172.16.0.1"));
    let squatters: [&[&str]; 3] = [
        &["tuntap add tap-fc-1 mode tap"],
        &["tuntap add tap-fc-1 mode tap user 5501 multi_queue", "link set tap-fc-1 up"],
        &["link add tap-fc-1 type bridge"],
    ];
    for squatter in squatters {
        let mut made = Default::default();
        let reply = with_a_stop(&helper, "priv.create_tap", &tap("tap-fc-1"), || {
            squatter.iter().for_each(|line| { ip(line); });
            made = snapshot();
        });
        assert!(told(&reply).contains("tap-fc-1"), "{reply}");
        assert_eq!(difference(&made, &snapshot()), "", "{squatter:?}");
        ip("link del tap-fc-1");
    }
    drop(helper);
    ip("link del br-fc");
    let helper = stopping("ensure_bridge.bridge");
    for squatter in ["link add br-fc type bridge", "link add br-fc type veth peer name p"] {
        let mut made = Default::default();
        let reply = with_a_stop(&helper, "priv.ensure_bridge", &bridge("br-fc", "172.16.0.1"), || {
            ip(squatter);
            made = snapshot();
        });
        assert!(told(&reply).contains("br-fc"), "{reply}");
        assert_eq!(difference(&made, &snapshot()), "", "{squatter}");
        ip("link del br-fc");
    }
} }

isolated! { fn an_address_taken_between_look_and_act_is_somebody_elses() {
    let helper = stopping("ensure_bridge.bridge_address");
    ip("link add lan type veth peer name lanp");
    ip("link set lan up");
    ip("link set lanp up");
    let before = snapshot();
    // Another link gets the subnet.
    let reply = with_a_stop(&helper, "priv.ensure_bridge", &bridge("br-fc", "172.16.0.1"), || {
        ip("addr add 172.16.0.7/24 dev lan");
    });
    assert!(told(&reply).contains("lan"), "{reply}");
    assert!(link("br-fc").is_none());
    assert_eq!(world::addresses("lan")[0], "172.16.0.7/24");
    ip("addr del 172.16.0.7/24 dev lan");
    assert_eq!(difference(&before, &snapshot()), "");
    // The bridge itself gets the address by somebody: so it is.
    let reply = with_a_stop(&helper, "priv.ensure_bridge", &bridge("br-fc", "172.16.0.1"), || {
        ip("addr add 172.16.0.1/24 dev br-fc");
    });
    assert_eq!(reply["ok"], true, "{reply}");
    assert_eq!(world::addresses("br-fc"), ["172.16.0.1/24"]);
    // And what fails later leaves it to him.
    ip("addr flush dev br-fc");
    let reply = with_a_stop(&helper, "priv.ensure_bridge", &bridge("br-fc", "172.16.0.1"), || {
        ip("addr add 172.16.0.1/24 dev br-fc");
        ip("addr add 172.16.0.7/24 dev lan");
    });
    assert!(told(&reply).contains("lan"), "{reply}");
    assert_eq!(world::addresses("br-fc"), ["172.16.0.1/24"]);
} }
