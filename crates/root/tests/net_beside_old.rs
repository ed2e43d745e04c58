//! Beside firewalls that tell nobody of their changes: the real `iptables-legacy`; and ufw, the real one.

#![allow(clippy::disallowed_methods, reason = "the bans are the helper's; a test sets its world up by paths")]

mod common;
#[path = "net/way_out.rs"]
mod way_out;
#[path = "net/world.rs"]
mod world;

use common::{Helper, Start, eventually, log_text, output};
use rustix::mount::{MountFlags, mount, mount_bind};
use serde_json::Value;
use std::time::{Duration, Instant};
use way_out::{gets_out, inside, off, on, web};
use world::{named, nat, tap};

const MARKED: &str = "-m mark --mark 0x62000000/0xff000000 -m comment --comment banger -j ACCEPT";

fn legacy(arguments: &str) -> String {
    output("iptables-legacy", &arguments.split(' ').collect::<Vec<_>>())
}

fn chain(program: &str, name: &str) -> Vec<String> {
    output(program, &["-S", name]).lines().map(str::to_owned).collect()
}

fn ours(name: &str) -> Vec<usize> {
    let rules = chain("iptables-legacy", name);
    rules.iter().enumerate().filter(|(_, rule)| rule.ends_with(MARKED)).map(|(nth, _)| nth).collect()
}

fn probe(helper: &Helper) -> Value {
    helper.ok("priv.probe_network", &serde_json::json!({"guest_ip": "172.16.0.2", "tap": "tap-fc-1"}))
}

isolated! { fn beside_iptables_of_before_nftables() {
    let (helper, guest) = inside(Start::new());
    // Nothing loads these tables that were not there.
    on(&helper);
    gets_out(&guest);
    assert_eq!(std::fs::read_to_string("/proc/net/ip_tables_names").unwrap(), "");
    off(&helper);
    legacy("-P FORWARD DROP");
    legacy("-A FORWARD -i other0 -j ACCEPT");
    let before = chain("iptables-legacy", "FORWARD");
    assert_eq!(guest.tcp(&web(), "x"), None);
    on(&helper);
    gets_out(&guest);
    assert_eq!(ours("FORWARD"), [1], "the first rule, behind the policy's line");
    on(&helper);
    assert_eq!(ours("FORWARD"), [1], "once");
    let listed = helper.ok("priv.list_resources", &Value::Null);
    assert_eq!(listed["rules_elsewhere"][0]["family"], "iptables-legacy", "{listed}");
    assert_eq!(listed["blocked_by"].as_array().map(Vec::len), Some(0), "{listed}");
    // Nobody is told when they change: it is looked at with the next call, and with a probe.
    legacy("-F FORWARD");
    assert_eq!(guest.tcp(&web(), "x"), None);
    assert_eq!(probe(&helper)["end"], "open");
    gets_out(&guest);
    legacy("-I FORWARD -j REJECT");
    on(&helper);
    assert_eq!(ours("FORWARD"), [1], "before what was put before it");
    gets_out(&guest);
    // It opens nothing but guests' packets.
    assert!(chain("iptables-legacy", "FORWARD")[1..].iter().filter(|rule| rule.contains("ACCEPT")).all(|rule| rule.ends_with(MARKED)));
    // Another guest has it already; it goes with the last one.
    helper.ok("priv.create_tap", &tap("tap-fc-2"));
    helper.ok("priv.ensure_nat", &nat("172.16.0.3", "tap-fc-2", true));
    off(&helper);
    assert_eq!(ours("FORWARD"), [1]);
    helper.ok("priv.delete_tap", &named("tap-fc-2"));
    assert!(ours("FORWARD").is_empty());
    assert_eq!((before.len(), before[0].as_str()), (2, "-P FORWARD DROP"));
    assert_eq!(chain("iptables-legacy", "FORWARD"), ["-P FORWARD DROP", "-A FORWARD -j REJECT --reject-with icmp-port-unreachable"]);
} }

isolated! { fn beside_docker_s_chains_of_before_nftables() {
    let (helper, guest) = inside(Start::new());
    for rule in ["-N DOCKER-USER", "-A DOCKER-USER -j RETURN", "-P FORWARD DROP", "-I FORWARD -j DOCKER-USER"] {
        legacy(rule);
    }
    on(&helper);
    gets_out(&guest);
    assert_eq!((ours("DOCKER-USER").len(), ours("FORWARD").len()), (1, 0));
    // A helper that comes back finds it, and takes it away, twice there or once.
    helper.kill();
    legacy(&format!("-A DOCKER-USER {MARKED}"));
    let helper = Helper::start();
    on(&helper);
    gets_out(&guest);
    off(&helper);
    assert_eq!((ours("DOCKER-USER").len(), ours("FORWARD").len()), (0, 0));
    assert_eq!(chain("iptables-legacy", "DOCKER-USER"), ["-N DOCKER-USER", "-A DOCKER-USER -j RETURN"]);
} }

isolated! { fn a_program_that_is_not_roots_is_not_started() {
    // Who may write the program may do all that root may.
    std::fs::create_dir("/mnt/sbin").unwrap();
    std::fs::copy("/usr/sbin/xtables-legacy-multi", "/mnt/sbin/xtables-legacy-multi").unwrap();
    std::os::unix::fs::chown("/mnt/sbin/xtables-legacy-multi", Some(common::OWNER), Some(common::OWNER)).unwrap();
    let (helper, guest) = inside(Start::new());
    legacy("-P FORWARD DROP");
    mount_bind("/mnt/sbin", "/usr/sbin").unwrap();
    on(&helper);
    rustix::mount::unmount("/usr/sbin", rustix::mount::UnmountFlags::empty()).unwrap();
    assert_eq!(guest.tcp(&web(), "x"), None);
    assert!(log_text().contains("must be root's"), "{}", log_text());
    let listed = helper.ok("priv.list_resources", &Value::Null);
    let why = listed["blocked_by"][0]["why"].as_str().unwrap();
    // What the list says to do is right.
    legacy(why.rsplit_once("iptables-legacy ").unwrap().1);
    gets_out(&guest);
} }

isolated! { fn a_program_that_hangs_is_ended() {
    let (helper, guest) = inside(Start::new());
    legacy("-P FORWARD DROP");
    // Somebody holds the lock of iptables for good: the program gives up after 5 s.
    let lock = std::fs::File::create("/run/xtables.lock").unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let since = Instant::now();
    on(&helper);
    let took = since.elapsed();
    assert!(took < Duration::from_secs(15), "{took:?}");
    assert!(log_text().contains("could not be asked"), "{}", log_text());
    drop(lock);
    on(&helper);
    gets_out(&guest);
} }

/// ufw with configuration of its own, on and as strict as it comes: what is routed is dropped.
fn ufw() {
    for place in ["/etc/ufw", "/etc/default"] {
        let copy = format!("/mnt{place}");
        std::fs::create_dir_all("/mnt/etc").expect("a place");
        output("cp", &["-a", place, &copy]);
        mount_bind(&copy, place).expect(place);
    }
    mount("tmpfs", "/var/log", "tmpfs", MountFlags::empty(), None).expect("a tmpfs");
    let defaults = std::fs::read_to_string("/etc/default/ufw").expect("ufw's defaults");
    let defaults = defaults.replace("IPV6=yes", "IPV6=no").replace("IPT_SYSCTL=", "#IPT_SYSCTL=");
    std::fs::write("/etc/default/ufw", defaults).expect("ufw's defaults");
    output("ufw", &["default", "deny", "routed"]);
    output("ufw", &["--force", "enable"]);
    assert!(output("ufw", &["status", "verbose"]).starts_with("Status: active"));
    assert_eq!(chain("iptables", "FORWARD")[0], "-P FORWARD DROP", "it is as strict as ever");
}

isolated! { fn beside_the_real_ufw() {
    let rules = || chain("iptables", "FORWARD").iter().filter(|rule| rule.ends_with(MARKED)).count();
    ufw();
    let before = chain("iptables", "FORWARD");
    let (helper, guest) = inside(Start::new());
    assert_eq!(guest.tcp(&web(), "x"), None);
    on(&helper);
    gets_out(&guest);
    assert_eq!(probe(&helper)["end"], "open");
    assert_eq!(rules(), 1);
    assert!(chain("iptables", "FORWARD")[1].ends_with(MARKED), "one rule, at the head, of the mark alone");
    for what in [&["reload"][..], &["disable"], &["--force", "enable"]] {
        output("ufw", what);
        let since = Instant::now();
        eventually("the guest's way", || guest.tcp(&web(), "x").is_some() && guest.udp(&web(), "x").is_some());
        println!("after ufw {what:?}: {:?} until TCP and UDP crossed", since.elapsed());
    }
    assert_eq!(chain("iptables", "FORWARD")[0], "-P FORWARD DROP", "it is on again");
    eventually("one rule", || rules() == 1);
    // It takes all rules away for a moment. Put back what was missing, by the helper's clock, within 50 ms.
    for line in log_text().lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        if let Some(after) = line["after_us"].as_u64() {
            println!("{} put back after {after} us", line["what"]);
        }
    }
    off(&helper);
    assert_eq!(chain("iptables", "FORWARD"), before);
    assert_eq!(guest.tcp(&web(), "x"), None);
} }

isolated! { fn a_reload_of_ufw_holds_flows_up_for_a_moment_at_most() {
    ufw();
    let (helper, guest) = inside(Start::new());
    on(&helper);
    gets_out(&guest);
    // A new flow every 2 ms, each with a port of its own, while ufw reloads: the longest time without an answer.
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let busy = stop.clone();
    let flows = world::within("guest", move || {
        let (mut last, mut longest, mut answered) = (Instant::now(), Duration::ZERO, 0_u32);
        while !busy.load(std::sync::atomic::Ordering::Relaxed) {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(2))).unwrap();
            let mut answer = [0; 64];
            if socket.send_to(b"x", web()).is_ok() && socket.recv_from(&mut answer).is_ok() {
                longest = longest.max(last.elapsed());
                last = Instant::now();
                answered += 1;
            }
        }
        (longest.max(last.elapsed()), answered)
    });
    let begun = Instant::now();
    output("ufw", &["reload"]);
    output("ufw", &["reload"]);
    let took = begun.elapsed() / 2;
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let (longest, answered) = flows.join().unwrap();
    println!("{answered} flows answered, the longest gap {longest:?}, a reload {took:?}");
    assert!(answered > 50, "{answered}");
    // Not as long as ufw is at it, which a busy machine draws out as well.
    assert!(longest < took / 2, "{longest:?}");
} }
