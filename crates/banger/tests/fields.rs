//! `--json=FIELD,…`: some fields of a document, and a refusal before anything is done where there is no such field.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod stand_in;

use serde_json::{Value, json};
use stand_in::StandIn;

fn value(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(bytes)))
}

#[test]
fn only_what_was_asked_for_is_printed() {
    let daemon = StandIn::with_vms(&["a", "b"]);
    for (words, want) in [
        ("vm list --json=name,state", json!([{"name": "a", "state": "stopped"}, {"name": "b", "state": "stopped"}])),
        ("ps --json=name", json!([])),
        ("vm show --json=vmm a", json!({"vmm": null})),
        (
            "vm show --json=image a b",
            json!([{"image": {"name": "debian-12", "digest": null}}, {"image": {"name": "debian-12", "digest": null}}]),
        ),
        ("vm stop --json=ms,changed a", json!([{"ms": 1200, "changed": true}])),
        ("image ls --json=name", json!([{"name": "debian-12"}, {"name": "dev"}])),
        ("config show nat --json=key,value", json!({"key": "nat", "value": true})),
    ] {
        let out = daemon.run(words, &[]);
        assert_eq!(value(&out.stdout), want, "{words}");
        assert_eq!(out.status.code(), Some(0), "{words}: {}", String::from_utf8_lossy(&out.stderr));
    }
    // Without a field it is the flag that it was, and takes no word behind it.
    let out = daemon.run("vm show --json a", &[]);
    assert_eq!(value(&out.stdout)["created_at"], "2026-11-24T21:00:01Z");
}

#[test]
fn a_field_that_is_not_there_is_refused_before_anything_is_done() {
    let daemon = StandIn::with_vms(&["a"]);
    for (words, exit, says) in [
        ("vm create --image i --kernel k --json=nam", 2, "name is close; there are agent, cpus, "),
        ("vm stop --json=ms,zzzzzz a", 2, "there are changed, freed_bytes, ms, vm, warnings"),
        ("vm run --timings --json=stagse -- true", 125, "stages is close"),
        ("vm exec --json=name a true", 125, "--json"),
        ("vm workspace a --json=file", 2, "files is close"),
    ] {
        let out = daemon.run(words, &[]);
        let error = &value(&out.stderr)["error"];
        assert_eq!((out.status.code(), &error["code"]), (Some(exit), &"usage".into()), "{words}: {error}");
        assert!(error["fix"][0].as_str().unwrap().starts_with(says), "{words}: {error}");
    }
    assert_eq!(daemon.calls(), [""; 0]);
    let out = daemon.run("vm list --json=name --nosuch", &[]);
    assert_eq!(value(&out.stderr)["error"]["code"], "usage", "what the parser refuses is JSON too");
}

#[test]
fn help_says_so() {
    let help = StandIn::with_vms(&[]).run("vm list --help", &[]).stdout;
    assert!(String::from_utf8(help).unwrap().contains("--json[=<FIELD,…>]"));
}
