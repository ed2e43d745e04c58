//! Errors as a script meets them: one object a line on standard error, and the exit status that it says.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod stand_in;

use serde_json::Value;
use stand_in::StandIn;
use std::process::{Command, Output};

fn banger(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_banger"));
    command.args(arguments).env("BANGER_CONFIG", "/dev/null").env_remove("BANGER_SOCKET");
    command.output().unwrap()
}

#[test]
fn each_is_an_object_with_its_exit_status() {
    let nowhere = ["--socket", "/nosuch/bangerd.sock"];
    let commands: &[(&[&str], &str, i32)] = &[
        (&["vm", "list", "--json"], "daemon_down", 6),
        (&["vm", "show", "web", "--json"], "daemon_down", 6),
        (&["vm", "stop", "web", "--json"], "daemon_down", 6),
        (&["vm", "run", "--json"], "daemon_down", 125),
        (&["vm", "exec", "--json", "web"], "daemon_down", 125),
        (&["vm", "ports", "--json"], "daemon_down", 6),
        (&["vm", "stats", "--json"], "daemon_down", 6),
        (&["image", "list", "--json"], "daemon_down", 6),
        (&["kernel", "rm", "k", "--json"], "daemon_down", 6),
        (&["ps", "--json"], "daemon_down", 6),
        (&["vm", "list", "--json", "--nosuch"], "usage", 2),
        (&["vm", "run", "--json", "--memory", "huge"], "usage", 125),
        (&["image", "lsit", "--json"], "usage", 2),
    ];
    for (arguments, code, exit) in commands {
        let out = banger(&[*arguments, &nowhere].concat());
        let told: Value = serde_json::from_slice(&out.stderr).unwrap_or_else(|error| panic!("{arguments:?}: {error}"));
        let error = &told["error"];
        assert_eq!((error["code"].as_str(), out.status.code()), (Some(*code), Some(*exit)), "{arguments:?}: {told}");
        assert_eq!(error["exit"], *exit);
        for field in ["message", "why", "fix", "stage", "op_id"] {
            assert!(error.get(field).is_some(), "{field}: {told}");
        }
        assert!(error["fix"].as_array().unwrap().iter().all(Value::is_string), "{told}");
        // What was done of what was asked for: nothing.
        assert!([b"".as_slice(), b"[]\n"].contains(&out.stdout.as_slice()));
    }
}

#[test]
fn each_of_several_names_is_told() {
    let out = banger(&["vm", "start", "a", "b", "--json", "--socket", "/nosuch/bangerd.sock"]);
    let text = String::from_utf8(out.stderr).unwrap();
    let codes: Vec<Value> = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect();
    assert_eq!((out.status.code(), codes.len(), out.stdout.as_slice()), (Some(7), 2, b"[]\n".as_slice()));
    assert!(codes.iter().all(|told| told["error"]["code"] == "daemon_down" && told["error"]["exit"] == 6));
}

#[test]
fn a_page_says_more() {
    let out = banger(&["explain", "error[daemon_down]:"]);
    assert!(out.status.success() && String::from_utf8(out.stdout).unwrap().contains("banger try -- COMMAND"));
    let out = banger(&["explain", "daemon_dwn"]);
    assert_eq!(out.status.code(), Some(3));
    assert!(String::from_utf8(out.stderr).unwrap().contains("daemon_down is close"));
}

#[test]
fn of_several_that_are_shown_one_that_is_not_there_stops_none() {
    let daemon = StandIn::with_vms(&["a", "b"]);
    let out = daemon.run("vm show a nosuch b --json=name", &[]);
    let shown: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(shown, serde_json::json!([{"name": "a"}, {"name": "b"}]));
    let told: Value = serde_json::from_slice(&out.stderr).unwrap();
    assert_eq!((&told["error"]["code"], out.status.code()), (&"no_such_vm".into(), Some(7)));
    let out = daemon.run("vm show nosuch b --json=name", &[]);
    assert_eq!(out.stdout, b"[{\"name\":\"b\"}]\n", "an array: there were several names");
    let out = daemon.run("vm show a nosuch", &[]);
    assert!(out.stdout.starts_with(b"name      a\n") && out.stderr.starts_with(b"error[no_such_vm]"));
    let out = daemon.run("vm show nosuch --json", &[]);
    assert_eq!((out.stdout.as_slice(), out.status.code()), (&b""[..], Some(3)));
    let out = daemon.run("vm stats nosuch other", &[]);
    assert_eq!((out.stdout.as_slice(), out.status.code()), (&b""[..], Some(7)));
    assert_eq!(String::from_utf8(out.stderr).unwrap().matches("error[no_such_vm]").count(), 2, "once each");
    let out = daemon.run("vm stats --watch=1h nosuch other", &[]);
    assert_eq!(out.status.code(), Some(7), "there is nothing to watch");
    let out = daemon.run("vm ports nosuch other", &[]);
    assert_eq!((out.stdout.as_slice(), out.status.code()), (&b""[..], Some(7)));
    assert_eq!(String::from_utf8(out.stderr).unwrap().matches("error[no_such_vm]").count(), 2);
}

#[test]
fn a_mistake_of_the_command_line_has_the_form_of_every_error() {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    for (words, exit, what, fix) in [
        ("vm lits", 2, "unrecognized subcommand 'lits'", "list is close"),
        ("vm strat web", 2, "unrecognized subcommand 'strat'", "start is close\n"),
        ("vm create --name x", 2, "unexpected argument '--name' found", "banger vm create --help"),
        ("vm list --imgae=x", 2, "unexpected argument '--imgae' found", "--image is close"),
        ("vm list --progess json", 2, "unexpected argument '--progess' found", "--progress is close"),
        ("stauts", 2, "unrecognized subcommand 'stauts'", "banger --help says"),
        ("vm list --runing", 2, "unexpected argument '--runing' found", "--running is close"),
        (
            "vm list --nosuchflag",
            2,
            "unexpected argument '--nosuchflag' found",
            "banger vm list --help says what it takes",
        ),
        ("vm show", 2, "the following required arguments were not provided: <NAME>...", "banger vm show --help"),
        (
            "vm list --image",
            2,
            "a value is required for '--image <IMAGE>' but none was supplied",
            "banger vm list --help",
        ),
        ("--color alwys vm list", 2, "invalid value 'alwys' for '--color <WHEN>' [possible", "always is close"),
        ("vm start --timeout soon web", 2, "invalid value 'soon' for '--timeout <D>'", "banger vm start --help"),
        ("vm stop --all web", 2, "the argument '--all' cannot be used with '[NAME]...'", "banger vm stop --help"),
        ("nosuch", 2, "unrecognized subcommand 'nosuch'", "banger --help says"),
        ("vm run --nosuch", 125, "unexpected argument '--nosuch' found", "banger vm run --help"),
        ("run --cpus many", 125, "invalid value 'many' for '--cpus <N>'", "banger run --help"),
        ("vm exec", 125, "the following required arguments were not provided", "banger vm exec --help"),
        ("--nosuch exec", 125, "unexpected argument '--nosuch' found", "banger exec --help"),
        ("try --cache", 125, "a value is required for '--cache <DIR>'", "banger try --help"),
    ] {
        let words: Vec<&str> = words.split(' ').collect();
        let out = banger(&words);
        let said = text(out.stderr);
        assert!(said.starts_with(&format!("error[usage]: {what}")), "{words:?}: {said}");
        assert!(said.contains(&format!("\n  fix: {fix}")), "{words:?}: {said}");
        assert!(said.lines().count() <= 8 && !said.contains("Usage:"), "{words:?}: {said}");
        assert!(!said.contains("--nat"), "a hidden one is near to nothing: {said}");
        assert_eq!((out.status.code(), out.stdout.len()), (Some(exit), 0), "{words:?}");
        let out = banger(&[&["--json"], words.as_slice()].concat());
        let told: Value = serde_json::from_slice(&out.stderr).unwrap_or_else(|error| panic!("{words:?}: {error}"));
        assert_eq!((&told["error"]["code"], &told["error"]["exit"]), (&"usage".into(), &exit.into()), "{told}");
        assert!(told["error"]["message"].as_str().unwrap().starts_with(what), "{told}");
        assert_eq!(out.status.code(), Some(exit), "{words:?}");
    }
    // No command at all is not answered in eight lines, but with what there is.
    let out = banger(&["vm"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(text(out.stderr).contains("\n  exec "));
    let told: Value = serde_json::from_slice(&banger(&["vm", "--json"]).stderr).unwrap();
    assert_eq!(told["error"]["message"], "a command's name is missing");
}
