//! A thousand guests: the rules that a packet meets are those of ten, and the last guest gets out as the first does.

#![allow(clippy::disallowed_methods, reason = "the bans are the helper's; a test sets its world up by paths")]

mod common;
#[path = "net/world.rs"]
mod world;

use common::{Helper, connect, reply};
use serde_json::{Value, json};
use std::io::Write;
use world::{Guest, OUTSIDE, echo, ruleset, set, uplink};

const MANY: usize = 1000;
const FEW: usize = 10;

/// The nth guest's tap, bridge and address. One bridge holds 1,023 taps.
fn guest(nth: usize) -> (Value, Value) {
    let (bridge, net) = [("br-fc", 16), ("br-fc-b", 17)][nth % 2];
    let tap = format!("tap-fc-{nth}");
    let ip = format!("172.{net}.{}.{}", 1 + nth / 200, 2 + nth % 200);
    (
        json!({"bridge_name": bridge, "bridge_ip": format!("172.{net}.0.1"), "cidr": "16", "tap_name": tap}),
        json!({"guest_ip": ip, "tap": tap, "enable": true}),
    )
}

/// Asked as root: no thread for each call.
fn ask(method: &str, params: &Value) {
    let mut stream = connect(0);
    stream.write_all(json!({"method": method, "params": params}).to_string().as_bytes()).expect("sent");
    let answer = reply(stream);
    assert_eq!(answer["ok"], true, "{method} {params}: {answer}");
}

fn add(nth: usize) {
    let (tap, nat) = guest(nth);
    ask("priv.create_tap", &tap);
    ask("priv.ensure_nat", &nat);
}

/// All of the ruleset that a packet meets: everything but the elements.
fn without_elements() -> Vec<Value> {
    let mut objects = ruleset();
    for object in &mut objects {
        if let Some(set) = object["set"].as_object_mut() {
            set.remove("elem");
        }
        if object["set"].is_null() {
            object.as_object_mut().expect("an object").remove("set");
        }
    }
    objects
}

isolated! { fn the_path_of_a_packet_is_the_same_with_a_thousand_guests() {
    uplink();
    echo("outside", 7000);
    let _helper = Helper::start();
    (0..FEW).for_each(add);
    let few = without_elements();
    assert!(few.iter().filter(|object| object["rule"].is_object()).count() > 20, "{few:?}");
    (FEW..MANY).for_each(add);
    assert_eq!(few, without_elements());
    assert_eq!((set("inet", "guests").len(), set("bridge", "ports").len()), (MANY, MANY));
    let (tap, nat) = guest(MANY - 1);
    let address = format!("{}/16", nat["guest_ip"].as_str().expect("text"));
    let last = Guest::boot("last", "tap-fc-999", &address, tap["bridge_ip"].as_str().expect("text"));
    assert_eq!(last.tcp(&format!("{OUTSIDE}:7000"), "hello").as_deref(), Some("198.51.100.2 said hello"));
} }
