//! A helper that watches, a guest behind it, and others who change rules.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part")]

use crate::common::{Helper, Start, eventually, log_text, output};
use crate::world::{Guest, OUTSIDE, echo, nat, ruleset, set, tap, uplink};
use serde_json::Value;

/// The address outside that answers.
pub fn web() -> String {
    format!("{OUTSIDE}:7000")
}

/// `nft` with one text.
pub fn nft(text: &str) {
    output("nft", &[text]);
}

/// What `nft` said to what it refused.
pub fn nft_refused(text: &str) -> String {
    let output = std::process::Command::new("nft").arg(text).output().expect("nft");
    assert!(!output.status.success(), "{text}: nothing refused it");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A helper with that configuration, an outside, and a guest that is let out.
pub fn world(config: &str) -> (Helper, Guest) {
    uplink();
    echo("outside", 7000);
    let helper = Start::new().config(config).start();
    helper.ok("priv.create_tap", &tap("tap-fc-1"));
    let guest = Guest::boot("guest", "tap-fc-1", "172.16.0.2/24", "172.16.0.1");
    on(&helper);
    gets_out(&guest);
    (helper, guest)
}

/// Tables that others can change, as on a kernel without table flags.
pub const ANYBODYS: &str = "own_tables = false\n";

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

/// Our objects, without what comes and goes with packets.
pub fn ours() -> Vec<Value> {
    let learned = ["stations", "macs", "has_mac"];
    let mut ours: Vec<_> = ruleset().into_iter().filter(|object| object.to_string().contains("\"banger\"")).collect();
    for object in &mut ours {
        if object["set"]["name"].as_str().is_some_and(|name| learned.contains(&name)) {
            object["set"]["elem"] = Value::Null;
        }
    }
    ours
}

/// Waits until our objects are these again, and packets cross.
pub fn whole_again(what: &str, before: &[Value], guest: &Guest) {
    eventually(what, || ours() == before);
    eventually(what, || guest.tcp(&web(), "x").is_some() && guest.udp(&web(), "x").is_some());
}

/// The flags of both tables and whom they belong to, as the kernel tells: by a socket of the test's own.
pub fn flags() -> [String; 2] {
    ["inet", "bridge"].map(|family| {
        let text = output("nft", &["list", "table", family, "banger"]);
        let head = text.lines().next().unwrap_or_default();
        let flags = text.lines().find(|line| line.starts_with("\tflags"));
        format!("{} {}", head.split_once('{').map_or("", |(_, who)| who.trim()), flags.unwrap_or_default().trim())
    })
}

/// How often the log says it.
pub fn told(text: &str) -> usize {
    log_text().matches(text).count()
}

/// The elements of `guests`.
pub fn guests() -> Vec<String> {
    set("inet", "guests")
}
