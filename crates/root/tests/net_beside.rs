//! Beside other firewalls: packets cross, and what was ours elsewhere goes with the last guest.

#![allow(clippy::disallowed_methods, reason = "the bans are the helper's; a test sets its world up by paths")]

mod common;
#[path = "net/way_out.rs"]
mod way_out;
#[path = "net/world.rs"]
mod world;

use common::{Helper, Start, eventually, output};
use serde_json::Value;
use std::time::{Duration, Instant};
use way_out::{gets_out, inside, off, on, web};
use world::{Guest, echo, ip, nat, ruleset, set, sysctl, tap, uplink};

const MARKED: &str = "-m mark --mark 0x62000000/0xff000000 -m comment --comment banger -j ACCEPT";

fn nft(text: &str) {
    output("nft", &[text]);
}

fn iptables(arguments: &str) -> String {
    output("iptables-nft", &arguments.split(' ').collect::<Vec<_>>())
}

/// The helper's log.
fn log() -> String {
    std::fs::read_to_string("/mnt/log").expect("the log")
}

/// What stands in a chain, by `iptables -S`.
fn chain(name: &str) -> Vec<String> {
    iptables(&format!("-S {name}")).lines().map(str::to_owned).collect()
}

fn ours(name: &str) -> usize {
    chain(name).iter().filter(|line| line.ends_with(MARKED)).count()
}

isolated! { fn beside_a_forward_policy_of_drop() {
    let (helper, guest) = inside(Start::new());
    iptables("-P FORWARD DROP");
    on(&helper);
    gets_out(&guest);
    assert_eq!(ours("FORWARD"), 1);
    on(&helper);
    assert_eq!(ours("FORWARD"), 1, "once");
    // Another guest has it already; it goes with the last one.
    helper.ok("priv.create_tap", &tap("tap-fc-2"));
    helper.ok("priv.ensure_nat", &nat("172.16.0.3", "tap-fc-2", true));
    off(&helper);
    assert_eq!(ours("FORWARD"), 1);
    helper.ok("priv.delete_tap", &world::named("tap-fc-2"));
    assert_eq!(chain("FORWARD"), ["-P FORWARD DROP"]);
} }

isolated! { fn nothing_is_added_where_nothing_drops() {
    iptables("-A FORWARD -i other0 -j ACCEPT");
    let before = chain("FORWARD");
    let (helper, guest) = inside(Start::new());
    on(&helper);
    gets_out(&guest);
    assert_eq!(chain("FORWARD"), before);
} }

isolated! { fn beside_docker_s_chains_the_rule_is_in_the_user_s_chain() {
    let (helper, guest) = inside(Start::new());
    for rule in ["-N DOCKER-USER", "-A DOCKER-USER -j RETURN", "-P FORWARD DROP", "-I FORWARD -j DOCKER-USER"] {
        iptables(rule);
    }
    on(&helper);
    gets_out(&guest);
    assert_eq!((ours("DOCKER-USER"), ours("FORWARD")), (1, 0));
    assert!(chain("DOCKER-USER")[1].ends_with(MARKED), "at its head");
    // iptables saves and restores it as a rule of its own making: it is still ours.
    let saved = output("iptables-nft-save", &[]);
    std::fs::write("/mnt/rules", saved).unwrap();
    output("iptables-nft-restore", &["/mnt/rules"]);
    eventually("one rule", || ours("DOCKER-USER") == 1);
    gets_out(&guest);
    off(&helper);
    assert_eq!((ours("DOCKER-USER"), ours("FORWARD")), (0, 0));
} }

isolated! { fn a_hand_written_drop_is_named_and_left_alone() {
    let (helper, guest) = inside(Start::new());
    nft("add table inet mine; add chain inet mine fence { type filter hook forward priority 10; policy drop; }");
    nft("add table ip yours; add chain ip yours wall { type filter hook forward priority 20; policy accept; }; add rule ip yours wall counter reject");
    on(&helper);
    assert_eq!(guest.tcp(&web(), "x"), None);
    let found: Value = helper.ok("priv.list_resources", &Value::Null);
    let blocked = found["blocked_by"].as_array().unwrap();
    assert_eq!(blocked.len(), 2, "{found}");
    let fence = blocked.iter().find(|by| by["table"] == "mine").unwrap();
    assert_eq!((fence["family"].as_str(), fence["chain"].as_str(), fence["handle"].as_u64()), (Some("inet"), Some("fence"), Some(0)));
    assert!(blocked.iter().find(|by| by["table"] == "yours").unwrap()["handle"].as_u64() > Some(0));
    assert!(log().contains("inet mine fence"), "{}", log());
    assert!(!ruleset().iter().any(|object| object["rule"]["table"] == "mine"));
    // What is to be done there is what the list says.
    nft("insert rule inet mine fence meta mark and 0xff000000 == 0x62000000 accept");
    nft("delete table ip yours");
    gets_out(&guest);
} }

isolated! { fn an_uplink_that_comes_later_needs_no_call() {
    let (helper, guest) = inside(Start::new());
    on(&helper);
    gets_out(&guest);
    // The default route moves to another link.
    ip("link add up1 type veth peer name far1 netns outside");
    ip("addr add 203.0.113.2/24 dev up1");
    ip("link set up1 up");
    ip("-n outside addr add 203.0.113.1/24 dev far1");
    ip("-n outside link set far1 up");
    assert_eq!(sysctl("up1", "forwarding"), "0");
    ip("route replace default via 203.0.113.1");
    eventually("forwarding", || sysctl("up1", "forwarding") == "1");
    assert!(set("inet", "opened").contains(&"up1".to_owned()));
    eventually("the new way", || guest.tcp("203.0.113.1:7000", "x").is_some());
    off(&helper);
    assert_eq!(sysctl("up1", "forwarding"), "0");
} }

isolated! { fn a_host_that_somebody_opens_is_not_shielded() {
    let (helper, guest) = inside(Start::new());
    on(&helper);
    assert_eq!(set("inet", "opened"), ["eth0"]);
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
    eventually("no shield", || set("inet", "opened").is_empty());
    gets_out(&guest);
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
    eventually("the guest's way", || guest.tcp(&web(), "x").is_some());
    assert_eq!(set("inet", "opened"), ["eth0"]);
} }

isolated! { fn a_helper_that_comes_back_finds_what_is_ours() {
    uplink();
    echo("outside", 7000);
    iptables("-P FORWARD DROP");
    let helper = Helper::start();
    helper.ok("priv.create_tap", &tap("tap-fc-1"));
    let guest = Guest::boot("guest", "tap-fc-1", "172.16.0.2/24", "172.16.0.1");
    on(&helper);
    gets_out(&guest);
    // Nobody was there when it went.
    helper.kill();
    nft("flush ruleset");
    iptables("-P FORWARD DROP");
    assert_eq!(guest.tcp(&web(), "x"), None);
    let helper = Helper::start();
    eventually("the guest's way", || guest.tcp(&web(), "x").is_some());
    // A rule that a dead helper left, once and again: both go.
    iptables(&format!("-A FORWARD {MARKED}"));
    off(&helper);
    assert_eq!(ours("FORWARD"), 0);
    // A helper dies before the last guest's rule goes.
    let helper = {
        drop(helper);
        Start::new().config("fault = \"ensure_nat.rules:kill\"\n").start()
    };
    let params = nat("172.16.0.2", "tap-fc-1", true).to_string();
    let asked = std::panic::catch_unwind(|| helper.call(&format!("{{\"method\":\"priv.ensure_nat\",\"params\":{params}}}")));
    assert!(asked.is_err(), "it was killed: {asked:?}");
    drop(helper);
    let helper = Helper::start();
    on(&helper);
    assert_eq!(ours("FORWARD"), 1);
    off(&helper);
    assert_eq!(ours("FORWARD"), 0);
} }

mod lab {
    //! Beside the real programs, started in the test's own namespaces.

    use super::*;
    use std::process::{Child, Command, Stdio};

    struct Daemon(Child);

    impl Daemon {
        fn start(program: &str, arguments: &[&str]) -> Daemon {
            let said = std::fs::File::options().create(true).append(true).open("/mnt/daemon").expect("a log");
            let mut command = Command::new(program);
            command.args(arguments).stdin(Stdio::null()).stdout(said.try_clone().expect("dup")).stderr(said);
            Daemon(command.spawn().expect(program))
        }

        fn stop(mut self) {
            let pid = rustix::process::Pid::from_child(&self.0);
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("kill");
            self.0.wait().expect("wait");
        }
    }

    impl Drop for Daemon {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// The emulated machine is slow, and so is what starts in it.
    fn soon(what: &str, mut holds: impl FnMut() -> bool) {
        let end = Instant::now() + Duration::from_secs(90);
        while !holds() {
            let said = std::fs::read_to_string("/mnt/daemon").unwrap_or_default();
            assert!(Instant::now() < end, "not within 90 s: {what}\n{said}\n{}", log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn soon_out(guest: &Guest) {
        soon("TCP out and back", || guest.tcp(&web(), "x").is_some());
        soon("UDP out and back", || guest.udp(&web(), "x").is_some());
    }

    fn succeeds(program: &str, arguments: &[&str]) -> bool {
        Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
    }

    fn dockerd() -> Daemon {
        let daemon = Daemon::start("dockerd", &["--data-root", "/mnt/docker", "--storage-driver", "vfs"]);
        soon("docker serves", || succeeds("docker", &["info"]));
        daemon
    }

    isolated! { fn beside_the_real_dockerd() {
        let (helper, guest) = inside(Start::new());
        let docker = dockerd();
        assert_eq!(chain("FORWARD")[0], "-P FORWARD DROP", "it is as strict as ever");
        on(&helper);
        soon_out(&guest);
        assert_eq!(ours("DOCKER-USER"), 1);
        docker.stop();
        let _docker = dockerd();
        soon("the rule", || ours("DOCKER-USER") == 1);
        soon_out(&guest);
        off(&helper);
        assert_eq!((ours("DOCKER-USER"), ours("FORWARD")), (0, 0));
        assert_eq!(guest.tcp(&web(), "x"), None);
    } }

    isolated! { fn beside_the_real_firewalld() {
        let (helper, guest) = inside(Start::new());
        std::fs::create_dir_all("/run/dbus").unwrap();
        let _bus = Daemon::start("dbus-daemon", &["--system", "--nofork", "--nopidfile"]);
        let _firewalld = Daemon::start("firewalld", &["--nofork", "--nopid"]);
        soon("firewalld serves", || succeeds("firewall-cmd", &["--state"]));
        on(&helper);
        soon_out(&guest);
        let rules = || {
            let listed = output("nft", &["list", "chain", "inet", "firewalld", "filter_FORWARD"]);
            listed.matches("comment \"banger\"").count()
        };
        assert_eq!(rules(), 1);
        output("firewall-cmd", &["--reload"]);
        soon("the rule", || rules() == 1);
        soon_out(&guest);
        output("firewall-cmd", &["--complete-reload"]);
        soon("the rule", || rules() == 1);
        soon_out(&guest);
        off(&helper);
        assert_eq!(rules(), 0);
    } }

    isolated! { fn what_the_documentation_says_to_a_firewalld_of_its_own_is_right() {
        let (helper, guest) = inside(Start::new());
        std::fs::create_dir_all("/run/dbus").unwrap();
        // What it keeps is the machine's.
        output("cp", &["-a", "/etc/firewalld", "/mnt/firewalld"]);
        rustix::mount::mount_bind("/mnt/firewalld", "/etc/firewalld").unwrap();
        let _bus = Daemon::start("dbus-daemon", &["--system", "--nofork", "--nopidfile"]);
        let _firewalld = Daemon::start("firewalld", &["--nofork", "--nopid"]);
        soon("firewalld serves", || succeeds("firewall-cmd", &["--state"]));
        let page = include_str!("../../../docs/helper.md");
        let commands: Vec<_> = page.lines().filter_map(|line| line.strip_prefix("    sudo firewall-cmd ")).collect();
        assert!(commands.len() > 3, "{commands:?}");
        commands.iter().for_each(|line| drop(output("firewall-cmd", &line.split(' ').collect::<Vec<_>>())));
        on(&helper);
        soon_out(&guest);
        // Without the helper, and without the rule that it could not add to a table that is not for others.
        helper.kill();
        let listed = output("nft", &["-a", "list", "chain", "inet", "firewalld", "filter_FORWARD"]);
        let rule = listed.lines().find(|line| line.contains("comment \"banger\"")).unwrap().rsplit(' ').next().unwrap();
        output("nft", &["delete", "rule", "inet", "firewalld", "filter_FORWARD", "handle", rule]);
        soon_out(&guest);
    } }
}
