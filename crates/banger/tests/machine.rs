//! What a VM is made with: that it stays, a longer disk, variables from a file; and what its commands begin with.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

#[allow(dead_code, reason = "the other tests' part of it")]
mod world;

use std::process::Command;
use world::*;

#[test]
fn a_vm_stays_with_a_longer_disk_that_is_whole() {
    isolated("a_vm_stays_with_a_longer_disk_that_is_whole", |_| {
        // What can't be is refused, and nothing is made.
        for wrong in [&["-d", "--rm"][..], &["-d", "--", "true"], &["--disk", "100M", "--", "true"]] {
            assert_eq!(run(&[&["vm", "run"], wrong].concat()).status.code(), Some(125), "{wrong:?}");
        }
        assert_eq!(ok(&["vm", "list", "-q"]), "");

        let name = ok(&["vm", "run", "-d", "--disk", "3G", "--memory", "256M"]);
        let name = name.strip_suffix('\n').unwrap();
        assert!(name.contains('-') && !name.contains(char::is_whitespace), "a made-up name alone: {name:?}");
        assert_eq!(field(name, "/state"), "running");
        assert_eq!(field(name, "/disk/size_bytes"), 3u64 << 30);
        assert_ne!(field(name, "/disk/method"), "dm-snapshot");
        let size = ok(&["vm", "exec", name, "df", "--output=size", "-B1M", "/"]);
        let size: u64 = size.lines().nth(1).unwrap().trim().parse().unwrap();
        assert!((2800..=3072).contains(&size), "{size} MiB");
        // More than the image is long.
        ok(&["vm", "exec", name, "sh", "-c", "fallocate -l 1500M /root/long && sync"]);

        std::fs::write("/run/banger/env", "# of a file\nA=b c\nB=1\n").unwrap();
        let said = ok(&["vm", "exec", "--env-file", "/run/banger/env", "-e", "B=2", name, "sh", "-c", "echo $A $B"]);
        assert_eq!(said, "b c 2\n");

        ok(&["vm", "restart", name]);
        assert_eq!(ok(&["vm", "exec", name, "stat", "-c", "%s", "/root/long"]), "1572864000\n");
        ok(&["vm", "stop", name]);
        let id = field(name, "/id");
        let disk = format!("/var/lib/banger/vms/{}/root.ext4", id.as_str().unwrap());
        let checked = Command::new("e2fsck").args(["-fn", &disk]).output().expect("e2fsck");
        assert!(checked.status.success(), "{}", text(&checked.stdout));
        ok(&["vm", "rm", name]);
        assert_eq!(left(), Vec::<String>::new());
    });
}

#[test]
fn a_command_has_its_users_path_and_a_directory() {
    isolated("a_command_has_its_users_path_and_a_directory", |_| {
        ok(&["vm", "run", "-d", "--name", "web", "--memory", "256M"]);
        let of = |user: &str| ok(&["vm", "exec", "-u", user, "web", "printenv", "HOME", "USER", "SHELL", "PATH"]);
        // As the guest's own login says: /etc/login.defs of Debian.
        assert_eq!(
            of("root"),
            "/root\nroot\n/bin/bash\n/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"
        );
        let games = "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games\n";
        assert_eq!(of("games"), format!("/usr/games\ngames\n/usr/sbin/nologin\n{games}"));
        let files = "sed -i 's,^ENV_PATH.*,ENV_PATH PATH=/opt/tools:/bin,' /etc/login.defs
            mkdir -p /opt/tools /srv/work && printf '#!/bin/sh\\necho \"found $GREETING $HOME\"\\n' >/opt/tools/tool
            chmod 0755 /opt/tools/tool && printf 'GREETING=\"good day\"\\nHOME=/no\\n' >/etc/environment";
        ok(&["vm", "exec", "web", "sh", "-c", files]);
        // The program itself is found by it too.
        assert_eq!(ok(&["vm", "exec", "-u", "games", "web", "tool"]), "found good day /usr/games\n");
        assert_eq!(ok(&["vm", "exec", "-e", "GREETING=x", "-u", "games", "web", "tool"]), "found x /usr/games\n");
        assert_eq!(run(&["vm", "exec", "web", "tool"]).status.code(), Some(127), "it is not in root's");
        ok(&["vm", "exec", "web", "sh", "-c", "echo PATH=/opt/tools:/usr/bin >>/etc/environment"]);
        assert_eq!(ok(&["vm", "exec", "web", "tool"]), "found good day /root\n");
        assert_eq!(ok(&["vm", "exec", "-e", "PATH=/bin", "web", "printenv", "PATH"]), "/bin\n");

        assert_eq!(ok(&["vm", "exec", "-w", "/srv/work", "web", "pwd"]), "/srv/work\n");
        assert_eq!(ok(&["vm", "exec", "--workdir", "/opt", "-u", "games", "web", "pwd"]), "/opt\n");
        for wrong in ["/srv/none", "/etc/passwd"] {
            let out = run(&["vm", "exec", "-w", wrong, "web", "pwd"]);
            assert!(!out.status.success() && text(&out.stderr).starts_with("error["), "{}", text(&out.stderr));
            assert!(text(&out.stderr).contains("directory"), "{}", text(&out.stderr));
        }
        ok(&["vm", "rm", "-f", "web"]);
        assert_eq!(left(), Vec::<String>::new());
    });
}
