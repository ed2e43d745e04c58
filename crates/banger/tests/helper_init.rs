//! `banger helper init` as root, in a mount namespace of the test's own.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::process::{Command, Output};

/// Runs a shell script as root in a mount namespace with an empty /mnt; `$B` is the program, `$HERE` its paths' flags.
fn in_namespace(script: &str) -> Output {
    let banger = env!("CARGO_BIN_EXE_banger");
    let prelude = format!(
        "set -eu; mount -t tmpfs -o mode=755 none /mnt; B={banger}; \
         HERE='--state-dir /mnt/lib/banger --runtime-dir /mnt/run/banger --install-meta /mnt/etc/banger/install.toml'; "
    );
    Command::new("unshare").args(["--mount", "sh", "-c", &(prelude + script)]).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn makes_the_directories_and_the_metadata_and_then_keeps_them() {
    let out = in_namespace(
        "umask 077; $B helper init --owner nobody $HERE; \
         stat -c '%n %U %a %F' /mnt/lib /mnt/lib/banger /mnt/run/banger /mnt/etc/banger /mnt/etc/banger/install.toml; \
         cat /mnt/etc/banger/install.toml; stat -c %i /mnt/etc/banger/install.toml; \
         $B helper init --owner nobody $HERE; stat -c %i /mnt/etc/banger/install.toml; ls -A /mnt/etc/banger",
    );
    assert!(out.status.success(), "{}", text(&out.stderr));
    let lines: Vec<&str> = text(&out.stdout).lines().collect();
    assert_eq!(
        lines[..5],
        [
            "/mnt/lib root 755 directory",
            "/mnt/lib/banger nobody 700 directory",
            "/mnt/run/banger nobody 700 directory",
            "/mnt/etc/banger root 755 directory",
            "/mnt/etc/banger/install.toml root 644 regular file",
        ]
    );
    let metadata: toml::Table = lines[5..13].join("\n").parse().unwrap();
    assert_eq!(metadata["owner_user"].as_str(), Some("nobody"));
    assert_eq!((metadata["owner_uid"].as_integer(), metadata["owner_gid"].as_integer()), (Some(65534), Some(65534)));
    assert_eq!(metadata["version"].as_str(), Some(env!("CARGO_PKG_VERSION")));
    assert!(metadata["installed_at"].is_datetime());
    assert_eq!(lines[13], lines[14], "the second run leaves the file as it is");
    assert_eq!(lines[15..], ["install.toml"], "no draft stays");
    let said = text(&out.stderr);
    assert!(said.contains("made     /mnt/lib/banger\n") && said.contains("kept     /mnt/lib/banger\n"), "{said}");
    assert!(said.contains("next     sudo bangerd-root --state-dir /mnt/lib/banger"), "{said}");
}

#[test]
fn a_dry_run_says_it_all_and_changes_nothing() {
    let out = in_namespace("$B helper init --dry-run --owner nobody $HERE; find /mnt -mindepth 1");
    let said = text(&out.stdout);
    assert!(out.status.success() && out.stderr.is_empty(), "{}", text(&out.stderr));
    assert!(
        said.starts_with("directory /mnt/lib/banger: made, 65534:65534 0700\ndirectory /mnt/run/banger: "),
        "{said}"
    );
    assert!(
        said.contains("file /mnt/etc/banger/install.toml: 0:0 0644\nowner_user = \"nobody\"\nowner_uid = 65534\n"),
        "{said}"
    );
    assert!(!said.lines().any(|line| line.starts_with("/mnt")), "{said}");
}

#[test]
fn another_owner_needs_force() {
    let out = in_namespace(
        "$B helper init --owner daemon $HERE 2>/dev/null; touch /mnt/lib/banger/disk; chown daemon /mnt/lib/banger/disk; \
         $B helper init --owner nobody $HERE 2>&1 || echo \"exit $?\"; \
         $B helper init --force --owner nobody $HERE 2>/dev/null; stat -c '%U %a' /mnt/lib/banger /mnt/lib/banger/disk; \
         grep owner_user /mnt/etc/banger/install.toml",
    );
    let said = text(&out.stdout);
    assert!(
        said.starts_with("error[other_owner]: ") && said.contains("--force") && said.contains("exit 1\n"),
        "{said}"
    );
    assert!(said.ends_with("nobody 700\ndaemon 644\nowner_user = \"nobody\"\n"), "{said}");
}

/// Each of these must fail with its code and leave `/mnt` as it was.
#[test]
fn refused_before_anything_changes() {
    let cases = [
        ("helper init --owner root $HERE", "true", "error[owner_is_root]", 1),
        ("helper init --owner nobody-here $HERE", "true", "error[no_such_user]", 1),
        ("helper init --owner nobody --state-dir s", "true", "error[usage]", 2),
        ("helper init --owner nobody --state-dir /mnt/a/../b", "true", "error[usage]", 2),
        ("helper init --owner nobody --state-dir /mnt/a --runtime-dir /mnt/a/r", "true", "error[usage]", 2),
        ("helper init --owner nobody $HERE", "mkdir -m 777 /mnt/lib", "error[not_roots]", 1),
        ("helper init --owner nobody $HERE", "mkdir /mnt/run; ln -s /mnt/run /mnt/lib", "error[not_a_directory]", 1),
        (
            "helper init --owner nobody $HERE",
            "mkdir -p /mnt/lib; ln -s /etc /mnt/lib/banger",
            "error[not_a_directory]",
            1,
        ),
        (
            "helper init --owner nobody $HERE",
            "mkdir -p /mnt/lib/banger; touch /mnt/lib/banger/x",
            "error[not_the_owners]",
            1,
        ),
        (
            "helper init --owner nobody $HERE",
            "mkdir -p /mnt/etc/banger; echo '= 1' >/mnt/etc/banger/install.toml",
            "error[bad_metadata]",
            1,
        ),
    ];
    for (command, setup, want, status) in cases {
        let script = format!(
            "umask 022; {setup}; before=$(ls -lR /mnt); s=0; $B {command} || s=$?; [ \"$before\" = \"$(ls -lR /mnt)\" ] || s=98; exit $s"
        );
        let out = in_namespace(&script);
        assert_eq!(out.status.code(), Some(status), "{command}: {}{}", text(&out.stdout), text(&out.stderr));
        assert!(text(&out.stderr).starts_with(want), "{command}: {}", text(&out.stderr));
    }
}
