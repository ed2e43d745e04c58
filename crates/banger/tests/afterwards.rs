//! What becomes of VMs that have ended: an image, or nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

#[allow(dead_code, reason = "each file of tests needs a part of it")]
mod world;

use rustix::process::{Pid, Signal, kill_process};
use std::process::Command;
use world::*;

/// What another program says of an image.
fn said(program: &str, arguments: &[&str], image: &str) -> String {
    let path = "/usr/sbin:/usr/bin:/sbin:/bin";
    let out = Command::new(program).env("PATH", path).args(arguments).arg(image).output().expect(program);
    assert!(out.status.success(), "{program} {arguments:?}: {}", text(&out.stderr));
    text(&out.stdout).to_owned()
}

#[test]
fn a_vms_disk_becomes_an_image() {
    isolated("a_vms_disk_becomes_an_image", |_| {
        let refused = |arguments: &[&str], code: &str, status: i32| {
            let out = run(arguments);
            assert_eq!(out.status.code(), Some(status), "{arguments:?}: {}", text(&out.stderr));
            assert!(text(&out.stderr).starts_with(&format!("error[{code}]")), "{}", text(&out.stderr));
        };
        ok(&["vm", "create", "web", "--memory", "256M"]);
        refused(&["image", "promote", "web", "as", "mine"], "no_disk", 4);
        ok(&["vm", "start", "web"]);
        let script =
            "echo made >/root/made; mkdir -p /etc/ssh; echo secret >/etc/ssh/ssh_host_ed25519_key; cat /etc/machine-id";
        let id = ok(&["vm", "exec", "web", "--", "sh", "-c", script]);
        refused(&["image", "promote", "web", "as", "mine"], "is_running", 4);
        refused(&["image", "promote", "wob", "as", "mine"], "no_such_vm", 3);
        refused(&["image", "promote", "web", "as", "Mine"], "bad_name", 2);
        refused(&["image", "promote", "web", "is", "mine"], "usage", 2);
        ok(&["vm", "stop", "web"]);
        let digest = ok(&["image", "promote", "web", "as", "mine"]);
        let digest = digest.trim().strip_prefix("sha256:").unwrap();
        let image = format!("/var/lib/banger/images/{digest}/root.ext4");
        assert!(said("sha256sum", &[], &image).starts_with(digest));
        said("e2fsck", &["-f", "-n"], &image);
        for (file, want) in [
            ("/root/made", "made\n"),
            ("/etc/hostname", "banger\n"),
            ("/etc/machine-id", ""),
            ("/etc/ssh/ssh_host_ed25519_key", ""),
            ("/etc/banger/guest.json", "{}"),
        ] {
            assert_eq!(said("debugfs", &["-R", &format!("cat {file}")], &image), want, "{file}");
        }
        assert_eq!(json(&["image", "show", "mine", "--json"])["source"], "VM web, of files");
        refused(&["image", "promote", "web", "mine"], "name_taken", 4);

        // A VM of it is a machine of its own, and the first one goes on as it was.
        let script = "cat /root/made; hostname; cat /etc/machine-id";
        let out = ok(&["vm", "run", "--image", "mine", "--memory", "256M", "--name", "db", "--", "sh", "-c", script]);
        let lines: Vec<&str> = out.lines().collect();
        assert_eq!((lines[0], lines[1], lines[2].len()), ("made", "db", 32));
        assert_ne!(lines[2], id.trim());
        ok(&["vm", "start", "web"]);
        assert_eq!(ok(&["vm", "exec", "web", "cat", "/etc/machine-id"]), id);

        // One that was killed has a journal that is to be replayed: what was synced is there.
        ok(&["vm", "exec", "web", "--", "sh", "-c", "echo again >/root/made; sync"]);
        let pid = i32::try_from(field("web", "/vmm/pid").as_i64().unwrap()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
        until("it has ended", || field("web", "/state") == "stopped");
        ok(&["vm", "rm", "-f", "db"]);
        ok(&["image", "promote", "web", "as", "mine", "--force"]);
        let out = ok(&["vm", "run", "--image", "mine", "--memory", "256M", "--", "cat", "/root/made"]);
        assert_eq!(out, "again\n");
        ok(&["vm", "rm", "web"]);
        assert_eq!(left(), Vec::<String>::new());
        assert_eq!(std::fs::read_dir("/var/lib/banger/making").unwrap().count(), 0);
        ok(&["image", "rm", "mine"]);
        assert_eq!(std::fs::read_dir("/var/lib/banger/images").unwrap().count(), 0, "the first one's files went too");
    });
}

#[test]
fn prune_takes_away_what_nobody_named() {
    isolated("prune_takes_away_what_nobody_named", |_| {
        let made_up = ok(&["vm", "create", "--memory", "256M"]);
        let made_up = made_up.trim();
        ok(&["vm", "start", made_up]);
        ok(&["vm", "create", "web", "--memory", "256M"]);
        let listed = || ok(&["vm", "list", "-q"]).lines().map(str::to_owned).collect::<Vec<_>>();
        let pruned = |arguments: &[&str]| ok(&[&["vm", "prune"], arguments].concat());
        assert_eq!(pruned(&["-f"]), "", "one that runs is not meant");
        ok(&["vm", "stop", made_up]);
        let used = field(made_up, "/disk/used_bytes");

        let out = run(&["vm", "prune"]);
        assert_eq!(out.status.code(), Some(2));
        assert!(text(&out.stderr).contains(made_up) && text(&out.stderr).contains("fix: -f"), "{}", text(&out.stderr));
        assert_eq!(pruned(&["--dry-run"]), format!("{made_up}\n"));
        assert_eq!(listed().len(), 2);
        let told = json(&["vm", "prune", "-f", "--json"]);
        assert_eq!((&told["vms"][0]["name"], &told["freed_bytes"]), (&made_up.into(), &used));
        assert_eq!(listed(), ["web"]);

        assert_eq!(pruned(&["-f"]), "");
        assert_eq!(pruned(&["--older", "1h", "-f"]), "");
        assert_eq!(pruned(&["--all", "--older", "1d", "-f"]), "");
        assert_eq!(pruned(&["--older", "0d", "-f"]), "web\n");
        assert_eq!(listed(), Vec::<String>::new());
        ok(&["vm", "create", "db", "--memory", "256M"]);
        assert_eq!(pruned(&["--all", "-y"]), "db\n");
        assert_eq!(left(), Vec::<String>::new());
    });
}
