//! What is configured for bangerd has its effect: on a VM's jail, disk, ssh key and files, and on how long it runs unused.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]
#![allow(dead_code, reason = "the world has more than these tests need")]

mod world;

use rustix::mount::{MountFlags, mount};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::process::Command;
use std::time::{Duration, Instant};
use world::*;

/// Starts the daemon anew, with that configuration.
fn configure(world: &mut World, text: &str) {
    // Templates are made when they are asked for.
    fs::write("/etc/banger/config.toml", format!("templates = \"off\"\n{text}")).unwrap();
    world.kill_daemon();
}

fn stderr(arguments: &[&str]) -> String {
    let out = run(arguments);
    assert_ne!(out.status.code(), Some(0), "{arguments:?}: {}", text(&out.stdout));
    text(&out.stderr).to_owned()
}

/// The home that the daemon has: `HOME` is this test's own.
fn home() -> String {
    let home = std::env::var("HOME").unwrap();
    // In this test's own mount namespace.
    mount("tmpfs", home.as_str(), "tmpfs", MountFlags::empty(), Some(c"mode=755")).unwrap();
    for dir in [home.clone(), format!("{home}/conf")] {
        fs::create_dir_all(&dir).unwrap();
        chown(&dir, Some(OWNER), Some(OWNER)).unwrap();
    }
    for (name, content) in [("conf/binary", [0u8, 255, 10].as_slice()), ("conf/script", b"echo ran"), ("rc", b"mine")] {
        fs::write(format!("{home}/{name}"), content).unwrap();
        chown(format!("{home}/{name}"), Some(OWNER), Some(OWNER)).unwrap();
    }
    fs::set_permissions(format!("{home}/conf/script"), Permissions::from_mode(0o755)).unwrap();
    symlink("/etc/passwd", format!("{home}/conf/link")).unwrap();
    home
}

const SYNC: &str = r#"
[[file_sync]]
host = "~/conf"
guest = "~/.config/conf"
[[file_sync]]
host = "~/rc"
guest = "/root/.rc"
mode = "0600"
[[file_sync]]
host = "~/none"
guest = "~/none"
"#;
const LOOK: &str = "cd /root; stat -c '%a %U %n' .rc .config/conf/*; cat .rc; od -An -tx1 .config/conf/binary";
const SEEN: &str = "600 root .rc\n644 root .config/conf/binary\n755 root .config/conf/script\nmine 00 ff 0a\n";

#[test]
fn files_and_a_key_of_the_owners_are_in_every_vm() {
    isolated("files_and_a_key_of_the_owners_are_in_every_vm", |world| {
        let home = home();
        let keygen = ["-q", "-t", "ed25519", "-N", "", "-f"];
        assert!(Command::new("ssh-keygen").args(keygen).arg(format!("{home}/key")).status().unwrap().success());
        chown(format!("{home}/key"), Some(OWNER), Some(OWNER)).unwrap();
        configure(world, &format!("ssh_key_path = \"~/key\"{SYNC}"));
        let public = fs::read_to_string(format!("{home}/key.pub")).unwrap();
        let told = |err: &str| {
            for (name, why) in [("conf/link", "it is a link"), ("none", "No such file")] {
                let line = format!("warning: file_sync: {home}/{name} is left out: {why}");
                assert!(err.lines().any(|told| told.starts_with(&line)), "{err}");
            }
        };
        let script = format!("{LOOK}; cat /etc/banger/authorized_keys");
        for (cold, how) in [(true, "boot"), (false, "template")] {
            if !cold {
                ok(&["template", "build", "--memory", "256M"]);
            }
            let way: &[&str] = if cold { &["--cold"] } else { &[] };
            let out =
                run(&[&["vm", "run", "-v", "--memory", "256M"], way, &["--", "sh", "-c", script.as_str()]].concat());
            let err = text(&out.stderr);
            assert_eq!(text(&out.stdout), format!("{SEEN}{public}"), "{err}");
            assert!(err.contains(how) && err.contains("file_sync: 3 files"), "{how}: {err}");
            told(err);
        }
        let settings = ok(&["ssh-config", "--print"]);
        assert!(settings.contains(&format!("IdentityFile \"{home}/key\"\n")), "{settings}");
        // Before a command runs: one waits for none, and finds the last of them or no VM that runs.
        File::create(format!("{home}/rc")).unwrap().set_len(24 << 20).unwrap();
        let start = std::thread::spawn(|| ok(&["vm", "create", "early", "--memory", "256M", "--start"]));
        let looked = Instant::now();
        loop {
            let out = run(&["vm", "exec", "early", "--", "test", "-e", ".rc"]);
            match out.status.code() {
                Some(0) => break,
                code => assert!(code != Some(1) && looked.elapsed() < LONG, "{}", text(&out.stderr)),
            }
        }
        start.join().unwrap();
        fs::write(format!("{home}/rc"), "mine").unwrap();
        // What is here is what a VM has at each of its starts.
        ok(&["vm", "create", "web", "--memory", "256M", "--start"]);
        fs::write(format!("{home}/rc"), "new").unwrap();
        let out = run(&["vm", "restart", "web"]);
        assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
        told(text(&out.stderr));
        assert_eq!(ok(&["vm", "exec", "web", "--", "cat", ".rc"]), "new");
    });
}

#[test]
fn jails_disks_and_accelerators_are_as_configured() {
    isolated("jails_disks_and_accelerators_are_as_configured", |world| {
        let machine = ["vm", "run", "--memory", "256M", "--name", "web", "--", "true"];
        // Where the file system has reflinks, that is as it should be.
        configure(world, "disk_method = \"reflink\"\n");
        let out = run(&machine);
        if out.status.code() == Some(0) {
            assert_eq!(field("web", "/disk/method"), "reflink");
            ok(&["vm", "rm", "-f", "web"]);
        } else {
            assert!(text(&out.stderr).starts_with("error[no_disk_method]: "), "{}", text(&out.stderr));
            assert_eq!(ok(&["vm", "list"]), "");
        }
        if sys::kvm::runs_guests().is_err() {
            configure(world, "accel = \"kvm\"\n");
            let told = stderr(&machine);
            assert!(told.starts_with("error[no_vmm]: accel = \"kvm\" is configured"), "{told}");
        }
        // A jailer that is none.
        fs::copy("/usr/bin/false", "/run/bin/jailer").unwrap();
        let text = "accel = \"emulation\"\ndisk_method = \"copy\"\njailer_bin = \"/run/bin/jailer\"\n\
             jailer_enabled = false\njailer_chroot_base = \"/var/lib/banger/cells\"\n";
        configure(world, text);
        let told = stderr(&machine);
        assert!(told.contains("the launch failed") && told.contains("status 1"), "{told}");
        assert_eq!(left(), [] as [String; 0]);
        // One that is not there is ours.
        fs::remove_file("/run/bin/jailer").unwrap();
        ok(&["vm", "create", "web", "--memory", "256M", "--start"]);
        assert_eq!((field("web", "/disk/method"), field("web", "/vmm/accel")), ("copy".into(), "emulation".into()));
        let id = field("web", "/id");
        assert!(fs::exists(format!("/var/lib/banger/cells/firecracker/{}/root", id.as_str().unwrap())).unwrap());
        let line = ok(&["vm", "exec", "web", "--", "cat", "/proc/cmdline"]);
        assert!(line.contains("banger.accel=emulation"), "{line}");
        ok(&["vm", "rm", "-f", "web"]);
        assert_eq!(fs::read_dir("/var/lib/banger/cells/firecracker").map_or(0, Iterator::count), 0);
        let log = fs::read_to_string("/mnt/daemon.log").unwrap();
        assert!(
            log.contains("config.toml:5: jailer_enabled = false has no effect: no VM runs without a jail"),
            "{log}"
        );
    });
}

#[test]
fn a_vm_that_nothing_uses_is_stopped() {
    isolated("a_vm_that_nothing_uses_is_stopped", |world| {
        configure(world, "auto_stop_stale_after = \"1m\"\nstats_poll_interval = \"1s\"\n");
        for name in ["bad", "db", "late", "web"] {
            ok(&["vm", "create", name, "--memory", "256M", "--start"]);
        }
        // One that can't be stopped, which takes a while, and is looked at before the others.
        let pid = field("bad", "/vmm/pid").as_i64().and_then(|pid| Pid::from_raw(pid.try_into().ok()?)).unwrap();
        kill_process(pid, Signal::STOP).unwrap();
        let store = rusqlite::Connection::open("/var/lib/banger/banger.db").unwrap();
        assert_eq!(store.execute("UPDATE vms SET tap = '!' WHERE name = 'bad'", []), Ok(1));
        drop(store);
        // Then each counts as used just now.
        world.kill_daemon();
        let ping = |address: &str| Command::new("ping").args(["-q", "-i", "0.5", address]).spawn().unwrap();
        let address = |name| field(name, "/network/ip").as_str().unwrap().to_owned();
        // Nobody has it: each VM hears who does.
        let nobodys = format!("{}.250", address("web").rsplit_once('.').unwrap().0);
        let begun = Instant::now();
        // Few packets each second, by its address, are a use; so is a command, as long as it runs.
        let mut pings = vec![ping(&address("db")), ping(&nobodys)];
        ok(&["vm", "exec", "web", "--", "sleep", "12"]);
        assert!(begun.elapsed() >= Duration::from_secs(12));
        let over = Instant::now();
        // Who comes while another is stopped is seen.
        until("its stop begins", || field("bad", "/state") == "stopping");
        pings.push(ping(&address("late")));
        until("it is stopped", || field("web", "/state") == "stopped");
        assert!(over.elapsed() >= Duration::from_secs(55), "{:?}", over.elapsed());
        assert_eq!(field("web", "/last_error/code"), "stale");
        assert_eq!(field("bad", "/state"), "lost");
        assert_eq!((field("db", "/state"), field("late", "/state")), ("running".into(), "running".into()));
        for mut ping in pings {
            ping.kill().unwrap();
            ping.wait().unwrap();
        }
    });
}
