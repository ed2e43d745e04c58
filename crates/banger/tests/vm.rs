//! VMs as a user meets them: a command in a new one, one that stays, and what ends in the middle.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

mod world;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use world::*;

#[test]
fn a_run_is_a_command_and_nothing_is_left() {
    isolated("a_run_is_a_command_and_nothing_is_left", |_| {
        let script = "cat; echo err >&2; hostname >&2; exit 3";
        let out =
            run_with(&["vm", "run", "--timings", "--json", "--memory", "256M", "--", "sh", "-c", script], b"in\0\xff");
        assert_eq!(out.stdout, b"in\0\xff");
        assert_eq!(out.status.code(), Some(3), "{}", text(&out.stderr));
        let said = text(&out.stderr);
        let (guest, timings) = said.split_once('{').expect("timings");
        let name = guest.strip_prefix("err\n").expect("the guest's error output, alone").trim();
        assert!(name.contains('-') && !name.contains(char::is_whitespace), "a made-up name: {name:?}");
        let timings: Value = serde_json::from_str(&format!("{{{timings}")).expect("JSON");
        let stages: Vec<&str> =
            timings["stages"].as_array().unwrap().iter().map(|stage| stage["name"].as_str().unwrap()).collect();
        for stage in ["plan", "wire", "disk", "launch", "boot", "run", "down"] {
            assert!(stages.contains(&stage), "{stages:?}");
        }
        let boot = timings["stages"].as_array().unwrap().iter().find(|stage| stage["name"] == "boot").unwrap();
        assert!(boot["by"] == "guest" && boot["note"].as_str().unwrap().starts_with("kernel "), "{boot}");
        assert!(timings["own_us"].as_u64() < timings["first_output_us"].as_u64());
        assert_eq!(left(), Vec::<String>::new());
        assert_eq!(json(&["vm", "list", "--json"]), Value::Array(vec![]));

        // Interrupted on its way: undone, and said so.
        let child = banger(&["vm", "run", "--progress", "plain", "--memory", "256M", "--", "true"]).spawn().unwrap();
        until("its tap is there", || !left().is_empty());
        kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        let out = child.wait_with_output().unwrap();
        assert_eq!(out.status.code(), Some(130), "{}", text(&out.stderr));
        assert!(text(&out.stderr).contains("error[interrupted]: undone: "), "{}", text(&out.stderr));
        assert_eq!(left(), Vec::<String>::new());
    });
}

#[test]
fn two_vms_stay_and_are_each_their_own() {
    isolated("two_vms_stay_and_are_each_their_own", |_| {
        assert_eq!(ok(&["vm", "create", "web", "--memory", "256M"]), "web\n");
        assert_eq!(ok(&["vm", "create", "db", "-m", "256", "--no-nat"]), "db\n");
        assert_eq!(field("web", "/state"), "planned");
        let taken = run(&["vm", "create", "web", "--json"]);
        assert_eq!(taken.status.code(), Some(4));
        let error: Value = serde_json::from_slice(&taken.stderr).unwrap();
        assert_eq!((&error["error"]["code"], &error["error"]["exit"]), (&"name_taken".into(), &4.into()));

        let started = ok(&["vm", "start", "web", "db"]);
        let rows: Vec<Vec<&str>> = started.lines().map(|line| line.split('\t').collect()).collect();
        assert_eq!([rows[0][0], rows[0][2], rows[1][0], rows[1][2]], ["web", "172.16.0.2", "db", "172.16.0.3"]);
        assert_eq!(ok(&["vm", "start", "web"]), "web\t0\t172.16.0.2\n", "what runs stays as it is");

        assert_eq!([address_of("web.vm"), address_of("db.vm"), address_of("nosuch.vm")], [Some(2), Some(3), None]);
        assert_eq!(field("web", "/network/dns"), "web.vm");

        let own = ok(&["vm", "exec", "web", "cat", "/sys/class/net/eth0/address"]);
        assert_eq!(field("web", "/network/mac"), own.trim_end());
        assert_ne!(field("web", "/network/mac"), field("db", "/network/mac"));
        assert_eq!(field("web", "/vmm/version"), wire::firecracker::API_VERSION);

        // A kernel that trusts its ticks alone is late on a busy machine.
        let source =
            ok(&["vm", "exec", "web", "cat", "/sys/devices/system/clocksource/clocksource0/current_clocksource"]);
        assert!(!source.contains("jiffies"), "{source}");

        let facts = "hostname; cat /etc/machine-id; hostname -I 2>/dev/null || ip -4 -o addr show eth0";
        let both = ["web", "db"].map(|name| thread::spawn(move || ok(&["vm", "exec", name, "--", "sh", "-c", facts])));
        let [web, db] = both.map(|one| one.join().unwrap());
        assert!(web.starts_with("web\n") && web.contains("172.16.0.2"), "{web}");
        assert!(db.starts_with("db\n") && db.contains("172.16.0.3"), "{db}");
        assert_ne!(web.lines().nth(1), db.lines().nth(1), "machine-id");
        let ping = run(&["vm", "exec", "web", "ping", "-c", "1", "-W", "5", "172.16.0.1"]);
        assert_eq!(ping.status.code(), Some(0), "{}", text(&ping.stdout));

        let status = |command: &[&str]| run(&[&["vm", "exec"], command].concat()).status.code();
        assert_eq!(status(&["web", "sh", "-c", "exit 200"]), Some(200));
        assert_eq!(status(&["web", "sh", "-c", "kill -9 $$"]), Some(137));
        assert_eq!(status(&["web", "nosuch"]), Some(127));
        assert_eq!(status(&["web", "/etc"]), Some(126));
        assert_eq!(status(&["--timeout", "300ms", "web", "sleep", "60"]), Some(124));
        assert_eq!(status(&["--nosuch", "web", "true"]), Some(125));
        assert_eq!(status(&["wbe", "true"]), Some(125));
        // Its own end, and one that a shell tells of.
        for script in ["exec tail /dev/zero", "tail /dev/zero; exit $?"] {
            let killed = run(&["vm", "exec", "web", "sh", "-c", script]);
            let said = (killed.status.code(), text(&killed.stderr).ends_with("killed: the guest was out of memory\n"));
            assert_eq!(said, (Some(137), true), "{script}: {}", text(&killed.stderr));
        }
        assert_eq!(ok(&["exec", "-e", "A=b c", "-w", "/tmp", "web", "sh", "-c", "echo $A $PWD"]), "b c /tmp\n");
        assert_eq!(ok(&["vm", "exec", "-t", "web", "sh", "-c", "stty size; exit 0"]), "24 80\r\n");
        assert_eq!(text(&run_with(&["vm", "exec", "web"], b"echo from the shell").stdout), "from the shell\n");
        assert!(ok(&["vm", "logs", "web", "--tail", "3"]).lines().count() <= 3);

        let other = banger(&["vm", "list"]).uid(OTHER).gid(OTHER).output().unwrap();
        assert_eq!((other.status.code(), text(&other.stdout)), (Some(6), ""), "another user");
        assert_eq!(run(&["vm", "rm", "web"]).status.code(), Some(4), "it runs");
        ok(&["vm", "exec", "web", "sh", "-c", "echo kept >/root/file"]);
        assert!(ok(&["vm", "stop", "web", "db"]).starts_with("web\t"));
        assert_eq!(field("web", "/state"), "stopped");
        assert_eq!(field("web", "/vmm"), Value::Null);
        assert_eq!(address_of("web.vm"), None, "it is stopped");
        assert_eq!(status(&["web", "true"]), Some(125), "it is stopped");
        assert_eq!(run(&["vm", "stop", "web", "nosuch"]).status.code(), Some(7), "some of several");
        ok(&["vm", "restart", "web"]);
        assert_eq!(ok(&["vm", "exec", "web", "cat", "/root/file"]), "kept\n");

        assert_eq!(ok(&["vm", "rm", "-f", "web", "db", "nosuch"]), "web\ndb\nnosuch\n");
        assert_eq!(run(&["vm", "rm", "web"]).status.code(), Some(3));
        assert_eq!(left(), Vec::<String>::new());
    });
}

#[test]
fn whatever_is_killed_the_list_is_true() {
    isolated("whatever_is_killed_the_list_is_true", |world| {
        ok(&["vm", "create", "web", "--start", "--memory", "256M"]);
        // The daemon is killed while a command runs: the command goes on, and its status comes.
        let mut child = banger(&["vm", "exec", "web", "--", "sh", "-c", "echo begun; read x; exit 9"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        read_until(child.stdout.as_mut().unwrap(), "begun\n");
        world.kill_daemon();
        assert_eq!(field("web", "/state"), "running");
        drop(child.stdin.take());
        assert_eq!(child.wait().unwrap().code(), Some(9));
        assert_eq!(ok(&["vm", "exec", "web", "echo", "again"]), "again\n");

        // A run's VM outlives its daemon as long as the run does.
        let script = "echo begun; read x; exit 5";
        let mut child =
            banger(&["vm", "run", "--memory", "256M", "--", "sh", "-c", script]).stdin(Stdio::piped()).spawn().unwrap();
        read_until(child.stdout.as_mut().unwrap(), "begun\n");
        world.kill_daemon();
        assert_eq!(ok(&["vm", "list", "-q", "--running"]).lines().count(), 2);
        drop(child.stdin.take());
        assert_eq!(child.wait().unwrap().code(), Some(5));
        until("the run's VM is gone", || ok(&["vm", "list", "-q"]) == "web\n");

        // The daemon is killed in the middle of a start.
        ok(&["vm", "create", "db", "--memory", "256M"]);
        let child = banger(&["vm", "start", "db"]).spawn().unwrap();
        until("it starts", || field("db", "/state") == "starting" && !field("db", "/vmm").is_null());
        world.kill_daemon();
        assert_ne!(child.wait_with_output().unwrap().status.code(), Some(0));
        assert_eq!(field("db", "/state"), "stopped");
        ok(&["vm", "rm", "db"]);

        // The helper is gone when a VM is to end: said, and done when it is back.
        world.without_helper(|| {
            assert_eq!(run(&["vm", "stop", "web"]).status.code(), Some(6));
            assert_eq!(ok(&["vm", "exec", "web", "echo", "still here"]), "still here\n");
            let out = run(&["vm", "rm", "-f", "web"]);
            assert_eq!(out.status.code(), Some(6));
            assert!(text(&out.stderr).starts_with("error[lost]: web is lost: "), "{}", text(&out.stderr));
            assert_eq!(
                (field("web", "/state"), field("web", "/last_error/code")),
                ("lost".into(), "helper_down".into())
            );
            assert_eq!(run(&["vm", "start", "web"]).status.code(), Some(4), "it is going");
        });
        until("what was lost is taken away", || ok(&["vm", "list", "-q"]).is_empty());
        assert_eq!(left(), Vec::<String>::new());
        ok(&["vm", "create", "web", "--start", "--memory", "256M"]);

        // The VMM is killed while a command runs.
        let pid = i32::try_from(field("web", "/vmm/pid").as_i64().unwrap()).unwrap();
        let mut child = banger(&["vm", "exec", "web", "--", "sh", "-c", "echo begun; sleep 60"]).spawn().unwrap();
        read_until(child.stdout.as_mut().unwrap(), "begun\n");
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
        let out = child.wait_with_output().unwrap();
        assert_eq!(out.status.code(), Some(125));
        assert!(text(&out.stderr).starts_with("error[lost]: web went away"), "{}", text(&out.stderr));
        until("the list says so", || field("web", "/state") == "stopped");
        assert_eq!(field("web", "/last_error/code"), "ended");
        ok(&["vm", "rm", "web"]);
        assert_eq!(left(), Vec::<String>::new());
    });
}

/// A run of a script that has said `up`, and its VM's name, the only one's.
fn up(script: &str) -> (Child, String) {
    let running = ["vm", "run", "--memory", "256M", "--", "sh", "-c", script];
    let mut child = banger(&running).stdout(Stdio::piped()).spawn().unwrap();
    read_until(child.stdout.as_mut().unwrap(), "up");
    (child, ok(&["vm", "list", "-q"]).trim().to_owned())
}

/// A command that is up when both it and what it leaves running have told what they do when they are to end.
fn beside(others: &str, own: &str) -> String {
    format!(
        "{own}; ({others}; touch /tmp/set; while :; do sleep 0.1; done) >/dev/null 2>&1 & \
         while ! test -e /tmp/set; do sleep 0.1; done; echo up; while :; do sleep 0.1; done"
    )
}

#[test]
fn a_run_that_is_stopped_ends_in_order() {
    isolated("a_run_that_is_stopped_ends_in_order", |_| {
        // The command ends as soon as it is told to; what else runs has two seconds' work left.
        let (mut child, name) = up(&beside("trap 'sleep 2; exit' TERM", "trap 'exit 3' TERM"));
        let out = run(&["vm", "stop", &name]);
        assert_eq!((out.status.code(), text(&out.stderr)), (Some(0), ""), "it was not killed");
        assert_eq!(child.wait().unwrap().code(), Some(3), "the command's own");
        let log = fs::read_to_string("/mnt/helper.log").unwrap();
        let ended: Vec<&str> = log.lines().filter(|line| line.contains(r#""msg":"vm ended""#)).collect();
        assert!(ended.len() == 1 && ended[0].contains("ended with status 0"), "{ended:?}");
        assert_eq!(left(), Vec::<String>::new());
        assert_eq!(json(&["vm", "list", "--json"]), Value::Array(vec![]));

        // Its command is over, and something else in the guest never ends: whoever interrupts the run has it gone at once.
        let (mut child, name) = up(&beside("trap '' TERM", "trap 'echo down; exit 3' TERM"));
        let stopping = banger(&["vm", "stop", &name, "--timeout", "100s"]).spawn().unwrap();
        read_until(child.stdout.as_mut().unwrap(), "down");
        thread::sleep(Duration::from_secs(1));
        assert_eq!(field(&name, "/state"), "stopping");
        let begun = Instant::now();
        kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        child.wait().unwrap();
        until("it is gone", || left().is_empty());
        assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
        stopping.wait_with_output().unwrap();
        assert_eq!(json(&["vm", "list", "--json"]), Value::Array(vec![]));
    });
}

#[test]
#[ignore = "three minutes; by hand: cargo test -p banger --test vm -- --ignored"]
fn fifty_kills_leave_nothing() {
    isolated("fifty_kills_leave_nothing", |world| {
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            for n in 0..3 {
                let over = &over;
                scope.spawn(move || comes_and_goes(&format!("w{n}"), over));
            }
            for kill in 0..50 {
                // What is met in its middle is another thing each time.
                thread::sleep(Duration::from_millis(300 + kill * 977 % 2700));
                match kill % 3 {
                    0 => world.kill_daemon(),
                    1 => world.kill_helper(),
                    _ => vmms().first().and_then(|pid| Pid::from_raw(*pid)).into_iter().for_each(|pid| {
                        // It may have ended since.
                        let _ = kill_process(pid, Signal::KILL);
                    }),
                }
            }
            over.store(true, Ordering::Relaxed);
        });
        until("the list is true", || {
            let listed = json(&["vm", "list", "--json"]);
            let pids = listed.as_array().unwrap().iter().filter_map(|vm| vm["vmm"]["pid"].as_i64());
            let (mut listed, mut there): (Vec<i64>, Vec<i64>) =
                (pids.collect(), vmms().iter().map(|pid| i64::from(*pid)).collect());
            listed.sort_unstable();
            there.sort_unstable();
            listed == there
        });
        for name in ok(&["vm", "list", "-q"]).lines() {
            ok(&["vm", "rm", "-f", name]);
        }
        assert_eq!(left(), Vec::<String>::new());
    });
}

/// Makes VMs and takes them away, whatever fails on the way; but what a run says is whole, or it is 125.
fn comes_and_goes(name: &str, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        let out = run(&["vm", "run", "--memory", "192M", "--", "sh", "-c", "echo whole; exit 7"]);
        match out.status.code() {
            Some(7) => assert_eq!(out.stdout, b"whole\n"),
            other => assert_eq!(other, Some(125), "{}", text(&out.stderr)),
        }
        for command in
            [&["create", "--memory", "192M", name][..], &["start", name], &["exec", name, "true"], &["stop", name]]
        {
            run(&[&["vm"], command].concat());
        }
        until("it can be removed", || run(&["vm", "rm", "-f", name]).status.success());
    }
}

/// So many are asked for at once, with memory for so few: those run, the others are told why not, and nothing of them is left.
fn more_than_fit(asked: usize, fit: usize) {
    let available = std::fs::read_to_string("/proc/meminfo").unwrap();
    let available = available.lines().find_map(|line| line.strip_prefix("MemAvailable:")?.strip_suffix(" kB")).unwrap();
    let available: usize = available.trim().parse::<usize>().unwrap() >> 10;
    // Half a share is left over, for what else this machine does meanwhile.
    let memory = format!("{}M", available * 2 / (2 * fit + 1));
    let names: Vec<String> = (0..asked).map(|n| format!("vm-{n}")).collect();
    for name in &names {
        ok(&["vm", "create", name, "--memory", &memory]);
    }
    let start = |name: &String| run(&["vm", "start", name]);
    let outs: Vec<_> = thread::scope(|scope| {
        let starts: Vec<_> = names.iter().map(|name| scope.spawn(|| start(name))).collect();
        starts.into_iter().map(|start| start.join().unwrap()).collect()
    });
    let started = outs.iter().filter(|out| out.status.success()).count();
    let refused =
        outs.iter().filter(|out| out.status.code() == Some(5) && text(&out.stderr).starts_with("error[no_memory]: "));
    assert_eq!(started + refused.count(), asked, "{}", text(&outs[0].stderr));
    // What VMMs have beside their guests, and disks, which lie in memory here, may take the last one's.
    assert!((fit - 1..=fit).contains(&started), "{started}");
    assert_eq!(vmms().len(), started);
    let running = ok(&["vm", "list", "-q", "--running"]);
    let running: Vec<&str> = running.lines().collect();
    let hosts: Vec<String> = thread::scope(|scope| {
        let execs: Vec<_> =
            running.iter().map(|name| scope.spawn(|| ok(&["vm", "exec", name, "--", "hostname"]))).collect();
        execs.into_iter().map(|exec| exec.join().unwrap().trim_end().to_owned()).collect()
    });
    assert_eq!(hosts, running, "each is its own");
    for name in &names {
        ok(&["vm", "rm", "-f", name]);
    }
    assert_eq!(left(), Vec::<String>::new());
}

#[test]
fn twelve_are_asked_for_and_two_fit() {
    isolated("twelve_are_asked_for_and_two_fit", |_| more_than_fit(12, 2));
}

#[test]
#[ignore = "minutes; by hand: cargo test -p banger --test vm -- --ignored"]
fn a_hundred_are_asked_for_and_ten_fit() {
    isolated("a_hundred_are_asked_for_and_ten_fit", |_| more_than_fit(100, 10));
}

#[test]
fn what_is_made_ahead_is_used_and_swept() {
    isolated("what_is_made_ahead_is_used_and_swept", |world| {
        world.with_arguments(&["--taps-ahead", "2", "--disks-ahead", "1"]);
        let taps = || left().into_iter().filter(|what| what.starts_with("tap-")).collect::<Vec<_>>();
        let copies = || {
            let all = std::fs::read_dir("/var/lib/banger/ahead").unwrap().flatten().map(|it| it.path());
            all.filter(|path| !path.ends_with("draft"))
        };
        assert_eq!((taps().len(), copies().count()), (0, 0), "nothing before there was a VM");
        ok(&["vm", "create", "web", "--start", "--memory", "256M"]);
        let method = field("web", "/disk/method");
        let disks = usize::from(method == "copy");
        until("they are there", || (taps().len(), copies().count()) == (3, disks));
        let before = taps();
        // Kept by what it is, not by its name: the file moves.
        let inodes = || copies().map(|path| std::fs::metadata(path).unwrap().ino()).collect::<Vec<_>>();
        let copy = inodes();

        ok(&["vm", "create", "db", "--start", "--memory", "256M"]);
        let disk = format!("/var/lib/banger/vms/{}/root.ext4", field("db", "/id").as_str().unwrap());
        if disks > 0 {
            assert_eq!(std::fs::metadata(disk).unwrap().ino(), copy[0]);
        }
        assert_eq!(ok(&["vm", "exec", "db", "hostname"]), "db\n");
        until("they are there again", || (taps().len(), copies().count()) == (4, disks));
        assert!(before.iter().all(|tap| taps().contains(tap)), "one of them is the VM's now");

        // Of a daemon that is killed the next one takes away the taps that no VM has, and goes on with the copy.
        let copy = inodes();
        world.kill_daemon();
        until("what was ahead is swept", || (taps().len(), inodes()) == (2, copy.clone()));
        assert_eq!(ok(&["vm", "exec", "db", "hostname"]), "db\n");
        ok(&["vm", "rm", "-f", "web", "db"]);
        assert_eq!(left(), Vec::<String>::new());
    });
}
