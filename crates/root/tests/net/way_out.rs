//! One guest on one tap, a host outside that answers, and the guest's way there: what many network tests begin with.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part")]

use crate::common::{Helper, Start};
use crate::world::{Guest, OUTSIDE, echo, nat, tap, uplink};

/// The address outside that answers.
pub fn web() -> String {
    format!("{OUTSIDE}:7000")
}

/// A helper, an outside, and a guest that is not let out yet.
pub fn inside(start: Start) -> (Helper, Guest) {
    uplink();
    echo("outside", 7000);
    let helper = start.start();
    helper.ok("priv.create_tap", &tap("tap-fc-1"));
    let guest = Guest::boot("guest", "tap-fc-1", "172.16.0.2/24", "172.16.0.1");
    (helper, guest)
}

/// The guest has a way out.
pub fn on(helper: &Helper) {
    helper.ok("priv.ensure_nat", &nat("172.16.0.2", "tap-fc-1", true));
}

/// It has none.
pub fn off(helper: &Helper) {
    helper.ok("priv.ensure_nat", &nat("172.16.0.2", "tap-fc-1", false));
}

/// TCP and UDP go out and come back.
pub fn gets_out(guest: &Guest) {
    assert_eq!(guest.tcp(&web(), "hello").as_deref(), Some("198.51.100.2 said hello"), "TCP");
    assert_eq!(guest.udp(&web(), "hello").as_deref(), Some("198.51.100.2 said hello"), "UDP");
}
