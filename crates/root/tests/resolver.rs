//! The resolver's methods against the real systemd-resolved, in the lab: what arrives at a name server, and what is
//! left where a step fails. Run by `lab/test resolver`.

#![allow(clippy::disallowed_methods, reason = "the bans are the helper's; a test sets its world up by paths")]

mod common;
#[path = "resolver/world.rs"]
mod world;

/// The steps of `sync_resolver_routing`, in their order.
const STEPS: [&str; 7] = ["default_route", "domain", "llmnr", "mdns", "dnssec", "tls", "server"];

#[test]
fn no_step_is_forgotten() {
    let source = include_str!("../src/net/resolver.rs");
    let steps: Vec<_> = source.match_indices(".act(\"").map(|(at, act)| &source[at + act.len()..]).collect();
    let steps: Vec<_> = steps.iter().filter_map(|rest| rest.split('"').next()).collect();
    assert_eq!(steps, [&STEPS[..], &["revert"]].concat());
}

mod lab {
    use super::STEPS;
    use super::common::{Helper, OWNER, Start, log_text};
    use super::world::{
        ASK, Names, Other, asked, in_own, install_unit, knows, lab_network, settings, shell, vm_ends, vm_runs,
    };
    use serde_json::{Value, json};
    use std::time::{Duration, Instant};

    const SYNC: &str = "priv.sync_resolver_routing";
    const CLEAR: &str = "priv.clear_resolver_routing";
    const AT_PORT: &str = "127.0.0.1:42069";

    fn route(server: &str) -> Value {
        json!({"bridge_name": "br-fc", "server_addr": server})
    }

    fn bridge() -> Value {
        json!({"bridge_name": "br-fc"})
    }

    fn make_bridge(helper: &Helper) {
        helper.ok("priv.ensure_bridge", &json!({"bridge_name": "br-fc", "bridge_ip": "172.16.9.1", "cidr": "24"}));
    }

    #[test]
    fn resolver_sends_names_below_vm_to_the_server_and_no_others() {
        in_own("resolver_sends_names_below_vm_to_the_server_and_no_others", &["--mount"], || {
            let _network = lab_network();
            let (ours, others) = (Names::at(AT_PORT), Names::at("127.0.0.1:5300"));
            let _other = Other::link("127.0.0.1:5300");
            let helper = Helper::start();
            make_bridge(&helper);
            let vm = vm_runs(&helper);

            // Nothing was asked for yet.
            asked("zero.vm");
            assert_eq!((ours.heard("zero.vm"), others.heard("zero.vm")), (false, true));

            for again in ["one.vm", "two.vm"] {
                helper.ok(SYNC, &route(AT_PORT));
                assert!(asked(again).contains("172.16.9.9"), "{}", asked(again));
                assert_eq!((ours.heard(again), others.heard(again)), (true, false));
                asked(&format!("{again}.example"));
                let not_ours = format!("{again}.example");
                assert_eq!((ours.heard(&not_ours), others.heard(&not_ours)), (false, true));
            }
            assert!(shell("getent ahostsv4 libc.vm").starts_with("172.16.9.9"), "by the C library too");
            assert_eq!(
                settings(),
                "dns: 127.0.0.1:42069\ndomain: ~vm\ndefault-route: no\nllmnr: no\nmdns: no\ndnssec: no\ndnsovertls: no\n"
            );

            // What resolved was told it knows after a restart.
            shell("systemctl restart systemd-resolved");
            asked("three.vm");
            assert_eq!((ours.heard("three.vm"), others.heard("three.vm")), (true, false));

            // Without a VM that runs the bridge has no carrier: nothing goes there, and the log says it.
            vm_ends(vm);
            asked("dark.vm");
            assert!(!ours.heard("dark.vm"));
            helper.ok(SYNC, &route(AT_PORT));
            assert!(log_text().contains("waits for a running VM"), "{}", log_text());
            let _vm = vm_runs(&helper);
            asked("light.vm");
            assert!(ours.heard("light.vm"));

            for _ in 0..2 {
                helper.ok(CLEAR, &bridge());
                assert!(!knows());
                asked("four.vm");
                assert_eq!((ours.heard("four.vm"), others.heard("four.vm")), (false, true));
            }
            helper.ok("priv.list_resources", &json!({}));
        });
    }

    #[test]
    fn resolver_takes_a_plain_address() {
        in_own("resolver_takes_a_plain_address", &["--mount"], || {
            let _network = lab_network();
            let helper = Helper::start();
            make_bridge(&helper);
            let _vm = vm_runs(&helper);
            let ours = Names::at("172.16.9.1:53");
            for server in ["172.16.9.1", "172.16.9.1:53"] {
                helper.ok(SYNC, &route(server));
                let name = format!("n{}.vm", server.len());
                asked(&name);
                assert!(ours.heard(&name), "{server}: {}", settings());
                helper.ok(CLEAR, &bridge());
            }
            let six = route("[fd00::1]:5353");
            helper.ok(SYNC, &six);
            assert!(settings().starts_with("dns: [fd00::1]:5353\n"), "{}", settings());
        });
    }

    #[test]
    fn resolver_step_that_fails_leaves_nothing_and_a_kill_can_be_mended() {
        in_own("resolver_step_that_fails_leaves_nothing_and_a_kill_can_be_mended", &["--mount"], || {
            let _network = lab_network();
            let (ours, others) = (Names::at(AT_PORT), Names::at("127.0.0.1:5300"));
            let _other = Other::link("127.0.0.1:5300");
            let helper = Helper::start();
            make_bridge(&helper);
            let _vm = vm_runs(&helper);
            let nothing = settings();
            helper.ok(SYNC, &route(AT_PORT));
            let whole = settings();
            helper.ok(CLEAR, &bridge());
            assert!(helper.stop().success());
            for step in STEPS {
                let helper = Start::new().config(&format!("fault = \"sync_resolver_routing.{step}:fail\"\n")).start();
                let (code, message) = helper.err(SYNC, &route(AT_PORT));
                assert_eq!(code, "operation_failed", "{message}");
                assert!(!message.contains("undone"), "{step}: {message}");
                assert_eq!(settings(), nothing, "{step}");
                drop(helper);

                let mut helper =
                    Start::new().config(&format!("fault = \"sync_resolver_routing.{step}:kill\"\n")).start();
                let params = route(AT_PORT);
                let request = json!({"method": SYNC, "params": params}).to_string();
                let answer = std::panic::catch_unwind(|| super::common::exchange(OWNER, &request));
                assert!(answer.is_err(), "{step}: killed before it answers");
                helper.wait();
                // Half of it: still no name but those below vm goes to the server.
                let name = format!("{}.example", step.replace('_', "-"));
                asked(&name);
                assert_eq!((ours.heard(&name), others.heard(&name)), (false, true), "{step}: {}", settings());
                let helper = Helper::start();
                helper.ok(SYNC, &route(AT_PORT));
                assert_eq!(settings(), whole, "{step}");
                helper.ok(CLEAR, &bridge());
                assert_eq!(settings(), nothing, "{step}");
            }
            let mut helper = Start::new().config("fault = \"clear_resolver_routing.revert:kill\"\n").start();
            helper.ok(SYNC, &route(AT_PORT));
            let request = json!({"method": CLEAR, "params": bridge()}).to_string();
            assert!(std::panic::catch_unwind(|| super::common::exchange(OWNER, &request)).is_err());
            helper.wait();
            assert_eq!(settings(), nothing);
        });
    }

    #[test]
    fn resolver_refuses_what_is_not_ours_and_does_nothing_where_it_is_not() {
        in_own("resolver_refuses_what_is_not_ours_and_does_nothing_where_it_is_not", &["--mount"], || {
            let _network = lab_network();
            let helper = Helper::start();
            let (code, message) = helper.err(SYNC, &route(AT_PORT));
            assert_eq!(code, "operation_failed");
            assert!(message.contains("br-fc is not there"), "{message}");
            helper.ok(CLEAR, &bridge());

            // Somebody else's bridge of that name keeps what he told it.
            shell("ip link add br-fc type bridge; ip link set br-fc up; resolvectl dns br-fc 192.0.2.1");
            let his = settings();
            for (method, params) in [(SYNC, route(AT_PORT)), (CLEAR, bridge())] {
                let (code, message) = helper.err(method, &params);
                assert_eq!(code, "operation_failed");
                assert!(message.contains("not banger's"), "{message}");
                assert_eq!(settings(), his);
            }
            shell("ip link del br-fc");

            // resolved's own stub as a server would be a circle.
            make_bridge(&helper);
            let (code, message) = helper.err(SYNC, &route("127.0.0.53"));
            assert_eq!(code, "operation_failed");
            assert!(message.contains("takes no such server"), "{message}");
            assert!(!knows());

            // It hangs: an answer all the same.
            shell("systemctl kill -s STOP systemd-resolved");
            let begun = Instant::now();
            let (code, message) = helper.err(SYNC, &route(AT_PORT));
            shell("systemctl kill -s CONT systemd-resolved");
            assert_eq!(code, "operation_failed", "{message}");
            assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
            assert!(log_text().contains("within five seconds"), "{}", log_text());

            // It does not run, and isn't started for this.
            shell("systemctl stop systemd-resolved");
            helper.ok(SYNC, &route(AT_PORT));
            helper.ok(CLEAR, &bridge());
            assert_eq!(shell("systemctl is-active systemd-resolved || :"), "inactive\n");
            shell("systemctl start systemd-resolved");
            assert!(!knows());
        });
    }

    #[test]
    fn resolver_of_another_network_is_left_alone() {
        in_own("resolver_of_another_network_is_left_alone", &["--mount", "--net"], || {
            // Links of all small indices, so that one has resolved's link's index.
            shell("for n in {1..9}; do ip link add d$n type dummy; done");
            let helper = Helper::start();
            make_bridge(&helper);
            let told = "busctl get-property org.freedesktop.resolve1 /org/freedesktop/resolve1 \
                        org.freedesktop.resolve1.Manager DNS Domains";
            let before = shell(told);
            helper.ok(SYNC, &route(AT_PORT));
            helper.ok(CLEAR, &bridge());
            assert_eq!(shell(told), before);
        });
    }

    /// With the rights and in the sandbox of its unit, and no more.
    #[test]
    fn resolver_is_told_from_within_the_unit() {
        let _network = lab_network();
        let _unit = install_unit();
        let ask = |request: &str| shell(&format!("{ASK}'{request}'"));
        let made = ask(
            r#"{"method":"priv.ensure_bridge","params":{"bridge_name":"br-fc","bridge_ip":"172.16.9.1","cidr":"24"}}"#,
        );
        assert_eq!(made, "{\"ok\":true,\"result\":{}}\n");
        let sync = json!({"method": SYNC, "params": route(AT_PORT)}).to_string();
        assert_eq!(ask(&sync), "{\"ok\":true,\"result\":{}}\n", "{}", shell("journalctl -u bangerd-root -o cat -n 20"));
        assert!(settings().starts_with("dns: 127.0.0.1:42069\ndomain: ~vm\ndefault-route: no\n"), "{}", settings());
        let clear = json!({"method": CLEAR, "params": bridge()}).to_string();
        assert_eq!(ask(&clear), "{\"ok\":true,\"result\":{}}\n");
        assert!(!knows());
    }
}
