//! The calls that change a machine, on one made of namespaces. As root.

// A test's helpers are tests too; clippy's setting knows only the functions marked so.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Instant;

use agent::client::{Client, entropy, unix_ns};
use agent::host::{Driver, Exec, Failure, Limits, control};
use agent::protocol::{Exit, Interface, OwnFile, Start, VERSION};
use support::{OK, Service, run_on, sh};

fn client(service: &Service) -> Client<std::os::unix::net::UnixStream> {
    Client::new(service.connect()).unwrap()
}

fn own(path: &str, mode: u32, text: &str) -> OwnFile {
    OwnFile { path: path.into(), mode, text: text.into(), lasting: false }
}

fn identity() -> Start {
    Start {
        v: VERSION,
        unix_ns: unix_ns(),
        entropy: entropy().unwrap(),
        hostname: Some("calm-otter".into()),
        machine_id: Some("0123456789abcdef0123456789abcdef".into()),
        network: Some(Interface {
            device: "eth0".into(),
            mac: Some("06:00:ac:10:00:07".into()),
            address: "172.16.0.7/24".into(),
            gateway: Some([172, 16, 0, 1].into()),
        }),
        resolver: vec![[172, 16, 0, 1].into()],
        files: vec![
            own("/etc/hosts", 0o644, "127.0.1.1 calm-otter\n"),
            own("/etc/key", 0o600, "its own\n"),
            OwnFile { lasting: true, ..own("/etc/kept", 0o600, "kept\n") },
        ],
        exec: None,
    }
}

#[test]
fn an_armed_agent_waits_for_its_identity() {
    let service = Service::machine();
    let template = client(&service).hello().boot.clone();
    let wrong = client(&service).arm(&["/etc/../etc/hosts"]);
    assert!(matches!(wrong, Err(Failure::Refused(body)) if body.step == "files"));
    client(&service).arm(&["/etc/hosts", "/etc/key", "/etc/kept"]).unwrap();
    for refused in [client(&service).ping(), client(&service).arm(&[]), client(&service).time().map(drop)] {
        assert!(matches!(refused, Err(Failure::Refused(body)) if body.code == "armed"));
    }
    // What is wrong with it leaves it armed.
    let wrong = Start { hostname: Some("a b".into()), ..identity() };
    assert!(matches!(client(&service).start(wrong), Err(Failure::Refused(body)) if body.step == "hostname"));
    assert!(client(&service).ping().is_err());
    client(&service).start(identity()).unwrap();
    client(&service).ping().unwrap();
    assert_ne!(client(&service).hello().boot, template, "a boot of its own");
    let whole = run_on(
        &service,
        sh("hostname; cat /etc/hostname /etc/machine-id /etc/resolv.conf; ip -br link show eth0; ip -4 -br addr show \
            eth0; ip route show default; cat /etc/hosts /etc/key; stat -c %a /etc/key; \
            findmnt -n -o TARGET -T /etc/hosts; findmnt -n -o TARGET -T /etc/key; \
            findmnt -n -o TARGET -T /etc/kept | grep -v kept; cat /etc/kept"),
    );
    let lines: Vec<&str> = whole.text().lines().map(str::trim).collect();
    assert_eq!(lines[..4], ["calm-otter", "calm-otter", "0123456789abcdef0123456789abcdef", "nameserver 172.16.0.1"]);
    assert!(lines[4].contains("06:00:ac:10:00:07") && lines[5].contains("172.16.0.7/24"), "{lines:?}");
    assert!(lines[6].starts_with("default via 172.16.0.1 dev eth0"), "{lines:?}");
    assert_eq!((lines.len(), lines[13]), (14, "kept"), "{lines:?}");
    assert_eq!(lines[7..12], ["127.0.1.1 calm-otter", "its own", "600", "/etc/hosts", "/etc/key"], "{lines:?}");
}

#[test]
fn identity_and_a_program_in_one_call() {
    let service = Service::machine();
    client(&service).arm(&["/etc/hosts", "/etc/key", "/etc/kept"]).unwrap();
    let (_control, orders) = control().unwrap();
    let now = Instant::now();
    let exec = Exec::with_start(&sh("hostname; exit 3"), identity(), Limits::EMULATED, now).unwrap();
    let (mut ours, stdout) = std::io::pipe().unwrap();
    let socket = service.connect();
    let fds = (std::os::fd::AsFd::as_fd(&stdout), std::os::fd::AsFd::as_fd(&stdout));
    let driver = Driver { socket: &socket, stdin: None, stdout: fds.0, stderr: fds.1, orders: &orders, timeout: None };
    let ended = driver.run(exec, |_| {}).unwrap();
    drop(stdout);
    assert_eq!(std::io::read_to_string(&mut ours).unwrap(), "calm-otter\n");
    assert_eq!(ended.exit.status(), 3);
}

#[test]
fn time_randomness_and_figures() {
    let service = Service::machine();
    let set = client(&service).time().unwrap();
    assert!(!set.stepped && set.behind_ms.abs() < 500, "{set:?}");
    // The clock is this machine's too, so it isn't moved; `template` looks at a guest's.
    assert!(client(&service).adjust(0).unwrap().stepped);
    assert!(matches!(client(&service).adjust(i64::MAX), Err(Failure::Refused(body)) if body.code == "failed"));
    client(&service).entropy().unwrap();
    let stats = client(&service).stats().unwrap();
    assert!(stats.memory_bytes > stats.memory_available_bytes && stats.uptime_ms > 0 && stats.disk_bytes > 0);
    let (listeners, left_out) = client(&service).listeners().unwrap();
    assert_eq!((listeners, left_out), (vec![], 0), "a network of its own");
    assert_eq!(run_on(&service, sh("true")).ended.unwrap().exit, OK);
}

#[test]
fn another_s_machine_is_left_alone() {
    let service = Service::start();
    let refused = [
        client(&service).start(identity()),
        client(&service).arm(&[]),
        client(&service).entropy(),
        client(&service).time().map(drop),
    ];
    for refused in refused {
        assert!(matches!(refused, Err(Failure::Refused(body)) if body.code == "unsupported"));
    }
    let exit: Exit = run_on(&service, sh("hostname | grep -q calm-otter")).exit();
    assert_ne!(exit, OK);
}
