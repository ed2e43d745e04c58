//! What every command takes: how much is said, in which colours, and whether anything is asked.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

mod stand_in;

use serde_json::json;
use stand_in::StandIn;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn quiet_is_names_alone() {
    let daemon = StandIn::with_vms(&["calm-otter", "web"]);
    for words in ["vm list -q", "-q vm list", "vm ls --quiet", "ps --quiet -v -q"] {
        let out = daemon.run(words, &[]);
        let want = if words.starts_with("ps") { "" } else { "calm-otter\nweb\n" };
        assert_eq!((text(&out.stdout), text(&out.stderr)), (want, ""), "{words}");
    }
    assert_eq!(text(&daemon.run("image list -q", &[]).stdout), "debian-12\ndev\n");
    let out = daemon.run("vm stop -q calm-otter web", &[]);
    assert_eq!(text(&out.stdout), "calm-otter\nweb\n");
    assert!(text(&out.stderr).contains("warning: it had to be killed"), "a warning is told all the same");
    assert_eq!(daemon.on_terminal("vm create -q --image dev --kernel k", &[]).0, "web\n");
    assert_eq!(daemon.run("vm list -q --json", &[]).status.code(), Some(2));
}

#[test]
fn an_empty_list_says_what_is_next_to_a_person_alone() {
    let daemon = StandIn::with_vms(&[]);
    let hint = "no VMs yet: banger vm run -- uname -a\n";
    assert_eq!(daemon.on_terminal("vm list", &[]), (hint.to_owned(), Some(0)));
    assert_eq!(daemon.on_terminal("vm list -q", &[]), (String::new(), Some(0)));
    assert_eq!(daemon.on_terminal("kernel list", &[]).0, "no kernels yet: banger kernel import --debian\n");
    for words in ["vm list", "kernel list"] {
        let out = daemon.run(words, &[]);
        assert_eq!((out.stdout, out.stderr, out.status.code()), (vec![], vec![], Some(0)), "{words}");
    }
    assert_eq!(text(&daemon.run("vm list --json", &[]).stdout), "[]\n");
}

#[test]
fn a_list_that_a_choice_made_empty_is_told_as_such() {
    let daemon = StandIn::with_vms(&["web"]);
    assert_eq!(daemon.on_terminal("ps", &[]).0, "no VM runs: banger vm start NAME\n");
    assert_eq!(daemon.on_terminal("vm list --image other", &[]).0, "none of them: banger vm list shows all\n");
}

#[test]
fn exec_starts_a_vm_where_it_is_told_to() {
    let daemon = StandIn::with_vms(&["web"]);
    let out = daemon.run("vm exec --start web true", &[]);
    assert_eq!((daemon.calls(), out.status.code()), (vec!["vm.start".to_owned(), "vm.exec".to_owned()], Some(125)));
    assert!(text(&out.stderr).starts_with("warning: slow\n"));
    let out = daemon.run("vm exec --start nosuch true", &[]);
    assert_eq!((daemon.calls(), out.status.code()), (vec!["vm.start".to_owned()], Some(125)));
    daemon.run("vm exec web true", &[]);
    assert_eq!(daemon.calls(), ["vm.exec"]);
}

#[test]
fn verbose_says_what_is_asked_and_under_which_id() {
    let daemon = StandIn::with_vms(&["web"]);
    let out = daemon.run("vm list -v", &[("BANGER_OP_ID", "op-mine")]);
    let asked = format!("asked of {}: vm.list, op-mine\n", daemon.socket().display());
    assert_eq!(text(&out.stderr), asked);
    assert!(text(&out.stdout).starts_with("web\tstopped\t"));
    assert_eq!(text(&daemon.run("vm list", &[]).stderr), "");
    assert_eq!(text(&daemon.run("vm list -v -q", &[]).stderr), "", "the last one counts");
}

#[test]
fn colours_are_on_a_terminal_or_where_they_are_asked_for() {
    let daemon = StandIn::with_vms(&["web"]);
    let red = "\u{1b}[31merror[no_such_vm]\u{1b}[0m: no\n";
    let plain = "error[no_such_vm]: no\n";
    let piped = |words: &str, variables: &[(&str, &str)]| text(&daemon.run(words, variables).stderr).to_owned();
    assert_eq!(piped("vm show x", &[]), plain);
    assert_eq!(piped("vm show x --color always", &[("NO_COLOR", "1")]), red);
    assert_eq!(piped("vm show x", &[("CLICOLOR_FORCE", "1")]), red);
    assert_eq!(daemon.on_terminal("vm show x", &[]), (red.to_owned(), Some(3)));
    for (words, variables) in [
        ("vm show x --color=never", &[][..]),
        ("vm show x", &[("NO_COLOR", "1")]),
        ("vm show x", &[("CLICOLOR", "0")]),
        ("vm show x", &[("TERM", "dumb")]),
    ] {
        assert_eq!(daemon.on_terminal(words, variables).0, plain, "{words} {variables:?}");
    }
    assert!(!piped("vm show x --json --color always", &[]).contains('\u{1b}'), "never in JSON");
    assert!(piped("vm lits --color=always", &[]).contains('\u{1b}'), "the parser's own words too");
    assert!(!piped("vm lits", &[]).contains('\u{1b}'));
    assert_eq!(daemon.run("vm list --color mauve", &[]).status.code(), Some(2));
}

#[test]
fn without_input_a_question_is_an_error_that_names_the_flag() {
    let daemon = StandIn::with_vms(&["calm-otter"]);
    let (shown, status) = daemon.on_terminal("vm prune --no-input", &[]);
    assert!(shown.contains("nobody can be asked whether 1 VM") && shown.contains("fix: -f\n"), "{shown}");
    assert_eq!(status, Some(2));
    let out = daemon.run("vm prune", &[]);
    assert_eq!(out.status.code(), Some(2), "nor is a pipe asked");
    let out = daemon.run("vm create --no-input", &[]);
    assert!(text(&out.stderr).contains("\n  fix: --yes\n"), "{}", text(&out.stderr));
    assert_eq!(out.status.code(), Some(2));
    let out = daemon.run("--no-input vm run -- true", &[]);
    assert_eq!(out.status.code(), Some(125), "2 could be the command's");
    assert!(daemon.calls().iter().all(|op| ["vm.list", "image.about"].contains(&op.as_str())), "something was changed");
}

#[test]
fn what_is_behind_a_name_is_the_other_programs() {
    let daemon = StandIn::new(|_| {
        Ok(json!({"config": "/c", "host": "web.vm", "address": "172.16.0.7", "bridge": "172.16.0.1"}))
    });
    let ssh = tempfile::tempdir().unwrap();
    fs::write(ssh.path().join("ssh"), "#!/bin/sh\necho \"$*\"\n").unwrap();
    fs::set_permissions(ssh.path().join("ssh"), Permissions::from_mode(0o755)).unwrap();
    let path = ssh.path().to_str().unwrap();
    for (words, want) in [
        ("vm ssh --via agent web -v -q", "-F /c web.vm -v -q\n"),
        ("vm ssh --via agent web -v -l root -- ls -q", "-F /c web.vm -v -l root -- ls -q\n"),
        ("ssh --via agent web -v", "-F /c web.vm -v\n"),
        ("-q vm ssh --via agent web ls", "-F /c web.vm ls\n"),
    ] {
        assert_eq!(text(&daemon.run(words, &[("PATH", path)]).stdout), want, "{words}");
    }
}

#[test]
fn a_bad_flag_of_run_is_ours_wherever_the_colours_are_named() {
    let daemon = StandIn::with_vms(&[]);
    for words in [
        "--color never vm run --nosuch",
        "--socket /x vm run --nosuch",
        "vm --color never run --nosuch",
        "vm run --memory huge",
    ] {
        assert_eq!(daemon.run(words, &[]).status.code(), Some(125), "{words}");
    }
}

#[test]
fn the_version_is_the_daemons_too_where_it_answers() {
    let ours = format!("banger {}\n", env!("CARGO_PKG_VERSION"));
    let daemon = StandIn::new(|_| Ok(json!({"bangerd": "9.9"})));
    assert_eq!(text(&daemon.run("version", &[]).stdout), format!("{ours}bangerd 9.9\n"));
    let out = daemon.run("version", &[("BANGER_SOCKET", "/nosuch/socket")]);
    assert_eq!((text(&out.stdout), text(&out.stderr)), (ours.as_str(), ""));
    let document = |bangerd| json!({"banger": env!("CARGO_PKG_VERSION"), "bangerd": bangerd});
    for (words, socket, bangerd) in
        [("--json version", daemon.socket(), json!("9.9")), ("version --json", "/nosuch".into(), json!(null))]
    {
        let out = daemon.run(words, &[("BANGER_SOCKET", socket.to_str().unwrap())]);
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&out.stdout).unwrap(), document(bangerd), "{words}");
    }
}

#[test]
fn the_socket_may_be_named_before_the_command_and_is_its_own() {
    let daemon = StandIn::with_vms(&["web"]);
    let asked = |words: &str, socket: &str| text(&daemon.run(words, &[("BANGER_SOCKET", socket)]).stderr).to_owned();
    for words in ["--socket /flag vm list", "vm --socket /flag list", "vm list --socket /flag", "--socket=/flag ps"] {
        assert!(asked(words, "/env").contains("error[daemon_down]: bangerd doesn't answer on /flag\n"), "{words}");
    }
    assert!(asked("vm list", "/env").contains("on /env\n"));
    let helper = asked("helper list", "/env");
    assert!(helper.contains("error[helper_down]") && !helper.contains("/env"), "that is bangerd's: {helper}");
}

#[test]
fn a_narrow_terminal_has_fewer_columns_and_every_name() {
    let daemon = StandIn::with_vms(&["calm-otter"]);
    let heads = |width: &str| daemon.on_terminal("vm list", &[("COLUMNS", width)]).0;
    assert!(heads("200").lines().next().unwrap().ends_with("AGE"));
    assert_eq!(heads("20"), "NAME        STATE\ncalm-otter  \x1b[2mstopped\x1b[0m\n");
    let plain = daemon.on_terminal("vm list --color never", &[("COLUMNS", "20")]).0;
    assert_eq!(plain, "NAME        STATE\ncalm-otter  stopped\n");
    assert!(daemon.run("vm list", &[("COLUMNS", "20")]).stdout.ends_with(b"T21:00:01Z\n"), "a pipe is not cut");
}

#[test]
fn a_global_flag_may_stand_before_the_commands_name() {
    let daemon = StandIn::with_vms(&["calm-otter"]);
    let behind = daemon.run("vm list --json=name,state", &[]);
    assert_eq!(text(&behind.stdout), "[{\"name\":\"calm-otter\",\"state\":\"stopped\"}]\n");
    for words in ["--json=name,state vm list", "vm --json=name,state list", "--json=name,state ps -v --no-input"] {
        let want = if words.contains("ps") { "[]\n" } else { text(&behind.stdout) };
        assert_eq!(text(&daemon.run(words, &[]).stdout), want, "{words}");
    }
    assert_eq!(daemon.run("--json vm list", &[]).stdout, daemon.run("vm list --json", &[]).stdout);
    for words in ["--json vm show x", "vm --json show x", "--json vm ssh x", "vm ssh --json x", "--json explain nosuch"]
    {
        let told = daemon.run(words, &[]);
        let told: serde_json::Value =
            serde_json::from_slice(&told.stderr).unwrap_or_else(|error| panic!("{words}: {error}"));
        assert!(told["error"]["code"].is_string(), "{words}: {told}");
    }
    daemon.calls();
    assert_eq!(daemon.run("--json=nosuch vm list", &[]).status.code(), Some(2));
    assert_eq!(daemon.run("--json -q vm list", &[]).status.code(), Some(2));
    assert_eq!(daemon.calls(), [""; 0], "a mistake is found before anything is asked");
    // What would be asked is answered, wherever the flag stands.
    for words in ["-y vm prune", "vm --yes prune", "vm prune --yes", "vm prune -y", "--yes --no-input vm prune"] {
        daemon.run(words, &[]);
        assert_eq!(daemon.calls(), ["vm.list", "vm.rm"], "{words}");
    }
    daemon.run("--yes vm create --no-input", &[]);
    assert_eq!(daemon.calls().get(1).map(String::as_str), Some("kernel.fetch"));
    let told = |words: &str| text(&daemon.run(words, &[]).stderr).to_owned();
    assert!(told("--progress json vm list -v").contains("vm.list"), "a flag of no weight here is taken all the same");
    for flag in ["--json", "-y", "-q", "-v", "--color=never", "--progress=none", "--no-input", "--socket=/x"] {
        let out = daemon.run(&format!("{flag} version"), &[]);
        assert_eq!(out.status.code(), Some(0), "{flag}: {}", text(&out.stderr));
    }
}

#[test]
fn a_narrow_terminal_has_the_names_of_a_long_list_too() {
    let daemon = StandIn::with_vms(&["calm-otter", "a-name-that-is-longer-than-the-terminal-is-wide"]);
    let shown = |width: &str| daemon.on_terminal("vm list -l --color never", &[("COLUMNS", width)]).0;
    assert!(shown("300").lines().next().unwrap().ends_with("CREATED"));
    let heads = |width: &str| shown(width).lines().next().unwrap().split_whitespace().count();
    assert_eq!([300, 120, 62, 30].map(|width| heads(&width.to_string())), [14, 8, 2, 1]);
    for width in ["120", "62", "30"] {
        let shown = shown(width);
        let names: Vec<&str> = shown.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
        assert_eq!(names, ["calm-otter", "a-name-that-is-longer-than-the-terminal-is-wide"], "{width}");
    }
}
