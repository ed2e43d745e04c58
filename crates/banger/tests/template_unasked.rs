//! Templates that nobody asked for: the first run of an image leaves one behind, and nobody notices its making.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

#[allow(dead_code, reason = "each file of tests has its own copy of this one")]
mod world;

use serde_json::Value;
use std::fs;
use std::path::Path;
use std::time::Instant;
use world::*;

const TEMPLATES: &str = "/var/lib/banger/templates";

/// Starts the daemon anew, with that setting.
fn unasked(world: &mut World, when: &str) {
    fs::write("/etc/banger/config.toml", format!("templates = {when:?}\n")).unwrap();
    world.kill_daemon();
}

/// Runs a script in a new VM; the note of the stage `disk`, which says how it began.
fn disk(memory: &str, script: &str) -> String {
    let out = run(&["vm", "run", "--timings", "--json", "--memory", memory, "--", "sh", "-c", script]);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    let timings: Value = serde_json::from_slice(&out.stderr).expect("timings, and no other word");
    let stages = timings["stages"].as_array().expect("stages");
    let note = stages.iter().rev().find(|stage| stage["name"] == "disk").expect("a disk");
    note["note"].as_str().expect("a note").to_owned()
}

fn ids() -> Vec<String> {
    ok(&["template", "list", "--quiet"]).lines().map(str::to_owned).collect()
}

fn folders() -> usize {
    fs::read_dir(TEMPLATES).map_or(0, Iterator::count)
}

fn log() -> String {
    fs::read_to_string("/mnt/daemon.log").unwrap_or_default()
}

fn times(words: &str) -> usize {
    log().matches(words).count()
}

/// Waits for the VMM of a making, whose run is over.
fn making() -> i32 {
    let mut found = None;
    until("a template is being made", || {
        found = vmms().first().copied();
        found.is_some()
    });
    found.unwrap()
}

/// What its VMM and the VMM's children have used of the processors, in ticks.
fn used(pid: i32) -> Option<u64> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    let all = children.split_whitespace().map(|child| child.parse().unwrap()).chain([pid]);
    let ticks = |pid: i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        Some(fields[11].parse::<u64>().ok()? + fields[12].parse::<u64>().ok()?)
    };
    Some(all.filter_map(ticks).sum())
}

#[test]
fn the_first_run_leaves_a_template_behind_and_the_next_goes_on_from_it() {
    isolated("the_first_run_leaves_a_template_behind_and_the_next_goes_on_from_it", |world| {
        unasked(world, "auto");
        assert!(disk("256M", "true").contains("no template of files with 256 MiB and 1 CPU"));
        let pid = making();
        assert_eq!(json(&["vm", "list", "--json"]), Value::Array(vec![]), "it is nobody's VM");
        assert_eq!(ok(&["vm", "prune", "--all", "-f"]), "", "and nobody's to be pruned");
        let out = run(&["vm", "run", "--name", "template-0123456789ab", "--", "true"]);
        assert!(text(&out.stderr).contains("a template is made under such a name"), "{}", text(&out.stderr));
        // What goes on with it goes unnoticed by a command: it stands still as long as that runs.
        let mut command = banger(&["vm", "run", "--memory", "128M", "--", "sh", "-c", "echo up; read line"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        read_until(command.stdout.as_mut().unwrap(), "up");
        let stands_still = (0..3).any(|_| {
            let before = used(pid);
            std::thread::sleep(std::time::Duration::from_millis(500));
            before.is_some() && used(pid) == before
        });
        assert!(stands_still || !Path::new(&format!("/proc/{pid}")).exists(), "it goes on beside a command");
        println!("figure: stands still: {stands_still}");
        drop(command.stdin.take());
        command.wait().unwrap();
        templates_made(2);
        until("nothing is left", || left().is_empty());
        let made = json(&["template", "list", "--json"]);
        let of_256 = made.as_array().unwrap().iter().find(|one| one["memory_bytes"] == 256 << 20).unwrap();
        assert_eq!(disk("256M", "true"), format!("layer on template {}", of_256["id"].as_str().unwrap()));
        assert!(left().is_empty(), "{:?}", left());
        // Who boots on purpose wants none, and `off` is off.
        ok(&["vm", "run", "--cold", "--memory", "160M", "--", "true"]);
        unasked(world, "off");
        assert!(disk("192M", "true").contains("no template"));
        assert!(disk("256M", "true").starts_with("layer on"), "those that are there are used all the same");
        unasked(world, "auto");
        assert!(disk("224M", "true").contains("no template"));
        templates_made(3);
        let sizes = json(&["template", "list", "--json"]);
        let sizes: Vec<u64> =
            sizes.as_array().unwrap().iter().map(|one| one["memory_bytes"].as_u64().unwrap() >> 20).collect();
        assert!([128, 224, 256].iter().all(|size| sizes.contains(size)), "{sizes:?}");
    });
}

#[test]
fn what_is_cut_off_leaves_nothing_and_what_fails_twice_is_given_up() {
    isolated("what_is_cut_off_leaves_nothing_and_what_fails_twice_is_given_up", |world| {
        unasked(world, "auto");
        // The daemon is killed while a guest boots.
        disk("256M", "true");
        making();
        world.kill_daemon();
        until("nothing is left", || left().is_empty());
        assert_eq!((folders(), ids().len()), (0, 0));
        // Its VM is somebody's to take away; that is no failure.
        disk("256M", "true");
        making();
        let vms = fs::read_dir("/var/lib/banger/vms").unwrap().flatten();
        for vm in vms {
            ok(&["vm", "rm", "-f", vm.file_name().to_str().unwrap()]);
        }
        until("it is given up", || times("somebody took its VM away") == 1);
        until("nothing is left", || left().is_empty() && folders() == 0);

        // Its VMM dies: twice, and that is known to the next daemon.
        for n in 1..=2 {
            disk("256M", "true");
            let pid = making();
            kill(pid);
            until("it has failed", || failed_makings().len() == n);
            until("nothing is left", || left().is_empty() && folders() == 0);
        }
        unasked(world, "auto");
        disk("256M", "true");
        until("it is given up", || times("no template is made: two like it failed") == 1);
        assert!(left().is_empty() && folders() == 0);
        // Another initial RAM disk is another key.
        let initrd = "/var/lib/banger/initrd";
        fs::copy(initrd, "/var/lib/banger/new").unwrap();
        std::os::unix::fs::chown("/var/lib/banger/new", Some(OWNER), Some(OWNER)).unwrap();
        fs::rename("/var/lib/banger/new", initrd).unwrap();
        disk("256M", "true");
        templates_made(1);
    });
}

fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}

#[test]
fn a_making_gives_its_memory_to_a_vm_that_needs_it() {
    isolated("a_making_gives_its_memory_to_a_vm_that_needs_it", |world| {
        unasked(world, "auto");
        // As much as this machine seems to have, whatever else runs on it: not enough for both.
        fs::write("/mnt/meminfo", "MemTotal:        4194304 kB\nMemAvailable:    1024000 kB\n").unwrap();
        rustix::mount::mount_bind("/mnt/meminfo", "/proc/meminfo").unwrap();
        disk("256M", "true");
        making();
        let begun = Instant::now();
        assert!(disk("640M", "true").contains("no template"));
        println!("figure: a run that had to wait for the memory took {} ms", begun.elapsed().as_millis());
        assert_eq!(failed_makings(), [""; 0], "it was none");
        templates_made(1);
        assert_eq!(json(&["template", "list", "--json"])[0]["memory_bytes"], 640 << 20);
        until("nothing is left", || left().is_empty());
        disk("256M", "true");
        templates_made(2);
    });
}
