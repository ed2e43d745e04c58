//! Templates where there is no room for one more, where what they are of goes, and where two want the same.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

#[allow(dead_code, reason = "each file of tests has its own copy of this one")]
mod world;

use serde_json::Value;
use std::fs;
use world::*;

const TEMPLATES: &str = "/var/lib/banger/templates";

fn build(memory: &str) -> String {
    ok(&["template", "build", "--memory", memory]).trim().to_owned()
}

fn ids() -> Vec<String> {
    ok(&["template", "list", "--quiet"]).lines().map(str::to_owned).collect()
}

fn folders() -> usize {
    fs::read_dir(TEMPLATES).map_or(0, Iterator::count)
}

/// What `doctor` finds of templates.
fn doctor() -> String {
    let out = run(&["doctor", "--only", "templates", "--json"]);
    let report: Value = serde_json::from_slice(&out.stdout).expect("JSON");
    assert_eq!((out.status.code(), report["checks"][0]["state"].as_str()), (Some(0), Some("ok")), "{report}");
    report["checks"][0]["found"].as_str().unwrap().to_owned()
}

#[test]
fn the_least_lately_used_goes_and_never_one_that_a_layer_lies_on() {
    isolated("the_least_lately_used_goes_and_never_one_that_a_layer_lies_on", |world| {
        fs::write("/etc/banger/config.toml", "template_count = 2\n").unwrap();
        world.kill_daemon();
        assert_eq!(doctor(), "0 of at most 2 templates, 0B of 4.0G; none is made unasked");
        // Two builders of one at once: one makes it, the other has it.
        let two = [(); 2].map(|()| banger(&["template", "build", "--memory", "128M"]).spawn().unwrap());
        let two = two.map(|one| text(&one.wait_with_output().unwrap().stdout).trim().to_owned());
        assert_eq!(two[0], two[1]);
        let first = two[0].clone();
        assert_eq!((ids(), folders()), (vec![first.clone()], 1));
        let second = build("160M");
        // The first was used after the second was made.
        ok(&["vm", "run", "--memory", "128M", "--", "true"]);
        let third = build("192M");
        assert_eq!(ids(), [first.clone(), third.clone()], "and not {second}");
        assert_eq!(folders(), 2);
        assert!(doctor().starts_with("2 of at most 2 templates, "), "{}", doctor());
        let listed = run(&["template", "list"]);
        assert!(text(&listed.stderr).starts_with("2 of at most 2 templates, "), "{}", text(&listed.stderr));
        assert!(text(&listed.stderr).trim().ends_with(" of 4.0G"), "{}", text(&listed.stderr));

        // Both are in use.
        let script = "echo up; read line";
        let mut running = ["128M", "192M"].map(|memory| {
            let arguments = ["vm", "run", "--memory", memory, "--", "sh", "-c", script];
            let mut command = banger(&arguments).stdin(std::process::Stdio::piped()).spawn().unwrap();
            read_until(command.stdout.as_mut().unwrap(), "up");
            command
        });
        let methods = json(&["vm", "list", "--json"]);
        assert!(methods.as_array().unwrap().iter().all(|vm| vm["disk"]["method"] == "layer"), "{methods}");
        let out = run(&["template", "build", "--memory", "224M"]);
        assert_eq!(out.status.code(), Some(5), "{}", text(&out.stderr));
        assert!(text(&out.stderr).contains("error[templates_full]"), "{}", text(&out.stderr));
        assert_eq!((ids(), folders()), (vec![first.clone(), third.clone()], 2));
        // The younger of the two is in no use any more: it goes, though it is not the oldest.
        drop(running[1].stdin.take());
        running[1].wait().unwrap();
        let fourth = build("224M");
        assert_eq!(ids(), [first.clone(), fourth]);
        drop(running[0].stdin.take());
        running[0].wait().unwrap();

        // One alone is too large, whatever goes; and none goes for it.
        fs::write("/etc/banger/config.toml", "template_size = \"64M\"\n").unwrap();
        world.kill_daemon();
        let out = run(&["template", "build", "--memory", "256M"]);
        assert_eq!(out.status.code(), Some(5), "{}", text(&out.stderr));
        assert_eq!((ids().len(), folders()), (2, 2));
        until("nothing is left", || left().is_empty());
    });
}

#[test]
fn a_disk_that_fills_while_one_is_made_leaves_nothing() {
    isolated("a_disk_that_fills_while_one_is_made_leaves_nothing", |_| {
        // Not enough from the beginning.
        let size = |bytes: u64| {
            let option = std::ffi::CString::new(format!("mode=755,size={bytes}")).unwrap();
            rustix::mount::mount_remount("/mnt", rustix::mount::MountFlags::empty(), option.as_c_str()).unwrap();
        };
        let facts = || rustix::fs::statvfs("/mnt").unwrap();
        let taken = || (facts().f_blocks - facts().f_bfree) * facts().f_frsize;
        size(taken() + (64 << 20));
        let out = run(&["template", "build", "--memory", "128M"]);
        assert_eq!(out.status.code(), Some(5), "{}", text(&out.stderr));
        assert!(text(&out.stderr).contains("error[no_space]"), "{}", text(&out.stderr));
        assert!(left().is_empty() && folders() == 0);
        // Enough, until the guest boots.
        size(taken() + (4 << 30));
        let building = banger(&["template", "build", "--memory", "128M"]).spawn().unwrap();
        until("its VMM is there", || !vmms().is_empty());
        size(taken() + (1 << 20));
        let out = building.wait_with_output().unwrap();
        assert!(out.status.code().is_some_and(|code| [1, 5].contains(&code)), "{}", text(&out.stderr));
        println!("figure: {}", text(&out.stderr).lines().next().unwrap_or_default());
        size(taken() + (4 << 30));
        until("nothing is left", || left().is_empty());
        assert_eq!((folders(), ids().len()), (0, 0));
        let log = fs::read_to_string("/mnt/daemon.log").unwrap();
        assert!(log.lines().any(|line| line.contains("template.build") && line.contains("ERROR")), "{log}");
        build("128M");
    });
}

#[test]
fn a_boot_that_takes_longer_than_it_may_leaves_nothing() {
    isolated("a_boot_that_takes_longer_than_it_may_leaves_nothing", |_| {
        for _ in 0..2 {
            let out = run(&["template", "build", "--memory", "128M", "--boot-timeout", "100ms"]);
            assert_eq!(out.status.code(), Some(1), "{}", text(&out.stderr));
            let told = "error[agent_silent]: it runs, but its agent has not answered for 0.1 s";
            assert!(text(&out.stderr).contains(told), "{}", text(&out.stderr));
            assert_eq!((ids(), folders()), (Vec::new(), 0));
        }
        let store = rusqlite::Connection::open("/var/lib/banger/banger.db").unwrap();
        let failures = store.query_row("SELECT count(*) FROM template_failures", [], |row| row.get::<_, i64>(0));
        assert_eq!(failures.unwrap(), 0, "the time was the asker's");
        assert_eq!(json(&["vm", "list", "--json"]), serde_json::json!([]));
    });
}

#[test]
fn a_template_goes_with_its_image() {
    isolated("a_template_goes_with_its_image", |world| {
        ok(&["vm", "create", "of", "--memory", "128M"]);
        ok(&["vm", "start", "of"]);
        ok(&["vm", "stop", "of"]);
        ok(&["image", "promote", "of", "as", "mine"]);
        ok(&["image", "promote", "of", "as", "same"]);
        let id = ok(&["template", "build", "mine", "--memory", "128M"]).trim().to_owned();
        let other = build("128M");
        // As long as the image has another name, and as long as a VM's disk lies on it, it stays.
        let mut command =
            banger(&["vm", "run", "--image", "mine", "--memory", "128M", "--", "sh", "-c", "echo up; read line"])
                .stdin(std::process::Stdio::piped())
                .spawn()
                .unwrap();
        read_until(command.stdout.as_mut().unwrap(), "up");
        let held = json(&["template", "show", &id, "--json"]);
        assert_eq!(held["vms"].as_array().unwrap().len(), 1, "{held}");
        ok(&["image", "rm", "same"]);
        ok(&["image", "rm", "--force", "mine"]);
        assert_eq!(ids(), [id.clone(), other.clone()], "a layer lies on it");
        drop(command.stdin.take());
        command.wait().unwrap();
        world.kill_daemon();
        assert_eq!((ids(), folders()), (vec![other.clone()], 1), "nobody can ask for it any more");

        // With nobody's VM in the way it goes at once.
        ok(&["image", "promote", "of", "as", "mine"]);
        let id = ok(&["template", "build", "mine", "--memory", "128M"]).trim().to_owned();
        let size = json(&["template", "show", &id, "--json"])["size_bytes"].as_u64().unwrap();
        let removed = json(&["image", "rm", "mine", "--json"]);
        assert!(removed[0]["freed_bytes"].as_u64().unwrap() >= size, "{removed}, {size}");
        assert_eq!((ids(), folders()), (vec![other], 1));
    });
}
