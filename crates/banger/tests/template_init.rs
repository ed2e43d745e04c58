//! Templates of VMs whose first process is systemd: what goes on from one is a machine of its own to systemd, to D-Bus and in its
//! journal, ends in order, and boots as itself.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

#[allow(dead_code, reason = "each file of tests has its own copy of this one")]
mod world;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};
use world::*;

const INIT: [&str; 3] = ["--init", "--memory", "512M"];

fn sh(name: &str, script: &str) -> String {
    ok(&["vm", "exec", name, "--", "sh", "-c", script])
}

/// What it says, however it ends: on a busy machine systemd may not answer yet.
fn said(name: &str, script: &str) -> String {
    text(&run(&["vm", "exec", name, "--", "sh", "-c", script]).stdout).to_owned()
}

/// Runs `true` in a new VM; the notes of its stages `disk` and `boot`.
fn notes(more: &[&str]) -> [String; 2] {
    let out = run(&[&["vm", "run", "--timings", "--json"], more, &["--", "true"]].concat());
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    let timings: Value = serde_json::from_slice(&out.stderr).expect("timings, and no other word");
    let stages = timings["stages"].as_array().expect("stages");
    println!("figure: the first output after {} ms", timings["first_output_us"].as_u64().unwrap_or(0) / 1000);
    ["disk", "boot"].map(|name| {
        let stage = stages.iter().rev().find(|stage| stage["name"] == name).expect(name);
        stage["note"].as_str().expect("a note").to_owned()
    })
}

fn templates() -> Vec<Value> {
    json(&["template", "list", "--json"]).as_array().expect("a list").clone()
}

/// Starts a new one, which goes on from a template. Its first command says something to its journal.
fn started(name: &str) {
    ok(&[&["vm", "create"], INIT.as_slice(), &[name]].concat());
    ok(&["vm", "start", name]);
    assert_eq!(field(name, "/disk/method"), "layer");
    sh(name, "logger -t early its first word");
}

/// What it knows of itself, by whom it is asked, once it has gone on with all that its template had left; and what must be the
/// same there. Its machine-id.
fn is_itself(name: &str) -> String {
    until(&format!("{name}: its journal has its first word"), || {
        said(name, "journalctl -b -q -o cat -t early") == "its first word\n"
    });
    let since = Instant::now();
    until(&format!("{name}: all has begun"), || {
        let is = said(name, "systemctl is-active ssh systemd-tmpfiles-clean.timer; systemctl is-system-running --wait");
        if is != "active\nactive\nrunning\n" && since.elapsed() > Duration::from_secs(60) {
            let why = "systemctl --failed --no-legend; systemctl list-jobs --no-legend; ls /run/banger; systemctl status -n 20 ssh; \
                journalctl -b -n 40 -o cat";
            eprintln!("{name}: {is}{}", said(name, why));
            std::thread::sleep(Duration::from_secs(20));
        }
        is == "active\nactive\nrunning\n"
    });
    let id = sh(name, "cat /etc/machine-id").trim().to_owned();
    let boot = sh(name, "tr -d - </proc/sys/kernel/random/boot_id");
    assert_eq!((id.len(), boot.len()), (32, 33));
    assert_eq!(
        sh(name, "hostname; hostnamectl hostname; systemd-run -q --wait --pipe cat /etc/hostname"),
        format!("{name}\n").repeat(3)
    );
    let peer = "org.freedesktop.DBus.Peer GetMachineId";
    let asked = sh(
        name,
        &format!(
            "for it in systemd1 login1; do busctl call org.freedesktop.$it /org/freedesktop/$it {peer}; done; \
        systemd-run -q --wait --pipe cat /etc/machine-id"
        ),
    );
    assert_eq!(asked, format!("s \"{id}\"\ns \"{id}\"\n{id}\n"));
    // Of all journals that are there.
    assert_eq!(
        sh(name, "journalctl -m -F _MACHINE_ID; journalctl -m -F _BOOT_ID; ls /var/log/journal"),
        format!("{id}\n{boot}{id}\n")
    );
    let said = sh(name, "journalctl -b -o cat");
    assert!(!said.contains("no hostkeys"), "what became of its template's ssh is none of its business: {said}");
    // Reached by its name, where systemd's sshd answers.
    let last = address_of(&format!("{name}.vm")).expect("a name");
    let stream = TcpStream::connect((Ipv4Addr::new(172, 16, 0, last), 22)).expect("port 22");
    let mut greeting = String::new();
    BufReader::new(stream).read_line(&mut greeting).unwrap();
    assert!(greeting.starts_with("SSH-2.0-"), "{greeting}");
    assert_eq!(sh(name, "ping -q -c 1 -W 20 172.16.0.1 >/dev/null && echo reached"), "reached\n");
    id
}

/// The status of each, of its disk.
fn e2fsck(name: &str, ways: &[&str]) -> Vec<Option<i32>> {
    let disk = format!("/var/lib/banger/vms/{}/root.ext4", field(name, "/id").as_str().expect("an id"));
    ways.iter()
        .map(|way| Command::new("e2fsck").args([*way, disk.as_str()]).output().expect("e2fsck").status.code())
        .collect()
}

fn is_whole(name: &str) -> bool {
    field(name, "/state") == "stopped" && field(name, "/disk/method") != "layer"
}

#[test]
fn vms_with_systemd_go_on_from_a_template_and_each_is_a_machine_of_its_own() {
    isolated_with_packages("vms_with_systemd_go_on_from_a_template_and_each_is_a_machine_of_its_own", |world| {
        // The first one leaves it behind.
        fs::write("/etc/banger/config.toml", "templates = \"auto\"\n").unwrap();
        world.kill_daemon();
        let [disk, boot] = notes(&INIT);
        assert!(disk.contains("no template of files with 512 MiB and 1 CPU and its own init"), "{disk}");
        assert!(!boot.starts_with("no boot"));
        templates_made(1);
        until("nothing else is left", || left().is_empty());
        let made = templates().remove(0);
        assert_eq!(made["init"], true);
        let id = made["id"].as_str().unwrap();
        let [disk, boot] = notes(&INIT);
        assert_eq!(disk, format!("layer on template {id}"));
        assert!(boot.starts_with("no boot: "), "{boot}");
        // It is for its kind alone.
        fs::remove_file("/etc/banger/config.toml").unwrap();
        world.kill_daemon();
        let [disk, _] = notes(&INIT[1..]);
        assert!(disk.ends_with("no template of files with 512 MiB and 1 CPU"), "{disk}");

        // Whoever ends before it has gone on: the next daemon sees to it.
        started("web");
        started("db");
        world.kill_daemon();
        let ids = ["web", "db"].map(is_itself);
        assert_ne!(ids[0], ids[1]);
        // Their disks lie on it.
        assert_eq!(run(&["template", "rm", id]).status.code(), Some(4));

        // One is stopped in order, one is killed; each boots as itself.
        let unit = "printf '[Service]\\nType=oneshot\\nRemainAfterExit=yes\\nExecStart=true\\nExecStop=touch /root/stopped\\n' \
            >/etc/systemd/system/last.service && systemctl start last; sync";
        ["web", "db"].iter().for_each(|name| assert_eq!(sh(name, unit), ""));
        let out = run(&["vm", "stop", "web"]);
        assert_eq!((out.status.code(), text(&out.stderr)), (Some(0), ""), "it ended by itself");
        assert_eq!(e2fsck("web", &["-fn"]), [Some(0)]);
        let pid = i32::try_from(field("db", "/vmm/pid").as_i64().expect("a pid")).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
        until("db is whole", || is_whole("db"));
        assert!(matches!(e2fsck("db", &["-fp", "-fn"])[..], [Some(0 | 1), Some(0)]));
        ok(&["template", "rm", id]);
        for (name, id, stopped) in [("web", &ids[0], "/root/stopped\n"), ("db", &ids[1], "")] {
            ok(&["vm", "start", name]);
            assert_ne!(field(name, "/disk/method"), "layer");
            until(&format!("{name} is up"), || said(name, "systemctl is-system-running --wait") == "running\n");
            assert_eq!(
                sh(name, "cat /etc/machine-id; hostname; ls /root/stopped 2>/dev/null || :"),
                format!("{id}\n{name}\n{stopped}")
            );
            assert_eq!(
                sh(name, "journalctl -m -F _MACHINE_ID; journalctl -m -F _BOOT_ID | wc -l"),
                format!("{id}\n2\n")
            );
            ok(&["vm", "rm", "-f", name]);
        }
        until("nothing is left", || left().is_empty());
    });
}

/// A file of the image's, by debugfs' own hand: its directory's name, its own, its text.
const ADDED: [(&str, &str, &str); 6] = [
    (
        "/etc/systemd/system/ssh.service.d",
        "keys.conf",
        "[Service]\nExecStartPre=\nExecStartPre=/bin/sh -c \
        'test -s /etc/ssh/ssh_host_ecdsa_key || ssh-keygen -q -t ecdsa -N \"\" -f /etc/ssh/ssh_host_ecdsa_key'\n",
    ),
    ("/etc/ssh", "ssh_host_own_key", "the image's\n"),
    (
        "/etc/systemd/system",
        "addressed.service",
        "[Service]\nType=oneshot\nRemainAfterExit=yes\n\
        ExecStart=/bin/sh -c 'ip -4 -o addr show dev eth0 | grep -q inet'\n",
    ),
    (
        "/etc/systemd/system",
        "behind.service",
        "[Unit]\nRequires=addressed.service\nAfter=addressed.service\n\
        [Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=true\n",
    ),
    (
        "/etc/systemd/system",
        "last.service",
        "[Unit]\nRequires=behind.service\nAfter=behind.service\n\
        [Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=true\n",
    ),
    (
        "/etc/systemd/system",
        "once.service",
        "[Service]\nType=oneshot\nExecStart=/bin/sh -c 'echo once >>/root/times'\n",
    ),
];

/// Adds them to an image, the services to those that a boot begins.
fn add(image: &str) {
    for (dir, name, said) in ADDED {
        let file = format!("/tmp/{name}");
        fs::write(&file, said).unwrap();
        let wanted = "/etc/systemd/system/multi-user.target.wants";
        let enabled = format!("cd {wanted}\nsymlink {name} {dir}/{name}\n");
        let enabled = if name.ends_with(".service") { enabled.as_str() } else { "" };
        let commands = "/tmp/debugfs";
        fs::write(commands, format!("mkdir {dir}\ncd {dir}\nwrite {file} {name}\n{enabled}")).unwrap();
        assert!(
            Command::new("debugfs").args(["-w", "-f", commands, image]).output().expect("debugfs").status.success()
        );
        assert_eq!(in_disk(image, &format!("{dir}/{name}")), said);
    }
}

/// A file in a disk; nothing where it is not there.
fn in_disk(disk: &str, path: &str) -> String {
    let out = Command::new("debugfs").args(["-R", &format!("cat {path}"), disk]).output().expect("debugfs");
    text(&out.stdout).to_owned()
}

/// A copy of a template's disk with all that its journal has.
fn whole(template: &str) -> String {
    let copy = "/var/lib/banger/copy.ext4".to_owned();
    let disk = format!("/var/lib/banger/templates/{template}/root.ext4");
    let copied = Command::new("cp").args(["--sparse=always", &disk, &copy]).status();
    assert!(copied.expect("cp").success());
    let checked = Command::new("e2fsck").args(["-fp", &copy]).output().expect("e2fsck");
    assert!(matches!(checked.status.code(), Some(0 | 1)), "{}", text(&checked.stdout));
    copy
}

#[test]
fn what_a_template_made_or_could_not_do_each_vm_does_itself() {
    isolated_with_packages("what_a_template_made_or_could_not_do_each_vm_does_itself", |world| {
        world.without_daemon(|| add("/var/lib/banger/root.ext4"));
        let made = json(&[&["template", "build", "--json"], INIT.as_slice()].concat());
        let disk = whole(made["id"].as_str().unwrap());
        // A server was up there, and its key is nobody's; what the image has stays.
        let keys = ["own", "ecdsa", "ed25519"].map(|kind| in_disk(&disk, &format!("/etc/ssh/ssh_host_{kind}_key")));
        assert_eq!(keys, ["the image's\n", "", ""]);
        let keys = ["web", "db"].map(|name| {
            started(name);
            let units = "addressed behind last ssh";
            until(&format!("{name}: all has begun"), || {
                said(name, &format!("systemctl is-active {units}")) == "active\n".repeat(4)
            });
            sh(name, "cat /etc/ssh/ssh_host_ecdsa_key.pub")
        });
        assert!(keys[0].starts_with("ecdsa-") && keys[0] != keys[1], "{keys:?}");
        // What was done there is not done again.
        assert_eq!((in_disk(&disk, "/root/times"), sh("web", "cat /root/times")), ("once\n".into(), "once\n".into()));
        ["web", "db"].iter().for_each(|name| drop(ok(&["vm", "rm", "-f", name])));
        fs::remove_file(disk).unwrap();
        ok(&["template", "rm", made["id"].as_str().unwrap()]);
        until("nothing is left", || left().is_empty());
    });
}
