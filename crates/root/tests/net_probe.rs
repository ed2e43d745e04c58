//! A probe says where a guest's packet ends, leaves nothing behind, and nothing of it leaves.

#![allow(clippy::disallowed_methods, reason = "the bans are the helper's; a test sets its world up by paths")]

mod common;
#[path = "net/world.rs"]
mod world;

use common::{Helper, Start, eventually, output};
use serde_json::{Value, json};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use world::{difference, ip, nat, ruleset, snapshot, tap, uplink};

fn nft(text: &str) {
    output("nft", &[text]);
}

fn iptables(arguments: &str) -> String {
    output("iptables-nft", &arguments.split(' ').collect::<Vec<_>>())
}

fn legacy(arguments: &str) -> String {
    output("iptables-legacy", &arguments.split(' ').collect::<Vec<_>>())
}

/// A helper, an outside, and a guest with a way out.
fn world() -> Helper {
    uplink();
    let helper = Helper::start();
    helper.ok("priv.create_tap", &tap("tap-fc-1"));
    helper.ok("priv.ensure_nat", &nat("172.16.0.2", "tap-fc-1", true));
    helper
}

fn asked() -> Value {
    json!({"guest_ip": "172.16.0.2", "tap": "tap-fc-1"})
}

fn probe(helper: &Helper) -> Value {
    helper.ok("priv.probe_network", &asked())
}

/// Where it ended, as `END FAMILY TABLE CHAIN HANDLE: RULE`.
fn place(found: &Value) -> String {
    let by = &found["by"];
    let end = found["end"].as_str().expect("an end");
    match by.is_null() {
        true => end.to_owned(),
        false => {
            let part = |key: &str| by[key].as_str().expect(key).to_owned();
            format!("{end} {} {} {} {}: {}", part("family"), part("table"), part("chain"), by["handle"], part("rule"))
        }
    }
}

/// The handle of the rule of a chain whose text holds `text`.
fn handle(chain: &str, text: &str) -> String {
    let listed = output("nft", &[&["-a", "list", "chain"][..], &chain.split(' ').collect::<Vec<_>>()].concat());
    let line = listed.lines().find(|line| line.contains(text)).unwrap_or_else(|| panic!("{text} in {listed}"));
    line.rsplit(' ').next().expect("a handle").to_owned()
}

/// Writes down what passes a link, until it is dropped.
struct Capture(Child);

const SNIFF: &str = "
import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
s.bind((sys.argv[1], 0))
print('ready', flush=True)
while True:
    print(s.recv(2048).hex(), flush=True)
";

impl Capture {
    fn of(namespace: &str, link: &str, to: &str) -> Capture {
        let file = std::fs::File::create(to).expect(to);
        let child = Command::new("ip")
            .args(["netns", "exec", namespace, "python3", "-c", SNIFF, link])
            .stdout(file)
            .stdin(Stdio::null())
            .spawn()
            .expect("ip");
        let ready = || std::fs::read_to_string(to).is_ok_and(|text| text.contains("ready"));
        let end = Instant::now() + Duration::from_secs(30);
        while !ready() {
            assert!(Instant::now() < end, "no capture on {link}");
            std::thread::sleep(Duration::from_millis(5));
        }
        Capture(child)
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

isolated! { fn an_open_way_is_open_and_nothing_is_left() {
    let helper = world();
    // A VMM holds the tap meanwhile.
    let guest = world::Guest::boot("guest", "tap-fc-1", "172.16.0.2/24", "172.16.0.1");
    assert_eq!(guest.tcp("198.51.100.1:9", "x"), None, "nobody listens there, and its MAC is learned");
    let before = snapshot();
    let outside = Capture::of("outside", "up0", "/mnt/outside");
    let inside = Capture::of("guest", "eth0", "/mnt/inside");
    let since = Instant::now();
    let found = probe(&helper);
    let took = since.elapsed();
    assert_eq!(found, json!({"end": "open", "uplink": "eth0", "by": null, "why": ""}));
    assert_eq!(difference(&before, &snapshot()), "");
    assert_eq!(output("conntrack", &["-L", "-d", "192.0.2.1"]), "", "no connection stays");
    for _ in 0..5 {
        assert_eq!(probe(&helper), found);
    }
    println!("a probe took {took:?}");
    assert!(took < Duration::from_secs(2), "{took:?}");
    // What goes out there afterwards shows that the capture listened.
    output("ping", &["-c1", "-W2", "198.51.100.1"]);
    eventually("the ping was seen", || std::fs::read_to_string("/mnt/outside").unwrap().lines().count() > 1);
    for captured in ["/mnt/outside", "/mnt/inside"] {
        let text = std::fs::read_to_string(captured).unwrap();
        assert!(!text.contains("c0000201"), "something of the probe was seen: {captured} {text}");
    }
    drop((outside, inside));
} }

isolated! { fn what_drops_is_named_with_table_chain_handle_and_rule() {
    let helper = world();
    nft("add table inet mine; add chain inet mine fence { type filter hook forward priority 10; policy drop; }");
    assert_eq!(place(&probe(&helper)), "dropped inet mine fence 0: policy drop");
    nft("delete table inet mine");
    nft("add table ip yours; add chain ip yours wall { type filter hook forward priority 20; policy accept; }");
    nft("add chain ip yours deep; add rule ip yours wall iifname \"br-fc\" jump deep");
    nft("add rule ip yours deep ip saddr 172.16.0.0/16 udp dport 443 counter reject comment \"not for guests\"");
    let deep = handle("ip yours deep", "not for guests");
    let found = probe(&helper);
    assert_eq!(
        place(&found),
        format!("dropped ip yours deep {deep}: ip saddr 172.16.0.0/16 meta l4proto udp th dport 443 counter reject comment \"not for guests\"")
    );
    assert_eq!(found["uplink"], "eth0");
    assert!(found["why"].as_str().unwrap().contains("another firewall"));
    nft("delete table ip yours");
    // Before it is forwarded, and before the host's own stack.
    nft("add table ip raw2; add chain ip raw2 pre { type filter hook prerouting priority -400; }; add rule ip raw2 pre ip daddr 192.0.2.0/24 drop");
    assert_eq!(place(&probe(&helper)), format!("dropped ip raw2 pre {}: ip daddr 192.0.2.0/24 drop", handle("ip raw2 pre", "drop")));
    nft("delete table ip raw2");
    nft("add table bridge b; add chain bridge b pre { type filter hook prerouting priority 0; policy drop; }");
    assert_eq!(place(&probe(&helper)), "dropped bridge b pre 0: policy drop");
    nft("delete table bridge b");
    // iptables's own, with its matches and targets.
    iptables("-A FORWARD -i br-fc -m conntrack --ctstate NEW -j REJECT");
    iptables("-I FORWARD -p icmp -j ACCEPT");
    // The helper has its mark accepted there by itself; somebody's raw table it leaves alone.
    eventually("the rule", || place(&probe(&helper)) == "open");
    iptables("-t raw -A PREROUTING -i br-fc -m comment --comment docker -j DROP");
    let found = place(&probe(&helper));
    assert!(found.starts_with("dropped ip raw PREROUTING "), "{found}");
    assert!(found.ends_with(": iifname \"br-fc\" counter drop comment \"docker\""), "{found}");
    iptables("-t raw -F");
    assert_eq!(place(&probe(&helper)), "open");
} }

isolated! { fn a_reject_is_not_told_to_the_guest_that_sent_nothing() {
    let helper = world();
    let guest = world::Guest::boot("guest", "tap-fc-1", "172.16.0.2/24", "172.16.0.1");
    assert_eq!(guest.tcp("198.51.100.1:9", "x"), None, "its MAC is learned");
    nft("add table ip yours; add chain ip yours wall { type filter hook forward priority 20; policy accept; }");
    nft("add rule ip yours wall ip daddr 192.0.2.1 reject with icmp type admin-prohibited");
    let inside = Capture::of("guest", "eth0", "/mnt/inside");
    let heard = || std::fs::read_to_string("/mnt/inside").unwrap().lines().filter(|line| line.contains("c0000201")).count();
    assert_eq!(probe(&helper)["end"], "dropped");
    // What it sends itself it hears of: two frames, its own and the answer that quotes it.
    assert_eq!(guest.udp("192.0.2.1:443", "x"), None);
    eventually("the guest's own", || heard() >= 2);
    assert_eq!(heard(), 2, "and nothing of the probe's");
    drop(inside);
} }

isolated! { fn no_way_of_our_own_no_route_no_forwarding_are_told_apart() {
    let helper = world();
    helper.ok("priv.create_tap", &tap("tap-fc-2"));
    let other = json!({"guest_ip": "172.16.0.3", "tap": "tap-fc-2"});
    let found = helper.ok("priv.probe_network", &other);
    assert!(place(&found).starts_with("dropped inet banger leaving "), "{found}");
    assert!(place(&found).ends_with("counter drop comment \"no way out was asked for\""), "{found}");
    assert!(found["why"].as_str().unwrap().contains("priv.ensure_nat"), "{found}");
    // No route, and one that says no.
    ip("route del default");
    assert_eq!(probe(&helper)["end"], "no_route");
    ip("route add prohibit default");
    let found = probe(&helper);
    assert_eq!(found["end"], "no_route", "{found}");
    ip("route del prohibit default");
    ip("route add default via 198.51.100.1");
    assert_eq!(probe(&helper)["end"], "open");
    // Another route leads to the guest: the host does not believe the sender.
    ip("link add wrong0 type veth peer name wrong1");
    ip("link set wrong1 up");
    ip("link set wrong0 up");
    ip("route add 172.16.0.2/32 dev wrong0");
    let found = probe(&helper);
    assert!(found["end"] == "not_forwarded" && found["why"].as_str().unwrap().contains("rp_filter"), "{found}");
    ip("link del wrong0");
    // Forwarding off: on the bridge, and where answers come in.
    for (link, word) in [("br-fc", "forwarding is off on br-fc"), ("eth0", "forwarding is off on eth0")] {
        helper.ok("priv.ensure_nat", &nat("172.16.0.2", "tap-fc-1", false));
        let found = probe(&helper);
        assert_eq!(found["end"], "not_forwarded", "{found}");
        assert!(found["why"].as_str().unwrap().contains("has no way out"), "{found}");
        helper.ok("priv.ensure_nat", &nat("172.16.0.2", "tap-fc-1", true));
        // Somebody who does not let go: else the helper puts it back before the packet is sent.
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    world::set_sysctl(link, "forwarding", "0");
                    std::thread::sleep(Duration::from_micros(200));
                }
            });
            let end = Instant::now() + Duration::from_secs(20);
            let said = loop {
                let found = probe(&helper);
                let is_it = found["end"] == "not_forwarded" && found["why"].as_str().unwrap().contains(word);
                if is_it || Instant::now() > end {
                    break found;
                }
            };
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(said["end"] == "not_forwarded" && said["why"].as_str().unwrap().contains(word), "{said}");
        });
        world::set_sysctl(link, "forwarding", "1");
    }
    assert_eq!(probe(&helper)["end"], "open");
} }

isolated! { fn old_iptables_is_no_riddle() {
    let helper = world();
    legacy("-t mangle -A FORWARD -i br-fc -j DROP");
    let found = probe(&helper);
    assert_eq!(found["end"], "lost", "{found}");
    let why = found["why"].as_str().unwrap();
    assert!(why.contains("passed nftables") && why.contains("iptables-legacy has tables here (") && why.contains("mangle"), "{why}");
    legacy("-t mangle -F");
    assert_eq!(probe(&helper)["end"], "open");
} }

isolated! { fn only_a_guest_of_the_tap_is_asked_about_and_nothing_else_can_be_sent() {
    let helper = world();
    helper.ok("priv.create_tap", &tap("tap-fc-2"));
    let before = snapshot();
    for (ip, tap, word) in [
        ("172.16.0.1", "tap-fc-1", "no guest's address"),
        ("172.16.0.255", "tap-fc-1", "no guest's address"),
        ("10.0.0.1", "tap-fc-1", "no guest's address"),
        ("172.16.0.9", "tap-fc-1", "has another address"),
        ("172.16.0.2", "tap-fc-2", "a guest on another tap"),
        ("172.16.0.2", "tap-fc-3", "priv.create_tap"),
    ] {
        let (code, message) = helper.err("priv.probe_network", &json!({"guest_ip": ip, "tap": tap}));
        assert!(code == "operation_failed" && message.contains(word), "{ip} {tap}: {message}");
    }
    let (code, _) = helper.err("priv.probe_network", &json!({"guest_ip": "172.16.0.2", "tap": "tap-fc-1", "to": "198.51.100.1"}));
    assert_eq!(code, "bad_params");
    // Somebody's own tap, or table, of the probe's name.
    ip("tuntap add banger-probe mode tap");
    let (_, message) = helper.err("priv.probe_network", &asked());
    assert!(message.contains("banger-probe"), "{message}");
    ip("link del banger-probe");
    nft("add table inet banger_probe");
    let (_, message) = helper.err("priv.probe_network", &asked());
    assert!(message.contains("not banger's"), "{message}");
    assert!(output("nft", &["list", "tables"]).contains("inet banger_probe"));
    nft("delete table inet banger_probe");
    assert_eq!(difference(&before, &snapshot()), "");
} }

isolated! { fn many_at_once_while_others_trace_and_change_rules() {
    let helper = world();
    nft("add table ip loud; add chain ip loud out { type filter hook output priority 0; }; add rule ip loud out meta nftrace set 1; add rule ip loud out ip daddr 198.51.100.77 drop");
    let stop = std::sync::atomic::AtomicBool::new(false);
    let busy = || !stop.load(std::sync::atomic::Ordering::Relaxed);
    std::thread::scope(|scope| {
        // Another's packets are traced, and dropped, all the time.
        scope.spawn(|| {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
            while busy() {
                let _ = socket.send_to(b"x", "198.51.100.77:9");
                std::thread::sleep(Duration::from_micros(300));
            }
        });
        scope.spawn(|| {
            while busy() {
                nft("add table ip other; delete table ip other");
            }
        });
        let probes: Vec<_> = (0..6)
            .map(|_| scope.spawn(|| (0..4).map(|_| probe(&helper)["end"].clone()).collect::<Vec<_>>()))
            .collect();
        let ends: Vec<_> = probes.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(ends, vec!["open"; 24]);
    });
} }

isolated! { fn a_helper_that_dies_in_the_middle_leaves_nothing() {
    uplink();
    let helper = Helper::start();
    helper.ok("priv.create_tap", &tap("tap-fc-1"));
    helper.ok("priv.ensure_nat", &nat("172.16.0.2", "tap-fc-1", true));
    assert!(helper.stop().success());
    let before = snapshot();
    for step in ["probe_rules", "probe_tap", "probe_send"] {
        let mut killed = Start::new().config(&format!("fault = \"probe_network.{step}:kill\"\n")).start();
        let reply = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| probe(&killed)));
        assert!(reply.is_err() && !killed.wait().success());
        // The kernel takes some time to end a link.
        eventually(step, || difference(&before, &snapshot()).is_empty());
    }
    // What a kernel without owners of tables keeps, the next start takes away.
    for family in ["inet", "bridge"] {
        nft(&format!("add table {family} banger_probe {{ comment \"banger: a probe is under way\"; }}"));
    }
    let helper = Helper::start();
    eventually("swept", || !ruleset().iter().any(|object| object.to_string().contains("banger_probe")));
    assert!(helper.stop().success());
    assert_eq!(difference(&before, &snapshot()), "");
} }

mod lab {
    //! What the lab's kernel has, and this machine's may lack.

    use super::*;

    isolated! { fn a_queue_is_named() {
        let helper = world();
        nft("add table inet q; add chain inet q f { type filter hook forward priority 5; }");
        nft("add rule inet q f iifname br-fc queue num 7 bypass");
        assert_eq!(probe(&helper)["end"], "open", "nobody is there, and the rule says bypass");
        nft("flush chain inet q f; add rule inet q f iifname br-fc queue num 7");
        let found = probe(&helper);
        assert!(place(&found).starts_with("queued inet q f "), "{found}");
    } }
}
