//! VMs that wait for whoever asks next: given out in order, each another then, and gone where nobody can have them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

#[allow(dead_code, reason = "each file of tests has its own copy of this one")]
mod world;

use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::time::Instant;
use world::*;

/// A daemon that keeps so many ready, of small VMs, in the place of the one that is there.
fn keep(world: &mut World, count: u8) {
    let config = format!("warm_pool = {count}\n[vm_defaults]\nmemory_mib = 256\n");
    fs::write("/etc/banger/config.toml", config).unwrap();
    world.kill_daemon();
}

fn build() -> String {
    json(&["template", "build", "--json"])["id"].as_str().expect("an id").to_owned()
}

/// Until so many wait.
fn wait_for(count: usize) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    until(&format!("{count} wait"), || {
        found = waiting();
        found.len() == count
    });
    found
}

/// Runs a script in a new VM: what it wrote, and the note of its disk.
fn sh(more: &[&str], script: &str) -> (String, String) {
    let out = run(&[&["vm", "run", "--timings", "--json"], more, &["--", "sh", "-c", script]].concat());
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    let timings: Value = serde_json::from_slice(&out.stderr).expect("timings, and no other word");
    let first = timings["first_output_us"].as_u64().unwrap_or(0) / 1000;
    let stages = timings["stages"].as_array().expect("stages").iter();
    let note = stages.rev().find(|stage| stage["name"] == "disk").expect("a disk")["note"].as_str().expect("a note");
    println!("figure: first output after {first} ms: {note}");
    (text(&out.stdout).to_owned(), note.to_owned())
}

#[test]
fn vms_that_wait_are_given_out_in_order_and_each_is_another() {
    isolated("vms_that_wait_are_given_out_in_order_and_each_is_another", |world| {
        keep(world, 2);
        let id = build();
        let note = format!("pool, layer on template {id}");
        let first = wait_for(1);
        let both = wait_for(2);
        assert!(first.is_subset(&both), "the second is made behind the first: {first:?}, {both:?}");
        assert_eq!(ok(&["vm", "list", "--quiet"]), "", "they are nobody's");

        let script = "hostname; cat /etc/machine-id /proc/sys/kernel/random/boot_id; head -c 16 /dev/urandom | od -An -tx1; \
            cat /sys/class/net/eth0/address; sha256sum </etc/ssh/ssh_host_ed25519_key; \
            ping -q -c 1 -W 20 172.16.0.1 >/dev/null && echo reached";
        let (one, how) = sh(&["--name", "web"], script);
        assert_eq!(how, note);
        assert!(first.contains(field("web", "/id").as_str().unwrap()), "the one that waited longest");
        let (two, how) = sh(&[], script);
        assert_eq!(how, note);
        let [one, two] = [&one, &two].map(|out| out.lines().map(str::to_owned).collect::<Vec<_>>());
        assert!(one.len() == 7 && two.len() == 7, "{one:?} {two:?}");
        assert!(
            one[0] == "web" && one[4].starts_with("02:") && two[4].starts_with("06:00:ac:10:00:"),
            "{one:?} {two:?}"
        );
        assert!(one.iter().zip(&two).take(6).all(|(one, two)| one != two), "{one:?} {two:?}");
        assert_eq!([&one[6], &two[6]], ["reached", "reached"]);
        assert_eq!(ok(&["vm", "exec", "web", "echo", "here"]), "here\n");

        // Others are made in their places; what is of another kind is none of theirs.
        let next = wait_for(2);
        assert!(next.is_disjoint(&both), "{next:?} {both:?}");
        let (_, how) = sh(&["--no-nat"], "true");
        assert_eq!(how, format!("layer on template {id}"));
        let (_, how) = sh(&["--cold"], "true");
        assert!(how.ends_with("a boot: --cold"), "{how}");
        assert_eq!(waiting(), next);

        // One whose VMM ended is not given out.
        for pid in vmms().into_iter().filter(|pid| Some(i64::from(*pid)) != field("web", "/vmm/pid").as_i64()) {
            let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
        }
        let (out, how) = sh(&[], "echo done");
        assert_eq!((out.as_str(), how.as_str()), ("done\n", format!("layer on template {id}").as_str()));

        // It stays as any other; then what the rest lies on is taken away, and so are they.
        ok(&["vm", "stop", "web"]);
        assert_ne!(field("web", "/disk/method"), "layer");
        ok(&["vm", "rm", "web"]);
        ok(&["template", "rm", &id]);
        until("nothing is left", || left().is_empty());
    });
}

#[test]
fn a_daemon_that_is_killed_leaves_none_that_waits() {
    isolated("a_daemon_that_is_killed_leaves_none_that_waits", |world| {
        keep(world, 2);
        build();
        let layer = || {
            let vms = fs::read_dir("/var/lib/banger/vms").into_iter().flatten().flatten();
            vms.into_iter().any(|vm| vm.path().join("root.qcow2").exists())
        };
        // Something of the first, its disk, its VMM; one that waits; both.
        let reached: [&dyn Fn() -> bool; 5] =
            [&|| !left().is_empty(), &layer, &|| !vmms().is_empty(), &|| !waiting().is_empty(), &|| {
                waiting().len() == 2
            }];
        for (n, is_reached) in reached.iter().enumerate() {
            keep(world, 2);
            let end = Instant::now() + LONG;
            while !is_reached() {
                assert!(Instant::now() < end, "step {n} never came");
            }
            keep(world, 0);
            until(&format!("step {n}: nothing is left"), || left().is_empty());
        }
        let (out, how) = sh(&[], "echo done");
        assert!(out == "done\n" && how.starts_with("layer on template"), "{how}");
    });
}

#[test]
fn those_that_wait_make_room_for_a_vm_that_somebody_wants() {
    isolated("those_that_wait_make_room_for_a_vm_that_somebody_wants", |world| {
        keep(world, 2);
        build();
        let before = wait_for(2);
        // What the machine says that it has: 512 MiB more fit without them, and not beside one of them.
        let facts = fs::read_to_string("/proc/meminfo").unwrap();
        let told = |line: &str| {
            if line.starts_with("MemAvailable:") { format!("MemAvailable: {} kB", 900 << 10) } else { line.to_owned() }
        };
        let told: Vec<String> = facts.lines().map(told).collect();
        fs::write("/mnt/meminfo", told.join("\n") + "\n").unwrap();
        mount_bind("/mnt/meminfo", "/proc/meminfo").unwrap();
        ok(&["vm", "run", "--dry-run", "--memory", "512M", "--", "true"]);
        assert_eq!(waiting(), before, "who only asks ends none");
        ok(&["vm", "create", "--memory", "512M", "big"]);
        ok(&["vm", "start", "big"]);
        let big = field("big", "/id");
        assert_eq!(vmms(), vmms_of(big.as_str().unwrap()), "both of {before:?} are gone");
        assert!(waiting().is_empty());
        // One that is being made gives way too, and is no failure of its template's.
        ok(&["vm", "stop", "big"]);
        for _ in 0..2 {
            keep(world, 1);
            let end = Instant::now() + LONG;
            while vmms().is_empty() {
                assert!(Instant::now() < end, "none is made");
            }
            ok(&["vm", "start", "big"]);
            assert_eq!(vmms(), vmms_of(big.as_str().unwrap()));
            ok(&["vm", "stop", "big"]);
        }
        keep(world, 2);
        // They come again when it is gone.
        ok(&["vm", "rm", "-f", "big"]);
        unmount("/proc/meminfo", UnmountFlags::DETACH).unwrap();
        let (_, _) = sh(&[], "true");
        let after = wait_for(2);
        assert!(after.is_disjoint(&before), "{after:?} {before:?}");
        ok(&["template", "rm", "files"]);
        until("nothing is left", || left().is_empty());
    });
}

#[test]
fn one_that_is_stopped_or_has_ended_is_nobodys_any_more() {
    isolated("one_that_is_stopped_or_has_ended_is_nobodys_any_more", |world| {
        keep(world, 2);
        build();
        let before = wait_for(2);
        let stopped = before.first().unwrap();
        ok(&["vm", "stop", &format!("pool-{stopped}")]);
        let out = run(&["vm", "show", &format!("pool-{stopped}")]);
        assert_eq!(out.status.code(), Some(3), "no row stays");
        let second = wait_for(2);
        assert!(!second.contains(stopped), "{second:?}");
        // The one that waits longer is dead.
        let dead = before.last().unwrap();
        for pid in vmms_of(dead) {
            kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
        }
        until("its VMM is gone", || vmms_of(dead).is_empty());
        let (out, how) = sh(&[], "echo done");
        assert!(out == "done\n" && how.starts_with("pool, "), "{how}");
        assert!(wait_for(2).is_disjoint(&before));
        ok(&["template", "rm", "files"]);
        until("nothing is left", || left().is_empty());
    });
}

/// The processes of VMMs that are a VM's.
fn vmms_of(id: &str) -> Vec<i32> {
    let is_its = |pid: &i32| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| text(&line).contains(id));
    vmms().into_iter().filter(is_its).collect()
}
