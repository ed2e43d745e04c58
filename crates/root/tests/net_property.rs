//! Any calls of the six network methods by four callers at once, while the helper is killed and started again, end in
//! what the model says, read back by `ip` and `nft`.
//!
//! `BANGER_PROPERTY_SECONDS` lets it run longer, `BANGER_PROPERTY_SEED` begins with a seed that failed. A seed fixes the
//! calls and the kills, not who comes first.

#![allow(clippy::disallowed_methods, reason = "the bans are the helper's; a test reads its world by paths")]

mod common;
#[path = "net/model.rs"]
mod model;
#[path = "net/world.rs"]
mod world;

use common::{Helper, OWNER, connect_to, log_text};
use model::{BRIDGES, Model, Seed, TAPS};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use world::{ip, link, links, ruleset, set, sysctl, uplink};

const CALLERS: u64 = 4;
const CALLS: usize = 24;
const KILLS: u64 = 4;

fn number(variable: &str, usual: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

isolated! { fn any_calls_and_kills_end_in_what_the_model_says() {
    uplink();
    let end = Instant::now() + Duration::from_secs(number("BANGER_PROPERTY_SECONDS", 10));
    let first = number("BANGER_PROPERTY_SEED", u64::from(std::process::id()) << 20 ^ u64::from(now()));
    let mut seed = first;
    while seed == first || Instant::now() < end {
        println!("BANGER_PROPERTY_SEED={seed}");
        one(seed);
        seed += 1;
    }
    println!("{} seeds", seed - first);
} }

fn now() -> u32 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.subsec_micros())
}

/// One world: the callers' calls, the kills, the comparison, and everything taken away.
fn one(seed: u64) {
    let mut helper = Some(Helper::start());
    let done = AtomicUsize::new(0);
    let models: Vec<Model> = std::thread::scope(|scope| {
        let done = &done;
        let callers: Vec<_> = (0..CALLERS).map(|caller| scope.spawn(move || calls(seed, caller, done))).collect();
        let mut when = Seed(seed ^ 0x6b69_6c6c);
        for _ in 0..KILLS {
            // After so many calls more, wherever the others are then.
            let more = 4 + when.below(CALLERS * CALLS as u64 / KILLS) as usize;
            let at = done.load(Ordering::Relaxed) + more;
            while done.load(Ordering::Relaxed) < at && callers.iter().any(|caller| !caller.is_finished()) {
                std::thread::sleep(Duration::from_micros(100 + when.below(900)));
            }
            helper.take().expect("a helper").kill();
            helper = Some(Helper::start());
        }
        callers.into_iter().map(|caller| caller.join().expect("a caller")).collect()
    });
    let mut all = Model::default();
    for model in models {
        all.bridges.extend(model.bridges);
        all.taps.extend(model.taps);
    }
    compare(&all);
    let helper = helper.expect("a helper");
    for caller in 0..CALLERS {
        for tap in 0..TAPS {
            helper.ok("priv.delete_tap", &json!({"tap_name": model::tap(caller, tap)}));
        }
    }
    compare(&Model { bridges: all.bridges.clone(), taps: BTreeMap::new() });
    for on in &all.bridges {
        ip(&format!("link del {}", BRIDGES[*on].0));
    }
    helper.stop();
}

/// A caller's calls, each asked again until it is answered.
fn calls(seed: u64, caller: u64, done: &AtomicUsize) -> Model {
    let (mut seed, mut model) = (Seed(seed.wrapping_mul(CALLERS).wrapping_add(caller)), Model::default());
    let mut told = Vec::new();
    for _ in 0..CALLS {
        let call = seed.call();
        let before = model.clone();
        let good = model.act(caller, call);
        let (method, params) = call.request(caller);
        let reply = answered(&json!({"version": 1, "method": method, "params": params}).to_string());
        told.push(call);
        assert_eq!(reply["ok"], good, "caller {caller}: {told:?}\nbefore: {before:?}\n{reply}\n{}", log_text());
        done.fetch_add(1, Ordering::Relaxed);
    }
    model
}

/// Asks until a whole reply comes: a helper that is killed gives none, and the next one is asked the same.
fn answered(request: &str) -> Value {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let mut text = String::new();
        let asked = connect_to(OWNER, common::SOCKET).and_then(|mut stream| {
            stream.write_all(request.as_bytes()).and_then(|()| stream.read_to_string(&mut text))
        });
        if asked.is_ok() && text.ends_with('\n') {
            return serde_json::from_str(&text).expect("JSON");
        }
        assert!(Instant::now() < end, "no answer: {asked:?} {}", log_text());
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn named(family: &str, name: &str) -> BTreeSet<String> {
    set(family, name).into_iter().collect()
}

/// What the kernel and the records have, against the model.
fn compare(model: &Model) {
    let what = format!("{model:?}\n{}", log_text());
    let name = |on: usize| BRIDGES[on].0.to_owned();
    let is = |alias: &str| {
        let of =
            links().into_iter().filter(|link| link["ifalias"].as_str().is_some_and(|text| text.starts_with(alias)));
        of.map(|link| {
            (
                link["ifname"].as_str().unwrap_or_default().to_owned(),
                link["master"].as_str().unwrap_or_default().to_owned(),
            )
        })
        .collect::<BTreeMap<_, _>>()
    };
    let bridges: BTreeMap<_, _> = model.bridges.iter().map(|on| (name(*on), String::new())).collect();
    assert_eq!(is("banger bridge"), bridges, "{what}");
    let taps: BTreeMap<_, _> = model.taps.iter().map(|(tap, there)| (tap.clone(), name(there.bridge))).collect();
    assert_eq!(is("banger tap"), taps, "{what}");
    let ways: Vec<_> = model.taps.iter().filter(|(_, tap)| tap.way).collect();
    let pin = |tap: &model::Tap| tap.pin.clone().unwrap_or_default();

    if taps.is_empty() {
        assert!(ruleset().iter().all(|object| object["table"]["name"] != "banger"), "{what}");
    } else {
        let known = named("inet", "bridges");
        let in_use: BTreeSet<_> = taps.values().cloned().collect();
        assert!(known.is_superset(&in_use) && known.iter().all(|on| bridges.contains_key(on)), "{known:?} {what}");
        let together: BTreeSet<_> = known.iter().map(|on| format!("{on} . {on}")).collect();
        assert_eq!(named("inet", "together"), together, "{what}");
        let guests = ways.iter().map(|(_, tap)| format!("{} . {}", name(tap.bridge), pin(tap))).collect();
        assert_eq!(named("inet", "guests"), guests, "{what}");
        assert_eq!(named("bridge", "ports"), taps.keys().cloned().collect(), "{what}");
        let held: Vec<_> = model.taps.iter().filter(|(_, tap)| tap.pin.is_some()).collect();
        let addresses = held.iter().map(|(name, tap)| format!("{name} . {}", pin(tap))).collect();
        assert_eq!(named("bridge", "addresses"), addresses, "{what}");
        assert_eq!(named("bridge", "has_ip"), held.iter().map(|(name, _)| (*name).clone()).collect(), "{what}");
        let own = BRIDGES.iter().filter(|(on, _)| known.contains(*on));
        let mut ips: BTreeSet<_> = own.map(|(_, net)| format!("{net}.1")).collect();
        ips.extend(held.iter().map(|(_, tap)| pin(tap)));
        assert_eq!(named("bridge", "ips"), ips, "{what}");
        let opened = if ways.is_empty() { BTreeSet::new() } else { BTreeSet::from(["eth0".to_owned()]) };
        assert_eq!(named("inet", "opened"), opened, "{what}");
    }

    assert_eq!(sysctl("eth0", "forwarding"), if ways.is_empty() { "0" } else { "1" }, "{what}");
    for on in bridges.keys() {
        let forwards = ways.iter().any(|(_, tap)| name(tap.bridge) == *on);
        // With the last of all guests it is put back everywhere, not before.
        if forwards || ways.is_empty() {
            assert_eq!(sysctl(on, "forwarding"), if forwards { "1" } else { "0" }, "{on} {what}");
        }
        assert!(link(on).is_some_and(|link| link["flags"].as_array().is_some_and(|all| all.contains(&"UP".into()))));
    }
    let records = std::fs::read_dir("/run/banger-root/records").expect("records");
    let recorded: BTreeSet<_> = records
        .map(|entry| entry.expect("an entry"))
        .map(|entry| (entry.file_name().into_string().expect("a name"), std::fs::read_link(entry.path()).ok()))
        .filter_map(|(file, target)| target.map(|target| format!("{file} {}", target.display())))
        .collect();
    let wanted = ways.iter().map(|(tap, there)| format!("guest-{} {} {tap}", pin(there), name(there.bridge))).collect();
    assert_eq!(recorded, wanted, "{what}");
    assert_eq!(common::exists("/run/banger-root/records/forwarding"), !ways.is_empty(), "{what}");
}
