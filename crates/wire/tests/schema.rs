//! `docs/schema` is what the types say. `BANGER_UPDATE=1 cargo test -p wire --test schema` writes it anew.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::path::Path;
use wire::{Method, schema};

#[test]
fn the_schemas_in_docs_are_those_of_the_types() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/schema");
    let update = std::env::var_os("BANGER_UPDATE").is_some();
    if update {
        std::fs::create_dir_all(&dir).unwrap();
    }
    let mut names = BTreeSet::new();
    for &method in Method::ALL {
        let document = serde_json::json!({
            "method": method.name(),
            "about": method.about(),
            "params": schema::params(method),
            "result": schema::result(method),
        });
        let text = serde_json::to_string_pretty(&document).unwrap() + "\n";
        let path = dir.join(format!("{}.json", method.name()));
        if update {
            std::fs::write(&path, &text).unwrap();
        }
        let have = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            have == text,
            "{} is not what the types say: BANGER_UPDATE=1 cargo test -p wire --test schema",
            path.display()
        );
        names.insert(path.file_name().unwrap().to_owned());
    }
    let there: BTreeSet<_> = dir
        .read_dir()
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().is_file())
        .map(|entry| entry.file_name())
        .collect();
    assert_eq!(there, names, "a schema without a method");
}
