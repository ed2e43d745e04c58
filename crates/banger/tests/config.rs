//! The configuration file by the programs themselves: which value holds, where it is from, what a wrong one is told as.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use serde_json::Value;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

/// A user's directory of configuration with that file in it.
fn with(file: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("banger")).unwrap();
    fs::write(dir.path().join("banger/config.toml"), file).unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    dir
}

fn banger(config: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_banger"));
    for name in ["BANGER_CONFIG", "BANGER_IMAGE", "BANGER_PROGRESS", "BANGER_LOG_LEVEL", "BANGER_SOCKET"] {
        command.env_remove(name);
    }
    command.args(arguments).env("XDG_CONFIG_HOME", config).envs(variables.iter().copied());
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn each_value_is_shown_with_where_it_is_from() {
    let dir = with("# ours\nnat = false\njailer_enabled = false\nbridge_nam = \"x\"\n[vm_defaults]\nvcpu = 2\n");
    let out = banger(dir.path(), &["config", "show", "--json"], &[("BANGER_IMAGE", "dev")]);
    assert_eq!(out.status.code(), Some(0));
    let file = dir.path().join("banger/config.toml");
    let file = file.display();
    let told = format!(
        "warning: {file}:4: there is no key \"bridge_nam\"; bridge_name is close\n\
         warning: {file}:3: jailer_enabled = false has no effect: no VM runs without a jail, which holds all that its VMM can reach\n"
    );
    assert_eq!(text(&out.stderr), told);
    let settings: Vec<Value> = serde_json::from_slice(&out.stdout).unwrap();
    let one = |key: &str| {
        let found = settings.iter().find(|one| one["key"] == key).unwrap();
        (found["value"].clone(), found["from"].as_str().unwrap().to_owned())
    };
    assert_eq!(one("nat"), (false.into(), format!("{file}:2")));
    assert_eq!(one("vm_defaults.vcpu"), (2.into(), format!("{file}:6")));
    assert_eq!(one("default_image_name"), ("dev".into(), "BANGER_IMAGE".into()));
    assert_eq!(one("tap_pool_size"), (4.into(), "built in".into()));
    assert_eq!(one("default_dns"), (Value::Null, "built in".into()));

    let out = banger(dir.path(), &["config", "show", "vm_defaults.vcpu"], &[]);
    assert_eq!(text(&out.stdout), "2\n");
    let out = banger(dir.path(), &["config", "show", "cidrr", "--json"], &[]);
    let error: Value = serde_json::from_str(text(&out.stderr).lines().last().unwrap()).unwrap();
    assert_eq!((out.status.code(), &error["error"]["code"]), (Some(3), &"no_such_key".into()));
    assert!(error["error"]["fix"][0].as_str().unwrap().starts_with("cidr is close"), "{error}");
}

#[test]
fn a_wrong_value_stops_both_programs() {
    let dir = with("\nstop_timeout = \"soon\"\n");
    let file = dir.path().join("banger/config.toml");
    let told = format!("error[bad_config]: {}:2: stop_timeout can't be \"soon\"\n", file.display());
    let told = told + "  fix: stop_timeout: 90s, 1h30m, or seconds\n";
    let out = banger(dir.path(), &["vm", "list"], &[]);
    assert_eq!((out.status.code(), text(&out.stderr)), (Some(2), told.as_str()));
    let out = banger(dir.path(), &["vm", "exec", "web", "true"], &[]);
    assert_eq!(out.status.code(), Some(125), "2 could be the command's");
    assert_eq!(banger(dir.path(), &["version"], &[]).status.code(), Some(0));

    // Where anybody reaches it: a clone in a home directory is its owner's alone.
    let program = dir.path().join("bangerd");
    fs::copy(env!("CARGO_BIN_EXE_bangerd"), &program).unwrap();
    let mut daemon = Command::new(program);
    daemon.env("BANGER_CONFIG", &file);
    if fs::metadata("/proc/self").is_ok_and(|facts| std::os::unix::fs::MetadataExt::uid(&facts) == 0) {
        // It refuses to be root.
        daemon.uid(59_998).gid(59_998);
    }
    let out = daemon.output().unwrap();
    assert_eq!((out.status.code(), text(&out.stderr)), (Some(2), told.as_str()));
}

#[test]
fn a_file_that_is_named_must_be_there() {
    let out = banger(Path::new("/nosuch"), &["config", "show"], &[("BANGER_CONFIG", "/nosuch/config.toml")]);
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stderr).starts_with("error[bad_config]: /nosuch/config.toml can't be read\n"));
    assert_eq!(banger(Path::new("/nosuch"), &["config", "show"], &[]).status.code(), Some(0));
}
