//! VMs that stay and went on from a template: what was written in one is there when it is started again, whatever ended it,
//! and its disk is its own then.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

#[allow(dead_code, reason = "each file of tests has its own copy of this one")]
mod world;

use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;
use world::*;

const TEMPLATES: &str = "/var/lib/banger/templates";
const SIZE: [&str; 2] = ["--memory", "256M"];
/// What two starts of a VM have in common; the file that was written first.
const SAME: &str = "cat /kept /etc/machine-id /etc/hostname /sys/class/net/eth0/address; hostname; sha256sum </etc/hosts; \
    sha256sum </etc/ssh/ssh_host_ed25519_key; ping -q -c 1 -W 20 172.16.0.1 >/dev/null && echo reached";

fn build() -> String {
    json(&[&["template", "build", "--json"], SIZE.as_slice()].concat())["id"].as_str().expect("an id").to_owned()
}

/// Starts a new one, which goes on from a template.
fn started(name: &str) {
    ok(&[&["vm", "create"], SIZE.as_slice(), &[name]].concat());
    ok(&["vm", "start", name]);
    assert_eq!(field(name, "/disk/method"), "layer");
}

fn sh(name: &str, script: &str) -> String {
    ok(&["vm", "exec", name, "--", "sh", "-c", script])
}

/// A file of a VM's directory.
fn file(name: &str, file: &str) -> String {
    format!("/var/lib/banger/vms/{}/{file}", field(name, "/id").as_str().expect("an id"))
}

/// Ends its VMM as a crash would.
fn crash(name: &str) {
    let pid = i32::try_from(field(name, "/vmm/pid").as_i64().expect("a pid")).unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
}

/// It is down, with a disk that is its own alone.
fn is_whole(name: &str) -> bool {
    let method = field(name, "/disk/method");
    field(name, "/state") == "stopped"
        && ["reflink", "copy"].iter().any(|own| method == *own)
        && Path::new(&file(name, "root.ext4")).exists()
        && !Path::new(&file(name, "root.qcow2")).exists()
}

/// Its status, of a file system that nobody uses.
fn e2fsck(how: &str, disk: &str) -> Option<i32> {
    Command::new("e2fsck").args([how, disk]).output().expect("e2fsck, of e2fsprogs").status.code()
}

/// A file of a disk, without a guest.
fn read(disk: &str, path: &str) -> String {
    let out = Command::new("debugfs").args(["-R", &format!("cat {path}"), disk]).output().expect("debugfs");
    text(&out.stdout).to_owned()
}

#[test]
fn a_vm_that_stays_goes_on_once_and_then_boots_from_its_own_disk() {
    isolated("a_vm_that_stays_goes_on_once_and_then_boots_from_its_own_disk", |_| {
        let id = build();
        started("web");
        let mac = field("web", "/network/mac");
        sh("web", "echo first >/kept; mkdir /d; head -c 3000000 /dev/urandom >/d/random; sha256sum /d/random >/d/sum");
        let before = sh("web", SAME);
        assert!(before.starts_with("first\n") && before.ends_with("reached\n"), "{before}");
        let out = run(&["template", "rm", &id]);
        assert!(out.status.code() == Some(4) && text(&out.stderr).contains("web"), "{}", text(&out.stderr));

        ok(&["vm", "stop", "web"]);
        assert!(is_whole("web"), "{:?}", json(&["vm", "show", "web", "--json"]));
        let disk = file("web", "root.ext4");
        assert_eq!(e2fsck("-fn", &disk), Some(0));
        assert_eq!(read(&disk, "/kept"), "first\n");

        // Killed, one with a file that is on its disk, one at once.
        ok(&[&["vm", "run", "--name", "db"], SIZE.as_slice(), &["--", "sh", "-c", "echo first >/kept; sync"]].concat());
        assert_eq!(field("db", "/disk/method"), "layer");
        crash("db");
        started("early");
        crash("early");
        for name in ["db", "early"] {
            until("it is whole", || is_whole(name));
            let disk = file(name, "root.ext4");
            assert!(matches!(e2fsck("-fp", &disk), Some(0 | 1)), "{name}");
            assert_eq!(e2fsck("-fn", &disk), Some(0), "{name}");
        }
        assert_eq!(read(&file("db", "root.ext4"), "/kept"), "first\n");

        // None of them needs the template.
        ok(&["template", "rm", &id]);
        assert_eq!(fs::read_dir(TEMPLATES).unwrap().count(), 0);
        ok(&["vm", "start", "web"]);
        assert!(field("web", "/disk/method") != "layer" && field("web", "/network/mac") == mac);
        assert_eq!(sh("web", SAME), before);
        assert_eq!(sh("web", "sha256sum -c --quiet /d/sum && echo same"), "same\n");
        ok(&["vm", "rm", "-f", "web"]);
        ok(&["vm", "start", "early"]);
        let of_early = sh("early", &SAME.replace("/kept", "/dev/null"));
        assert!(of_early.contains("early\n02:") && of_early.ends_with("reached\n"), "{of_early}");
        assert_ne!(of_early.lines().next(), before.lines().nth(1), "another machine-id");
        ok(&["vm", "rm", "-f", "early", "db"]);
        assert!(left().is_empty(), "{:?}", left());
    });
}

#[test]
fn what_a_vm_wrote_outlives_a_daemon_that_is_killed_while_its_disk_is_made() {
    isolated("what_a_vm_wrote_outlives_a_daemon_that_is_killed_while_its_disk_is_made", |world| {
        let id = build();
        // The VM is going; the disk is begun; it has its name.
        let steps: [(&str, &[&str]); 3] =
            [("going", &[]), ("begun", &["root.ext4.part", "root.ext4"]), ("named", &["root.ext4"])];
        for (name, reached) in steps {
            started(name);
            sh(name, &format!("echo {name} >/kept; sync"));
            let files: Vec<String> = reached.iter().map(|part| file(name, part)).collect();
            let mut stopping = banger(&["vm", "stop", name]).spawn().unwrap();
            let end = Instant::now() + LONG;
            let is_there = || match files.is_empty() {
                true => field(name, "/state") == "stopping",
                false => files.iter().any(|file| Path::new(file).exists()),
            };
            while !is_there() {
                assert!(Instant::now() < end, "{name} never came");
            }
            world.kill_daemon();
            stopping.wait().unwrap();
            until(&format!("{name}: it is whole"), || is_whole(name));
            let disk = file(name, "root.ext4");
            assert!(!Path::new(&file(name, "root.ext4.part")).exists(), "{name}");
            assert_eq!((e2fsck("-fn", &disk), read(&disk, "/kept")), (Some(0), format!("{name}\n")));
            assert_eq!(read(&disk, "/etc/hostname"), format!("{name}\n"));
        }
        // And where it ends with its VMs, as the machine does.
        started("dead");
        sh("dead", "echo dead >/kept; sync");
        world.without_daemon(|| {
            vmms().iter().for_each(|pid| kill_process(Pid::from_raw(*pid).unwrap(), Signal::KILL).unwrap())
        });
        until("dead: it is whole", || is_whole("dead"));
        assert_eq!(read(&file("dead", "root.ext4"), "/kept"), "dead\n");
        // Cut off when the row said so already.
        fs::write(file("dead", "root.qcow2"), "").unwrap();
        ok(&["vm", "start", "dead"]);
        assert!(!Path::new(&file("dead", "root.qcow2")).exists());
        ok(&["template", "rm", &id]);
        // Cut off before it was itself: nothing of it is kept, and the next start is the first.
        let id = build();
        ok(&[&["vm", "create"], SIZE.as_slice(), &["young"]].concat());
        let layer = file("young", "root.qcow2");
        let mut starting = banger(&["vm", "start", "young"]).spawn().unwrap();
        let end = Instant::now() + LONG;
        while !Path::new(&layer).exists() {
            assert!(Instant::now() < end, "its layer never came");
        }
        world.kill_daemon();
        starting.wait().unwrap();
        until("nothing of it is kept", || {
            field("young", "/state") == "stopped" && field("young", "/disk/method").is_null()
        });
        assert!(!Path::new(&layer).exists());
        ok(&["vm", "start", "young"]);
        assert_eq!(sh("young", "hostname"), "young\n");
        ok(&["vm", "rm", "-f", "young", "going", "begun", "named", "dead"]);
        ok(&["template", "rm", &id]);
        assert!(left().is_empty(), "{:?}", left());
    });
}

#[test]
fn a_disk_that_finds_no_room_stays_a_layer_until_there_is_some() {
    isolated("a_disk_that_finds_no_room_stays_a_layer_until_there_is_some", |_| {
        let remount = |size: &str| {
            let done = Command::new("mount").args(["-o", &format!("remount,size={size}"), "/mnt"]).status();
            assert!(done.unwrap().success());
        };
        let id = build();
        started("web");
        sh("web", "echo first >/kept");
        let facts = rustix::fs::statvfs("/mnt").unwrap();
        remount(&((facts.f_blocks - facts.f_bfree) * facts.f_frsize + (24 << 20)).to_string());
        let stopped = ok(&["vm", "stop", "--json", "web"]);
        assert!(stopped.contains("the disk is full"), "{stopped}");
        let shown = json(&["vm", "show", "web", "--json"]);
        assert_eq!((shown["state"].as_str(), shown["disk"]["method"].as_str()), (Some("stopped"), Some("layer")));
        assert_eq!(shown["last_error"]["code"], "no_space");
        assert!(!Path::new(&file("web", "root.ext4.part")).exists());
        for arguments in [&["vm", "start", "web"][..], &["image", "promote", "web", "mine"]] {
            let out = run(arguments);
            assert!(
                out.status.code() == Some(5) && text(&out.stderr).contains("disk is full"),
                "{}",
                text(&out.stderr)
            );
        }
        assert_eq!(run(&["template", "rm", &id]).status.code(), Some(4));
        remount("90%");
        ok(&["vm", "start", "web"]);
        assert_eq!(sh("web", "cat /kept; hostname"), "first\nweb\n");
        ok(&["template", "rm", &id]);
        ok(&["vm", "rm", "-f", "web"]);
        assert!(left().is_empty(), "{:?}", left());
    });
}
