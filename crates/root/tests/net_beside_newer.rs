//! Beside firewalls that are newer than Debian's: Docker 28's and 29's rules, written by hand as they write them, and a
//! firewalld whose table is its own.

#![allow(clippy::disallowed_methods, reason = "the bans are the helper's; a test sets its world up by paths")]

mod common;
#[path = "net/way_out.rs"]
mod way_out;
#[path = "net/world.rs"]
mod world;

use common::{Helper, eventually, output};
use serde_json::{Value, json};
use std::io::Write as _;
use std::process::{Command, Stdio};
use way_out::{gets_out, on, web};
use world::{Guest, echo, ip, nat, ruleset, tap, uplink};

const MARKED: &str = "-m mark --mark 0x62000000/0xff000000 -m comment --comment banger -j ACCEPT";

fn iptables(arguments: &str) -> String {
    output("iptables-nft", &arguments.split(' ').collect::<Vec<_>>())
}

/// A helper, an outside, a guest that is not let out yet, and a container 172.17.0.2 on `docker0`.
fn world() -> (Helper, Guest) {
    uplink();
    echo("outside", 7000);
    ip("link add docker0 type bridge");
    ip("addr add 172.17.0.1/16 dev docker0");
    ip("link set docker0 up");
    ip("netns add box");
    ip("link add veth0 type veth peer name eth0 netns box");
    ip("link set veth0 master docker0 up");
    ip("-n box addr add 172.17.0.2/16 dev eth0");
    ip("-n box link set eth0 up");
    ip("-n box route add default via 172.17.0.1");
    echo("box", 7001);
    // As dockerd does it.
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("ip_forward");
    let helper = Helper::start();
    helper.ok("priv.create_tap", &tap("tap-fc-1"));
    let guest = Guest::boot("guest", "tap-fc-1", "172.16.0.2/24", "172.16.0.1");
    echo("guest", 7002);
    (helper, guest)
}

/// Whether the container gets into the guest.
fn container_gets_in() -> bool {
    let into = || std::net::TcpStream::connect_timeout(&([172, 16, 0, 2], 7002).into(), world::PATIENCE).is_ok();
    world::within("box", into).join().expect("joined")
}

fn probe(helper: &Helper) -> Value {
    helper.ok("priv.probe_network", &json!({"guest_ip": "172.16.0.2", "tap": "tap-fc-1"}))
}

isolated! { fn beside_docker_28_s_rules() {
    let (helper, guest) = world();
    for rule in [
        "-N DOCKER", "-N DOCKER-BRIDGE", "-N DOCKER-CT", "-N DOCKER-FORWARD", "-N DOCKER-USER",
        "-N DOCKER-ISOLATION-STAGE-1", "-N DOCKER-ISOLATION-STAGE-2",
        "-P FORWARD DROP", "-A FORWARD -j DOCKER-USER", "-A FORWARD -j DOCKER-FORWARD",
        "-A DOCKER ! -i docker0 -o docker0 -j DROP",
        "-A DOCKER-BRIDGE -o docker0 -j DOCKER",
        "-A DOCKER-CT -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-A DOCKER-FORWARD -j DOCKER-CT", "-A DOCKER-FORWARD -j DOCKER-ISOLATION-STAGE-1",
        "-A DOCKER-FORWARD -j DOCKER-BRIDGE", "-A DOCKER-FORWARD -i docker0 -j ACCEPT",
        "-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2",
        "-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP",
        "-t raw -A PREROUTING -d 172.17.0.2/32 ! -i docker0 -j DROP",
    ] {
        iptables(rule);
    }
    let before = iptables("-S");
    on(&helper);
    gets_out(&guest);
    assert_eq!(probe(&helper)["end"], "open");
    let ours = |chain: &str| iptables(&format!("-S {chain}")).lines().filter(|line| line.ends_with(MARKED)).count();
    assert_eq!((ours("DOCKER-USER"), ours("FORWARD"), ours("DOCKER-FORWARD")), (1, 0, 0));
    // Neither of both gets to the other: Docker's raw table, and our own rules.
    assert_eq!(guest.tcp("172.17.0.2:7001", "x"), None);
    assert!(!container_gets_in());
    helper.ok("priv.ensure_nat", &nat("172.16.0.2", "tap-fc-1", false));
    assert_eq!(iptables("-S"), before);
} }

isolated! { fn beside_docker_29_s_own_tables_nothing_is_needed() {
    const DOCKER: &str = "
        table ip docker-bridges {
            map forward-in { type ifname : verdict; }
            map forward-out { type ifname : verdict; }
            chain forward-in__docker0 {
                ct state established,related counter accept
                iifname \"docker0\" counter accept comment \"ICC\"
                counter drop comment \"UNPUBLISHED PORT DROP\"
            }
            chain forward-out__docker0 {
                ct state established,related counter accept
                counter accept comment \"OUTGOING\"
            }
            chain filter-FORWARD {
                type filter hook forward priority filter; policy accept;
                oifname vmap @forward-in
                iifname vmap @forward-out
            }
            chain raw-PREROUTING {
                type filter hook prerouting priority raw; policy accept;
                ip daddr 172.17.0.2 iifname != \"docker0\" counter drop comment \"DROP DIRECT ACCESS\"
            }
        }
        add element ip docker-bridges forward-in { \"docker0\" : jump forward-in__docker0 }
        add element ip docker-bridges forward-out { \"docker0\" : jump forward-out__docker0 }
    ";
    let (helper, guest) = world();
    std::fs::write("/mnt/docker.nft", DOCKER).unwrap();
    output("nft", &["-f", "/mnt/docker.nft"]);
    let docker = || ruleset().into_iter().filter(|object| object.to_string().contains("docker-bridges")).collect::<Vec<_>>();
    let before = docker();
    on(&helper);
    gets_out(&guest);
    assert_eq!(guest.tcp("172.17.0.2:7001", "x"), None);
    assert!(!container_gets_in());
    let listed = helper.ok("priv.list_resources", &Value::Null);
    assert_eq!((&listed["rules_elsewhere"], &listed["blocked_by"]), (&json!([]), &json!([])));
    assert_eq!(docker(), before, "its tables are left alone");
} }

isolated! { fn a_firewalld_whose_table_is_its_own_is_named_with_what_to_do() {
    let (helper, guest) = world();
    // A table with an owner lives as long as that one's socket: an nft that waits for its next command.
    let mut owner = Command::new("nft").arg("-i").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut say = owner.stdin.take().unwrap();
    for line in [
        "add table inet firewalld { flags owner; }",
        "add chain inet firewalld filter_FORWARD { type filter hook forward priority 10; policy accept; }",
        "add rule inet firewalld filter_FORWARD iifname \"br-fc\" reject with icmpx type admin-prohibited",
    ] {
        writeln!(say, "{line}").unwrap();
    }
    eventually("its table", || output("nft", &["list", "ruleset"]).contains("reject with icmpx"));
    let flags = output("nft", &["list", "table", "inet", "firewalld"]);
    assert!(flags.contains("flags owner"), "{flags}");
    on(&helper);
    assert_eq!(guest.tcp(&web(), "x"), None);
    let listed = helper.ok("priv.list_resources", &Value::Null);
    let by = &listed["blocked_by"][0];
    assert_eq!((by["table"].as_str(), by["chain"].as_str()), (Some("firewalld"), Some("filter_FORWARD")), "{listed}");
    assert!(by["why"].as_str().unwrap().contains("NftablesTableOwner"), "{listed}");
    let told = common::log_text();
    let line = told.lines().find(|line| line.contains("another firewall drops guests' packets")).unwrap_or(&told);
    assert!(line.contains("inet firewalld filter_FORWARD: ") && line.contains("NftablesTableOwner"), "{line}");
    let found = probe(&helper);
    assert_eq!((found["end"].as_str(), found["by"]["chain"].as_str()), (Some("dropped"), Some("filter_FORWARD")), "{found}");
    assert_eq!(found["by"]["rule"], "iifname \"br-fc\" reject", "{found}");
    drop(say);
    owner.wait().unwrap();
    gets_out(&guest);
} }
