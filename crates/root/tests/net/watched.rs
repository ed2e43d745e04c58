//! A helper that watches, a guest behind it, and others who change rules.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part")]

use crate::common::{Helper, Start, eventually, log_text, output};
use crate::way_out::{gets_out, inside, on, web};
use crate::world::{Guest, ruleset, set};
use serde_json::Value;

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
    let (helper, guest) = inside(Start::new().config(config));
    on(&helper);
    gets_out(&guest);
    (helper, guest)
}

/// Tables that others can change, as on a kernel without table flags.
pub const ANYBODYS: &str = "own_tables = false\n";

/// Our objects, without what comes and goes with packets.
pub fn ours() -> Vec<Value> {
    let learned = ["stations", "macs", "has_mac"];
    let mut ours: Vec<_> = ruleset().into_iter().filter(|object| object.to_string().contains("\"banger\"")).collect();
    for object in &mut ours {
        // Whose it is, is asked of `flags`.
        if let Some(table) = object.get_mut("table").and_then(Value::as_object_mut) {
            table.remove("owned");
        }
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
