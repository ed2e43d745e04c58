//! What is believed of taps and bridges between calls: nothing that others changed since, whatever they changed.

#![allow(clippy::disallowed_methods, reason = "the bans are the helper's; a test sets its world up by paths")]

mod common;
#[path = "net/way_out.rs"]
mod way_out;
#[path = "net/world.rs"]
mod world;

use common::Helper;
use way_out::on;
use world::{ip, link, nat, set, set_sysctl, sysctl, tap, uplink};

/// A guest with a way out, whose tap and bridge are known by now.
fn known() -> Helper {
    uplink();
    let helper = Helper::start();
    helper.ok("priv.create_tap", &tap("tap-fc-1"));
    on(&helper);
    on(&helper);
    helper
}

fn index(name: &str) -> String {
    link(name).expect("the link")["ifindex"].to_string()
}

fn marked(name: &str, alias: &str) {
    common::output("ip", &["link", "set", name, "alias", alias]);
}

const BRIDGE: &str = "banger bridge 172.16.0.1/24";

fn refused(helper: &Helper) {
    let (_, message) = helper.err("priv.ensure_nat", &nat("172.16.0.2", "tap-fc-1", true));
    assert!(message.contains("no tap tap-fc-1 of banger's on a bridge"), "{message}");
}

isolated! { fn a_bridge_that_somebody_took_is_nobody_of_ours() {
    let helper = known();
    for state in ["up", "down"] {
        ip(&format!("link set br-fc {state}"));
        for _ in 0..3 {
            on(&helper);
            ip("link set br-fc alias mine");
            refused(&helper);
            marked("br-fc", BRIDGE);
            on(&helper);
        }
    }
    // Down, taken, up.
    ip("link set br-fc down");
    on(&helper);
    ip("link set br-fc alias mine");
    ip("link set br-fc up");
    refused(&helper);
    // Another one with its name and number.
    marked("br-fc", BRIDGE);
    on(&helper);
    let index = index("br-fc");
    ip("link del br-fc");
    ip(&format!("link add br-fc index {index} type bridge"));
    ip("link set tap-fc-1 master br-fc");
    ip("link set br-fc up");
    refused(&helper);
} }

isolated! { fn a_tap_that_somebody_took_is_nobody_of_ours() {
    let helper = known();
    ip("link add br-theirs type bridge");
    ip("link set br-theirs up");
    for state in ["up", "down"] {
        ip(&format!("link set tap-fc-1 {state}"));
        for _ in 0..3 {
            on(&helper);
            marked("tap-fc-1", "mine");
            refused(&helper);
            marked("tap-fc-1", "banger tap");
            on(&helper);
            for other in ["master br-theirs", "nomaster"] {
                ip(&format!("link set tap-fc-1 {other}"));
                refused(&helper);
                ip("link set tap-fc-1 master br-fc");
                on(&helper);
            }
        }
    }
    // Another name, and another tap with this one.
    ip("link set tap-fc-1 up");
    on(&helper);
    ip("link set tap-fc-1 name tap-fc-2");
    refused(&helper);
    helper.ok("priv.ensure_nat", &nat("172.16.0.2", "tap-fc-2", true));
    ip("tuntap add tap-fc-1 mode tap");
    ip("link set tap-fc-1 master br-fc");
    ip("link set tap-fc-1 up");
    refused(&helper);
    let index = index("tap-fc-2");
    ip("link del tap-fc-2");
    ip(&format!("link add tap-fc-2 index {index} type veth peer name v-other"));
    ip("link set tap-fc-2 master br-fc");
    ip("link set tap-fc-2 up");
    let (_, message) = helper.err("priv.ensure_nat", &nat("172.16.0.2", "tap-fc-2", true));
    assert!(message.contains("no tap tap-fc-2 of banger's on a bridge"), "{message}");
} }

isolated! { fn a_bridge_s_new_name_and_switches_are_seen() {
    let helper = known();
    for _ in 0..10 {
        set_sysctl("br-fc", "forwarding", "0");
        on(&helper);
        assert_eq!(sysctl("br-fc", "forwarding"), "1");
    }
    ip("link set br-fc address 02:00:00:00:00:99");
    on(&helper);
    assert!(set("bridge", "macs").contains(&"02:00:00:00:00:99".to_owned()), "{:?}", set("bridge", "macs"));
    ip("link set br-fc name br-new");
    helper.ok("priv.ensure_nat", &nat("172.16.0.2", "tap-fc-1", true));
    let guests = set("inet", "guests");
    assert!(guests.contains(&"br-new . 172.16.0.2".to_owned()), "{guests:?}");
} }

isolated! { fn what_was_lost_for_want_of_room_is_not_believed() {
    let helper = known();
    // More than a socket holds; but for the last one the bridge stays ours.
    let mut lines: String = (0..400).map(|nth| format!("link set br-fc alias \"banger bridge{}\"\n", [" 172.16.0.1/24", ""][nth % 2])).collect();
    lines.push_str("link set br-fc alias mine\n");
    std::fs::write("/run/batch", lines).expect("a file");
    ip("-batch /run/batch");
    refused(&helper);
    marked("br-fc", BRIDGE);
    on(&helper);
} }
