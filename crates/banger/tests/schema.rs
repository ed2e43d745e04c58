//! `docs/schema/cli` is what `banger schema` prints, and what is printed without a VM is as it says. The tests with VMs hold
//! every document that they read against it too. `BANGER_UPDATE=1` writes the files anew.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

#[path = "world/schema.rs"]
mod schema;

use serde_json::json;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

const BANGER: &str = env!("CARGO_BIN_EXE_banger");

fn banger(arguments: &[&str]) -> Output {
    Command::new(BANGER).args(arguments).env("BANGER_CONFIG", "/dev/null").output().unwrap()
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

#[test]
fn the_schemas_in_docs_are_those_of_the_program() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/schema/cli");
    let names = text(banger(&["schema"]).stdout);
    let mut files = BTreeSet::new();
    for name in names.lines() {
        let words: Vec<&str> = std::iter::once("schema").chain(name.split('.')).collect();
        let printed = text(banger(&words).stdout);
        let file = dir.join(format!("{name}.json"));
        if std::env::var_os("BANGER_UPDATE").is_some() {
            fs::create_dir_all(&dir).unwrap();
            fs::write(&file, &printed).unwrap();
        }
        let kept = fs::read_to_string(&file).unwrap_or_default();
        assert!(kept == printed, "{name} changed: BANGER_UPDATE=1 cargo test -p banger --test schema");
        assert!(printed.contains("\"$schema\"") || name.starts_with("helper."), "{printed}");
        files.insert(file.file_name().unwrap().to_owned());
    }
    let there: BTreeSet<_> = dir.read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(there, files, "a schema of no command");
}

#[test]
fn what_is_printed_is_as_its_schema_says() {
    for arguments in [&["config", "show", "--json"][..], &["config", "show", "nat", "--json"]] {
        let out = banger(arguments);
        schema::hold(BANGER, arguments, &serde_json::from_slice(&out.stdout).unwrap());
    }
    let out = banger(&["vm", "list", "--json", "--socket", "/nosuch/socket"]);
    schema::hold(BANGER, &["error"], &serde_json::from_slice(&out.stderr).unwrap());
    let out = banger(&["doctor", "--json", "--only", "kvm"]);
    schema::hold(BANGER, &["doctor"], &serde_json::from_slice(&out.stdout).unwrap());
}

#[test]
#[should_panic(expected = "extra is in no schema")]
fn the_tests_see_a_field_that_is_new() {
    schema::hold(BANGER, &["error"], &json!({"extra": 1}));
}

#[test]
#[should_panic(expected = "is missing")]
fn the_tests_see_a_field_that_is_gone() {
    let error = json!({"error": {"code": "x", "message": "y", "fix": [], "stage": null, "op_id": "", "exit": 1}});
    schema::hold(BANGER, &["error"], &error);
}

#[test]
#[should_panic(expected = "no \"string\"")]
fn the_tests_see_another_type() {
    let error =
        json!({"error": {"code": 1, "message": "y", "why": null, "fix": [], "stage": null, "op_id": "", "exit": 1}});
    schema::hold(BANGER, &["error"], &error);
}
