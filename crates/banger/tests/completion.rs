//! Completion by the shells themselves.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod stand_in;

use serde_json::json;
use stand_in::StandIn;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const BANGER: &str = env!("CARGO_BIN_EXE_banger");

fn script(shell: &str) -> String {
    let out = Command::new(BANGER).args(["completion", shell]).output().unwrap();
    assert!(out.status.success());
    String::from_utf8(out.stdout).unwrap()
}

/// What bash proposes for the last of these words, where bangerd would be on that socket.
fn proposed_with(socket: &Path, words: &str) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), script("bash")).unwrap();
    let ask = "source \"$1\"; IFS=' ' read -ra COMP_WORDS <<< \"$2\"; COMP_WORDS[0]=$3; \
               [[ $2 == *' ' ]] && COMP_WORDS+=(''); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); \
               _banger_names \"$3\" \"${COMP_WORDS[COMP_CWORD]}\" \"${COMP_WORDS[COMP_CWORD-1]}\"; \
               printf '%s\\n' \"${COMPREPLY[@]}\"";
    let mut bash = Command::new("bash");
    bash.args(["--norc", "-c", ask, "bash"]).arg(file.path()).args([words, BANGER]).env("BANGER_SOCKET", socket);
    let out = bash.output().unwrap();
    assert!(out.stderr.is_empty(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

fn proposed(words: &str) -> String {
    proposed_with(Path::new("/nosuch/socket"), words)
}

/// Names are proposed where the daemon answers at once, which it can't on a busy machine.
fn proposed_in_time(socket: &Path, words: &str, wanted: &str) {
    let end = Instant::now() + Duration::from_secs(30);
    let mut got = proposed_with(socket, words);
    while got != wanted && Instant::now() < end {
        got = proposed_with(socket, words);
    }
    assert_eq!(got, wanted, "{words}");
}

#[test]
fn bash_completes_commands_and_flags() {
    assert_eq!(proposed("banger vm wor"), "workspace\n");
    assert_eq!(proposed("banger kernel sh"), "show\n");
    assert_eq!(proposed("banger vm list --runn"), "--running\n");
    assert_eq!(proposed("banger vm run --progress js"), "json\n");
}

#[test]
fn bash_completes_names() {
    let daemon = StandIn::with_vms(&["calm-otter", "web", "web-2"]);
    let proposed = |words| proposed_with(&daemon.socket(), words);
    let names = |words, wanted: &str| proposed_in_time(&daemon.socket(), words, wanted);
    names("banger vm show we", "web\nweb-2\n");
    names("banger vm rm -f calm-otter w", "web\nweb-2\n");
    names("banger vm start ", "calm-otter\nweb\nweb-2\n");
    names("banger vm run --image de", "debian-12\ndev\n");
    names("banger vm run --image = deb", "debian-12\n"); // bash takes it apart
    names("banger image rm d", "debian-12\ndev\n");
    assert_eq!(proposed("banger vm workspace pu"), "push\npull\n");
    assert_eq!(proposed("banger explain no_vm"), "no_vmm\n");
    assert_eq!(proposed("banger vm show --js"), "--json\n", "a flag is none");
    daemon.calls();
    assert!(!proposed("banger vm create we").contains("web"), "that is a new one's");
    assert!(!proposed("banger vm stop we").contains("web"), "they don't run");
    assert!(!proposed("banger vm exec web -- we").contains("web-2"), "that is the guest's");
    assert_eq!(daemon.calls(), ["vm.list"]);
}

#[test]
fn names_wait_for_nobody_and_start_nothing() {
    let nobody = tempfile::tempdir().unwrap();
    let socket = nobody.path().join("s");
    let names = || {
        let begun = Instant::now();
        let words = ["complete-names", "--", "banger", "vm", "show", ""];
        let out = Command::new(BANGER).args(words).env("BANGER_SOCKET", &socket).output().unwrap();
        assert_eq!((out.stdout, out.stderr, out.status.code()), (vec![], vec![], Some(0)));
        begun.elapsed()
    };
    let alone = names();
    let _silent = UnixListener::bind(&socket).unwrap();
    let waited = names();
    // The machine may be busy; a wait without an end would be none of this.
    assert!(waited < alone + Duration::from_secs(2), "{waited:?}, {alone:?} without a daemon");
}

#[test]
fn a_name_that_a_shell_would_act_upon_is_none() {
    let daemon = StandIn::new(|_| {
        let asset = |name: &str| {
            json!({"name": name, "digest": "", "size_bytes": 1, "shared_bytes": 0, "version": null, "source": "",
                "vms": [], "created_at": ""})
        };
        Ok(json!({"assets": [asset("a"), asset("$(id)"), asset("a b"), asset("a\nc"), asset("a\u{1b}[2J")]}))
    });
    proposed_in_time(&daemon.socket(), "banger image show ", "a\n");
}

#[test]
fn each_shell_has_one() {
    let zsh = script("zsh");
    assert!(zsh.starts_with("#compdef banger") && zsh.contains("compdef _banger_names banger"));
    assert!(script("fish").contains("complete -c banger -a '(banger complete-names"));
    let dash = Command::new(BANGER).args(["completion", "dash"]).output().unwrap();
    assert_eq!(dash.status.code(), Some(2));
}
