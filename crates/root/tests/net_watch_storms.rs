//! Others who change rules and links while the helper asks and acts: nothing is stuck, and in the end all is as it must be.

#![allow(clippy::disallowed_methods, reason = "the bans are the helper's; a test sets its world up by paths")]

mod common;
#[path = "net/watched.rs"]
mod watched;
#[path = "net/way_out.rs"]
mod way_out;
#[path = "net/world.rs"]
mod world;

use common::{Helper, log_text, output};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use watched::{ANYBODYS, guests, nft, ours, whole_again, world};
use way_out::{on, web};
use world::{named, nat, ruleset, set, tap, uplink};

/// Asks, and takes either answer: refused or done, never stuck.
fn ask(helper: &Helper, method: &str, params: &Value) -> bool {
    helper.call(&json!({"method": method, "params": params}).to_string())["ok"] == true
}

isolated! { fn guests_come_back_whoever_changes_rules_and_links_meanwhile() {
    let (helper, guest) = world(ANYBODYS);
    let storms = [
        "for i in $(seq 60); do nft flush ruleset; nft add table ip a$i; nft add table inet banger 2>/dev/null; nft delete table inet banger 2>/dev/null; done; true",
        "for i in $(seq 60); do echo 'flush chain inet banger forward; flush set bridge banger ports; add rule inet banger leaving accept' | nft -f - 2>/dev/null; done; true",
        "for i in $(seq 40); do for j in $(seq 50); do echo link add d$j type dummy; done | ip -force -batch - 2>/dev/null; for j in $(seq 50); do echo link del d$j; done | ip -force -batch - 2>/dev/null; done; true",
        "for i in $(seq 200); do ip route replace 203.0.113.0/24 via 198.51.100.1; ip rule add pref 900 lookup 100; ip rule del pref 900; ip route del 203.0.113.0/24; done 2>/dev/null; true",
    ];
    std::thread::scope(|scope| {
        let running: Vec<_> = storms.iter().map(|storm| scope.spawn(move || output("sh", &["-c", storm]))).collect();
        let mut round = 0;
        while running.iter().any(|storm| !storm.is_finished()) {
            round += 1;
            let name = format!("tap-fc-{}", 2 + round % 3);
            // Refused or done, and never stuck: what stands at the end counts.
            for (method, params) in [("priv.create_tap", tap(&name)), ("priv.delete_tap", named(&name))] {
                helper.call(&serde_json::json!({"method": method, "params": params}).to_string());
            }
        }
        println!("{round} rounds beside the storms");
    });
    for name in ["tap-fc-2", "tap-fc-3", "tap-fc-4"] {
        helper.ok("priv.delete_tap", &named(name));
    }
    on(&helper);
    // The watcher looks less often at what is fought over, so the last of it may come a moment later than the guest's way.
    common::eventually_within(Duration::from_secs(30), "the guest's way", || guests() == ["br-fc . 172.16.0.2"] && guest.tcp(&web(), "x").is_some());
    let begun = Instant::now();
    common::eventually_within(Duration::from_secs(30), "all that belongs to it", || {
        [set("bridge", "ports"), set("inet", "bridges"), set("inet", "opened")] == [["tap-fc-1"], ["br-fc"], ["eth0"]]
    });
    println!("all of it {:?} later", begun.elapsed());
    assert!(log_text().lines().count() < 2000);
} }

isolated! { fn what_is_lost_while_nobody_listens_is_looked_at_whole() {
    let (helper, guest) = world(ANYBODYS);
    let before = ours();
    // Stopped, its sockets overflow; then it is told nothing but that something was lost.
    helper.signal(rustix::process::Signal::STOP);
    nft("flush ruleset");
    let elements: Vec<_> = (0..2000).map(|nth| format!("10.{}.{}.1", nth / 250, nth % 250)).collect();
    let noise = format!("add table ip noise\nadd set ip noise some {{ type ipv4_addr; }}\nadd element ip noise some {{ {} }}\ndelete table ip noise\n", elements.join(", "));
    std::fs::write("/mnt/noise", noise).unwrap();
    let drops = || {
        let all = std::fs::read_to_string(format!("/proc/{}/net/netlink", helper.pid())).unwrap();
        let mine = all.lines().filter(|line| line.split_whitespace().nth(1) == Some("12"));
        mine.filter_map(|line| line.split_whitespace().nth(8)?.parse::<u64>().ok()).sum::<u64>()
    };
    let end = Instant::now() + Duration::from_secs(60);
    while drops() == 0 {
        assert!(Instant::now() < end, "nothing was lost");
        output("nft", &["-f", "/mnt/noise"]);
    }
    helper.signal(rustix::process::Signal::CONT);
    whole_again("after what was lost", &before, &guest);
    nft("delete table inet banger");
    whole_again("and it hears again", &before, &guest);
} }

isolated! { fn links_that_vanish_between_question_and_action() {
    uplink();
    let helper = common::Start::new().start();
    let storm = "for i in $(seq 150); do for j in 1 2 3; do ip link del tap-fc-$j; ip link set tap-fc-$j nomaster; done; [ $((i % 3)) = 0 ] && ip link del br-fc; ip link set br-fc down; done 2>/dev/null; true";
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            output("sh", &["-c", storm]);
            over.store(true, Ordering::Relaxed);
        });
        let calls = |nth: u8| {
            let (helper, over) = (&helper, &over);
            scope.spawn(move || {
                let (name, address) = (format!("tap-fc-{nth}"), format!("172.16.0.{}", nth + 1));
                let mut done = [0; 2];
                while !over.load(Ordering::Relaxed) {
                    for (method, params) in [
                        ("priv.create_tap", tap(&name)),
                        ("priv.ensure_nat", nat(&address, &name, true)),
                        ("priv.ensure_bridge", world::bridge("br-fc", "172.16.0.1")),
                        ("priv.list_resources", Value::Null),
                        ("priv.ensure_nat", nat(&address, &name, false)),
                        ("priv.delete_tap", named(&name)),
                    ] {
                        done[usize::from(ask(helper, method, &params))] += 1;
                    }
                }
                done
            })
        };
        let all: Vec<_> = (1..4).map(calls).collect();
        let done: Vec<_> = all.into_iter().map(|thread| thread.join().unwrap()).collect();
        println!("figure: refused and done while links vanished: {done:?}");
        assert!(done.iter().all(|[_, done]| *done > 0));
    });
    for nth in 1..4 {
        helper.ok("priv.delete_tap", &named(&format!("tap-fc-{nth}")));
    }
    assert!(ruleset().is_empty(), "{:?}", ruleset());
    let records = std::fs::read_dir("/run/banger-root/records").unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(!records.into_iter().any(|name| name.starts_with("guest-") || name == "forwarding"));
    helper.ok("priv.create_tap", &tap("tap-fc-1"));
    on(&helper);
    assert_eq!((guests(), set("bridge", "ports")), (vec!["br-fc . 172.16.0.2".to_owned()], vec!["tap-fc-1".to_owned()]));
} }

isolated! { fn a_helper_that_is_stopped_and_goes_on_answers_all() {
    uplink();
    let helper = common::Start::new().start();
    // After a stop the kernel lets waiting calls end with EINTR.
    let end = Instant::now() + Duration::from_secs(4);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while Instant::now() < end {
                helper.signal(Signal::STOP);
                std::thread::sleep(Duration::from_micros(300));
                helper.signal(Signal::CONT);
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        for nth in 1..4_u8 {
            let helper = &helper;
            scope.spawn(move || {
                let (name, address) = (format!("tap-fc-{nth}"), format!("172.16.0.{}", nth + 1));
                while Instant::now() < end {
                    helper.ok("priv.create_tap", &tap(&name));
                    helper.ok("priv.ensure_nat", &nat(&address, &name, true));
                    helper.ok("priv.list_resources", &Value::Null);
                    helper.ok("priv.ensure_nat", &nat(&address, &name, false));
                    helper.ok("priv.delete_tap", &named(&name));
                }
            });
        }
    });
    assert!(ruleset().is_empty());
} }
