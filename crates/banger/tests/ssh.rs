//! ssh into VMs, with the real client and the guest's real server.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

#[allow(dead_code, reason = "the other tests' part of it")]
mod world;

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use world::*;

const KNOWN_HOSTS: &str = "/var/lib/banger/ssh/known_hosts";

/// The fingerprint of the first key in what ssh-keygen says of a file.
fn fingerprint(said: &str) -> &str {
    said.split_whitespace().find(|word| word.starts_with("SHA256:")).expect("a fingerprint")
}

/// Of the key that is known under a name; `None` where none is.
fn known(host: &str) -> Option<String> {
    let out = Command::new("ssh-keygen").args(["-l", "-F", host, "-f", KNOWN_HOSTS]).output().expect("ssh-keygen");
    out.status.success().then(|| fingerprint(text(&out.stdout)).to_owned())
}

#[test]
fn a_vm_is_entered_by_its_owner_alone_and_is_the_one_that_was_made() {
    isolated("a_vm_is_entered_by_its_owner_alone_and_is_the_one_that_was_made", |_| {
        ok(&["vm", "create", "web", "--start", "--memory", "256M"]);
        let servers = || ok(&["vm", "exec", "web", "sh", "-c", "cat /proc/[0-9]*/comm | grep -c sshd || true"]);
        assert_eq!(servers(), "0\n", "it costs nothing before somebody comes");

        // Streams and status are the command's.
        let out = run_with(&["vm", "ssh", "web", "--", "hostname; id -un; cat; echo err >&2; exit 3"], b"in\0\xff");
        assert_eq!(
            (out.status.code(), &out.stdout[..]),
            (Some(3), &b"web\nroot\nin\0\xff"[..]),
            "{}",
            text(&out.stderr)
        );
        assert_eq!(text(&out.stderr), "err\n", "no word of ours, no question");
        assert_eq!(ok(&["vm", "ssh", "web", "-tt", "--", "tty"]).trim_end(), "/dev/pts/0");
        until("the servers end", || servers() == "0\n");

        // The key that is pinned is the guest's own, and no other VM's.
        let own = ok(&["vm", "exec", "web", "ssh-keygen", "-l", "-f", "/etc/ssh/ssh_host_ed25519_key"]);
        assert_eq!(known("web.vm").as_deref(), Some(fingerprint(&own)));
        ok(&["vm", "create", "db", "--start", "--memory", "256M"]);
        assert_ne!(known("db.vm"), known("web.vm"));
        let other = ok(&["vm", "ssh", "db.vm", "--", "hostname"]);
        assert_eq!(other, "db\n");

        // Nobody comes in by a password, and the guest is lent nothing.
        let denied = run(&["vm", "ssh", "web", "-o", "PubkeyAuthentication=no", "--", "true"]);
        assert_eq!(denied.status.code(), Some(255));
        assert!(text(&denied.stderr).contains("Permission denied (publickey)"), "{}", text(&denied.stderr));
        // The owner's own agent, which holds no key: who reaches it is told so.
        let socket = "/run/banger/agent";
        let mut agent = Command::new("ssh-agent");
        agent.args(["-D", "-a", socket]).uid(OWNER).gid(OWNER).stdout(Stdio::null());
        let mut agent = agent.spawn().expect("ssh-agent");
        until("the agent listens", || std::os::unix::net::UnixStream::connect(socket).is_ok());
        let lent = |arguments: &[&str]| {
            let all = [arguments, &["web", "--", "ssh-add -l"]].concat();
            let out = banger(&all).env("SSH_AUTH_SOCK", socket).output().expect("banger");
            (out.status.code(), text(&out.stdout).contains("has no identities"))
        };
        // ssh-add(1): 2 where it can't reach an agent, 1 where that one has no key.
        assert_eq!([lent(&["vm", "ssh"]), lent(&["vm", "ssh", "-A"])], [(Some(2), false), (Some(1), true)]);
        agent.kill().unwrap();
        agent.wait().unwrap();

        // Through the agent, without a network in the guest; and by plain ssh with our settings, as an Include has them.
        ok(&["vm", "exec", "web", "ip", "link", "set", "eth0", "down"]);
        let out = run_with(&["vm", "ssh", "--via", "agent", "web", "--", "hostname; cat; exit 3"], b"in");
        assert_eq!((out.status.code(), &out.stdout[..]), (Some(3), &b"web\nin"[..]), "{}", text(&out.stderr));
        let mut plain = Command::new("ssh");
        plain.args(["-F", "/var/lib/banger/ssh/config", "web.vm", "id -un"]).uid(OWNER).gid(OWNER);
        let out = plain.stdin(Stdio::null()).output().expect("ssh");
        assert_eq!((out.status.code(), text(&out.stdout)), (Some(0), "root\n"), "{}", text(&out.stderr));

        // By an Include in the owner's own settings, where ssh looks for them.
        let home = "/run/banger/home";
        std::fs::create_dir(home).unwrap();
        std::os::unix::fs::chown(home, Some(OWNER), Some(OWNER)).unwrap();
        let accounts = std::fs::read_to_string("/etc/passwd").unwrap();
        let of_owner = format!("bowner:x:{OWNER}:{OWNER}::");
        assert!(accounts.contains(&of_owner));
        let moved = accounts.replace(&format!("{of_owner}/:"), &format!("{of_owner}{home}:"));
        std::fs::write("/etc/passwd", moved).unwrap();
        ok(&["ssh-config", "--install"]);
        let out = Command::new("ssh").args(["web.vm", "id -un"]).uid(OWNER).gid(OWNER).stdin(Stdio::null()).output();
        let out = out.expect("ssh");
        assert_eq!(text(&out.stdout), "root\n", "{}", text(&out.stderr));
        ok(&["ssh-config", "--uninstall"]);
        assert!(!std::path::Path::new(home).join(".ssh/config").exists());

        // A guest with another key is not the one that was made.
        ok(&["vm", "exec", "db", "sh", "-c", "cd /etc/ssh && rm ssh_host_* && ssh-keygen -A >/dev/null"]);
        let refused = run(&["vm", "ssh", "db", "--", "echo in"]);
        assert_eq!((refused.status.code(), text(&refused.stdout)), (Some(255), ""));
        assert!(text(&refused.stderr).contains("HOST IDENTIFICATION HAS CHANGED"), "{}", text(&refused.stderr));

        // What can't be is said, and what would help.
        ok(&["vm", "exec", "web", "mv", "/usr/sbin/sshd", "/root/"]);
        ok(&["vm", "restart", "web"]);
        let none = run(&["vm", "ssh", "web"]);
        assert_eq!(none.status.code(), Some(4));
        assert!(text(&none.stderr).contains("error[no_ssh_server]"), "{}", text(&none.stderr));
        ok(&["vm", "exec", "web", "mv", "/root/sshd", "/usr/sbin/"]);
        assert_eq!(ok(&["vm", "ssh", "web", "--", "hostname"]), "web\n", "a server that was installed since");
        ok(&["vm", "stop", "web"]);
        assert_eq!(run(&["vm", "ssh", "web"]).status.code(), Some(4));
        assert_eq!(run(&["vm", "ssh", "nosuch"]).status.code(), Some(3));
        ok(&["vm", "rm", "-f", "web", "db"]);
        assert_eq!([known("web.vm"), known("db.vm")], [None, None]);
        assert_eq!(left(), Vec::<String>::new());
    });
}
