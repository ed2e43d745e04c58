//! What a person can see of a VM before it is made, while it starts and afterwards: the plan, the helper's calls, a start that
//! isn't waited for, the console's lines with their times.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

#[allow(dead_code, reason = "each file of tests has its own copy of this one")]
mod world;

use serde_json::Value;
use std::fs;
use std::net::TcpListener;
use std::process::{Command, Output};
use world::*;

fn failed(out: &Output, status: i32, word: &str) {
    assert_eq!(out.status.code(), Some(status), "{}", text(&out.stderr));
    assert!(text(&out.stderr).contains(word), "{}", text(&out.stderr));
}

/// Now, as `date` says it in UTC.
fn now() -> String {
    let out = Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%S.%3NZ"]).output().unwrap();
    text(&out.stdout).trim().to_owned()
}

/// The stages that a command told of, and how long each usually takes.
fn usual(out: &Output) -> Vec<(String, Value)> {
    let told = text(&out.stderr).lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let begun = told.filter(|stage| stage["state"] == "begun");
    begun.map(|stage| (stage["stage"].as_str().unwrap().to_owned(), stage["usual_ms"].clone())).collect()
}

#[test]
fn a_vm_is_told_of_from_its_plan_to_its_last_line() {
    isolated("a_vm_is_told_of_from_its_plan_to_its_last_line", |world| {
        // A plan makes nothing, and is what is made then.
        let machine = ["--memory", "256M", "--cpus", "1", "--no-nat"];
        let planned = ok(&[&["vm", "create", "web", "--dry-run", "--json"][..], &machine].concat());
        let planned: Value = serde_json::from_str(&planned).unwrap();
        assert_eq!(json(&["vm", "list", "--json"]), Value::Array(vec![]));
        assert_eq!(left(), Vec::<String>::new());
        let said = ok(&[&["vm", "run", "--dry-run"][..], &machine, &["--", "true"]].concat());
        assert!(said.contains("memory    256M") && said.contains("stays     no"), "{said}");
        failed(&run(&["vm", "run", "--dry-run", "--memory", "1", "--", "true"]), 125, "bad_memory");
        failed(&run(&["vm", "create", "--dry-run", "--image", "nosuch"]), 3, "no_such_image");
        failed(&run(&["vm", "run", "--dry-run", "-d"]), 125, "cannot be used with");
        ok(&[&["vm", "create", "web"][..], &machine].concat());
        let made = json(&["vm", "show", "web", "--json"]);
        for same in ["name", "image", "kernel", "init", "cpus", "memory_bytes"] {
            assert_eq!(planned[same], made[same], "{same}");
        }
        assert_eq!((&planned["network"]["ip"], &planned["template"]), (&made["network"]["ip"], &Value::Null));
        failed(&run(&["vm", "create", "web", "--dry-run"]), 4, "name_taken");

        // Not waited for.
        let before = now();
        let out = run(&["vm", "start", "web", "--wait", "none", "--progress", "json"]);
        assert!(out.status.success() && text(&out.stdout).starts_with("web\t"), "{}", text(&out.stderr));
        assert!(usual(&out).iter().all(|(_, ms)| ms.is_null()), "nothing is usual yet: {}", text(&out.stderr));
        until("it runs in the end", || field("web", "/state") == "running");
        assert_eq!(field("web", "/disk/method"), planned["disk"]["method"]);
        assert_eq!(ok(&["vm", "exec", "web", "cat", "/proc/sys/kernel/hostname"]), "web\n");
        let long = ok(&["vm", "list", "-l"]);
        let cells: Vec<&str> = long.trim_end().split('\t').collect();
        assert_eq!((cells.len(), cells[0], cells[5]), (14, "web", "agent"), "{long}");
        assert_eq!(ok(&["vm", "list", "--image", "nosuch"]), "");

        // What is in its guest is proposed to who completes a path, where that comes in time.
        let proposed = |path: &str| ok(&["complete-names", "--", "banger", "vm", "cp", path]);
        until("paths are proposed", || proposed("web:/etc/hostna") == "web:/etc/hostname\n");
        until("so are directories", || proposed("web:/et") == "web:/etc/\n");
        assert_eq!(proposed("nosuch:/et"), "");

        // Its console: who wrote what, and when.
        let say = |word: &str| ok(&["vm", "exec", "web", "--", "sh", "-c", &format!("echo {word} > /dev/console")]);
        say("one-word");
        until("the word is there", || ok(&["vm", "logs", "web"]).contains("one-word"));
        let between = now();
        // Whole seconds are what a time can be given in.
        until("a second is over", || now()[..19] > between[..19]);
        let since = format!("{}Z", &now()[..19]);
        say("another-word");
        until("the word is there", || ok(&["vm", "logs", "web"]).contains("another-word"));
        let line = |word: &str| {
            let lines = ok(&["vm", "logs", "web", "--timestamps"]);
            lines.lines().find(|line| line.contains(word)).expect(word).to_owned()
        };
        let (one, another) = (line("one-word"), line("another-word"));
        assert!(before[..] < one[..24] && one[..24] <= between[..24] && one[..24] < another[..24], "{one} {another}");
        let late = ok(&["vm", "logs", "web", "--since", &since]);
        assert!(late.contains("another-word") && !late.contains("one-word"), "{late}");
        let last = ok(&["vm", "logs", "web", "--json", "--tail", "1", "--source", "console"]);
        let last: Value = serde_json::from_str(&last).unwrap();
        assert_eq!((&last["source"], &last["data"]), (&"console".into(), &"another-word".into()));
        assert_eq!(last["t"].as_str().unwrap(), &another[..24]);
        let vmm = ok(&["vm", "logs", "web", "--source", "vmm"]);
        assert!(!vmm.contains("-word"), "{vmm}");
        failed(&run(&["vm", "logs", "web", "--source", "exec"]), 2, "nothing of it is kept");
        failed(&run(&["vm", "logs", "web", "--since", "yesterday"]), 2, "2026-01-31");

        // A daemon that was killed leaves the times, and the next one goes on.
        world.kill_daemon();
        until("it is taken over", || field("web", "/state") == "running");
        assert_eq!(line("one-word"), one);
        say("third-word");
        until("the word is there", || ok(&["vm", "logs", "web"]).contains("third-word"));
        assert!(line("third-word")[..24] > another[..24]);
        let times = fs::read_dir("/var/lib/banger/vms").unwrap().flatten().next().unwrap().path().join("console.times");
        assert!((32..=65_536).contains(&fs::metadata(times).unwrap().len()));

        // The helper's calls, under the operation's id.
        let out = banger(&["-vv", "vm", "stop", "web"]).env("BANGER_OP_ID", "op-told").output().unwrap();
        assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
        let calls: Vec<&str> = text(&out.stderr).lines().filter(|line| line.starts_with("helper  ")).collect();
        let has = |method: &str| calls.iter().any(|line| line.contains(method) && line.ends_with("  op-told"));
        assert!(has("  priv.delete_tap  ") && has("  priv.cleanup_jailer_chroot  "), "{calls:?}");
        let log = fs::read_to_string("/mnt/helper.log").unwrap();
        assert!(log.lines().any(|line| line.contains("op-told") && line.contains("priv.delete_tap")));
        let out = run(&["-v", "vm", "list"]);
        assert!(!text(&out.stderr).contains("helper  "), "{}", text(&out.stderr));

        // A start that fails when nobody waits any more is told by the VM. The next daemon too knows what is usual.
        let out = run(&["vm", "start", "web", "--wait", "boot", "--timeout", "1ms", "--progress", "json"]);
        assert!(out.status.success() && text(&out.stdout).starts_with("web\t"), "{}", text(&out.stderr));
        let usual = usual(&out);
        let names: Vec<&str> = usual.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["wire", "disk", "launch"]);
        assert!(usual.iter().all(|(_, ms)| ms.as_u64().is_some_and(|ms| ms < 60_000)), "{usual:?}");
        until("it has failed", || field("web", "/state") == "failed");
        assert_eq!(field("web", "/last_error/code"), "agent_silent");
        ok(&["vm", "rm", "web"]);

        // What fails at once is told though nobody waits; where a busy machine takes longer, the VM tells it.
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        drop(taken);
        ok(&[&["vm", "create", "web", "-p", &format!("{port}:80")][..], &machine].concat());
        let _taken = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let out = run(&["vm", "start", "web", "--wait", "none"]);
        if out.status.success() {
            until("it has failed", || field("web", "/state") == "failed");
            assert_eq!(field("web", "/last_error/code"), "port_taken");
        } else {
            failed(&out, 4, "error[port_taken]");
        }
        ok(&["vm", "rm", "web"]);
        assert_eq!(left(), Vec::<String>::new());
    });
}
