//! A panic: three lines, a report, the terminal as it was. What is built for tests panics where `BANGER_PANIC` is set.

#![cfg(debug_assertions)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

fn banger(words: &[&str], state: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_banger"));
    command.args(words).env("BANGER_PANIC", "1").env("XDG_STATE_HOME", state).env("BANGER_CONFIG", "/dev/null");
    command.output().unwrap()
}

#[test]
fn three_lines_and_where_the_report_is() {
    let state = tempfile::tempdir().unwrap();
    let out = banger(&["vm", "show", "a-secret"], state.path());
    let said = String::from_utf8(out.stderr).unwrap();
    let lines: Vec<&str> = said.lines().collect();
    let [what, why, fix] = lines[..] else { panic!("{said}") };
    assert_eq!(what, "error[bug]: banger itself failed: BANGER_PANIC is set");
    assert!(why.starts_with("  why: ") && why.contains("src/cli/panic.rs:"), "{why}");
    assert_eq!(out.status.code(), Some(1));
    let path = Path::new(fix.strip_prefix("  fix: report it, with ").unwrap());
    assert!(path.starts_with(state.path()), "{fix}");
    assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
    let report = fs::read_to_string(path).unwrap();
    let first = format!("banger {} vm show\n", env!("CARGO_PKG_VERSION"));
    assert!(report.starts_with(&first) && report.contains("banger::cli::main"), "{report}");
    assert!(!report.contains("a-secret"), "{report}");
    // Where the state has no room for one, where temporary files are.
    let out = banger(&["vm", "show", "x"], Path::new("/proc/nosuch"));
    let said = String::from_utf8(out.stderr).unwrap();
    let path = Path::new(said.lines().last().unwrap().strip_prefix("  fix: report it, with ").unwrap());
    assert!(path.starts_with(std::env::temp_dir()), "{said}");
    fs::remove_file(path).unwrap();
}

#[test]
fn its_status_is_not_the_commands_and_under_json_it_is_an_object() {
    let state = tempfile::tempdir().unwrap();
    for (words, exit) in [(&["--json", "vm", "list"][..], 1), (&["--json", "run", "--", "true"], 125)] {
        let out = banger(words, state.path());
        let told: Value = serde_json::from_slice(&out.stderr).unwrap();
        assert_eq!((&told["error"]["code"], &told["error"]["exit"]), (&"bug".into(), &exit.into()), "{told}");
        assert_eq!(out.status.code(), Some(exit));
    }
}

#[test]
fn the_terminal_is_as_it_was() {
    let state = tempfile::tempdir().unwrap();
    let line = format!("stty -g; {} vm list; stty -g", env!("CARGO_BIN_EXE_banger"));
    let mut script = Command::new("script");
    script.args(["-qec", &line, "/dev/null"]).env("BANGER_PANIC", "1").env("XDG_STATE_HOME", state.path());
    let shown = String::from_utf8(script.output().unwrap().stdout).unwrap();
    // Raw, the terminal would not begin lines at the left either.
    let lines: Vec<&str> = shown.split("\r\n").filter(|line| !line.is_empty()).collect();
    assert_eq!(lines.len(), 5, "{shown:?}");
    assert_eq!(lines.first(), lines.last(), "{shown:?}");
    assert!(lines[1].contains("BANGER_PANIC is set"), "{shown:?}");
}
